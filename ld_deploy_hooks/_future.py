"""What is known later: as :class:`concurrent.futures.Future`, but nothing that a signal handler raises can block it.

That one keeps a lock while somebody asks it, waits for it or adds a callback. An exception that a signal handler raises
right there in the main thread (Ctrl-C, a time limit by alarm) may leave that lock taken, and the thread that is to
settle the future waits for ever.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from ld_deploy_hooks._clock import monotonic
from ld_deploy_hooks._log import internal_fault

__all__ = ["Future"]

T = TypeVar("T")

# Seconds between two looks: should nobody open the gate any more.
_OFTEN = 0.25


class Future(Generic[T]):
    """The answer to what another thread does, or the exception that it has met with."""

    def __init__(self) -> None:
        self._is_done = False
        self._answer: T
        self._error: BaseException | None = None
        self._callbacks: deque[Callable[[Future[T]], object]] = deque()
        # Free once it is settled. Who waits takes it and gives it back; who does not get to that holds up nobody.
        self._gate = threading.Lock()
        self._gate.acquire()

    def done(self) -> bool:
        """Return whether it is settled."""
        return self._is_done

    def result(self, timeout: float | None = None) -> T:
        """Return the answer, once it is there.

        Args:
            timeout: seconds to wait at most; None waits as long as it takes.

        Raises:
            TimeoutError: it is not there in time.
            BaseException: what :meth:`set_exception` was given.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        return self._answer

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the exception that was met with, None if there is an answer; waits as :meth:`result` does.

        Raises:
            TimeoutError: neither is there in time.
        """
        deadline = None if timeout is None else monotonic() + timeout
        while not self._is_done:
            left = _OFTEN if deadline is None else deadline - monotonic()
            if left <= 0:
                raise TimeoutError
            if self._gate.acquire(timeout=min(left, _OFTEN)):
                self._gate.release()
        return self._error

    def set_result(self, answer: T) -> None:
        """Settle it with an answer; the callbacks are called in this thread."""
        self._answer = answer
        self._settle()

    def set_exception(self, error: BaseException) -> None:
        """Settle it with an exception; the callbacks are called in this thread."""
        self._error = error
        self._settle()

    def add_done_callback(self, callback: Callable[[Future[T]], object]) -> None:
        """Have ``callback`` called with this future: by whoever settles it, or now if it is settled."""
        self._callbacks.append(callback)
        if self._is_done:
            self._call_back()

    def _settle(self) -> None:
        self._is_done = True
        self._gate.release()
        self._call_back()

    def _call_back(self) -> None:
        # Two threads may do this side by side; each callback is one's alone.
        while self._callbacks:
            try:
                callback = self._callbacks.popleft()
            except IndexError:
                return
            try:
                callback(self)
            except Exception as error:
                internal_fault("Saying that something is done", error)
