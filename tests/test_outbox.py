"""The queue and the history, by one process: what is recorded, what can be claimed when, and what became of it."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from outbox_kit import DAY, HERE, THERE, claim, drain, end, event, identity, ids, lone, opened, start

from ld_deploy_hooks._errors import EventError, OutboxError
from ld_deploy_hooks._outbox import Claimed, Counts, Outbox
from ld_deploy_hooks._records import DeploymentEvent, EventType, Identity


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Outbox]:
    with opened(tmp_path / "outbox.db") as box:
        yield box


# -- recording --------------------------------------------------------------------------------------------------------


def test_an_event_is_handed_out_as_it_was_recorded(box: Outbox) -> None:
    start(box, "d", now=1000)
    (claimed,) = claim(box)
    assert claimed == Claimed(
        id=claimed.id,
        event_id="d-started",
        deployment_id="d",
        base_uri=HERE,
        stream=claimed.stream,
        event_type="started",
        payload=event("started", "d-started", at=1000).to_json(),
        tries=0,
        recorded_at=1000,
    )


def test_what_is_recorded_outlives_the_outbox_object(tmp_path: Path) -> None:
    with opened(tmp_path / "outbox.db") as box:
        start(box, "d")
        end(box, "d")
    with opened(tmp_path / "outbox.db") as box:
        assert box.set_aside is None
        assert drain(box) == ["d-started", "d-finished"]


def test_in_memory_everything_works_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with opened(None) as box:
        start(box, "d")
        end(box, "d")
        assert drain(box) == ["d-started", "d-finished"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("first", "second"), [("finished", "failed"), ("failed", "finished"), ("failed", "failed")])
def test_the_first_end_wins(box: Outbox, first: str, second: str) -> None:
    start(box, "d")
    assert box.end_deployment(id="d", event=event(first, "one", at=2000), now=2001) is True
    assert box.end_deployment(id="d", event=event(second, "two", at=3000), now=3001) is False
    (deployment,) = box.deployments(limit=10)
    assert (deployment.state, deployment.ended_at) == (first, 2000)
    assert drain(box) == ["d-started", "one"]


def test_the_very_same_a_second_time_changes_nothing(box: Outbox) -> None:
    for _ in range(2):
        start(box, "d")
        lone(box, "lone")
        box.add_event(deployment_id="d", base_uri=HERE, event=event("custom", "step"), now=1500)
    assert [end(box, "d"), end(box, "d")] == [True, True]
    assert drain(box) == ["d-started", "lone", "step", "d-finished"]
    start(box, "d")
    assert box.counts() == Counts(pending=0, delivered=4, rejected=0, open=0)


@pytest.mark.parametrize(
    "clash",
    [
        lambda box: box.add_event(deployment_id="x", base_uri=HERE, event=event("custom", "d-started"), now=1),
        lambda box: box.add_event(deployment_id="d", base_uri=HERE, event=event("custom", "d-started"), now=1),
        lambda box: start(box, "d", of="b"),
        lambda box: box.open_deployment(
            id="d", base_uri=HERE, identity=identity(), owner="me", event=event("started", "new"), details={}, now=1
        ),
        lambda box: box.open_deployment(
            id="x",
            base_uri=HERE,
            identity=identity(),
            owner="me",
            event=event("started", "d-started"),
            details={},
            now=1,
        ),
        lambda box: box.end_deployment(id="d", event=event("finished", "d-started"), now=1),
    ],
    ids=["other deployment", "other event", "other identity", "second start", "same event", "end"],
)
def test_another_fact_of_the_same_id_is_an_error_and_not_lost_silently(
    box: Outbox, clash: Callable[[Outbox], object]
) -> None:
    start(box, "d")
    with pytest.raises(OutboxError, match="SQLITE_CONSTRAINT"):
        clash(box)
    assert box.counts() == Counts(pending=1, delivered=0, rejected=0, open=1)
    assert drain(box) == ["d-started"]


def test_an_event_without_id_gets_one_of_the_outbox(box: Outbox) -> None:
    bare = DeploymentEvent(event_type=EventType.CUSTOM, event_time=1, **identity()._asdict())
    for _ in range(2):
        box.add_event(deployment_id=None, base_uri=HERE, event=bare, now=1)
    first, second = drain(box)
    assert first != second


def test_the_end_of_an_unknown_deployment_is_an_error(box: Outbox) -> None:
    with pytest.raises(OutboxError, match="knows no deployment nobody"):
        end(box, "nobody")


@pytest.mark.parametrize("kind", ["started", "custom"])
def test_only_an_end_ends(box: Outbox, kind: str) -> None:
    start(box, "d")
    with pytest.raises(ValueError, match=f"does not end with an event {kind}"):
        end(box, "d", kind=kind)
    assert box.counts().open == 1


def test_what_is_no_json_is_refused_before_anything_is_recorded(box: Outbox) -> None:
    unfit = DeploymentEvent(
        event_type=EventType.STARTED,
        event_time=1,
        event_metadata={"eventId": "x", "value": object()},
        **identity()._asdict(),
    )
    with pytest.raises(EventError):
        box.open_deployment(id="d", base_uri=HERE, identity=identity(), owner="me", event=unfit, details={}, now=1)
    with pytest.raises(TypeError):
        box.open_deployment(
            id="d",
            base_uri=HERE,
            identity=identity(),
            owner="me",
            event=event("started", "e"),
            details={"task": object()},
            now=1,
        )
    assert box.counts() == Counts(pending=0, delivered=0, rejected=0, open=0)


def test_half_a_character_in_a_name_is_kept(box: Outbox) -> None:
    # What os.environ gives for a byte that is no UTF-8.
    name = "caf\udce9"
    who = Identity("project", "production", name, "1")
    odd = DeploymentEvent(event_type=EventType.STARTED, event_time=1, event_metadata={"eventId": "e"}, **who._asdict())
    box.open_deployment(id="d", base_uri=HERE, identity=who, owner="me", event=odd, details={"task": name}, now=1)
    assert [(one.identity, one.details) for one in box.open_of(base_uri=HERE, identity=who)] == [(who, {"task": name})]
    (claimed,) = claim(box)
    assert DeploymentEvent.from_json(claimed.payload) == odd


# -- groups -----------------------------------------------------------------------------------------------------------


def test_a_group_is_seen_by_others_when_it_is_complete(tmp_path: Path, box: Outbox) -> None:
    with opened(tmp_path / "outbox.db") as other:
        with box.transaction():
            start(box, "d")
            end(box, "d")
            assert box.counts().pending == 2
            assert other.counts().pending == 0
        assert other.counts().pending == 2


@pytest.mark.parametrize("raised", [RuntimeError, KeyboardInterrupt])
def test_a_group_that_raises_leaves_nothing(box: Outbox, raised: type[BaseException]) -> None:
    def group() -> None:
        with box.transaction():
            start(box, "d")
            raise raised

    with pytest.raises(raised):
        group()
    assert box.counts() == Counts(pending=0, delivered=0, rejected=0, open=0)
    start(box, "d")
    assert drain(box) == ["d-started"]


def test_a_command_that_fails_within_a_group_is_undone_alone(box: Outbox) -> None:
    def fails_half_way() -> None:
        with box.transaction():
            lone(box, "undone")
            start(box, "one", of="b")

    with box.transaction():
        start(box, "one")
        with pytest.raises(OutboxError):
            fails_half_way()
        lone(box, "two")
    assert drain(box) == ["one-started", "two"]


def test_a_group_that_sqlite_has_undone_commits_nothing_more(box: Outbox) -> None:
    def group() -> None:
        with box.transaction():
            start(box, "one")
            # What SQLite itself does on a full disk.
            box._database._connection.execute("ROLLBACK")  # type: ignore[union-attr]
            with pytest.raises(OutboxError, match="undid a group"):
                start(box, "two")
            with pytest.raises(OutboxError, match="undid a group"):
                box.counts()

    with pytest.raises(OutboxError, match="undid a group"):
        group()
    assert box.counts().pending == 0
    start(box, "three")
    assert drain(box) == ["three-started"]


def test_a_closed_outbox_says_so(box: Outbox) -> None:
    box.close()
    box.close()
    with pytest.raises(OutboxError, match="it is closed"):
        box.counts()


def test_another_thread_gets_an_error_and_changes_nothing(box: Outbox) -> None:
    errors = []

    def meddle() -> None:
        for command in (box.counts, lambda: start(box, "b"), lambda: claim(box)):
            try:
                command()
            except OutboxError as error:
                errors.append(str(error))

    with box.transaction():
        start(box, "a")
        thread = threading.Thread(target=meddle)
        thread.start()
        thread.join()
    assert len(errors) == 3
    assert all("it is another thread's" in error for error in errors)
    assert drain(box) == ["a-started"]


# -- order and leases -------------------------------------------------------------------------------------------------


def test_of_each_stream_the_oldest_is_claimed_and_streams_go_side_by_side(box: Outbox) -> None:
    for name in ("a", "b", "c"):
        start(box, name, of=name)
        end(box, name, of=name)
    assert ids(claim(box, limit=2)) == ["a-started", "b-started"]
    assert ids(claim(box)) == ["c-started"]
    assert claim(box) == []


@pytest.mark.parametrize("limit", [0, -1])
def test_no_limit_below_one_claims_anything(box: Outbox, limit: int) -> None:
    start(box, "a")
    assert box.claim(base_uri=HERE, owner="me", now=10_000, limit=limit, own=["a"]) == []


def test_order_is_kept_within_an_identity_whoever_recorded(box: Outbox) -> None:
    start(box, "killed", owner="dead")
    end(box, "killed", kind="failed")
    start(box, "again")
    end(box, "again")
    assert drain(box) == ["killed-started", "killed-failed", "again-started", "again-finished"]


@pytest.mark.parametrize("field", Identity._fields)
def test_every_field_of_the_identity_makes_a_stream(box: Outbox, field: str) -> None:
    for number, who in enumerate((identity(), identity()._replace(**{field: "other"}))):
        one = DeploymentEvent(
            event_type=EventType.CUSTOM,
            event_time=1,
            event_metadata={"eventId": str(number)},
            **who._asdict(),
        )
        box.add_event(deployment_id=None, base_uri=HERE, event=one, now=1)
    assert ids(claim(box)) == ["0", "1"]


def test_an_event_goes_only_to_the_service_it_was_recorded_for(box: Outbox) -> None:
    start(box, "here")
    start(box, "there", base_uri=THERE)
    end(box, "there")
    assert drain(box) == ["here-started"]
    assert box.next_due(base_uri=HERE, now=1) is None
    assert box.counts(base_uri=HERE) == Counts(pending=0, delivered=1, rejected=0, open=1)
    assert box.counts(base_uri=THERE) == Counts(pending=2, delivered=0, rejected=0, open=0)
    assert box.counts() == Counts(pending=2, delivered=1, rejected=0, open=1)
    assert box.waiting_elsewhere(HERE) == {THERE: 2}
    assert box.waiting_elsewhere(THERE) == {}
    assert drain(box, base_uri=THERE) == ["there-started", "there-finished"]


def test_a_lease_keeps_a_stream_from_everybody_until_it_ends(box: Outbox) -> None:
    start(box, "d")
    end(box, "d")
    box.claim(base_uri=HERE, owner="one", now=10_000, limit=9, lease_ms=500)
    assert box.next_due(base_uri=HERE, now=10_001) == 10_500
    for owner in ("one", "two"):
        assert claim(box, owner=owner, now=10_499) == []
    assert ids(claim(box, owner="two", now=10_500)) == ["d-started"]


SETTLE: dict[str, Callable[[Outbox, str, str], bool]] = {
    "ack": lambda box, id, owner: box.ack(id, owner=owner, now=20_000),
    "reject": lambda box, id, owner: box.reject(id, owner=owner, reason="no", now=20_000),
    "release": lambda box, id, owner: box.release(id, owner=owner),
    "retry_later": lambda box, id, owner: box.retry_later(id, owner=owner, next_attempt=30_000, now=20_000),
}


@pytest.mark.parametrize("settle", SETTLE.values(), ids=SETTLE)
def test_only_who_holds_the_lease_says_what_became_of_an_event(
    box: Outbox, settle: Callable[[Outbox, str, str], bool]
) -> None:
    start(box, "d")
    (claimed,) = claim(box, owner="late", now=10_000)
    assert settle(box, claimed.event_id, "stranger") is False
    assert ids(claim(box, owner="next", now=70_000)) == ["d-started"]
    assert settle(box, claimed.event_id, "late") is False
    assert box.next_due(base_uri=HERE, now=0) == 130_000
    assert settle(box, claimed.event_id, "next") is True
    assert settle(box, claimed.event_id, "next") is False
    assert settle(box, "another", "next") is False


def test_an_ack_after_the_lease_has_ended_counts_while_nobody_else_has_taken_it(box: Outbox) -> None:
    start(box, "d")
    (claimed,) = claim(box, now=10_000)
    assert box.ack(claimed.event_id, owner="me", now=99_000) is True
    assert box.deployments(limit=1)[0].events[0].since == 99_000


def test_a_retry_waits_for_its_time_and_blocks_its_stream_alone(box: Outbox) -> None:
    start(box, "a", of="a")
    end(box, "a", of="a")
    (claimed,) = claim(box, now=10_000)
    assert box.retry_later(claimed.event_id, owner="me", next_attempt=10_700, now=10_200)
    start(box, "b", of="b")
    assert ids(claim(box, now=10_699)) == ["b-started"]
    assert box.next_due(base_uri=HERE, now=10_500) == 10_700
    assert box.next_due(base_uri=HERE, now=20_000) == 20_000
    (again,) = claim(box, now=10_700)
    assert (again.event_id, again.tries) == ("a-started", 1)


def test_a_retry_is_persisted(tmp_path: Path) -> None:
    with opened(tmp_path / "outbox.db") as box:
        start(box, "d")
        box.retry_later(claim(box)[0].event_id, owner="me", next_attempt=50_000, now=10_000)
    with opened(tmp_path / "outbox.db") as box:
        assert claim(box, now=49_999) == []
        assert claim(box, now=50_000)[0].tries == 1


def test_a_release_counts_nothing_and_keeps_the_backoff(box: Outbox) -> None:
    start(box, "d")
    (claimed,) = claim(box)
    assert box.release(claimed.event_id, owner="me")
    (claimed,) = claim(box)
    assert claimed.tries == 0
    box.retry_later(claimed.event_id, owner="me", next_attempt=50_000, now=10_000)
    (claimed,) = box.claim(base_uri=HERE, owner="me", now=10_000, limit=1, ignore_backoff=True)
    assert box.release(claimed.event_id, owner="me")
    assert box.next_due(base_uri=HERE, now=10_000) == 50_000


@pytest.mark.parametrize(
    ("void", "number"),
    [(lambda box: box.release_all("one"), 2), (lambda box: box.void_leases({"one", "three", "nobody"}), 3)],
    ids=["release_all", "void_leases"],
)
def test_leases_of_the_named_end_and_no_others(box: Outbox, void: Callable[[Outbox], int], number: int) -> None:
    for name, owner in (("a", "one"), ("b", "two"), ("c", "three"), ("d", "one")):
        start(box, name, of=name)
        claim(box, owner=owner)
    assert void(box) == number
    assert len(claim(box, owner="next")) == number


def test_what_is_rejected_is_kept_and_blocks_nothing_behind_it(box: Outbox) -> None:
    start(box, "d")
    end(box, "d")
    box.reject(claim(box)[0].event_id, owner="me", reason="400: version \ud800", now=20_000)
    assert drain(box) == ["d-finished"]
    (deployment,) = box.deployments(limit=1)
    assert [(one.state, one.reason, one.since) for one in deployment.events] == [
        ("rejected", "400: version ?", 20_000),
        ("delivered", None, 10_000),
    ]
    assert box.counts() == Counts(pending=0, delivered=1, rejected=1, open=0)


def test_make_due_is_for_what_waits_for_a_retry_at_that_service(box: Outbox) -> None:
    for name, uri in (("a", HERE), ("b", HERE), ("c", THERE)):
        start(box, name, of=name, base_uri=uri)
        (claimed,) = claim(box, base_uri=uri)
        box.retry_later(claimed.event_id, owner="me", next_attempt=90_000, now=10_000)
    start(box, "leased", of="leased")
    claim(box, owner="other")
    assert box.make_due(HERE, now=20_000) == 2
    assert ids(claim(box, now=20_000)) == ["a-started", "b-started"]
    assert claim(box, base_uri=THERE, now=20_000) == []
    assert claim(box, now=20_000, owner="third") == []


def test_ignore_backoff_takes_what_waits_for_a_retry_but_not_what_is_leased(box: Outbox) -> None:
    for name in ("a", "b"):
        start(box, name, of=name)
    first, _ = claim(box)
    box.retry_later(first.event_id, owner="me", next_attempt=90_000, now=10_000)
    assert ids(box.claim(base_uri=HERE, owner="x", now=20_000, limit=9, ignore_backoff=True)) == ["a-started"]


def test_own_streams_go_first_and_their_oldest_event_first_of_all(box: Outbox) -> None:
    for number in range(20):
        start(box, f"old{number}", of=f"old{number}")
    start(box, "killed", of="mine")
    start(box, "mine", of="mine")
    start(box, "elsewhere", of="elsewhere", base_uri=THERE)
    own = ["mine", "unknown", "elsewhere", *(f"delivered{number}" for number in range(1200))]

    def next_ones() -> list[Claimed]:
        return box.claim(base_uri=HERE, owner="me", now=10_000, limit=3, own=own)

    first, *others = next_ones()
    assert ids([first, *others]) == ["killed-started", "old0-started", "old1-started"]
    box.ack(first.event_id, owner="me", now=10_000)
    assert ids(next_ones()) == ["mine-started", "old2-started", "old3-started"]


def test_own_deployments_beyond_what_sqlite_takes_as_parameters_go_first_too(box: Outbox) -> None:
    start(box, "old", of="old")
    start(box, "mine", of="mine")
    own = [*(f"other{number}" for number in range(1999)), "mine"]
    assert ids(box.claim(base_uri=HERE, owner="me", now=10_000, limit=1, own=own)) == ["mine-started"]


def test_own_only_leaves_other_streams_alone(box: Outbox) -> None:
    start(box, "old", of="old")
    start(box, "killed", of="mine")
    start(box, "mine", of="mine")

    def next_ones(own: list[str]) -> list[str]:
        return ids(box.claim(base_uri=HERE, owner="me", now=10_000, limit=9, own=own, own_only=True))

    assert next_ones([]) == []
    assert next_ones(["mine"]) == ["killed-started"]
    assert next_ones(["mine"]) == []


def test_who_else_is_sending_is_told_by_the_leases_of_that_service(box: Outbox) -> None:
    for name, uri in (("a", HERE), ("b", HERE), ("c", THERE), ("d", HERE)):
        start(box, name, of=name, base_uri=uri)
        claim(box, owner=f"owner of {name}", base_uri=uri, now=10_000)
    box.release_all("owner of d")

    def others(now: int) -> list[str]:
        return box.others_sending(base_uri=HERE, owner="owner of a", now=now)

    assert others(69_999) == ["owner of b"]
    assert others(70_000) == []


def test_a_hold_of_a_service_is_kept_for_the_next_run(tmp_path: Path) -> None:
    with opened(tmp_path / "outbox.db") as box:
        assert box.held_until(HERE) == 0
        box.hold(HERE, until=9000)
        box.hold(HERE, until=5000)
    with opened(tmp_path / "outbox.db") as box:
        assert (box.held_until(HERE), box.held_until(THERE)) == (5000, 0)


def test_a_clock_that_goes_back_holds_nothing_new_up(box: Outbox) -> None:
    start(box, "d", now=9_000_000)
    assert ids(claim(box, now=1000)) == ["d-started"]


def test_next_due_without_anything_is_none(box: Outbox) -> None:
    assert box.next_due(base_uri=HERE, now=5) is None
    start(box, "d")
    assert box.next_due(base_uri=HERE, now=5) == 5


# -- recovery and history ---------------------------------------------------------------------------------------------


def test_open_deployments_are_found_by_service_and_identity(box: Outbox) -> None:
    start(box, "ended", of="a", now=1)
    end(box, "ended", of="a")
    start(box, "a", of="a", now=20, owner="dead")
    start(box, "b", of="b", now=10)
    start(box, "c", of="a", base_uri=THERE, now=30)

    def names(**which: object) -> list[str]:
        return [one.id for one in box.open_of(**which)]  # type: ignore[arg-type]

    assert names() == ["b", "a", "c"]
    assert names(base_uri=HERE) == ["b", "a"]
    assert names(identity=identity("a")) == ["a", "c"]
    assert names(base_uri=HERE, identity=identity("a")) == ["a"]
    (found,) = box.open_of(base_uri=HERE, identity=identity("a"))
    assert (found.owner, found.base_uri, found.identity) == ("dead", HERE, identity("a"))
    assert (found.started_at, found.details) == (20, {"task": "deploy"})


def test_last_known_alive_is_the_last_event(box: Outbox) -> None:
    start(box, "d", now=1000)
    assert box.open_of()[0].last_event_at == 1000
    box.add_event(deployment_id="d", base_uri=HERE, event=event("custom", "step", at=5000), now=5000)
    assert box.open_of()[0].last_event_at == 5000


def test_details_can_be_added_to(box: Outbox) -> None:
    start(box, "d")
    box.note("d", {"signal": 15})
    box.note("d", {"signal": 1})
    box.note("unknown", {"signal": 9})
    assert [one.details for one in box.open_of()] == [{"task": "deploy", "signal": 1}]


@pytest.mark.parametrize("state", ["finished", "failed"])
def test_a_deployment_whose_end_was_told_elsewhere_is_open_no_more(box: Outbox, state: str) -> None:
    start(box, "d")
    box.settle_deployment("d", state=state, now=3000)
    box.settle_deployment("d", state="failed", now=4000)
    assert end(box, "d") is False
    (deployment,) = box.deployments(limit=1)
    assert (deployment.state, deployment.ended_at) == (state, 3000)
    assert [one.event_id for one in deployment.events] == ["d-started"]


def test_history_tells_the_latest_deployments_with_their_events(box: Outbox) -> None:
    for number in range(4):
        start(box, f"d{number}", of=f"v{number}", now=1000 + number)
    end(box, "d3", of="v3", kind="failed", now=2000)
    lone(box, "alone")
    lone(box, "last", of="b")
    latest, before = box.deployments(limit=2)
    assert (latest.id, latest.state, latest.started_at, latest.ended_at) == ("d3", "failed", 1003, 2000)
    assert (latest.owner, latest.base_uri, latest.identity) == ("me", HERE, identity("v3"))
    assert latest.details == {"task": "deploy"}
    assert [(one.event_id, one.state) for one in latest.events] == [("d3-started", "waiting"), ("d3-failed", "waiting")]
    assert json.loads(latest.events[1].payload)["eventType"] == latest.events[1].event_type == "failed"
    assert (before.id, before.state, before.ended_at) == ("d2", "open", None)
    assert [one.event_id for one in box.lone_events(limit=5)] == ["last", "alone"]
    assert [one.event_id for one in box.lone_events(limit=1)] == ["last"]
    assert box.deployments(limit=-1) == []
    assert box.lone_events(limit=-1) == []


# -- another chance ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "moved"), [(THERE, 3), (None, 4), ("http://127.0.0.1:9/nowhere", 0)])
def test_readdress_moves_what_waits_for_one_service_or_for_all_others(
    box: Outbox, source: str | None, moved: int
) -> None:
    start(box, "old", base_uri=THERE)
    end(box, "old", kind="failed")
    start(box, "open", of="b", base_uri=THERE)
    start(box, "third", of="c", base_uri="http://127.0.0.1:9/third")
    start(box, "new", base_uri=HERE)
    assert box.readdress(from_base_uri=source, to_base_uri=HERE, now=5000) == moved
    assert box.counts(base_uri=HERE).pending == 1 + moved
    assert box.counts(base_uri=THERE).open == (0 if moved else 1)


def test_what_is_readdressed_keeps_its_order_and_takes_its_deployment_along(box: Outbox) -> None:
    start(box, "old", base_uri=THERE)
    end(box, "old", kind="failed")
    start(box, "new", base_uri=HERE)
    start(box, "begun", of="b", base_uri=THERE)
    start(box, "told", of="c", base_uri=THERE)
    told = claim(box, base_uri=THERE)[-1]
    box.ack(told.event_id, owner="me", now=10_000)
    box.add_event(deployment_id="told", base_uri=THERE, event=event("custom", "told-step", of="c"), now=1500)
    box.release_all("me")
    box.retry_later(claim(box, base_uri=THERE)[0].event_id, owner="me", next_attempt=90_000, now=10_000)
    box.release_all("me")
    assert box.readdress(from_base_uri=THERE, to_base_uri=HERE, now=10_000) == 4
    assert end(box, "begun", of="b")
    assert end(box, "told", of="c")
    assert drain(box) == [
        *("old-started", "begun-started", "told-step"),
        *("old-failed", "begun-finished"),
        "new-started",
    ]
    assert drain(box, base_uri=THERE) == ["told-finished"]
    assert {one.id: one.base_uri for one in box.deployments(limit=9)} == {
        "old": HERE,
        "new": HERE,
        "begun": HERE,
        "told": THERE,
    }
    assert {one.identity for one in box.deployments(limit=9)} == {identity(), identity("b"), identity("c")}


def test_readdress_leaves_alone_what_is_being_sent(box: Outbox) -> None:
    start(box, "d", base_uri=THERE)
    end(box, "d")
    (claimed,) = claim(box, base_uri=THERE, now=10_000)
    assert box.readdress(from_base_uri=None, to_base_uri=HERE, now=69_999) == 1
    assert box.ack(claimed.event_id, owner="me", now=69_999)
    assert drain(box, now=69_999) == ["d-finished"]


@pytest.mark.parametrize("how", ["release", "retry_later", "release_all"])
def test_what_is_readdressed_into_a_stream_that_is_being_sent_goes_first_if_it_is_older(box: Outbox, how: str) -> None:
    lone(box, "older", base_uri=THERE)
    lone(box, "younger")
    (claimed,) = claim(box)
    assert box.readdress(from_base_uri=THERE, to_base_uri=HERE, now=10_000) == 1
    assert claim(box) == []
    if how == "release":
        assert box.release(claimed.event_id, owner="me")
    elif how == "retry_later":
        assert box.retry_later(claimed.event_id, owner="me", next_attempt=20_000, now=10_000)
    else:
        assert box.release_all("me") == 1
    assert drain(box, now=30_000) == ["older", "younger"]


def test_readdress_takes_what_a_lease_has_ended_on(box: Outbox) -> None:
    start(box, "d", base_uri=THERE)
    (claimed,) = claim(box, base_uri=THERE, now=10_000)
    assert box.readdress(from_base_uri=None, to_base_uri=HERE, now=70_000) == 1
    assert not box.ack(claimed.event_id, owner="me", now=70_000)
    assert drain(box, now=70_000) == ["d-started"]


def test_what_was_rejected_can_be_sent_again_in_its_old_place(box: Outbox) -> None:
    for kind, uri in (("started", HERE), ("custom", HERE), ("started", THERE)):
        box.add_event(deployment_id=None, base_uri=uri, event=event(kind, f"{kind} {uri}"), now=1)
    lone(box, "last")
    for uri in (HERE, THERE):
        box.reject(claim(box, base_uri=uri)[0].event_id, owner="me", reason="no", now=10_000)
    box.retry_later(claim(box)[0].event_id, owner="me", next_attempt=90_000, now=10_000)
    assert box.requeue_rejected(base_uri=HERE, now=10_000) == (1, 0)
    assert box.requeue_rejected(base_uri=HERE, now=10_000) == (0, 0)
    assert drain(box) == [f"started {HERE}", f"custom {HERE}", "last"]
    assert box.counts(base_uri=THERE).rejected == 1


def test_what_comes_back_waits_while_another_of_its_stream_is_being_sent(box: Outbox) -> None:
    for name in ("first", "second", "third"):
        lone(box, name)
    box.reject(claim(box)[0].event_id, owner="me", reason="no", now=10_000)
    (second,) = claim(box, owner="slow")
    assert box.requeue_rejected(base_uri=HERE, now=10_000) == (1, 0)
    assert claim(box) == []
    assert box.ack(second.event_id, owner="slow", now=10_000)
    assert drain(box) == ["first", "third"]


def reject_all(box: Outbox, base_uri: str = HERE) -> None:
    for claimed in claim(box, base_uri=base_uri):
        assert box.reject(claimed.event_id, owner="me", reason="no", now=10_000)


@pytest.mark.parametrize("kind", ["finished", "failed"])
def test_behind_a_start_that_comes_back_goes_its_end_once_more(box: Outbox, kind: str) -> None:
    start(box, "d")
    start(box, "b", of="b")
    start(box, "there", base_uri=THERE)
    for uri in (HERE, THERE):
        reject_all(box, uri)
    box.add_event(deployment_id="d", base_uri=HERE, event=event("custom", "step"), now=1500)
    for name, of in (("d", "a"), ("b", "b"), ("there", "a")):
        end(box, name, of=of, kind=kind)
    start(box, "next")
    end(box, "next")
    for uri in (HERE, THERE):
        drain(box, base_uri=uri)
    sent = box.event(f"d-{kind}")
    assert sent is not None
    lone(box, "waiting")
    assert box.requeue_rejected(base_uri=HERE, now=20_000) == (2, 2)
    again = box.event(f"d-{kind}")
    assert again is not None
    assert (again.payload, again.event_time, again.state) == (sent.payload, sent.event_time, "waiting")
    assert drain(box, now=20_000) == ["d-started", "b-started", f"d-{kind}", f"b-{kind}", "waiting"]
    assert drain(box, base_uri=THERE, now=20_000) == []


def test_no_end_is_put_back_that_waits_anyway_or_whose_start_was_delivered(box: Outbox) -> None:
    start(box, "told", of="d")
    drain(box)
    box.add_event(deployment_id="told", base_uri=HERE, event=event("custom", "step", of="d"), now=1500)
    for name, of in (("waits", "a"), ("refused", "b"), ("open", "c")):
        start(box, name, of=of)
    reject_all(box)
    end(box, "told", of="d")
    drain(box)
    end(box, "refused", of="b")
    reject_all(box)
    end(box, "waits", of="a")
    assert box.requeue_rejected(base_uri=HERE, now=20_000) == (5, 0)
    assert sorted(drain(box, now=20_000)) == [
        *("open-started", "refused-finished", "refused-started", "step", "waits-finished", "waits-started"),
    ]


def test_behind_a_lone_start_that_comes_back_goes_the_first_lone_end(box: Outbox) -> None:
    def send(kind: str, event_id: str) -> None:
        box.add_event(deployment_id=None, base_uri=HERE, event=event(kind, event_id), now=1000)

    send("failed", "before")
    drain(box)
    send("started", "refused")
    reject_all(box)
    start(box, "d")
    end(box, "d")
    for kind, event_id in (("finished", "its end"), ("started", "next"), ("finished", "end of next")):
        send(kind, event_id)
    drain(box)
    assert box.requeue_rejected(base_uri=HERE, now=20_000) == (1, 1)
    assert drain(box, now=20_000) == ["refused", "its end"]


# -- giving up --------------------------------------------------------------------------------------------------------


def test_after_seven_days_an_event_is_given_up_and_says_so(box: Outbox) -> None:
    start(box, "old", now=1000)
    end(box, "old", now=2000)
    assert box.prune(now=1000 + 7 * DAY) == []
    (given_up,) = box.prune(now=1001 + 7 * DAY)
    assert (given_up.event_id, given_up.state, given_up.reason) == (
        "old-started",
        "rejected",
        "not delivered within 7 days",
    )
    assert drain(box) == ["old-finished"]


def test_what_came_back_has_seven_days_again(box: Outbox) -> None:
    start(box, "again", of="again", now=1000)
    start(box, "moved", of="moved", base_uri=THERE, now=1000)
    box.reject(claim(box)[0].event_id, owner="me", reason="no", now=10_000)
    box.requeue_rejected(base_uri=HERE, now=8 * DAY)
    box.readdress(from_base_uri=THERE, to_base_uri=HERE, now=8 * DAY)
    assert box.prune(now=15 * DAY) == []
    assert len(box.prune(now=15 * DAY + 1)) == 2


def test_what_is_being_sent_is_not_given_up(box: Outbox) -> None:
    start(box, "d", now=1000)
    (claimed,) = claim(box, now=9 * DAY)
    assert box.prune(now=9 * DAY) == []
    assert box.ack(claimed.event_id, owner="me", now=9 * DAY)


def test_above_ten_thousand_the_oldest_are_given_up_a_thousand_at_a_time() -> None:
    with opened(None) as box:
        with box.transaction():
            for number in range(11_100):
                lone(box, str(number), of=str(number % 7), now=number)
        given_up = []
        while some := box.prune(now=20_000):
            assert len(some) <= 1000
            given_up += some
        assert [one.event_id for one in given_up] == [str(number) for number in range(1100)]
        assert {one.reason for one in given_up} == {"more than 10000 events waited"}
        assert box.counts() == Counts(pending=10_000, delivered=0, rejected=1100, open=0)
        assert len(claim(box, now=20_000)) == 7


def test_history_goes_back_thirty_days_and_keeps_what_was_rejected_or_is_open(box: Outbox) -> None:
    for name in ("delivered", "refused", "open", "late"):
        start(box, name, of=name, now=1000)
    box.add_event(deployment_id="refused", base_uri=HERE, event=event("custom", "step", of="refused"), now=1500)
    for name in ("delivered", "refused"):
        end(box, name, of=name, now=2000)
    end(box, "late", of="late", now=20 * DAY)
    for claimed in claim(box):
        if claimed.deployment_id == "refused":
            box.reject(claimed.event_id, owner="me", reason="no", now=10_000)
        else:
            box.ack(claimed.event_id, owner="me", now=10_000)
    drain(box)
    assert box.prune(now=10_000 + 30 * DAY) == []
    assert box.counts() == Counts(pending=0, delivered=7, rejected=1, open=1)
    assert box.prune(now=10_001 + 30 * DAY) == []
    # It goes with its start, should that be sent again.
    assert box.event("refused-finished") is not None
    assert box.counts() == Counts(pending=0, delivered=1, rejected=1, open=1)
    assert {one.id for one in box.deployments(limit=9)} == {"refused", "open", "late"}
    assert box.open_of()[0].last_event_at == 1000
    assert box.requeue_rejected(base_uri=HERE, now=31 * DAY) == (1, 1)
    assert drain(box, now=31 * DAY) == ["refused-started", "refused-finished"]
    assert box.prune(now=62 * DAY) == []
    assert box.counts() == Counts(pending=0, delivered=0, rejected=0, open=1)


def test_only_the_end_of_a_rejected_start_outlives_the_thirty_days(box: Outbox) -> None:
    start(box, "refused")
    reject_all(box)
    end(box, "refused")
    for name, of in (("next", "a"), ("step refused", "b")):
        start(box, name, of=of)
        drain(box)
        box.add_event(deployment_id=name, base_uri=HERE, event=event("custom", f"{name}-step", of=of), now=1500)
        if name == "step refused":
            reject_all(box)
        end(box, name, of=of)
    drain(box)
    box.prune(now=10_001 + 30 * DAY)
    assert [one.event_id for status in box.deployments(limit=9) for one in status.events] == [
        *("step refused-step", "refused-started", "refused-finished"),
    ]


# -- however many events wait -----------------------------------------------------------------------------------------

OFTEN: dict[str, Callable[[Outbox], object]] = {
    "open_deployment": lambda box: start(box, "new", of="new"),
    "end_deployment": lambda box: end(box, "d"),
    "add_event": lambda box: lone(box, "new"),
    "claim": lambda box: claim(box, limit=8),
    "claim own": lambda box: box.claim(base_uri=HERE, owner="me", now=10_000, limit=8, own=["d", "e"]),
    "claim own only": lambda box: box.claim(
        base_uri=HERE, owner="me", now=10_000, limit=8, own=["d", "e"], own_only=True
    ),
    "claim ignoring backoff": lambda box: box.claim(
        base_uri=HERE, owner="me", now=10_000, limit=8, ignore_backoff=True
    ),
    "ack": lambda box: box.ack(claim(box, limit=1)[0].event_id, owner="me", now=10_000),
    "reject": lambda box: box.reject(claim(box, limit=1)[0].event_id, owner="me", reason="", now=10_000),
    "retry_later": lambda box: box.retry_later(claim(box, limit=1)[0].event_id, owner="me", next_attempt=0, now=10_000),
    "release": lambda box: box.release(claim(box, limit=1)[0].event_id, owner="me"),
    "release_all": lambda box: box.release_all("me"),
    "next_due": lambda box: box.next_due(base_uri=HERE, now=1),
    "open_of": lambda box: box.open_of(base_uri=HERE, identity=identity("d")),
    "others_sending": lambda box: box.others_sending(base_uri=HERE, owner="me", now=10_000),
    "hold": lambda box: box.hold(HERE, until=1),
    "held_until": lambda box: box.held_until(HERE),
    "note": lambda box: box.note("d", {"more": 1}),
    "settle_deployment": lambda box: box.settle_deployment("d", state="failed", now=1),
    "deployments": lambda box: box.deployments(limit=5),
    "lone_events": lambda box: box.lone_events(limit=5),
}
SELDOM: dict[str, Callable[[Outbox], object]] = {
    "counts": lambda box: (box.counts(), box.counts(base_uri=HERE)),
    "waiting_elsewhere": lambda box: box.waiting_elsewhere(HERE),
    "make_due": lambda box: box.make_due(HERE, now=0),
    "prune": lambda box: box.prune(now=40 * DAY),
    "readdress": lambda box: box.readdress(from_base_uri=HERE, to_base_uri=THERE, now=99_000),
    "requeue_rejected": lambda box: box.requeue_rejected(base_uri=HERE, now=99_000),
}


def statements_of(box: Outbox, command: Callable[[Outbox], object]) -> set[str]:
    connection = box._database._connection
    assert connection is not None
    seen: set[str] = set()
    connection.set_trace_callback(seen.add)
    command(box)
    connection.set_trace_callback(None)
    return {one for one in seen if one.split()[0] in ("SELECT", "INSERT", "UPDATE", "DELETE")}


@pytest.mark.parametrize("command", [*OFTEN.values(), *SELDOM.values()], ids=[*OFTEN, *SELDOM])
def test_every_statement_finds_its_rows_in_an_index_and_sorts_no_queue(
    box: Outbox, command: Callable[[Outbox], object]
) -> None:
    start(box, "d", of="d")
    statements = statements_of(box, command)
    assert statements
    for statement in statements:
        plan = [row[3] for row in box._database.rows(f"EXPLAIN QUERY PLAN {statement}")]
        assert [step for step in plan if not is_frugal(step, statement)] == [], (statement, plan)


def is_frugal(step: str, statement: str) -> bool:
    if "TEMP B-TREE" in step:
        # Of a few deployments: of this process, of this identity.
        return "CROSS JOIN" in statement or "state = 'open'" in statement
    # In the order of the index it ends with the limit.
    return not step.startswith("SCAN") or ("USING INDEX" in step and "LIMIT 5" in statement)


@pytest.mark.parametrize("streams", ["one stream", "a stream each"])
@pytest.mark.parametrize("command", OFTEN.values(), ids=OFTEN)
def test_what_happens_often_costs_the_same_however_many_events_wait(
    streams: str, command: Callable[[Outbox], object]
) -> None:
    assert steps_of(streams, command, 2_000) < 1.5 * steps_of(streams, command, 50) + 500


def steps_of(streams: str, command: Callable[[Outbox], object], number: int) -> int:
    """Return how many steps SQLite's virtual machine takes for ``command`` while ``number`` events wait."""
    with opened(None) as box:
        with box.transaction():
            start(box, "d", of="d")
            start(box, "e", of="e")
            for count in range(number):
                lone(box, f"x{count}", of="x" if streams == "one stream" else f"x{count}")
        # The last of them is not claimed any more: a head that is leased hides what is behind it.
        claim(box, owner="other", limit=1)
        steps = 0

        def count_steps() -> int:
            nonlocal steps
            steps += 10
            return 0

        connection = box._database._connection
        assert connection is not None
        connection.set_progress_handler(count_steps, 10)
        command(box)
        connection.set_progress_handler(None, 0)
    return steps


def test_errors_of_sqlite_do_not_leave(box: Outbox) -> None:
    box._database._connection.execute("DROP TABLE events")  # type: ignore[union-attr]
    with pytest.raises(OutboxError) as caught:
        box.counts()
    assert not isinstance(caught.value, sqlite3.Error)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert "no such table" not in str(caught.value)
