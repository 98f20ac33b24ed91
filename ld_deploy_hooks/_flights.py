"""Attempts under way: each is one POST on a worker thread of its own.

The timeouts of requests do not bound a server that drips bytes, so an attempt that takes too long is given up and its
worker left behind. All threads are daemons.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol

from ld_deploy_hooks._clock import monotonic
from ld_deploy_hooks._threads import DaemonThread

__all__ = ["Answer", "Attempt", "Client", "Flights"]


class Answer(Protocol):
    """What the client says of one attempt."""

    @property
    def outcome(self) -> str: ...

    @property
    def status(self) -> int | None: ...

    @property
    def line(self) -> str: ...

    @property
    def hold_back(self) -> float | None: ...


class Client(Protocol):
    """One event, one POST, one answer; raises nothing that the network or the service does."""

    def post(self, payload: str, /) -> Answer: ...

    def close(self) -> None: ...


@dataclass(eq=False, repr=False)
class Attempt:
    """An event of a source that is being sent, since ``started`` (seconds, monotonic)."""

    source: Any
    item: Any
    started: float


_Jobs = SimpleQueue["Attempt | None"]


class Flights:
    """Sends events side by side, and hands each attempt to ``land`` with its answer, in the worker's thread.

    Args:
        make_client: called in a worker's thread, once, since importing requests takes a quarter of a second.
        land: gets an attempt and its answer, or the exception that making or asking the client raised.
    """

    def __init__(self, make_client: Callable[[], Client], land: Callable[[Attempt, Answer | Exception], None]) -> None:
        self._make_client = make_client
        self._land = land
        self._client: Client | None = None
        self._client_lock = threading.Lock()
        self._workers: dict[Attempt, _Jobs] = {}
        self._idle: list[_Jobs] = []

    def __len__(self) -> int:
        return len(self._workers)

    def prepare(self) -> None:
        """Start the first worker now: from Python 3.12 on a process that is about to exit starts no thread.

        Raises:
            RuntimeError: no thread can be started.
        """
        self._idle.append(self._hire())

    def under_way(self) -> list[Attempt]:
        """Return the attempts that have neither landed nor been given up."""
        return list(self._workers)

    def launch(self, source: Any, item: Any) -> bool:
        """Send ``item``; False if every worker is busy and no other can be had."""
        try:
            worker = self._idle.pop() if self._idle else self._hire()
        except RuntimeError:
            return False
        attempt = Attempt(source, item, monotonic())
        self._workers[attempt] = worker
        worker.put(attempt)
        return True

    def landed(self, attempt: Attempt) -> bool:
        """Free the worker of an attempt that was answered; False if the attempt had been given up."""
        worker = self._workers.pop(attempt, None)
        if worker is None:
            return False
        self._idle.append(worker)
        return True

    def give_up(self, before: float) -> list[Attempt]:
        """Forget the attempts that have been under way since ``before`` (seconds, monotonic), and return them."""
        late = [attempt for attempt in self._workers if attempt.started <= before]
        for attempt in late:
            self._workers.pop(attempt).put(None)
        return late

    def close(self) -> None:
        """Let every worker end with what it is doing."""
        for worker in [*self._idle, *self._workers.values()]:
            worker.put(None)
        if self._client is not None:
            self._client.close()

    def _hire(self) -> _Jobs:
        jobs: _Jobs = SimpleQueue()
        DaemonThread(self._work, "ld-deploy-post", (jobs,)).start()
        return jobs

    def _work(self, jobs: _Jobs) -> None:
        while (attempt := jobs.get()) is not None:
            answer: Answer | Exception
            try:
                with self._client_lock:
                    if self._client is None:
                        self._client = self._make_client()
                answer = self._client.post(attempt.item.payload)
            except Exception as error:
                answer = error
            self._land(attempt, answer)
