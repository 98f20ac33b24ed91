"""An outbox that SQLite takes for sound while bytes of it have changed: what can be read goes its way."""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_kit import PLAIN, Deploys, deploys_fixture  # noqa: F401
from fault_server import FaultServer, answer, told
from outbox_kit import HERE, drain, end, identity, lone, opened, start

from ld_deploy_hooks._log import forget_said
from ld_deploy_hooks._outbox import Outbox
from ld_deploy_hooks._records import Identity

# What a byte of the disk that has changed leaves: in place of a letter, or as the whole.
NO_TEXT = "CAST(x'7bff7d' AS TEXT)"
KILLED = """
for version in ("v1", "v2"):
    deployment("billing", version=version).__enter__()
flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Outbox]:
    forget_said()
    with opened(tmp_path / "outbox.db") as box:
        yield box


@pytest.fixture
def server(deploys: Deploys) -> Iterator[FaultServer]:
    with FaultServer(answer(503)) as server:
        deploys.set(LD_BASE_URI=server.base_uri, LD_DEPLOY_FLUSH_TIMEOUT="0.3")
        yield server


def change(outbox: Path, sql: str) -> None:
    with contextlib.closing(sqlite3.connect(outbox)) as connection, connection:
        assert connection.execute(sql).rowcount >= 1, sql


def break_old_rows(outbox: Path) -> None:
    """Make the oldest events unreadable for SQLite, as one bad sector does; what is recorded now goes elsewhere."""
    with contextlib.closing(sqlite3.connect(outbox)) as connection:
        ((size,),) = connection.execute("PRAGMA page_size")
        ((root,),) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'events'")
    content = bytearray(outbox.read_bytes())
    page = (root - 1) * size
    assert content[page] == 5, "not an inner page of a table: too few rows"
    (cell,) = struct.unpack_from(">H", content, page + 12)
    (leaf,) = struct.unpack_from(">I", content, page + cell)
    content[(leaf - 1) * size : (leaf - 1) * size + 512] = bytes(512)
    outbox.write_bytes(content)


@pytest.mark.parametrize("payload", [NO_TEXT, "replace(payload, 'billing', 'b' || CAST(x'e9' AS TEXT))", "x'7b7d'"])
def test_an_event_whose_bytes_have_changed_is_rejected_and_blocks_nothing(
    box: Outbox, caplog: pytest.LogCaptureFixture, payload: str
) -> None:
    start(box, "d")
    end(box, "d")
    lone(box, "other", of="b")
    assert box._database.change(f"UPDATE events SET payload = {payload} WHERE event_id = 'd-started'") == 1
    with caplog.at_level(logging.WARNING):
        assert drain(box) == ["other", "d-finished"]
        changed = box.event("d-started")
        assert changed is not None
        assert (changed.state, changed.reason) == ("rejected", "its bytes in the outbox have changed")
        box.requeue_rejected(base_uri=HERE, now=20_000)
        drain(box)
    (record,) = caplog.records
    assert "The started event d-started in" in record.getMessage()
    assert "kept as rejected" in record.getMessage()


@pytest.mark.parametrize("details", ["'{broken'", NO_TEXT, "'[1]'", "''"])
def test_details_that_cannot_be_read_count_as_none_and_those_of_others_stay(box: Outbox, details: str) -> None:
    for name in ("changed", "sound"):
        start(box, name)
    assert box._database.change(f"UPDATE deployments SET details = {details} WHERE id = 'changed'") == 1
    assert {one.id: one.details for one in box.open_of()} == {"changed": {}, "sound": {"task": "deploy"}}
    assert {one.id: one.details for one in box.deployments(limit=9)} == {"changed": {}, "sound": {"task": "deploy"}}
    box.note("changed", {"signal": 15})
    assert {one.id: one.details for one in box.open_of()}["changed"] == {"signal": 15}
    assert end(box, "changed")


@pytest.mark.parametrize(
    "rest", ["'['", "'[1,2,3,4]'", "'{}'", "'[\"a\"]'", "CAST(x'ff' AS TEXT)"], ids=["no JSON", *"1234"]
)
def test_an_identity_that_cannot_be_read_is_shown_as_such(box: Outbox, rest: str) -> None:
    for name in ("changed", "sound"):
        start(box, name)
    sql = f"UPDATE deployments SET stream = base_uri || ' ' || {rest} WHERE id = 'changed'"
    assert box._database.change(sql) == 1
    expected = {"changed": Identity("?", "?", "?", "?"), "sound": identity()}
    assert {one.id: one.identity for one in box.open_of()} == expected
    assert {one.id: one.identity for one in box.deployments(limit=9)} == expected


def test_a_deployment_whose_id_has_changed_cannot_be_ended_and_is_not_offered(box: Outbox) -> None:
    start(box, "sound")
    start(box, "changed")
    assert box._database.change("UPDATE deployments SET id = CAST(x'63ff' AS TEXT) WHERE id = 'changed'") == 1
    assert [one.id for one in box.open_of()] == ["sound"]
    assert {one.id for one in box.deployments(limit=9)} == {"sound", "c\ufffd"}


def test_what_follows_an_event_whose_bytes_have_changed_is_sent(deploys: Deploys, server: FaultServer) -> None:
    deploys.run(PLAIN, "v1")
    assert deploys.command("send", "custom", "--application-key", "billing", "--version", "v2").status == 0
    change(deploys.outbox, f"UPDATE events SET payload = {NO_TEXT} WHERE type IN ('started', 'custom')")
    server.heal()
    ended = deploys.command("flush", "--timeout", "20")
    assert ended.stdout == f"1 event(s) delivered to {server.base_uri}\n"
    assert (ended.status, "2 event(s) were rejected: `ld-deploy status` says why" in ended.stderr) == (1, True)
    assert ended.stderr.count("bytes have changed. It is kept as rejected") == 2
    assert told(server.events) == {"v1": ["finished"]}
    shown = deploys.command("status")
    assert (shown.status, shown.stderr) == (0, "")
    assert shown.stdout.count("rejected: its bytes in the outbox have changed") == 2
    (alone,) = json.loads(deploys.command("status", "--json").stdout)["lone_events"]
    assert alone["version"] == "?"
    assert deploys.command("flush").status == 0


def test_broken_details_hold_up_neither_the_same_deployment_nor_recovery_nor_status(
    deploys: Deploys, server: FaultServer
) -> None:
    server.heal()
    deploys.set(LD_DEPLOY_FLUSH_TIMEOUT="20")
    deploys.run(KILLED)
    change(deploys.outbox, "UPDATE deployments SET details = '{broken' WHERE stream LIKE '%v1%'")
    ended = deploys.run(PLAIN, "v1")
    assert (ended.status, "could not be recorded" in ended.stderr) == (3, False)
    recovered = deploys.command("flush", "--recover")
    assert (recovered.status, "Traceback" in recovered.stderr) == (0, False)
    assert deploys.command("status").status == 0
    events = told(server.events)
    assert events == {"v1": ["started", "failed", "started", "finished"], "v2": ["started", "failed"]}


def test_verify_passes_over_a_lone_event_that_cannot_be_read(deploys: Deploys, server: FaultServer) -> None:
    server.heal()
    deploys.set(LD_DEPLOY_FLUSH_TIMEOUT="20")
    assert deploys.command("send", "finished", "--application-key", "billing", "--version", "v1").status == 0
    change(deploys.outbox, f"UPDATE events SET payload = {NO_TEXT}")
    ended = deploys.command("verify", "--timeout", "1")
    assert (ended.status, "Traceback" in ended.stderr) == (0, False)


@pytest.mark.parametrize("command", [None, ("flush", "--recover"), ("flush",), ("retry",)], ids=str)
def test_damage_that_nobody_who_records_has_noticed_is_said_once(
    deploys: Deploys, server: FaultServer, command: tuple[str, ...] | None
) -> None:
    deploys.set(LD_DEPLOY_FLUSH_TIMEOUT="0")
    deploys.run("for n in range(20):\n    with deployment('billing', version=f'v{n}'): pass\n")
    break_old_rows(deploys.outbox)
    server.heal()
    deploys.set(LD_DEPLOY_FLUSH_TIMEOUT="20")
    ended = deploys.run(PLAIN, "new") if command is None else deploys.command(*command)
    (aside,) = deploys.outbox.parent.glob("*.damaged-*-1")
    said = [line for line in ended.lines if f"is damaged (SQLITE_CORRUPT); it was moved to {aside} and a new" in line]
    assert len(said) == 1, ended
    assert "Traceback" not in ended.stderr
    assert ended.status in ((3,) if command is None else (0, 2))
