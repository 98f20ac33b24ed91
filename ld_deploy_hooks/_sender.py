"""The sender: takes what is due from its sources and delivers it, with patience, in the background.

One thread decides what is sent when; each attempt runs on a worker thread of its own, because the timeouts of requests
do not bound a server that drips bytes: an attempt that takes longer than ``ATTEMPT`` is given up and its worker left
behind. All threads are daemons: whoever waits for them waits on an Event, with a deadline.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from ld_deploy_hooks._clock import monotonic, now
from ld_deploy_hooks._log import internal_fault, logger

__all__ = ["Answer", "Client", "Item", "Sender", "Source"]

# Seconds, all from the table of constants in the design notes.
ATTEMPT = 15.0
_BACKOFF_FIRST = 0.5
_BACKOFF_MOST = 60.0
_BACKOFF_ACROSS_RUNS = 900.0
# Attempts after which an event has outlived the process that recorded it, mostly.
_TRIES_OF_ONE_RUN = 8
# Seconds between two looks at how far a flush has come.
_MEANWHILE = 0.1
# Seconds after which it is looked again at what another process is sending, while somebody waits for it.
_ELSEWHERE = 0.05
# How many identities are sent side by side once the service has accepted a first event.
_WIDTH = 8


class Item(Protocol):
    """An event that a source has handed out under a lease."""

    @property
    def payload(self) -> str: ...

    @property
    def tries(self) -> int: ...


class Answer(Protocol):
    """What the client says of one attempt."""

    @property
    def outcome(self) -> str: ...

    @property
    def line(self) -> str: ...

    @property
    def hold_back(self) -> float | None: ...


class Client(Protocol):
    """One event, one POST, one answer; raises nothing that the network or the service does."""

    def post(self, payload: str, /) -> Answer: ...

    def close(self) -> None: ...


class Source(Protocol):
    """Where events come from, and where their fate is kept. Times are Unix milliseconds."""

    def claim(self, limit: int) -> Sequence[Any]: ...

    def ack(self, item: Any) -> None: ...

    def retry_later(self, item: Any, next_attempt: int) -> None: ...

    def release(self, item: Any) -> None: ...

    def reject(self, item: Any, reason: str) -> None: ...

    def make_due(self) -> None: ...

    def next_due(self) -> int | None: ...

    def is_busy_elsewhere(self) -> bool: ...


@dataclass(eq=False)
class _Flush:
    deadline: float
    done: threading.Event


@dataclass(eq=False)
class _Attempt:
    source: Source
    item: Any
    worker: SimpleQueue[_Attempt | None]
    started: float


class Sender:
    """Delivers what its sources hold, oldest first within an identity.

    Args:
        sources: asked in this order.
        make_client: called in a worker thread at its first attempt, since importing requests takes a quarter of a
            second.

    Raises:
        RuntimeError: the thread cannot be started.
    """

    def __init__(self, sources: Sequence[Source], make_client: Callable[[], Client]) -> None:
        self._sources = sources
        self._make_client = make_client
        self._client: Client | None = None
        self._client_lock = threading.Lock()
        self._inbox: SimpleQueue[tuple[_Attempt, Answer | None] | _Flush | None] = SimpleQueue()
        self._flights: list[_Attempt] = []
        self._idle: list[SimpleQueue[_Attempt | None]] = []
        self._flushes: list[_Flush] = []
        self._accepted_one = False
        self._held_until = 0.0
        self._refusals = 0
        self._muted = False
        self._closed = False
        self.stopped: str | None = None
        # What the last attempt that failed met with, until one succeeds.
        self.trouble: str | None = None
        self._thread = threading.Thread(target=self._run, name="ld-deploy-sender", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Say that something may be due."""
        self._inbox.put(None)

    def flush(self, timeout: float, meanwhile: Callable[[], None] | None = None) -> None:
        """Wait until nothing more can be delivered before ``timeout`` seconds have passed, at most that long.

        Args:
            timeout: in seconds.
            meanwhile: called every now and then while it waits.
        """
        flush = _Flush(monotonic() + timeout, threading.Event())
        self._inbox.put(flush)
        if not self._thread.is_alive():
            return
        if meanwhile is None:
            flush.done.wait(timeout)
            return
        while not flush.done.wait(min(max(flush.deadline - monotonic(), 0), _MEANWHILE)):
            if monotonic() >= flush.deadline:
                break
            meanwhile()

    def close(self, timeout: float) -> None:
        """Send and log nothing more: the interpreter may be about to end, and a log handler may hold a lock then.

        Args:
            timeout: seconds to wait for the thread; whoever is in the middle of an attempt ends with it.
        """
        self._muted = self._closed = True
        self._inbox.put(None)
        self._thread.join(timeout)

    def _say(self, line: str) -> None:
        if not self._muted:
            logger.warning("%s", line)

    def _run(self) -> None:
        try:
            # What an earlier run has put off is tried once by a new one, whatever its backoff.
            for source in self._sources:
                source.make_due()
            wait = 0.0
            while not self._closed:
                self._receive(wait)
                self._give_up_on_slow_attempts()
                self._dispatch()
                wait = self._settle_flushes()
        except Exception as error:
            if not self._muted:
                internal_fault("Sending events", error)
            self.stopped = f"The sender broke with {type(error).__name__}"
        finally:
            for flush in self._flushes:
                flush.done.set()
            for worker in [*self._idle, *(flight.worker for flight in self._flights)]:
                worker.put(None)
            if self._client is not None:
                self._client.close()

    def _receive(self, wait: float) -> None:
        try:
            message = self._inbox.get(timeout=wait) if wait > 0 else self._inbox.get_nowait()
            while True:
                if isinstance(message, _Flush):
                    self._flushes.append(message)
                elif message is not None:
                    self._land(*message)
                message = self._inbox.get_nowait()
        except Empty:
            pass

    def _land(self, attempt: _Attempt, answer: Answer | None) -> None:
        if attempt in self._flights:
            self._flights.remove(attempt)
            self._idle.append(attempt.worker)
        else:
            attempt.worker.put(None)
            if answer is None or answer.outcome != "accepted":
                # Given up before, and put off then: only a late success changes anything.
                return
        if answer is None:
            self._put_off(attempt)
            return
        if answer.hold_back is not None:
            self._refusals += 1
            # The jitter grows with every refusal, so that many clients of one token spread out.
            held = monotonic() + answer.hold_back + random.uniform(0, 0.5 * self._refusals)
            self._held_until = max(self._held_until, held)
        self.trouble = answer.line if answer.outcome == "retry" else None
        if answer.outcome == "accepted":
            attempt.source.ack(attempt.item)
            if not self._accepted_one:
                self._accepted_one = True
                for source in self._sources:
                    source.make_due()
            if answer.hold_back is None:
                self._refusals = 0
        elif answer.outcome == "rejected":
            attempt.source.reject(attempt.item, answer.line)
            self._say(answer.line)
        elif answer.outcome == "stop":
            attempt.source.release(attempt.item)
            if self.stopped is None:
                self.stopped = answer.line
                self._say(answer.line)
        else:
            self._put_off(attempt)

    def _put_off(self, attempt: _Attempt) -> None:
        tries = attempt.item.tries
        most = _BACKOFF_MOST if tries < _TRIES_OF_ONE_RUN else _BACKOFF_ACROSS_RUNS
        delay = random.uniform(0, min(most, _BACKOFF_FIRST * 2 ** min(tries, 16)))
        attempt.source.retry_later(attempt.item, now() + int(delay * 1000))

    def _give_up_on_slow_attempts(self) -> None:
        late = monotonic() - ATTEMPT
        for attempt in [flight for flight in self._flights if flight.started <= late]:
            self._flights.remove(attempt)
            self._put_off(attempt)

    def _dispatch(self) -> None:
        if self.stopped is not None or monotonic() < self._held_until:
            return
        for source in self._sources:
            free = (_WIDTH if self._accepted_one else 1) - len(self._flights)
            if free <= 0:
                return
            for item in source.claim(free):
                attempt = _Attempt(source, item, self._idle.pop() if self._idle else self._hire(), monotonic())
                self._flights.append(attempt)
                attempt.worker.put(attempt)

    def _hire(self) -> SimpleQueue[_Attempt | None]:
        jobs: SimpleQueue[_Attempt | None] = SimpleQueue()
        threading.Thread(target=self._work, args=(jobs,), name="ld-deploy-post", daemon=True).start()
        return jobs

    def _work(self, jobs: SimpleQueue[_Attempt | None]) -> None:
        while (attempt := jobs.get()) is not None:
            answer = None
            try:
                with self._client_lock:
                    if self._client is None:
                        self._client = self._make_client()
                answer = self._client.post(attempt.item.payload)
            except Exception as error:
                if not self._muted:
                    internal_fault("Sending an event", error)
            self._inbox.put((attempt, answer))

    def _settle_flushes(self) -> float:
        """Tell those who wait when nothing more can be done for them; return the seconds until something can."""
        here = monotonic()
        wait = 3600.0
        due: float | None = None
        if self.stopped is None:
            dues = [due for source in self._sources if (due := source.next_due()) is not None]
            if dues:
                due = max(here + (min(dues) - now()) / 1000, self._held_until)
                if not self._flights or len(self._flights) < (_WIDTH if self._accepted_one else 1):
                    wait = max(due - here, 0.01)
        for flight in self._flights:
            wait = min(wait, max(flight.started + ATTEMPT - here, 0.01))
        for flush in list(self._flushes):
            hopeless = not self._flights and (due is None or due > flush.deadline)
            if hopeless and due is not None and any(source.is_busy_elsewhere() for source in self._sources):
                # What another process is sending, or what waits behind it, may be due again in a moment.
                hopeless = False
                wait = min(wait, _ELSEWHERE)
            if hopeless or here >= flush.deadline:
                flush.done.set()
                self._flushes.remove(flush)
        return wait
