"""What a process leaves beside an outbox that it cannot wait for, and who takes it up."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_kit import PLAIN, Deploys, Running, deploys_fixture  # noqa: F401
from fault_server import FaultServer, answer, repeats, silent, told
from outbox_kit import held


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
    with held(deploys.outbox):
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


def test_what_was_delivered_while_the_outbox_was_held_is_not_sent_again(deploys: Deploys) -> None:
    with FaultServer(answer(delay=0.8)) as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        running = deploys.start("with deployment('billing', version='v1'):\n    ready()\nleave()").until_ready()
        while not server.posts:
            assert running.process.poll() is None
        with held(deploys.outbox):
            assert running.ends().status == 0
        deploys.next_run()
        assert told(server.events) == {"v1": ["started", "finished"]}
        assert repeats(server.events) == 0


@contextlib.contextmanager
def of_a_newer_version(outbox: Path) -> Iterator[None]:
    """Let the outbox be one that this version cannot use, in the block."""
    with contextlib.closing(sqlite3.connect(outbox)) as newer:
        ((version,),) = newer.execute("PRAGMA user_version")
        newer.execute("PRAGMA user_version = 99")
    yield
    with contextlib.closing(sqlite3.connect(outbox)) as newer:
        newer.execute(f"PRAGMA user_version = {version}")


@pytest.mark.parametrize(
    ("source", "end"),
    [
        ("    ready(); time.sleep(60)", "failed"),
        # Nothing is open any more, and nothing would be lost of an outbox that could be used.
        ("    pass\nready(); time.sleep(60)", "finished"),
    ],
    ids=["in the block", "after it"],
)
def test_what_is_in_memory_when_a_signal_comes_is_left_too(deploys: Deploys, source: str, end: str) -> None:
    with FaultServer(answer(), answer(), silent) as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        deploys.run(PLAIN, "v0")
        with of_a_newer_version(deploys.outbox):
            running = deploys.start(f"with deployment('billing', version='v1'):\n{source}")
            ended = running.until_ready().send(signal.SIGTERM).ends()
            assert (ended.status, ended.lingered < 3) == (-signal.SIGTERM, True)
        server.heal()
        deploys.next_run()
        assert told(server.events) == {"v0": ["started", "finished"], "v1": ["started", end]}
        assert server.events[-1]["eventMetadata"].get("reason") == ("cancelled" if end == "failed" else None)


def test_an_end_that_a_signal_tells_from_memory_is_told_once(deploys: Deploys, server: FaultServer) -> None:
    ended = (
        deploys.start(
            """
import sqlite3
with deployment("billing", version="v1"):
    assert flush(10)
    # As a disk that is full from now on.
    box = sqlite3.connect(os.environ["LD_DEPLOY_OUTBOX"])
    box.execute("CREATE TRIGGER full BEFORE INSERT ON events BEGIN SELECT raise(abort, 'full'); END")
    box.commit()
    ready()
    time.sleep(60)
"""
        )
        .until_ready()
        .send(signal.SIGTERM)
        .ends()
    )
    assert ended.status == -signal.SIGTERM
    assert told(server.events) == {"v1": ["started", "failed"]}
    with contextlib.closing(sqlite3.connect(deploys.outbox)) as box:
        box.execute("DROP TRIGGER full")
    deploys.next_run()
    assert told(server.events) == {"v1": ["started", "failed"]}
    assert server.events[-1]["eventMetadata"]["reason"] == "cancelled"


@pytest.mark.parametrize(
    "kind",
    [
        "fifo",
        "link",
        pytest.param(
            "another user's",
            marks=pytest.mark.skipif(
                not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to make a file somebody else's"
            ),
        ),
    ],
)
def test_what_this_user_has_not_left_is_never_told(deploys: Deploys, server: FaultServer, kind: str) -> None:
    leaves_its_end(deploys, "v1")
    (file,) = left(deploys).glob("*.json")
    if kind == "fifo":
        file.unlink()
        os.mkfifo(file)
    elif kind == "link":
        file.symlink_to(file.rename(deploys.folder / "elsewhere"))
    else:
        os.chown(file, 65534, 65534)
    ended = deploys.run(PLAIN, "v2")
    assert (ended.status, len(ended.lines)) == (3, 1)
    assert ended.lingered < 2
    assert f"What an earlier run has left in {file} cannot be used" in ended.stderr
    assert told(server.events)["v2"] == ["started", "finished"]
    assert "finished" not in told(server.events)["v1"]
    flushed = deploys.command("flush")
    assert flushed.status == 1
    assert f"1 file(s) that earlier runs have left in {left(deploys)} could not be recorded" in flushed.stderr


def test_what_an_editor_puts_there_keeps_nothing_from_being_sent(deploys: Deploys, server: FaultServer) -> None:
    leaves_its_end(deploys, "v1")
    (left(deploys) / ".#lock.json").symlink_to("nowhere")
    deploys.next_run()
    assert told(server.events)["v1"] == ["started", "finished"]


def test_a_folder_that_cannot_be_looked_at_is_said(deploys: Deploys, server: FaultServer) -> None:
    left(deploys).parent.mkdir()
    left(deploys).symlink_to(left(deploys))
    ended = deploys.run(PLAIN, "v1")
    assert ended.status == 3
    assert f"What earlier runs have left in {left(deploys)} cannot be looked at (OSError)" in ended.stderr
    assert f"`sudo chown -R $(id -u) {left(deploys)}`" in ended.stderr
    assert told(server.events) == {"v1": ["started", "finished"]}
    flushed = deploys.command("flush")
    assert flushed.status == 1
    assert f"What earlier runs have left in {left(deploys)} cannot be looked at (OSError)." in flushed.stderr
    left(deploys).unlink()
    assert deploys.command("flush").status == 0


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, in another user's folder")
def test_root_leaves_nothing_beside_the_outbox_of_another_user(deploys: Deploys, server: FaultServer) -> None:
    server.heal(answer(503))
    deploys.outbox.parent.mkdir()
    os.chown(deploys.outbox.parent, 65534, 65534)
    ended = deploys.run(PLAIN, "v1")
    assert ended.status == 3
    assert "They are lost: nothing can be written beside the outbox either." in ended.stderr
    assert list(deploys.outbox.parent.iterdir()) == []


def test_the_events_of_an_identity_stay_in_order_between_memory_and_the_outbox(deploys: Deploys) -> None:
    with FaultServer(answer(), answer(503), answer()) as server:
        deploys.set(LD_BASE_URI=server.base_uri, LD_DEPLOY_FLUSH_TIMEOUT="10")
        ended = deploys.run(
            """
import sqlite3
box = None
with deployment("billing", version="v1"):
    assert flush(10)
    box = sqlite3.connect(os.environ["LD_DEPLOY_OUTBOX"])
    box.execute("CREATE TRIGGER full BEFORE INSERT ON events BEGIN SELECT raise(abort, 'full'); END")
    box.commit()
box.execute("DROP TRIGGER full")
box.commit()
box.close()
with deployment("billing", version="v1"):
    current_deployment().custom({"step": "one"})
leave()
"""
        )
        assert ended.status == 0
        assert told(server.events) == {"v1": ["started", "finished", "started", "custom", "finished"]}


# An outbox that takes no event, and takes them again.
REFUSING = """
import sqlite3

def refuse():
    box = sqlite3.connect(os.environ["LD_DEPLOY_OUTBOX"])
    box.execute("CREATE TRIGGER full BEFORE INSERT ON events BEGIN SELECT raise(abort, 'full'); END")
    box.commit()
    box.close()

def mend():
    box = sqlite3.connect(os.environ["LD_DEPLOY_OUTBOX"])
    box.execute("DROP TRIGGER full")
    box.commit()
    box.close()
"""


def test_an_end_that_went_past_the_outbox_is_not_told_again_however_the_process_dies(
    deploys: Deploys, server: FaultServer
) -> None:
    running = deploys.start(
        REFUSING
        + """
with deployment("billing", version="v1"):
    assert flush(10)
    refuse()
mend()
with deployment("other", version="v2"):
    pass
time.sleep(60)
"""
    )
    while len(server.events) < 4:
        assert running.process.poll() is None
        time.sleep(0.01)
    running.kill()
    assert deploys.command("flush", "--recover").status == 0
    assert told(server.events) == {"v1": ["started", "finished"], "v2": ["started", "finished"]}
    status = json.loads(deploys.command("status", "--json").stdout)
    assert status["open"] == 0
    assert {deployment["state"] for deployment in status["deployments"]} == {"finished"}


def test_a_deployment_after_the_outbox_was_mended_is_kept_there_again(deploys: Deploys, server: FaultServer) -> None:
    killed = deploys.run(
        REFUSING
        + """
with deployment("other", version="v0"):
    pass
refuse()
with deployment("billing", version="v1"):
    current_deployment().custom(step="one")
assert flush(10)
mend()
with deployment("billing", version="v1"):
    assert flush(10)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    assert killed.status == -signal.SIGKILL
    assert told(server.events)["v1"] == ["started", "custom", "finished", "started"]
    assert "killed" in deploys.command("flush", "--recover").stdout
    assert told(server.events)["v1"] == ["started", "custom", "finished", "started", "failed"]


def test_many_services_beside_an_outbox_that_is_held_hold_no_exit_up(deploys: Deploys, server: FaultServer) -> None:
    deploys.run(PLAIN, "v0")
    running = deploys.start(
        f"""
import contextlib
with contextlib.ExitStack() as stack:
    for number in range(4):
        os.environ["LD_ACCESS_TOKEN"] = f"api-{{number}}"
        stack.enter_context(deployment(f"app{{number}}", version="v1"))
    ready()
    {until("held")}
leave()
"""
    ).until_ready()
    with held(deploys.outbox):
        (deploys.folder / "held").touch()
        ended = running.ends()
    assert ended.status == 0
    assert ended.lingered < 2 + 1.5
    deploys.next_run()


def test_an_end_follows_its_start_to_memory_though_it_was_queued_before(deploys: Deploys, server: FaultServer) -> None:
    deploys.run(PLAIN, "v0")
    running = deploys.start(
        f"""
import ld_deploy_hooks._outbox._connection as connection
connection._BUSY = 2000
with deployment("warm", version="v0"):
    pass
ready()
{until("held")}
with deployment("billing", version="v1"):
    pass
time.sleep(5)
"""
    ).until_ready()
    with held(deploys.outbox):
        (deploys.folder / "held").touch()
        while "straight from memory" not in running.said_so_far():
            assert running.process.poll() is None
    assert running.ends().status == 0
    with contextlib.closing(sqlite3.connect(deploys.outbox)) as box:
        ((kept,),) = box.execute("SELECT count(*) FROM events WHERE payload LIKE '%v1%'")
    assert kept == 0, "from there it would be sent beside its start, and perhaps before it"
    assert told(server.events)["v1"] == ["started", "finished"]


def test_what_cannot_be_acknowledged_is_not_sent_again_by_the_next_run(deploys: Deploys, server: FaultServer) -> None:
    """The outbox answers, and takes no more: as on a disk that has got full."""
    ended = deploys.run(
        """
import ld_deploy_hooks._outbox as outbox
from ld_deploy_hooks._errors import OutboxError
def full(self, *args, **kwargs):
    raise OutboxError("The disk is full.", path="outbox.db")
with deployment("billing", version="v1"):
    outbox.Outbox.ack = full
leave()
"""
    )
    assert (ended.status, ended.stderr.count("1 event(s) wait in")) == (0, 1)
    deploys.next_run()
    assert told(server.events) == {"v1": ["started", "finished"]}
    assert repeats(server.events) == 0


def test_what_is_left_waits_for_no_disk(deploys: Deploys, server: FaultServer) -> None:
    """A disk that takes long to sync holds the outbox up; what lies beside it is on the same one."""
    deploys.run(PLAIN, "v0")
    running = deploys.start(
        f"os.fsync = lambda file: time.sleep(30)\nwith deployment('billing', version='v1'):\n    ready()\n"
        f"    {until('held')}\nleave()"
    ).until_ready()
    with held(deploys.outbox):
        (deploys.folder / "held").touch()
        ended = running.ends()
    assert (ended.status, ended.lingered < 2 + 1.5) == (0, True)
    deploys.next_run()
    assert told(server.events)["v1"] == ["started", "finished"]


# A real limit of SQLite's own, for the whole process; it cannot be lifted again.
LIMITS = """
import contextlib, sqlite3
def limit():
    with contextlib.suppress(MemoryError):
        sqlite3.connect(":memory:").execute("PRAGMA hard_heap_limit = 1")
"""
MEMORY_ENDS = {
    "from the beginning": """
        limit()
        with deployment("billing", version="v1") as d:
            d.custom(step=1)
        leave(3)
    """,
    "in the middle": """
        with deployment("billing", version="v1") as d:
            limit()
            d.custom(step=1)
        leave(3)
    """,
    "before a signal": """
        with deployment("billing", version="v1") as d:
            limit()
            d.custom(step=1)
            mark()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
    """,
}


@pytest.mark.parametrize("when", MEMORY_ENDS)
def test_what_there_is_no_memory_for_is_left(deploys: Deploys, server: FaultServer, when: str) -> None:
    ended = deploys.run(LIMITS + textwrap.dedent(MEMORY_ENDS[when]))
    assert ended.status == (-signal.SIGTERM if when == "before a signal" else 3)
    assert "there is no memory left for it (SQLITE_NOMEM). Raise the limit of memory." in ended.stderr
    if when != "before a signal":
        why = "there was no memory for them either"
        if when == "in the middle":
            why = "they may not overtake what waits in the outbox"
        why = f"could not be delivered: {why}"
        assert f"event(s) of this run {why}. They are in {left(deploys)}" in ended.stderr
    deploys.next_run()
    end = "failed" if when == "before a signal" else "finished"
    assert told(server.events) == {"v1": ["started", "custom", end]}
    assert repeats(server.events) == 0


@pytest.mark.parametrize("heals", [False, True], ids=["the service stays away", "the service comes back"])
def test_an_end_does_not_overtake_its_start_that_waits_on_a_disk_that_is_full(
    deploys: Deploys, server: FaultServer, heals: bool
) -> None:
    server.heal(answer(503))
    running = deploys.start(
        """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with deployment("billing", version="v1"):
    flush(0.5)
    size = os.path.getsize(os.environ["LD_DEPLOY_OUTBOX"] + "-wal")
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    ready()
    while not os.path.exists("healed"): time.sleep(0.01)
leave(3)
"""
    ).until_ready()
    if heals:
        server.heal()
    (deploys.folder / "healed").touch()
    ended = running.ends()
    assert ended.status == 3
    server.heal()
    deploys.next_run()
    assert told(server.events) == {"v1": ["started", "finished"]}
    assert repeats(server.events) == 0


def test_an_end_does_not_overtake_its_start_that_waits_in_an_outbox_that_is_held(
    deploys: Deploys, server: FaultServer
) -> None:
    server.heal(answer(503))
    running = deploys.start(
        f"""
import ld_deploy_hooks._outbox._connection as connection
connection._BUSY = 300
with deployment("billing", version="v1"):
    flush(0.5)
    ready()
    {until("held")}
{until("healed")}
leave(3)
"""
    ).until_ready()
    with held(deploys.outbox):
        server.heal()
        (deploys.folder / "held").touch()
        time.sleep(3)
    (deploys.folder / "healed").touch()
    assert running.ends().status == 3
    deploys.next_run()
    assert told(server.events) == {"v1": ["started", "finished"]}
    assert repeats(server.events) == 0


def test_without_sqlite_everything_is_left_and_every_command_says_why(deploys: Deploys, server: FaultServer) -> None:
    # Coverage would have loaded it already.
    deploys.env.pop("COVERAGE_PROCESS_START", None)
    before = deploys.env.get("PYTHONPATH", "")
    (deploys.folder / "site").mkdir()
    (deploys.folder / "site" / "sitecustomize.py").write_text("import sys\nsys.modules['_sqlite3'] = None\n")
    deploys.outbox.parent.mkdir()
    deploys.set(PYTHONPATH=os.pathsep.join([str(deploys.folder / "site"), before]))
    ended = deploys.run(PLAIN, "v1")
    assert (ended.status, ended.stdout) == (3, "deploying\n")
    assert "_sqlite3 cannot be imported. Use a Python that was built with SQLite" in ended.stderr
    assert "This is a fault of ld-deploy-hooks" not in ended.stderr
    assert f"They are in {left(deploys)}" in ended.stderr
    for command in ("flush", "status", "doctor", "send"):
        more = ["started", "--application-key", "web", "--version", "v2"] if command == "send" else []
        ended = deploys.command(command, *more)
        assert ended.status != 0, command
        assert "Traceback" not in ended.stderr
        assert "SQLite" in ended.stderr
    deploys.set(PYTHONPATH=before)
    deploys.next_run()
    assert told(server.events)["v1"] == ["started", "finished"]
