"""The threads of tells: what plugins are told runs here, in order for each, and nobody waits for it."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import NamedTuple

from ld_deploy_hooks._clock import monotonic
from ld_deploy_hooks._log import logger
from ld_deploy_hooks._threads import DaemonThread

__all__ = ["TELLING", "Tells"]

# What a thread is called in which plugins are told.
TELLING = "ld-deploy-tells"

# Seconds that close() waits for a line that is half written: a handler that hangs must not hang the exit.
_MID_LINE = 0.5
# Seconds that close() waits for tells that are about to return, for they would be taken for hanging ones.
_RETURNING = 0.1


class _Tell(NamedTuple):
    call: Callable[[], object]
    plugin: str
    hook: str  # empty: no tell, but the mark of a flush


class Tells:
    """Runs calls in daemon threads: those of one listener one after another, in a thread of its own.

    Any thread may use it. :meth:`tell` and :meth:`flush` wait for no lock, so a signal handler may use them too. In a
    forked child it begins anew: the calls that the parent had waiting are the parent's.
    """

    def __init__(self) -> None:
        self.closed = False
        self._begin()
        if hasattr(os, "register_at_fork"):
            begin = weakref.WeakMethod(self._begin)  # what is registered is kept for ever

            def after_in_child() -> None:
                method = begin()
                if method is not None:
                    method()

            os.register_at_fork(after_in_child=after_in_child)

    def _begin(self) -> None:
        self._listeners: dict[str, _Listener] = {}
        self._speaking = threading.RLock()

    def tell(self, listener: str, plugin: str, hook: str, call: Callable[[], object]) -> None:
        """Have ``call`` called after all that this listener was told before; nothing happens after :meth:`close`.

        Where no thread can be started, a line says so once, and this and all later calls of the listener are skipped.

        Args:
            listener: in words; a call that hangs holds up those of the same listener only.
            plugin: the plugin that is called, for the line that says that it hangs.
            hook: its hook.
            call: calls it.
        """
        if not self.closed:
            self._listener(listener).add(_Tell(call, plugin, hook))

    def begin(self, listener: str) -> None:
        """Start the thread of a listener now: from Python 3.12 on a process that is about to exit starts none."""
        if not self.closed:
            self._listener(listener).begin()

    def _listener(self, name: str) -> _Listener:
        if name not in self._listeners:
            self._listeners.setdefault(name, _Listener(self, name))
        return self._listeners[name]

    def flush(self, timeout: float, *, say: bool = False) -> bool:
        """Wait until no call handed over so far is still to be done, at most ``timeout`` seconds.

        Args:
            timeout: in seconds.
            say: whether a line names each call that the time was not enough for.

        Returns:
            False if the time was not enough, or at once in a thread of tells itself. True after :meth:`close`: what
            was still to be done never will be.
        """
        listeners = [] if self.closed else list(self._listeners.values())
        if any(listener.thread is threading.current_thread() for listener in listeners):
            return False
        deadline = monotonic() + timeout
        marks = [listener.mark() for listener in listeners]
        if all(mark.wait(max(deadline - monotonic(), 0)) for mark in marks if mark is not None):
            return True
        if say:
            for line in filter(None, [listener.held_up() for listener in listeners]):
                self.say(line)
        return False

    def say(self, message: str) -> None:
        """Log ``message`` as a warning; nothing after :meth:`close`."""
        with self._speaking:
            if not self.closed:
                logger.warning("%s", message)

    def close(self) -> None:
        """Start no further call and log no further line, but one for each listener that is not told everything.

        A call that is under way is not waited for.
        """
        if self.closed:
            return
        self.closed = True
        listeners = list(self._listeners.values())
        for listener in listeners:
            listener.wake()
        if self._speaking.acquire(timeout=_MID_LINE):
            try:
                deadline = monotonic() + _RETURNING
                for listener in listeners:
                    listener.join(max(deadline - monotonic(), 0))
                for line in filter(None, [listener.held_up() for listener in listeners]):
                    logger.warning("%s", line)
            finally:
                self._speaking.release()


class _Listener:
    """Who is told one thing after another, in a thread of its own."""

    def __init__(self, tells: Tells, name: str) -> None:
        self.thread: threading.Thread | None = None
        self._tells = tells
        self._name = name
        # What is not done yet, the call that is under way at the front; for each the queue gets an entry.
        self._undone: deque[_Tell] = deque()
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._starting = threading.Lock()
        self._unable = False
        self._said: _Tell | None = None

    def add(self, tell: _Tell) -> None:
        if not self._unable:
            self._undone.append(tell)
            self.wake()
            self.begin()

    def begin(self) -> None:
        # Whoever holds the lock is starting the thread, which will find the call. It may be a frame below this one.
        if self._starting.acquire(blocking=False):
            try:
                if self.thread is None and not self._unable:
                    self._start()
            finally:
                self._starting.release()

    def mark(self) -> threading.Event | None:
        """Return what is set when all that was added so far is done; None if it is."""
        if not self._undone or self._unable:
            return None
        done = threading.Event()
        self.add(_Tell(done.set, "", ""))
        return done

    def wake(self) -> None:
        self._wakes.put(None)

    def join(self, timeout: float) -> None:
        if self._undone and self.thread is not None and self.thread.is_alive():
            self.thread.join(timeout)

    def held_up(self) -> str | None:
        """Return the line that says which call is not done, unless it was said of this call before."""
        tells = [tell for tell in self._undone.copy() if tell.hook]
        if not tells or self._unable or tells[0] is self._said:
            return None
        self._said, later = tells[0], len(tells) - 1
        plugin, hook = self._said.plugin, self._said.hook
        unmade = f", and {later} later tell(s) were not made by then" if later else ""
        return (
            f"Plugin {plugin}: {hook} did not return in the time that plugins have{unmade}. Make it faster, or block "
            f"the plugin with LD_DEPLOY_PLUGINS=no:{plugin}."
        )

    def _start(self) -> None:
        self.thread = DaemonThread(self._run, TELLING)
        try:
            self.thread.start()
        except RuntimeError:
            self._unable = True
            self.thread = None
            self._undone.clear()
            self._tells.say(
                f"No thread could be started to tell {self._name} what happens, so nothing is told there in this "
                "process; the deploy and its events go on. Raise the limit of threads or of memory."
            )

    def _run(self) -> None:
        while True:
            self._wakes.get()
            if self._tells.closed:
                return
            try:
                self._undone[0].call()
            except BaseException as error:
                self._tells.say(
                    f"A tell failed with {type(error).__name__} outside of a plugin; later ones go on. This is a fault "
                    "of ld-deploy-hooks: please report it."
                )
            self._undone.popleft()
