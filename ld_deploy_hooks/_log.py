"""The one logger: a fault of ours is one clear line through it, never an exception."""

from __future__ import annotations

import logging
import select
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ld_deploy_hooks._outside import is_from_outside

__all__ = ["forget_said", "internal_fault", "listeners", "logger", "say_fault", "say_once"]

# Seconds that stderr may take to take a line.
_HEARS = 0.1

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    # Generic only from Python 3.11 on.
    _Adapter = logging.LoggerAdapter


class _Lines(_Adapter):
    """The logger, past whatever a handler of the user's or a stderr that was closed may raise."""

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log a line; a handler that raises loses it, and so does a stderr that nobody reads."""
        try:
            for listener in listeners:
                listener(str(msg) % args if args else str(msg))
            if not self.logger.hasHandlers() and not _is_heard():
                return
            super().log(level, msg, *args, stacklevel=kwargs.pop("stacklevel", 1) + 1, **kwargs)
        except Exception as error:
            if is_from_outside(error):
                raise


def _is_heard() -> bool:
    """Whether stderr takes a line now.

    Into a pipe that nobody reads it would be a wait without an end, and into one whose reader has gone the interpreter
    would fail to write it once more at exit, and change the exit status to 120.
    """
    if sys.stderr is None or not hasattr(select, "poll"):
        return True
    poll = select.poll()
    try:
        poll.register(sys.stderr.fileno(), select.POLLOUT)
    except (OSError, ValueError):
        # Not a file: a test's buffer, a notebook.
        return True
    return [event & ~select.POLLOUT for _, event in poll.poll(_HEARS * 1000)] == [0]


# No handler of ours: without the user's own logging set-up, logging's last resort writes warnings to stderr.
logger = _Lines(logging.getLogger("ld_deploy_hooks"), {})

# Called with every line, however logging is set up: how a test learns why nothing was told.
listeners: list[Callable[[str], object]] = []

_said: set[str] = set()


def say_once(message: str) -> None:
    """Log ``message`` as a warning, unless this process has said the very same already."""
    if message not in _said:
        _said.add(message)
        logger.warning("%s", message)


def forget_said() -> None:
    """Say once more what was said already: each test hears it."""
    _said.clear()


def internal_fault(doing: str, error: Exception) -> None:
    """Log a fault of this package, unless ``error`` is none: a signal handler of the user's has raised it.

    Raises:
        Exception: then it is that, and the deploy's own.
    """
    if is_from_outside(error):
        raise error
    say_fault(doing, error)


def say_fault(doing: str, error: Exception) -> None:
    """Log a fault of this package: what it was doing and the error's type, never its text, which may hold secrets."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" at {trace.tb_frame.f_globals.get('__name__')}:{trace.tb_lineno}" if trace is not None else ""
    say_once(
        f"{doing} failed with {type(error).__name__}{where}; the deploy goes on and this deployment may not be told to "
        "LaunchDarkly. This is a fault of ld-deploy-hooks: please report it."
    )
