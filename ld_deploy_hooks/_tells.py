"""The thread of tells: what plugins are told runs here, in order, and nobody waits for it."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue

from ld_deploy_hooks._log import logger

__all__ = ["Tells"]

# Seconds that close() waits for a line that is half written: a handler that hangs must not hang the exit.
_MID_LINE = 0.5


class Tells:
    """Runs calls one after another in a daemon thread of its own, which begins with the first of them.

    Any thread may use it. :meth:`tell` and :meth:`flush` wait for no lock, so a signal handler may use them too. In a
    forked child it begins anew: the calls that the parent had waiting are the parent's.
    """

    def __init__(self) -> None:
        self._closed = False
        self._begin()
        if hasattr(os, "register_at_fork"):
            begin = weakref.WeakMethod(self._begin)  # what is registered is kept for ever

            def after_in_child() -> None:
                method = begin()
                if method is not None:
                    method()

            os.register_at_fork(after_in_child=after_in_child)

    def _begin(self) -> None:
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._starting = threading.Lock()
        self._speaking = threading.RLock()
        self._thread: threading.Thread | None = None
        self._unable = False

    def tell(self, call: Callable[[], object]) -> None:
        """Have ``call`` called after all that came before it; nothing happens after :meth:`close`.

        Where no thread can be started, a line says so once, and this and all later calls are skipped.
        """
        if self._closed or self._unable:
            return
        self._calls.put(call)
        # Whoever holds the lock is starting the thread, which will find the call. It may be a frame below this one.
        if self._starting.acquire(blocking=False):
            try:
                if self._thread is None:
                    self._start()
            finally:
                self._starting.release()

    def flush(self, timeout: float) -> bool:
        """Wait until no call handed over so far is still to be done, at most ``timeout`` seconds.

        Returns:
            False if the time was not enough, or at once in the thread of tells itself. True after :meth:`close`: what
            was still to be done never will be.
        """
        if self._closed or self._thread is None:
            return True
        if self._thread is threading.current_thread():
            return False
        done = threading.Event()
        self._calls.put(done.set)
        return done.wait(timeout)

    def say(self, message: str) -> None:
        """Log ``message`` as a warning; nothing after :meth:`close`."""
        with self._speaking:
            if not self._closed:
                logger.warning("%s", message)

    def close(self) -> None:
        """Start no further call and log no further line; a call that is under way is not waited for."""
        self._closed = True
        self._calls.put(None)
        if self._speaking.acquire(timeout=_MID_LINE):
            self._speaking.release()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="ld-deploy-tells", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._unable = True
            self._thread = None
            self._calls = SimpleQueue()
            self.say(
                "No thread could be started to tell plugins what happens, so they are told nothing in this process; "
                "the deploy and its events go on. Raise the limit of threads or of memory."
            )

    def _run(self) -> None:
        while not self._closed:
            call = self._calls.get()
            if call is None:
                return
            try:
                call()
            except BaseException as error:
                self.say(
                    f"A tell failed with {type(error).__name__} outside of a plugin; later ones go on. This is a fault "
                    "of ld-deploy-hooks: please report it."
                )
            del call  # it may hold an exception and with it the frames of the deploy
