"""What is done at the end of this process, also of one that leaves past ``atexit``."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable

__all__ = ["at_exit", "watch_exit"]

# After all that multiprocessing itself gives a priority, as the joining of what feeds its queues: tasks may still
# deploy until then.
_LAST = -100

_callbacks: list[Callable[[], None]] = []
_watched_in: int | None = None


def at_exit(callback: Callable[[], None]) -> None:
    """Have ``callback`` called at the end of this process, before all that was registered earlier."""
    _callbacks.append(callback)
    atexit.register(callback)


def watch_exit() -> bool:
    """Have the same done in a child of ``multiprocessing``, which by fork or forkserver leaves by ``os._exit()``.

    To be called in the child: it begins by forgetting what its parent had to do at its end.

    Returns:
        Whether that is in time: not if only threads of the child are still at work.
    """
    global _watched_in
    process = sys.modules.get("multiprocessing.process")
    if _watched_in == os.getpid() or process is None or process.parent_process() is None:
        return True
    from multiprocessing import util

    if util._exiting:  # type: ignore[attr-defined]
        return False
    _watched_in = os.getpid()
    util.Finalize(None, _call_all, exitpriority=_LAST)
    return True


def _call_all() -> None:
    # What the child itself does next, and Python at the end of any other process: threads that are no daemons may be in
    # the middle of a deployment. Thread pools end their own there.
    threading._shutdown()  # type: ignore[attr-defined]
    for callback in reversed(_callbacks):
        callback()
