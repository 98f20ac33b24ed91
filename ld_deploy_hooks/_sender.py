"""The sender: takes what is due from its sources and delivers it, with patience, in the background.

One daemon thread decides what is sent when, and gives up an attempt that takes longer than ``ATTEMPT``. Whoever waits
for it waits on an Event, with a deadline.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from ld_deploy_hooks._backoff import backoff, jitter
from ld_deploy_hooks._clock import monotonic, now
from ld_deploy_hooks._flights import Answer, Attempt, Client, Flights
from ld_deploy_hooks._log import internal_fault, say_once
from ld_deploy_hooks._threads import DaemonThread

__all__ = ["ATTEMPT", "Item", "Sender", "Source"]

# Seconds.
ATTEMPT = 15.0
_BACKOFF_MOST = 60.0
_BACKOFF_ACROSS_RUNS = 900.0
# How the jitter of a rate limit grows with each refusal, and its end.
_JITTER, _JITTER_MOST = 0.5, 10.0
# No hold-back that another run has stored is longer than what the client makes of any hint, and the jitter.
HOLD_MOST = 300.0 + _JITTER_MOST
# Seconds between two looks at how far a flush has come.
_MEANWHILE = 0.1
# Seconds after which it is looked again at what another process is sending, while somebody waits for it.
_ELSEWHERE = 0.05
# Seconds until the next look when something is due and cannot be had: the disk is full, another process is faster.
_PAUSE_FIRST, _PAUSE_MOST = 0.01, 5.0
# How many identities are sent side by side once the service has accepted a first event; one more is for the events of
# the deploy that runs, which do not wait for others'.
_WIDTH = 16
_OWN_WAITS = 0.25


class Item(Protocol):
    """An event that a source has handed out under a lease."""

    @property
    def payload(self) -> str: ...

    @property
    def tries(self) -> int: ...

    @property
    def recorded_at(self) -> int: ...


class Source(Protocol):
    """Where events come from, and where their fate is kept. Times are Unix milliseconds."""

    def claim(self, limit: int, *, own_only: bool) -> Sequence[Any]: ...

    def is_own(self, item: Any) -> bool: ...

    def note_sent(self, item: Any) -> None: ...

    def ack(self, item: Any) -> None: ...

    def retry_later(self, item: Any, next_attempt: int) -> None: ...

    def release(self, item: Any) -> None: ...

    def reject(self, item: Any, reason: str) -> None: ...

    def make_due(self) -> None: ...

    def next_due(self) -> int | None: ...

    def hold(self, until: int) -> None: ...

    def held_until(self) -> int: ...

    def is_busy_elsewhere(self) -> bool: ...


@dataclass(eq=False, repr=False)
class _Flush:
    """Somebody who waits until ``deadline`` (seconds, monotonic)."""

    deadline: float
    done: threading.Event


class Sender:
    """Delivers what its sources hold, oldest first within an identity, from the first :meth:`wake` or flush on.

    Where no thread can be started it is stopped from the beginning, and everything waits for another process.

    Args:
        sources: asked in this order.
        make_client: called in a worker thread, since importing requests takes a quarter of a second.
    """

    def __init__(self, sources: Sequence[Source], make_client: Callable[[], Client]) -> None:
        self._sources = sources
        self._inbox: SimpleQueue[tuple[Attempt, Answer | Exception] | _Flush | None] = SimpleQueue()
        self._flights = Flights(make_client, self._landed)
        self._flushes: list[_Flush] = []
        self._accepted_one = False
        self._began = now()
        self._pause = 0.0
        self._held_until = 0.0
        self._refusals = 0
        self._muted = False
        self._closed = False
        self._close_by = 0.0
        self.stopped: str | None = None
        # What the last attempt that failed met with, until one succeeds.
        self.trouble: str | None = None
        self._thread = DaemonThread(self._run, "ld-deploy-sender")
        try:
            self._thread.start()
            self._flights.prepare()
        except RuntimeError:
            self._closed = True
            self._inbox.put(None)
            self.stopped = (
                "No thread could be started to send events, so this process sends none. Raise the limit of threads or "
                "of memory."
            )
            self._say(self.stopped)

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
        if self._closed:
            return
        if meanwhile is None:
            flush.done.wait(timeout)
            return
        while not flush.done.wait(min(max(flush.deadline - monotonic(), 0), _MEANWHILE)):
            if monotonic() >= flush.deadline:
                break
            meanwhile()

    def stop(self, timeout: float) -> None:
        """Send and log nothing more: the interpreter may be about to end, and a log handler may hold a lock then.

        Args:
            timeout: seconds that attempts under way have to be answered.
        """
        if not self._muted:
            self._close_by = monotonic() + timeout
            self._muted = self._closed = True
            self._inbox.put(None)

    def close(self, timeout: float) -> bool:
        """As :meth:`stop`, and wait for that.

        Returns:
            Whether none is under way any more. Nobody else may send the event of one that is: this process may have
            delivered it.
        """
        self.stop(timeout)
        if self._thread.ident is not None:
            # It ends by then, unless the outbox holds it up.
            self._thread.join(timeout)
        return not self._flights

    def _say(self, line: str) -> None:
        if not self._muted:
            say_once(line)

    def _run(self) -> None:
        try:
            self._receive(None)
            if not self._closed:
                # What an earlier run has put off is tried once by a new one, whatever its backoff; but not while the
                # service has asked for patience.
                for source in self._sources:
                    source.make_due()
                    if (held := (source.held_until() - self._began) / 1000) > 0:
                        self._held_until = max(self._held_until, monotonic() + held)
                        self.trouble = f"The service has asked for {held:.0f} s of patience"
            wait: float | None = 0.0
            while not self._closed:
                self._receive(wait)
                self._give_up_on_slow_attempts()
                self._dispatch()
                wait = self._settle_flushes()
            while self._flights and (left := self._close_by - monotonic()) > 0:
                self._receive(left)
        except Exception as error:
            if not self._muted:
                internal_fault("Sending events", error)
            self.stopped = f"The sender broke with {type(error).__name__}"
        finally:
            self._closed = True
            for flush in self._flushes:
                flush.done.set()
            self._flights.close()

    def _receive(self, wait: float | None) -> None:
        """Take in what has come; if nothing has, wait so many seconds for it, or for ever (None)."""
        try:
            message = self._inbox.get(timeout=wait) if wait is None or wait > 0 else self._inbox.get_nowait()
            self._pause = 0.0
            while True:
                if isinstance(message, _Flush):
                    self._flushes.append(message)
                elif message is not None:
                    self._land(*message)
                message = self._inbox.get_nowait()
        except Empty:
            pass

    def _landed(self, attempt: Attempt, answer: Answer | Exception) -> None:
        # In the worker's thread: this one may be waiting for the outbox, even until the process ends.
        if not isinstance(answer, Exception) and answer.outcome == "accepted":
            attempt.source.note_sent(attempt.item)
        self._inbox.put((attempt, answer))

    def _land(self, attempt: Attempt, answer: Answer | Exception) -> None:
        if not self._flights.landed(attempt) and (isinstance(answer, Exception) or answer.outcome != "accepted"):
            # Given up before, and put off then: only a late success changes anything.
            return
        if isinstance(answer, Exception):
            if not self._muted:
                internal_fault("Sending an event", answer)
            self._put_off(attempt)
            return
        if answer.hold_back is not None or answer.status == 429:
            self._hold_back(answer.hold_back)
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
            of_a_project = answer.status in (403, 404)
            if of_a_project:
                self._put_off(attempt)
            else:
                attempt.source.release(attempt.item)
            if of_a_project and self._accepted_one and not attempt.source.is_own(attempt.item):
                # What an earlier run has recorded for another project; the token is good, as others have shown.
                self._say(answer.line)
            elif self.stopped is None:
                self.stopped = f"{answer.line} This run sends no more."
                self._say(self.stopped)
        else:
            self._put_off(attempt)

    def _hold_back(self, hint: float | None) -> None:
        """Send nothing for a while, with this token: the service has asked for it, and may have said for how long."""
        self._refusals += 1
        if hint is None:
            hint = backoff(self._refusals, _BACKOFF_MOST)
        # The jitter grows with every refusal, so that many clients of one token spread out.
        hint += jitter(min(_JITTER * self._refusals, _JITTER_MOST))
        self._held_until = max(self._held_until, monotonic() + hint)
        for source in self._sources:
            source.hold(now() + int((self._held_until - monotonic()) * 1000))

    def _put_off(self, attempt: Attempt) -> None:
        item = attempt.item
        # An event that an earlier run has recorded, and tried in vain, has time.
        most = _BACKOFF_MOST if item.recorded_at >= self._began else _BACKOFF_ACROSS_RUNS
        attempt.source.retry_later(item, now() + int(backoff(item.tries, most) * 1000))

    def _give_up_on_slow_attempts(self) -> None:
        for attempt in self._flights.give_up(monotonic() - ATTEMPT):
            self.trouble = f"No answer came within {ATTEMPT:.0f} s"
            self._put_off(attempt)

    def _dispatch(self) -> None:
        if self.stopped is not None or monotonic() < self._held_until:
            return
        for source in self._sources:
            free = self._width - len(self._flights)
            if free > 0:
                self._launch(source, source.claim(free, own_only=False))
            elif not any(flight.source.is_own(flight.item) for flight in self._flights.under_way()):
                self._launch(source, source.claim(1, own_only=True))

    @property
    def _width(self) -> int:
        return _WIDTH if self._accepted_one else 1

    def _launch(self, source: Source, items: Sequence[Any]) -> None:
        for item in items:
            if not self._flights.launch(source, item):
                # Those that are there do all of it then.
                source.release(item)

    def _settle_flushes(self) -> float | None:
        """Tell those who wait when nothing more can be done for them; return the seconds until something can."""
        here = monotonic()
        waits = [max(flight.started + ATTEMPT - here, 0.01) for flight in self._flights.under_way()]
        due = self._next_due(here)
        if due is not None:
            if len(self._flights) >= self._width:
                waits.append(_OWN_WAITS)
            else:
                if due <= here:
                    # It was asked for just now, in vain.
                    self._pause = min(max(2 * self._pause, _PAUSE_FIRST), _PAUSE_MOST)
                    due = here + self._pause
                waits.append(due - here)
        for flush in list(self._flushes):
            idle = not self._flights
            hopeless = idle and (due is None or due > flush.deadline)
            if idle and due is not None and due > here and any(source.is_busy_elsewhere() for source in self._sources):
                # What another process is sending, or what waits behind it, may be due again in a moment.
                hopeless = False
                waits.append(_ELSEWHERE)
            if hopeless or here >= flush.deadline:
                flush.done.set()
                self._flushes.remove(flush)
            else:
                waits.append(flush.deadline - here)
        return min(waits, default=None)

    def _next_due(self, here: float) -> float | None:
        """Return the monotonic time at which something can be sent; None while nothing can or must."""
        if self.stopped is not None:
            return None
        dues = [due for source in self._sources if (due := source.next_due()) is not None]
        if not dues:
            return None
        return max(here + (min(dues) - now()) / 1000, self._held_until)
