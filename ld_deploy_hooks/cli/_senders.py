"""Who has sent a signal: the terminal, which has sent it to the command as well, or somebody else. Linux tells."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from ld_deploy_hooks._threads import DaemonThread

__all__ = ["Listener"]

# A handler in Python is not told the sender; who waits for a signal is.
_KNOWN = sys.platform == "linux" and hasattr(signal, "sigwaitinfo")


class Listener:
    """Takes signals in a thread of its own, with who has sent them. They are held back from where it is made.

    A signal goes to any thread that lets it through, so it is to be made before there is another one.

    Args:
        numbers: the signals, of which each has a handler.
        heard: called with the number of a signal, and whether the system has sent it and not a process.
    """

    def __init__(self, numbers: Iterable[int], heard: Callable[[int, bool], None]) -> None:
        self._numbers = frozenset(numbers) if _KNOWN else frozenset[int]()
        self._heard = heard
        self._is_over = False
        self._given = signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers) if self._numbers else set()

    @contextmanager
    def let_through(self) -> Iterator[None]:
        """In the block this thread has its signals as before, and so has a process that is started in it."""
        self.close()
        try:
            yield
        finally:
            if self._numbers:
                signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals that were held back, and those that come in the block; all of them, when it is left."""
        thread = DaemonThread(self._listen, "ld-deploy-signals")
        try:
            if self._numbers:
                thread.start()
        except RuntimeError:  # none can be started any more
            with self.let_through():
                yield
            return
        try:
            yield
        finally:
            self._is_over = True
            if thread.ident is not None:
                signal.pthread_kill(thread.ident, min(self._numbers))
                thread.join()

    def close(self) -> None:
        """Hold nothing back any more: what is still waiting goes to its handler."""
        if self._numbers:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._given)

    def _listen(self) -> None:
        while not self._is_over:
            self._take(signal.sigwaitinfo(self._numbers))
        while (said := signal.sigtimedwait(self._numbers, 0)) is not None:
            self._take(said)

    def _take(self, said: signal.struct_siginfo) -> None:
        if self._is_over and said.si_pid == os.getpid():
            # What wakes us for the end.
            return
        self._heard(said.si_signo, said.si_code > 0)
