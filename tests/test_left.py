"""What a process leaves beside an outbox that it cannot wait for, and who takes it up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_kit import PLAIN, Deploys, Running, deploys_fixture  # noqa: F401
from fault_server import FaultServer, told
from outbox_kit import opened


@pytest.fixture
def server(deploys: Deploys) -> Iterator[FaultServer]:
    with FaultServer() as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        yield server


def left(deploys: Deploys) -> Path:
    return deploys.outbox.with_name(f"{deploys.outbox.name}.left")


def until(name: str) -> str:
    return f"while not os.path.exists({name!r}): time.sleep(0.01)"


def leaves_its_end(deploys: Deploys, version: str) -> None:
    """Let a deploy end whose end the outbox does not take, as another process holds it."""
    running: Running = deploys.start(
        f"with deployment('billing', version={version!r}):\n    ready()\n    {until('held')}\nleave()"
    ).until_ready()
    with opened(deploys.outbox) as box, box.transaction():
        box.hold("somebody else's", until=0)
        (deploys.folder / "held").touch()
        ended = running.ends()
    assert ended.status == 0
    assert "The last 1 event(s) of this run are in" in ended.stderr
    assert len(list(left(deploys).glob("*.json"))) == 1


def test_who_has_the_outbox_open_takes_up_the_end_of_the_deployment_before_it_starts_the_next(
    deploys: Deploys, server: FaultServer
) -> None:
    long = deploys.start(
        f"""
with deployment("billing", version="v0"):
    pass
assert flush(5)
ready()
{until("go")}
with deployment("billing", version="v1"):
    pass
leave()
"""
    ).until_ready()
    leaves_its_end(deploys, "v1")
    (deploys.folder / "go").touch()
    assert long.ends().stderr == ""
    assert told(server.events) == {"v0": ["started", "finished"], "v1": ["started", "finished", "started", "finished"]}
    assert list(left(deploys).iterdir()) == []


def test_what_was_left_is_not_taken_for_killed_by_recovery(deploys: Deploys, server: FaultServer) -> None:
    leaves_its_end(deploys, "v1")
    deploys.next_run()
    assert told(server.events) == {"v1": ["started", "finished"]}
    assert list(left(deploys).iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[[1]]", '[["id", "uri", "owner", "no event"]]', "null"])
def test_what_cannot_be_read_is_moved_aside_and_said_once(deploys: Deploys, server: FaultServer, content: str) -> None:
    deploys.run(PLAIN, "v0")
    left(deploys).mkdir(exist_ok=True)
    (left(deploys) / "odd.json").write_text(content)
    ended = deploys.run(PLAIN, "v1")
    assert (ended.status, len(ended.lines)) == (3, 1)
    aside = left(deploys) / "odd.unreadable"
    assert f"it was moved to {aside} and is not sent" in ended.stderr
    assert aside.read_text() == content
    assert deploys.run(PLAIN, "v2").stderr == ""
    assert told(server.events) == {f"v{number}": ["started", "finished"] for number in range(3)}


def test_what_an_older_run_has_left_is_taken_up_by_any_number_at_once(deploys: Deploys, server: FaultServer) -> None:
    leaves_its_end(deploys, "v1")
    (file,) = left(deploys).glob("*.json")
    # The very same once more: who took it up was killed before it could remove it.
    file.with_name("again.json").write_text(json.dumps(json.loads(file.read_text())))
    for running in [deploys.start(PLAIN, f"v{number}") for number in range(2, 6)]:
        assert running.ends().stderr == ""
    deploys.next_run()
    assert told(server.events) == {f"v{number}": ["started", "finished"] for number in range(1, 6)}
