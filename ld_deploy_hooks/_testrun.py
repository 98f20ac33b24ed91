"""Whether this process belongs to a test run: from one nothing is sent, and nobody's outbox is touched.

Told by the environment, which children inherit; and in this process by more than that, for tests clear the environment,
and leave threads behind.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

__all__ = [
    "LOOPBACK",
    "OFF",
    "VARIABLE",
    "Recording",
    "current_recording",
    "held",
    "hold_process",
    "is_held",
    "is_pytests_own",
    "reason_to_hold",
]

# Set by the pytest plugin, whatever it was before: OFF, or LOOPBACK for a test that may tell this very machine.
VARIABLE = "LD_DEPLOY_PYTEST"
OFF = "off"
LOOPBACK = "loopback"

# pytest sets the first from version 8.2 on, the second while a test runs; a worker of pytest-xdist keeps the third.
_MARKS = ("PYTEST_VERSION", "PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER", VARIABLE)
_PYTEST = "pytest is running"


class Recording(Protocol):
    """What takes the place of outbox and sender for the deployments of a test."""

    def reporter(self, plugins: Any) -> Any:
        """Return what records the events of one run."""

    def untold(self, settings: Any, why: str | None = None) -> None:
        """Note that a run tells nothing; without a reason, the settings have it."""


class _Hold:
    def __init__(self, why: str, recording: Recording | None) -> None:
        self.why = why
        self.recording = recording
        # The only thread that it does not hold, by its identifier.
        self.free: int | None = None


# Of this process, whatever thread asks: the innermost last.
_holds: list[_Hold] = []
# The first of them, once tests have run here.
_of_the_process = _Hold(_PYTEST, None)


@contextmanager
def held(why: str = _PYTEST, recording: Recording | None = None) -> Iterator[None]:
    """Let nothing be sent by this process; its deployments go to ``recording``, if there is one.

    Args:
        why: in words, as the source of the setting ``disabled``.
        recording: what records the deployments that start in the block; None takes back one further out.
    """
    hold = _Hold(why, recording)
    _holds.append(hold)
    try:
        yield
    finally:
        _holds[:] = [other for other in _holds if other is not hold]


def hold_process() -> Callable[[], None]:
    """Let nothing be sent by this process until it ends, for who knows what a test has left behind.

    Returns:
        To be called by a program that has run the tests and goes on: lets its own thread go, until the exit begins.
        What is registered with :mod:`atexit` later than that, and so called earlier, is the program's own.
    """
    hold = _of_the_process
    hold.free = None
    if hold not in _holds:
        _holds.insert(0, hold)

    def let_go() -> None:
        hold.free = threading.get_ident()
        atexit.register(take_back)

    def take_back() -> None:
        hold.free = None

    return let_go


def is_held() -> bool:
    """Whether tests hold what this thread deploys, whatever the environment says."""
    return _hold_here() is not None


def _hold_here() -> _Hold | None:
    here = threading.get_ident()
    return next((hold for hold in reversed(_holds) if hold.free != here), None)


def reason_to_hold(environ: Mapping[str, str] | None) -> str | None:
    """Return why nothing may be sent, None outside of tests.

    Args:
        environ: judge by this environment alone; None judges this process.
    """
    hold = _hold_here() if environ is None else None
    if hold is not None:
        return hold.why
    if environ is None:
        # Where tests have left a thread or an exit handler, pytest's marks may be gone by the time that it deploys.
        return _PYTEST if is_pytests_own() or _is_marked(os.environ) else None
    return _PYTEST if _is_marked(environ) else None


def is_pytests_own() -> bool:
    """Whether this process was started as ``pytest`` or ``python -m pytest``, or is a worker of pytest-xdist.

    It is over when the tests are.
    """
    # What a worker executes comes over a pipe, and all that its main module has is execnet's, which receives it.
    serves = getattr(sys.modules.get("__main__"), "serve", None)
    if "xdist" in sys.modules and getattr(serves, "__module__", None) == "execnet.gateway_base":
        return True
    program = Path(sys.argv[0]) if getattr(sys, "argv", None) else Path()
    started_as = program.parent if program.name == "__main__.py" else program
    return started_as.name.removesuffix(".exe") in ("pytest", "py.test")


def _is_marked(environ: Mapping[str, str]) -> bool:
    return any(environ.get(mark) for mark in _MARKS)


def current_recording() -> Recording | None:
    """Return what records the deployments of this process now."""
    hold = _hold_here()
    return hold.recording if hold is not None else None
