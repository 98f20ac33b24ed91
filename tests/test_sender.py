"""The sender: what is due, in order, with patience, and whoever waits is told when waiting is of no more use."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from ld_deploy_hooks import _sender
from ld_deploy_hooks._sender import Sender


@dataclass
class Event:
    """An event that waits."""

    payload: str
    tries: int = 0
    due: int = 0
    recorded_at: int = 0


@dataclass
class Answer:
    """What the service says."""

    outcome: str
    line: str = "a line"
    hold_back: float | None = None
    status: int | None = None


@dataclass
class Box:
    """A source in memory that notes what becomes of its events."""

    events: list[Event]
    fates: list[tuple[str, str]] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    elsewhere: int = 0
    held: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def claim(self, limit: int, *, own_only: bool) -> list[Event]:
        if own_only:
            return []
        with self.lock:
            now = time.time_ns() // 1_000_000
            due = [event for event in self.events if event.due <= now][:limit]
            self.events = [event for event in self.events if event not in due]
            return due

    def _note(self, fate: str, event: Event) -> None:
        with self.lock:
            self.fates.append((fate, event.payload))

    def note_sent(self, event: Event) -> None:
        self.sent.append(event.payload)

    def ack(self, event: Event) -> None:
        self._note("delivered", event)

    def reject(self, event: Event, reason: str) -> None:
        self._note("rejected", event)

    def release(self, event: Event) -> None:
        self._note("released", event)

    def retry_later(self, event: Event, next_attempt: int) -> None:
        self._note("later", event)
        event.tries, event.due = event.tries + 1, next_attempt
        with self.lock:
            self.events.append(event)

    def make_due(self) -> None:
        with self.lock:
            for event in self.events:
                event.due = 0

    def next_due(self) -> int | None:
        with self.lock:
            return min((event.due for event in self.events), default=None)

    def is_own(self, event: Event) -> bool:
        return False

    def hold(self, until: int) -> None:
        self.held = until

    def held_until(self) -> int:
        return self.held

    def is_busy_elsewhere(self) -> bool:
        self.elsewhere -= 1
        if self.elsewhere == 0:
            self.make_due()
        return self.elsewhere >= 0


class Client:
    """Answers posts by a function; asked from one thread at a time per event."""

    def __init__(self, answer: Callable[[str], Answer]) -> None:
        self.answer = answer
        self.posts: list[str] = []
        self.closed = False

    def post(self, payload: str) -> Answer:
        self.posts.append(payload)
        return self.answer(payload)

    def close(self) -> None:
        self.closed = True


Sending = Callable[..., Sender]


@pytest.fixture
def sending() -> Iterator[Sending]:
    """Return a function that starts a sender of a box and a client; it is closed at the end of the test."""
    senders = []

    def start(box: Box, client: Client) -> Sender:
        sender = Sender([box], lambda: client)
        senders.append(sender)
        return sender

    yield start
    for sender in senders:
        sender.close(5)
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("ld-deploy") for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "a thread is left"
        time.sleep(0.01)


def accept(_: str) -> Answer:
    return Answer("accepted")


def test_everything_is_delivered_and_flush_ends_with_it(sending: Sending) -> None:
    box, client = Box([Event(str(number)) for number in range(30)]), Client(accept)
    sender = sending(box, client)
    begun = time.monotonic()
    sender.flush(10)
    assert time.monotonic() - begun < 5
    assert sorted(box.fates) == sorted(("delivered", str(number)) for number in range(30))
    assert (sender.stopped, sender.trouble) == (None, None)
    sender.close(5)
    assert client.closed


def test_one_goes_first_and_the_others_side_by_side_once_it_is_accepted(sending: Sending) -> None:
    at_once, most, lock = 0, 0, threading.Lock()
    first = threading.Event()

    def answer(payload: str) -> Answer:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
            if not first.is_set():
                assert payload == "0"
        time.sleep(0.02)
        first.set()
        with lock:
            at_once -= 1
        return Answer("accepted")

    sending(Box([Event(str(number)) for number in range(40)]), Client(answer)).flush(10)
    assert 1 < most <= 16


def test_what_an_earlier_run_put_off_is_tried_once_at_once(sending: Sending) -> None:
    box = Box([Event("a", tries=3, due=2**62)])
    sending(box, Client(accept)).flush(5)
    assert box.fates == [("delivered", "a")]


def test_what_fails_for_now_is_tried_again(sending: Sending) -> None:
    answers = iter([Answer("retry", "503"), Answer("retry", "503"), Answer("accepted")])
    box, client = Box([Event("a")]), Client(lambda _: next(answers))
    sending(box, client).flush(10)
    assert client.posts == ["a"] * 3
    assert box.fates == [("later", "a"), ("later", "a"), ("delivered", "a")]


def test_the_first_that_is_accepted_makes_the_others_due(sending: Sending) -> None:
    box = Box([Event("a"), Event("b")])
    answers = {"a": iter([Answer("retry")]), "b": iter([Answer("accepted")])}

    def answer(payload: str) -> Answer:
        reply = next(answers[payload], Answer("accepted"))
        if reply.outcome == "retry":
            # However far away its next attempt is.
            box.retry_later = put_far  # type: ignore[method-assign]
        return reply

    def put_far(event: Event, _: int) -> None:
        Box.retry_later(box, event, 2**62)

    sending(box, Client(answer)).flush(10)
    assert box.fates == [("later", "a"), ("delivered", "b"), ("delivered", "a")]


def test_flush_ends_when_nothing_is_due_before_its_deadline(sending: Sending) -> None:
    box = Box([Event("a")])

    def far(event: Event, _: int) -> None:
        Box.retry_later(box, event, time.time_ns() // 1_000_000 + 60_000)

    box.retry_later = far  # type: ignore[method-assign]
    sender = sending(box, Client(lambda _: Answer("retry", "503")))
    begun = time.monotonic()
    sender.flush(20)
    assert time.monotonic() - begun < 5
    assert sender.trouble == "503"


def test_flush_waits_for_what_another_process_sends(sending: Sending) -> None:
    """What it holds is due in a minute only if that process dies; usually its followers are due in a moment."""
    box = Box([])
    sender = sending(box, Client(accept))
    sender.flush(5)
    box.events, box.elsewhere = [Event("a", due=2**62)], 4
    sender.flush(5)
    assert box.fates == [("delivered", "a")]


def test_a_rejected_event_is_said_and_blocks_nothing(sending: Sending, caplog: pytest.LogCaptureFixture) -> None:
    box = Box([Event("bad"), Event("good")])
    sending(box, Client(lambda payload: Answer("rejected", "400 no") if payload == "bad" else accept(payload))).flush(5)
    assert box.fates == [("rejected", "bad"), ("delivered", "good")]
    assert caplog.messages == ["400 no"]


def test_a_refusal_for_all_stops_the_run_and_is_said_once(sending: Sending, caplog: pytest.LogCaptureFixture) -> None:
    box, client = Box([Event("a"), Event("b")]), Client(lambda _: Answer("stop", "401 no"))
    sender = sending(box, client)
    sender.flush(5)
    sender.wake()
    sender.flush(5)
    assert client.posts == ["a"]
    assert box.fates == [("released", "a")]
    assert sender.stopped == "401 no This run sends no more."
    assert caplog.messages == [sender.stopped]


def test_a_rate_limit_holds_everything_back(sending: Sending) -> None:
    times = []

    def answer(payload: str) -> Answer:
        times.append(time.monotonic())
        return Answer("retry", hold_back=0.3) if len(times) == 1 else Answer("accepted")

    sending(Box([Event("a"), Event("b")]), Client(answer)).flush(10)
    assert len(times) == 3
    assert times[1] - times[0] >= 0.3


def test_a_rate_limit_beyond_the_deadline_ends_the_wait(sending: Sending) -> None:
    sender = sending(Box([Event("a"), Event("b")]), Client(lambda _: Answer("retry", hold_back=60.0)))
    begun = time.monotonic()
    sender.flush(20)
    assert time.monotonic() - begun < 5


def test_a_server_that_hangs_holds_nobody_longer_than_asked(sending: Sending) -> None:
    go = threading.Event()

    def answer(_: str) -> Answer:
        go.wait(10)
        return Answer("accepted")

    box = Box([Event("a")])
    sender = sending(box, Client(answer))
    begun = time.monotonic()
    sender.flush(0.2)
    assert 0.15 < time.monotonic() - begun < 1
    go.set()
    sender.flush(5)
    assert box.fates == [("delivered", "a")]


@pytest.mark.parametrize("late", ["accepted", "retry"])
def test_an_attempt_that_takes_too_long_is_given_up_and_a_late_success_counts(
    sending: Sending, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    monkeypatch.setattr(_sender, "ATTEMPT", 0.1)  # a constant, 15 s
    go, slow = threading.Event(), threading.Event()

    def answer(_: str) -> Answer:
        if not slow.is_set():
            slow.set()
            go.wait(10)
            return Answer(late)
        return Answer("accepted")

    box = Box([Event("a")])
    sender = sending(box, Client(answer))
    sender.flush(10)
    assert box.fates == [("later", "a"), ("delivered", "a")]
    go.set()
    deadline = time.monotonic() + 5
    while late == "accepted" and len(box.fates) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert box.fates[2:] == ([("delivered", "a")] if late == "accepted" else [])


def test_a_client_that_breaks_is_a_fault_of_ours_and_the_event_is_kept(
    sending: Sending, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(_: str) -> Answer:
        if not caplog.messages:
            raise ZeroDivisionError("secret")
        return Answer("accepted")

    from ld_deploy_hooks import _log

    _log._said.clear()
    box = Box([Event("a")])
    sending(box, Client(answer)).flush(10)
    assert box.fates == [("later", "a"), ("delivered", "a")]
    assert "ZeroDivisionError" in caplog.text
    assert "secret" not in caplog.text


def test_a_source_that_breaks_ends_the_sender_and_nobody_waits_for_it(
    sending: Sending, caplog: pytest.LogCaptureFixture
) -> None:
    from ld_deploy_hooks import _log

    _log._said.clear()
    box = Box([Event("a")])
    box.next_due = lambda: 1 // 0  # type: ignore[method-assign]
    sender = sending(box, Client(accept))
    begun = time.monotonic()
    sender.flush(10)
    sender.flush(10)
    assert time.monotonic() - begun < 5
    assert sender.stopped == "The sender broke with ZeroDivisionError"
    assert "Sending events failed with ZeroDivisionError" in caplog.text


def test_what_was_accepted_is_known_even_while_the_source_keeps_the_sender_waiting(sending: Sending) -> None:
    box, go, asked = Box([Event("a")]), threading.Event(), threading.Event()

    def next_due() -> None:
        asked.set()
        assert go.wait(10)

    box.next_due = next_due  # type: ignore[method-assign]
    client, begun, answer = _answer_later("accepted")
    sender = sending(box, client)
    sender.wake()
    assert begun.wait(5)
    assert asked.wait(5)
    answer.set()
    deadline = time.monotonic() + 5
    while not box.sent:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert (box.sent, box.fates) == (["a"], [])
    go.set()


def _answer_later(outcome: str) -> tuple[Client, threading.Event, threading.Event]:
    """Return a client, what is set when it is asked, and what lets it answer."""
    asked, go = threading.Event(), threading.Event()

    def answer(_: str) -> Answer:
        asked.set()
        go.wait(10)
        return Answer(outcome, "400 no")

    return Client(answer), asked, go


def test_after_the_close_nothing_is_said(sending: Sending, caplog: pytest.LogCaptureFixture) -> None:
    client, asked, go = _answer_later("rejected")
    box = Box([Event("a")])
    sender = sending(box, client)
    sender.wake()
    assert asked.wait(5)
    threading.Timer(0.1, go.set).start()
    assert sender.close(5)
    assert box.fates == [("rejected", "a")]
    assert caplog.messages == []


def test_what_is_on_its_way_at_the_close_may_still_land(sending: Sending) -> None:
    client, asked, go = _answer_later("accepted")
    box = Box([Event("a"), Event("b")])
    sender = sending(box, client)
    sender.wake()
    assert asked.wait(5)
    threading.Timer(0.1, go.set).start()
    assert sender.close(5)
    assert box.fates == [("delivered", "a")]
    assert client.closed


def test_what_does_not_land_is_not_given_back_at_the_close(sending: Sending) -> None:
    client, asked, go = _answer_later("accepted")
    box = Box([Event("a")])
    sender = sending(box, client)
    sender.wake()
    assert asked.wait(5)
    begun = time.monotonic()
    assert not sender.close(0.2)
    assert time.monotonic() - begun < 2
    assert box.fates == []
    go.set()


def test_somebody_may_watch_while_it_waits(sending: Sending) -> None:
    go = threading.Event()

    def answer(_: str) -> Answer:
        go.wait(5)
        return Answer("accepted")

    box = Box([Event("a")])
    sending(box, Client(answer)).flush(10, go.set)
    assert box.fates == [("delivered", "a")]
