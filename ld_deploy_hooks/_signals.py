"""SIGTERM and SIGHUP, transparently: what is open is told before the process dies of the signal as it would have.

Raising SystemExit from the handler is not enough: Invoke's and Fabric's waits for a command let go of it only after
many seconds. So the handler itself has the end told, puts the old handler back, and delivers the signal again.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

# Its fork hooks, and those of logging, are to be registered before ours.
from ld_deploy_hooks import _forking as _hooks_of_forks  # noqa: F401

__all__ = ["Signals"]

_NAMES = ("SIGTERM", "SIGHUP", "SIGBREAK")


class Signals:
    """The handlers of this process, from its first open deployment to its last.

    Args:
        cut_off: tells what is open as cancelled by a signal, waits for that, bounded, and must not take any lock that
            the interrupted thread may hold.
        note: keeps in mind that a signal came, which counts if what is open fails after it; takes no lock either, and
            waits for nothing.
    """

    def __init__(self, cut_off: Callable[[int], None], note: Callable[[int], None]) -> None:
        self._cut_off = cut_off
        self._note = note
        self._telling = False

    def watch(self) -> None:
        """Handle the signals from now on; does nothing outside the main thread, where Python takes no handlers."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _numbers():
            before = signal.getsignal(number)
            if not isinstance(before, _Handler) and _may_replace(before):
                signal.signal(number, _Handler(before, self._is_over, self._is_noted))

    def release(self) -> None:
        """Put the old handlers back where ours is still in place; in another thread, ours stays as a pass-through."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _numbers():
            handler = signal.getsignal(number)
            if isinstance(handler, _Handler):
                signal.signal(number, handler.before)

    def _is_over(self, number: int) -> None:
        # A second signal is delivered at once: whoever sends it does not want to wait.
        if not self._telling:
            self._telling = True
            self._cut_off(number)

    def _is_noted(self, number: int) -> None:
        if not self._telling:
            self._note(number)


class _Handler:
    """In the place of one other, which it knows for itself: the user's own may keep this one, and call it later.

    Args:
        before: what it took the place of.
        dies: called before the process dies of the signal.
        lives: called before the user's own handler is, which may well let the deploy go on.
    """

    def __init__(self, before: Any, dies: Callable[[int], None], lives: Callable[[int], None]) -> None:
        self.before = before
        self._dies = dies
        self._lives = lives

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if callable(self.before):
            self._lives(number)
            self.before(number, frame)
            return
        if _forking:
            _deferred.append(lambda: self._die(number))
            return
        self._die(number)

    def _die(self, number: int) -> None:
        try:
            self._dies(number)
        finally:
            signal.signal(number, self.before)
            os.kill(os.getpid(), number)


# A fork of the main thread holds locks (logging's, for one) that our threads may need: what would wait for these
# threads comes after it. The fork takes so long that half of the signals to one who forks arrive in it.
_forking = False
_deferred: list[Callable[[], None]] = []
# By thread, what was blocked before. A signal to a child that has not begun yet would be lost in it, having a handler.
_masks: dict[int, set[signal.Signals]] = {}


def _before_fork() -> None:
    global _forking
    _forking = _forking or threading.current_thread() is threading.main_thread()
    ours = [number for number in _numbers() if isinstance(signal.getsignal(number), _Handler)]
    if ours:
        _masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, ours)  # type: ignore[assignment]


def _after_fork_in_parent() -> None:
    global _forking
    mask = _masks.pop(threading.get_ident(), None)
    if _forking and threading.current_thread() is threading.main_thread():
        _forking = False
        while _deferred:
            _deferred.pop()()
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork_in_child() -> None:
    """Put the old handlers back: the child owns nothing that is open.

    A signal that reaches a handler in Python right before a wait in C does not end that wait: multiprocessing's
    workers, which SIGTERM is to end, would now and then live on.
    """
    global _forking
    _forking = False
    _deferred.clear()
    for number in _numbers():
        handler = signal.getsignal(number)
        if isinstance(handler, _Handler):
            signal.signal(number, handler.before)
    mask = _masks.pop(threading.get_ident(), None)
    _masks.clear()
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def _numbers() -> list[int]:
    return [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]


def _may_replace(handler: Any) -> bool:
    """Whether ours may take the place of ``handler``.

    Never of SIG_IGN (nohup) nor of one that was not set from Python (None). Never of the default one as process 1, a
    container's command: the kernel drops the signal that is delivered again there, and the deploy would go on after it
    was told as failed.
    """
    if handler is signal.SIG_DFL:
        return os.getpid() != 1
    return handler is not signal.SIG_IGN and callable(handler)
