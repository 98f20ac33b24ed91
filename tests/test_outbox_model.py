"""A model of the outbox in a few lines, and processes that record, send, die and come back at random: both must agree.

What holds after every step: exactly what was accepted is durable, a deployment has one end at most, the events of a
stream go out in their order, none is lost, and no event is leased to two at once.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from outbox_kit import DAY, HERE, THERE, event, identity

from ld_deploy_hooks._outbox import Counts, Outbox

LEASE = 60_000
SLOTS = st.integers(0, 2)
NAMES = st.sampled_from("ab")
SERVICES = st.sampled_from([HERE, THERE])


@dataclass
class Event:
    """An event as the model knows it; ``number`` is its id in the outbox."""

    number: int
    event_id: str
    kind: str
    deployment: str | None
    service: str
    name: str
    since: int
    state: str = "waiting"
    tries: int = 0
    next_attempt: int = 0
    lease: tuple[str, int] | None = None
    # Since it was made due: how often it had been tried in vain, by which it is ordered.
    made_due: int | None = None

    @property
    def stream(self) -> tuple[str, str]:
        return self.service, self.name


@dataclass
class Deployment:
    """A deployment as the model knows it."""

    id: str
    service: str
    name: str
    state: str = "open"


class Model(RuleBasedStateMachine):
    """Three processes with an outbox each on one file, and what should be in it."""

    def __init__(self) -> None:
        super().__init__()
        self.lives = 0
        self.now = 1_000_000
        self.events: list[Event] = []
        self.deployments: list[Deployment] = []
        self.given = 0

    @initialize()
    def first_starters(self) -> None:
        # Not before: hypothesis makes machines that it never runs, nor tears down.
        self.folder = Path(tempfile.mkdtemp(prefix="outbox-model-"))
        self.path = self.folder / "0" / "outbox.db"
        self.boxes = [Outbox(self.path) for _ in range(3)]
        self.owners = ["p0", "p1", "p2"]

    def teardown(self) -> None:
        if not hasattr(self, "folder"):
            return
        try:
            self._deliver_what_is_left()
        finally:
            for box in self.boxes:
                box.close()
            shutil.rmtree(self.folder)

    def _deliver_what_is_left(self) -> None:
        self.now += LEASE
        box = self.boxes[0]
        expected: dict[tuple[str, str], list[str]] = {}
        # What is leased goes first, though an older one may have come back since.
        for one in sorted(self.waiting(), key=lambda one: one.lease is None):
            expected.setdefault(one.stream, []).append(one.event_id)
        sent: dict[tuple[str, str], list[str]] = {}
        streams = {one.event_id: one.stream for one in self.events}
        for service in (HERE, THERE):
            box.make_due(service, now=self.now)
            while claimed := box.claim(base_uri=service, owner="last", now=self.now, limit=4):
                for one in claimed:
                    sent.setdefault(streams[one.event_id], []).append(one.event_id)
                    assert box.ack(one.event_id, owner="last", now=self.now)
        assert sent == expected
        assert box.counts().pending == 0

    # -- the model ----------------------------------------------------------------------------------------------------

    def waiting(self) -> list[Event]:
        return [one for one in self.events if one.state == "waiting"]

    def heads(self, service: str) -> list[Event]:
        heads: dict[tuple[str, str], Event] = {}
        for one in self.waiting():
            if one.service == service and (one.stream not in heads or one.lease is not None):
                heads[one.stream] = one
        return list(heads.values())

    def due(self, one: Event) -> int:
        if one.lease is not None:
            return one.lease[1]
        return one.next_attempt if one.made_due is None else one.made_due

    def at_rest(self, one: Event) -> bool:
        return one.lease is None or one.lease[1] <= self.now

    def accept(self, event_id: str, kind: str, deployment: str | None, service: str, name: str) -> None:
        self.events.append(Event(len(self.events) + 1, event_id, kind, deployment, service, name, self.now))

    def fresh(self) -> str:
        self.given += 1
        return f"e{self.given}"

    def come_back(self, streams: set[tuple[str, str]]) -> None:
        for service in (HERE, THERE):
            for head in self.heads(service):
                if head.stream in streams and head.lease is None:
                    head.next_attempt = 0

    # -- recording ----------------------------------------------------------------------------------------------------

    def open_one(self, slot: int, id: str, event_id: str, service: str, name: str) -> None:
        self.boxes[slot].open_deployment(
            id=id,
            base_uri=service,
            identity=identity(name),
            owner=self.owners[slot],
            event=event("started", event_id, of=name, at=self.now),
            details={},
            now=self.now,
        )

    @rule(slot=SLOTS, service=SERVICES, name=NAMES, twice=st.booleans())
    def start(self, slot: int, service: str, name: str, twice: bool) -> None:
        id, event_id = f"d{len(self.deployments)}", self.fresh()
        for _ in range(1 + twice):
            self.open_one(slot, id, event_id, service, name)
        self.deployments.append(Deployment(id, service, name))
        self.accept(event_id, "started", id, service, name)

    @rule(slot=SLOTS, kind=st.sampled_from(["finished", "failed"]), data=st.data())
    def end(self, slot: int, kind: str, data: st.DataObject) -> None:
        if not self.deployments:
            return
        which = data.draw(st.sampled_from(self.deployments))
        event_id = self.fresh()
        ended = self.boxes[slot].end_deployment(
            id=which.id, event=event(kind, event_id, of=which.name, at=self.now), now=self.now
        )
        assert ended == (which.state == "open")
        if ended:
            which.state = kind
            self.accept(event_id, kind, which.id, which.service, which.name)

    @rule(slot=SLOTS, service=SERVICES, name=NAMES)
    def lone(self, slot: int, service: str, name: str) -> None:
        event_id = self.fresh()
        self.boxes[slot].add_event(
            deployment_id=None, base_uri=service, event=event("custom", event_id, of=name, at=self.now), now=self.now
        )
        self.accept(event_id, "custom", None, service, name)

    # -- sending ------------------------------------------------------------------------------------------------------

    @rule(slot=SLOTS, service=SERVICES, limit=st.integers(1, 3), eager=st.booleans())
    def claim(self, slot: int, service: str, limit: int, eager: bool) -> None:
        free = [
            one
            for one in self.heads(service)
            if self.at_rest(one) and (one.next_attempt <= self.now or eager or one.lease is not None)
        ]
        claimed = self.boxes[slot].claim(
            base_uri=service,
            owner=self.owners[slot],
            now=self.now,
            limit=limit,
            lease_ms=LEASE,
            own=[one.id for one in self.deployments[-2:]],
            ignore_backoff=eager,
        )
        numbers = {one.id for one in claimed}
        assert len(claimed) == len(numbers) == min(limit, len(free))
        assert numbers <= {one.number for one in free}
        for one in claimed:
            known = self.events[one.id - 1]
            assert (one.event_id, one.tries, one.deployment_id) == (known.event_id, known.tries, known.deployment)
            known.lease, known.made_due = (self.owners[slot], self.now + LEASE), None

    def settle(self, slot: int, data: st.DataObject, tell: Callable[[Outbox, str, str], bool]) -> Event | None:
        # Mostly one that somebody has claimed.
        leased = [one for one in self.waiting() if one.lease]
        if not self.events:
            return None
        one = data.draw(st.sampled_from(leased or self.events))
        mine = one.state == "waiting" and one.lease is not None and one.lease[0] == self.owners[slot]
        assert tell(self.boxes[slot], one.event_id, self.owners[slot]) == mine
        if not mine:
            return None
        one.lease = None
        return one

    @rule(slot=SLOTS, data=st.data())
    def ack(self, slot: int, data: st.DataObject) -> None:
        one = self.settle(slot, data, lambda box, id, owner: box.ack(id, owner=owner, now=self.now))
        if one:
            one.state, one.since, one.next_attempt = "delivered", self.now, 0

    @rule(slot=SLOTS, data=st.data())
    def reject(self, slot: int, data: st.DataObject) -> None:
        one = self.settle(slot, data, lambda box, id, owner: box.reject(id, owner=owner, reason="no", now=self.now))
        if one:
            one.state, one.since, one.next_attempt = "rejected", self.now, 0

    @rule(slot=SLOTS, data=st.data())
    def release(self, slot: int, data: st.DataObject) -> None:
        self.settle(slot, data, lambda box, id, owner: box.release(id, owner=owner))

    @rule(slot=SLOTS, wait=st.sampled_from([0, 500, 900_000]), data=st.data())
    def retry_later(self, slot: int, wait: int, data: st.DataObject) -> None:
        later = self.now + wait
        one = self.settle(
            slot, data, lambda box, id, owner: box.retry_later(id, owner=owner, next_attempt=later, now=self.now)
        )
        if one:
            one.tries, one.next_attempt = one.tries + 1, later

    @rule(slot=SLOTS, service=SERVICES)
    def make_due(self, slot: int, service: str) -> None:
        self.boxes[slot].make_due(service, now=self.now)
        heads = self.heads(service)
        for one in self.waiting():
            if one.service == service and one.lease is None and one.next_attempt > self.now:
                one.next_attempt, one.made_due = 0, one.tries if one in heads else None

    @rule(slot=SLOTS, victim=SLOTS)
    def void_leases(self, slot: int, victim: int) -> None:
        leased = [one for one in self.waiting() if one.lease and one.lease[0] == self.owners[victim]]
        assert self.boxes[slot].void_leases([self.owners[victim]]) == len(leased)
        for one in leased:
            one.lease = None

    # -- another chance, giving up ------------------------------------------------------------------------------------

    @rule(slot=SLOTS, service=SERVICES)
    def requeue(self, slot: int, service: str) -> None:
        again = [one for one in self.events if one.state == "rejected" and one.service == service]
        starts = {(one.deployment, one.stream) for one in again if one.kind == "started"}
        ends = [
            one
            for one in self.events
            if one.state == "delivered"
            and one.kind in ("finished", "failed")
            and (one.deployment, one.stream) in starts
        ]
        assert self.boxes[slot].requeue_rejected(base_uri=service, now=self.now) == (len(again), len(ends))
        self.come_back({one.stream for one in again})
        for one in [*again, *ends]:
            one.state, one.since, one.tries = "waiting", self.now, 0

    @rule(slot=SLOTS, service=SERVICES)
    def readdress(self, slot: int, service: str) -> None:
        moved = [one for one in self.waiting() if one.service != service and self.at_rest(one)]
        assert self.boxes[slot].readdress(from_base_uri=None, to_base_uri=service, now=self.now) == len(moved)
        self.come_back({(service, one.name) for one in moved})
        for one in moved:
            one.service, one.since, one.next_attempt, one.lease = service, self.now, 0, None
            for deployment in self.deployments:
                if one.kind == "started" and deployment.id == one.deployment:
                    deployment.service = service

    @rule(slot=SLOTS)
    def prune(self, slot: int) -> None:
        old = [one for one in self.waiting() if one.since < self.now - 7 * DAY and self.at_rest(one)]
        given_up = self.boxes[slot].prune(now=self.now)
        assert sorted(one.event_id for one in given_up) == sorted(one.event_id for one in old)
        for one in old:
            one.state, one.since, one.next_attempt, one.lease = "rejected", self.now, 0, None

    @rule(step=st.sampled_from([1, 500, LEASE, 900_000, 4 * DAY]))
    def time_passes(self, step: int) -> None:
        # Less than a month in all: the history is deleted in a test of its own.
        self.now = min(self.now + step, 1_000_000 + 29 * DAY)

    # -- dying --------------------------------------------------------------------------------------------------------

    @rule(slot=SLOTS)
    def killed(self, slot: int) -> None:
        """One dies; its leases stay, and another starts in its place."""
        self.lives += 1
        self.boxes[slot].close()
        self.boxes[slot] = Outbox(self.path)
        self.owners[slot] = f"p{slot}-{self.lives}"

    @rule(slot=SLOTS, service=SERVICES, name=NAMES)
    def power_lost(self, slot: int, service: str, name: str) -> None:
        """All die while one is in the middle of a group: what is on the disk at that moment is all there is."""
        self.lives += 1
        disk = self.folder / str(self.lives)
        disk.mkdir()

        class Lost(Exception):
            pass

        try:
            with self.boxes[slot].transaction():
                self.open_one(slot, "lost", "lost", service, name)
                self.boxes[slot].requeue_rejected(base_uri=service, now=self.now)
                for companion in ("", "-wal"):
                    shutil.copy(f"{self.path}{companion}", disk)
                raise Lost
        except Lost:
            pass
        for box in self.boxes:
            box.close()
        shutil.rmtree(self.path.parent)
        self.path = disk / self.path.name
        self.boxes = [Outbox(self.path) for _ in range(3)]
        self.owners = [f"p{slot}-{self.lives}" for slot in range(3)]
        assert all(box.set_aside is None for box in self.boxes)

    # -- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def what_was_accepted_is_durable_and_nothing_else(self) -> None:
        rows = self.boxes[self.now % 3]._database.rows(
            "SELECT id, event_id, type, deployment_id, base_uri, since, state, tries, next_attempt, lease_owner"
            " FROM events ORDER BY id"
        )
        assert rows == [
            (
                *(one.number, one.event_id, one.kind, one.deployment, one.service, one.since, one.state, one.tries),
                *(one.next_attempt, one.lease[0] if one.lease else None),
            )
            for one in self.events
        ]

    @invariant()
    def a_deployment_has_one_end(self) -> None:
        box = self.boxes[0]
        assert {one.id for one in box.open_of()} == {one.id for one in self.deployments if one.state == "open"}
        for status in box.deployments(limit=100):
            deployment = next(one for one in self.deployments if one.id == status.id)
            assert (status.state, status.base_uri) == (deployment.state, deployment.service)
            ends = [one.event_type for one in status.events if one.event_type in ("finished", "failed")]
            assert ends == ([] if deployment.state == "open" else [deployment.state])

    @invariant()
    def of_each_stream_one_event_can_be_claimed(self) -> None:
        box = self.boxes[1]
        rows = box._database.rows("SELECT id, due FROM events WHERE due IS NOT NULL ORDER BY id")
        heads = [head for service in (HERE, THERE) for head in self.heads(service)]
        assert rows == sorted((one.number, self.due(one)) for one in heads)
        for service in (HERE, THERE):
            due = min((self.due(one) for one in self.heads(service)), default=None)
            expected = None if due is None else max(due, self.now)
            assert box.next_due(base_uri=service, now=self.now) == expected

    @invariant()
    def counts_agree(self) -> None:
        for service in (HERE, THERE, None):
            states = [one.state for one in self.events if service in (None, one.service)]
            assert self.boxes[2].counts(base_uri=service) == Counts(
                pending=states.count("waiting"),
                delivered=states.count("delivered"),
                rejected=states.count("rejected"),
                open=sum(one.state == "open" and service in (None, one.service) for one in self.deployments),
            )


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, database=None, print_blob=True)
