"""What is the deploy's own business wherever it strikes: Ctrl-C, and what the user's signal handlers raise."""

from __future__ import annotations

import inspect
import signal
import threading
from collections.abc import Set
from itertools import pairwise
from types import FrameType

__all__ = ["is_from_outside"]


def is_from_outside(error: BaseException) -> bool:
    """Whether ``error`` hit this code by chance: Ctrl-C, or what a signal handler raised. It goes on to the deploy."""
    if threading.current_thread() is not threading.main_thread():
        return False
    if isinstance(error, KeyboardInterrupt):
        return True
    numbers = signal.valid_signals()
    trace = error.__traceback__
    while trace is not None:
        if _handles_a_signal(trace.tb_frame, numbers):
            return True
        trace = trace.tb_next
    return False


def _handles_a_signal(frame: FrameType, numbers: Set[int]) -> bool:
    """Whether Python has called this frame's function for a signal: with its number and the frame that it broke into.

    The handlers that are set say less: one may be a partial or an object, or have put another in its place.
    """
    code = frame.f_code
    if code.co_argcount < 2 and not code.co_flags & inspect.CO_VARARGS:
        # Most functions of a recursion without an end, which is not to take longer still.
        return False
    given = inspect.getargvalues(frame)
    values = [given.locals.get(name) for name in given.args]
    more = given.locals.get(given.varargs) if given.varargs is not None else ()
    # By their real types: these are anybody's objects, and isinstance() asks their ``__class__``.
    values += more if type(more) is tuple else ()
    return any(
        type(number) in (int, signal.Signals) and number in numbers and at is not None and at is frame.f_back
        for number, at in pairwise(values)
    )
