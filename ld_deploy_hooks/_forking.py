"""What a fork must not come into the middle of, and waits for: an import, a transaction, in a thread of ours.

A child that inherits a module's lock hangs at its own import of it. One that inherits SQLite in the middle of a
transaction sees locks that nobody will ever give up.
"""

from __future__ import annotations

# Before a fork the hooks run in the reverse order of their registration: logging's own, which takes its lock, is to
# come after ours, or a thread that logs while it imports would wait for it.
import logging  # noqa: F401
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["unforkable", "was_waited_for"]

# Seconds that a fork waits.
_PATIENCE = 1.0

_changed = threading.Condition()
_at_work = 0
_waited_for = True
# Whether a fork has waited in vain for what is still being done: another process may hold the outbox, and those that
# follow do not wait for that again.
_in_vain = False


@contextmanager
def unforkable() -> Iterator[None]:
    """Do in the block what a fork is to wait for."""
    global _at_work, _in_vain
    with _changed:
        _at_work += 1
    try:
        yield
    finally:
        with _changed:
            _at_work -= 1
            _in_vain = _in_vain and _at_work > 0
            _changed.notify_all()


def was_waited_for() -> bool:
    """Whether the fork that made this process has waited for the end of everything."""
    return _waited_for


def _before_fork() -> None:
    global _waited_for, _in_vain
    # Held over the fork, so that none begins meanwhile.
    _changed.acquire()
    _waited_for = _changed.wait_for(lambda: not _at_work, 0 if _in_vain else _PATIENCE)
    _in_vain = not _waited_for


def _after_fork_in_child() -> None:
    global _changed, _at_work, _in_vain
    _changed = threading.Condition()
    _at_work, _in_vain = 0, False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=lambda: _changed.release(), after_in_child=_after_fork_in_child
    )
