"""The writer: a thread that owns the outbox's connection and commits what others ask for, in groups.

Where no thread can be started, ``Direct`` does the same in the thread of whoever asks.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, suppress
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from ld_deploy_hooks._clock import monotonic
from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks._forking import unforkable
from ld_deploy_hooks._future import Future
from ld_deploy_hooks._log import internal_fault
from ld_deploy_hooks._threads import DaemonThread

__all__ = ["Direct", "Store", "Writer"]

T = TypeVar("T")

# How many commands one commit may carry: a bound on how long the first of them waits.
_GROUP = 100
# Seconds that one who writes directly waits for another thread, or for the frame that a signal handler interrupted.
_TURN = 1.0


class Store(Protocol):
    """What the writer needs of an outbox; it is made, used and closed in the writer's thread alone."""

    @property
    def is_gone(self) -> bool:
        """Whether its file is not where it was opened any more."""

    def transaction(self) -> AbstractContextManager[Any]:
        """Commit at the end of the block, roll back if it raises."""

    def close(self) -> None:
        """Close the connection."""

    def close_inherited(self) -> None:
        """Close the connection in a forked child."""


S = TypeVar("S", bound=Store)


class Writer(Generic[S]):
    """Runs commands on a store in a daemon thread; a command is done once what it did is committed.

    Args:
        open_store: opens the store; called in the writer's thread, at once, and until it succeeds again for each group
            of commands; once more when the store's file is gone.
        beat: called in the writer's thread about every ``every`` seconds, once the store is open.
        every: seconds.

    Raises:
        RuntimeError: the thread cannot be started.
    """

    def __init__(self, open_store: Callable[[], S], *, beat: Callable[[], None], every: float) -> None:
        self._open_store = open_store
        self._beat = beat
        self._every = every
        self._store: S | None = None
        self._closed = False
        # Not asked of the thread: where a signal handler raises in is_alive(), threading takes it for dead ever after.
        self._is_over = False
        self._process = os.getpid()
        self._queue: SimpleQueue[tuple[Callable[[S], Any], Future[Any]] | None] = SimpleQueue()
        self._thread = DaemonThread(self._run, "ld-deploy-writer")
        self._thread.start()

    def submit(self, command: Callable[[S], T]) -> Future[T]:
        """Queue ``command``, which is called with the store inside a transaction.

        It may be called twice, when the first transaction was rolled back because of another command. The future gets
        its answer after the commit, or an OutboxError when the store cannot be opened or written, or is closed.
        """
        future: Future[T] = Future()
        self._queue.put((command, future))
        if self._is_over or self._process != os.getpid():
            self._refuse_the_rest()
        return future

    def close(self, timeout: float) -> bool:
        """Do what is queued, close the store, end the thread; False if that takes longer than ``timeout`` seconds."""
        self._queue.put(None)
        self._thread.join(timeout)
        self._closed = True
        return self._is_over

    def close_inherited(self) -> None:
        """Close the store in a forked child, where the thread is no more."""
        if self._store is not None:
            self._store.close_inherited()

    def _run(self) -> None:
        try:
            self._work()
        finally:
            self._is_over = True
            self._refuse_the_rest()

    def _work(self) -> None:
        # While the deploy gets ready to record. What is wrong with the store is found again, and said, by who records.
        with suppress(Exception):
            self._open()
        going = True
        last_beat = monotonic()
        while going:
            group, going = self._next_group(max(last_beat + self._every - monotonic(), 0.0))
            self._commit(group)
            # What it holds leads to the deploy's own objects, which may not live on while this waits.
            del group
            if monotonic() - last_beat >= self._every:
                last_beat = monotonic()
                if self._store is not None:
                    self._beat()
        if self._store is not None:
            with unforkable():
                self._store.close()
                self._store = None

    def _open(self) -> None:
        if self._store is None or self._store.is_gone:
            with unforkable():
                self._store = self._open_store()

    def _refuse_the_rest(self) -> None:
        with suppress(Empty):
            while True:
                item = self._queue.get_nowait()
                if item is not None:
                    item[1].set_exception(OutboxError("The outbox is closed.", path=""))

    def _next_group(self, wait: float) -> tuple[list[tuple[Callable[[S], Any], Future[Any]]], bool]:
        """Return the commands of the next commit, none if none come in ``wait`` seconds, and whether more may come."""
        group: list[tuple[Callable[[S], Any], Future[Any]]] = []
        try:
            item = self._queue.get(timeout=wait)
            while item is not None:
                group.append(item)
                if len(group) == _GROUP:
                    return group, True
                item = self._queue.get_nowait()
        except Empty:
            return group, True
        return group, False

    def _commit(self, group: list[tuple[Callable[[S], Any], Future[Any]]]) -> None:
        try:
            if group:
                self._open()
        except Exception as error:
            # It concerns them all: none of them has to find out again, which may take long.
            for _, future in group:
                self._fail(future, error)
            return
        if len(group) > 1:
            answers: list[Any] = []
            # One of them cannot be done: each for itself finds out which, and does not take the others with it.
            with suppress(Exception):
                answers = self._together([command for command, _ in group])
            for (_, future), answer in zip(group, answers, strict=False):
                future.set_result(answer)
            if answers:
                return
        for command, future in group:
            try:
                (answer,) = self._together([command])
            except Exception as error:
                self._fail(future, error)
            else:
                future.set_result(answer)

    def _together(self, commands: list[Callable[[S], Any]]) -> list[Any]:
        assert self._store is not None
        with unforkable(), self._store.transaction():
            return [command(self._store) for command in commands]

    def _fail(self, future: Future[Any], error: Exception) -> None:
        if not self._closed:
            _say(error)
        future.set_exception(error)


class Direct(Generic[S]):
    """A writer without a thread: a command is done, and committed, when :meth:`submit` returns.

    Args:
        open_store: opens the store; called in the caller's thread, for each command.
    """

    def __init__(self, open_store: Callable[[], S]) -> None:
        self._open_store = open_store
        self._turn = threading.Lock()
        self._closed = False

    def submit(self, command: Callable[[S], T]) -> Future[T]:
        """Do ``command``; the future is done, as that of :meth:`Writer.submit` is later."""
        future: Future[T] = Future()
        if self._closed or not self._turn.acquire(timeout=_TURN):
            future.set_exception(OutboxError("The outbox is closed, or busy.", path=""))
            return future
        try:
            with closing(self._open_store()) as store, store.transaction():
                answer = command(store)
        except Exception as error:
            _say(error)
            future.set_exception(error)
        else:
            future.set_result(answer)
        finally:
            self._turn.release()
        return future

    def close_inherited(self) -> None:
        """Do nothing: the store was closed after each command."""

    def close(self, timeout: float) -> bool:
        """Do nothing more."""
        self._closed = True
        return True


def _say(error: Exception) -> None:
    if not isinstance(error, OutboxError):
        internal_fault("Writing to the outbox", error)
