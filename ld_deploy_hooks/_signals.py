"""SIGTERM and SIGHUP, transparently: what is open is told before the process dies of the signal as it would have.

Raising SystemExit from the handler is not enough: Invoke's and Fabric's waits for a command let go of it only after many seconds. So
the handler itself has the end told, puts the old handler back, and delivers the signal again.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["Signals"]

_NAMES = ("SIGTERM", "SIGHUP", "SIGBREAK")


class Signals:
    """The handlers of this process, from its first open deployment to its last.

    Args:
        cut_off: tells what is open as cancelled by a signal, waits for that, bounded, and must not take any lock that the
            interrupted thread may hold.
        note: keeps in mind that a signal came, which counts if what is open fails after it; takes no lock either, and waits for nothing.
    """

    def __init__(self, cut_off: Callable[[int], None], note: Callable[[int], None]) -> None:
        self._cut_off = cut_off
        self._note = note
        self._before: dict[int, Any] = {}
        self._telling = False

    def watch(self) -> None:
        """Handle the signals from now on; does nothing outside the main thread, where Python takes no handlers."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _numbers():
            before = signal.getsignal(number)
            if before == self._handle or not _may_replace(before):
                continue
            self._before[number] = before
            signal.signal(number, self._handle)

    def release(self) -> None:
        """Put the old handlers back where ours is still in place; in another thread, ours stays as a pass-through."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in list(self._before):
            if signal.getsignal(number) == self._handle:
                signal.signal(number, self._before.pop(number))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        before = self._before.get(number, signal.SIG_DFL)
        if callable(before):
            # The user's own, which may well let the deploy go on: nothing is told yet.
            self._note(number)
            before(number, frame)
            return
        if not self._telling:
            self._telling = True
            self._cut_off(number)
        # A second signal comes here at once: whoever sends it does not want to wait.
        signal.signal(number, before)
        os.kill(os.getpid(), number)


def _numbers() -> list[int]:
    return [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]


def _may_replace(handler: Any) -> bool:
    """Whether ours may take the place of ``handler``.

    Never of SIG_IGN (nohup) nor of one that was not set from Python (None). Never of the default one as process 1, a container's
    command: the kernel drops the signal that is delivered again there, and the deploy would go on after it was told as failed.
    """
    if handler is signal.SIG_DFL:
        return os.getpid() != 1
    return handler is not signal.SIG_IGN and callable(handler)
