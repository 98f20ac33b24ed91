"""Imports in threads, which a fork waits for: a child that inherits a module's lock hangs at its own import of it."""

from __future__ import annotations

# Before a fork the hooks run in the reverse order of their registration: logging's own, which takes its lock, is to
# come after ours, or a thread that logs while it imports would wait for it.
import logging  # noqa: F401
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["importing"]

# Seconds that a fork waits.
_PATIENCE = 1.0

_changed = threading.Condition()
_at_work = 0


@contextmanager
def importing() -> Iterator[None]:
    """Do an import in the block, in a thread of ours."""
    global _at_work
    with _changed:
        _at_work += 1
    try:
        yield
    finally:
        with _changed:
            _at_work -= 1
            _changed.notify_all()


def _before_fork() -> None:
    # Held over the fork, so that none begins meanwhile.
    _changed.acquire()
    _changed.wait_for(lambda: not _at_work, _PATIENCE)


def _after_fork_in_child() -> None:
    global _changed, _at_work
    _changed = threading.Condition()
    _at_work = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=lambda: _changed.release(), after_in_child=_after_fork_in_child
    )
