"""Many processes on one outbox: real ones, that race, hold the lock, and are killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from outbox_kit import claim, drain, end, lone, opened, start

PROGRAM = Path(__file__).with_name("outbox_children.py")
PATIENCE = 60.0


class Child:
    """A process of outbox_children.py, ready to begin."""

    def __init__(self, env: dict[str, str], what: str, path: Path, owner: str, log: Path) -> None:
        self.owner = owner
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), what, str(path), owner, str(log)],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hears(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ends(self) -> None:
        self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
        assert self.process.returncode == -signal.SIGKILL


Spawn = Callable[[str, str], Child]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "outbox.db"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def spawn(child_env: dict[str, str], path: Path, log: Path) -> Iterator[Spawn]:
    """Return a function that starts a process; none of them outlives the test."""
    children: list[Child] = []

    def start_one(what: str, owner: str) -> Child:
        children.append(Child(child_env, what, path, owner, log))
        return children[-1]

    yield start_one
    for child in children:
        child.process.kill()
        child.process.communicate()


def together(spawn: Spawn, what: str, number: int = 8) -> list[Child]:
    """Start processes, and let them begin when all are ready."""
    children = [spawn(what, f"p{count}") for count in range(number)]
    assert [child.says() for child in children] == ["ready"] * number
    for child in children:
        child.hears()
    return children


def lines(log: Path) -> list[str]:
    # The last line may be half written.
    return log.read_text().split("\n")[:-1] if log.exists() else []


def wait_for_lines(log: Path, number: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while len(lines(log)) < number:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def in_order(sent: list[str], path: Path) -> None:
    """Assert that each stream's events were sent in the order in which they were recorded."""
    with opened(path) as box:
        recorded = box._database.rows("SELECT event_id, stream FROM events ORDER BY id")
    streams = dict(recorded)
    first = list(dict.fromkeys(sent))
    for stream in set(streams.values()):
        assert [one for one in first if streams[one] == stream] == [one for one, of in recorded if of == stream]


def test_eight_processes_that_record_and_send_at_once_send_every_event_exactly_once(
    spawn: Spawn, path: Path, log: Path
) -> None:
    for child in together(spawn, "record_and_deliver"):
        child.ends()
    with opened(path) as box:
        sent = lines(log) + drain(box, now=int(time.time() * 1000))
        assert box.counts().delivered == 8 * 25 * 2
        assert box.open_of() == []
    assert len(sent) == 8 * 25 * 2
    assert set(Counter(sent).values()) == {1}
    in_order(sent, path)


@pytest.mark.parametrize("garbage", [False, True], ids=["no file", "a damaged file"])
def test_eight_first_starters_at_once_all_record(spawn: Spawn, tmp_path: Path, garbage: bool) -> None:
    children = together(spawn, "first_starts")
    for number in range(12):
        path = tmp_path / str(number) / "outbox.db"
        if garbage:
            path.parent.mkdir()
            path.write_bytes(b"garbage" * 1000)
        for child in children:
            child.hears(str(path))
        said = Counter(child.says() for child in children)
        assert said == ({"aside": 1, "new": 7} if garbage else {"new": 8})
        with opened(path) as box:
            assert sorted(one.event_id for one in box.lone_events(limit=99)) == [f"p{count}" for count in range(8)]
    for child in children:
        child.ends()


def test_eight_recoverers_at_once_close_each_deployment_once(spawn: Spawn, path: Path, log: Path) -> None:
    names = [f"d{number}" for number in range(20)]
    with opened(path) as box:
        for name in names:
            start(box, name, of=name, owner="dead")
    for child in together(spawn, "end_all"):
        child.ends()
    assert sorted(lines(log)) == sorted(names)
    with opened(path) as box:
        assert box.counts().pending == 40
        for deployment in box.deployments(limit=99):
            assert [one.event_type for one in deployment.events] == ["started", "failed"]


def test_senders_that_are_killed_at_random_lose_nothing(spawn: Spawn, path: Path, log: Path) -> None:
    chance = random.Random(7)
    events, kills = 600, 10
    with opened(path) as box:
        with box.transaction():
            for number in range(events):
                lone(box, f"e{number}", of=f"v{number % 23}")
        successors = [spawn("deliver_all", f"q{count}") for count in range(kills)]
        assert [child.says() for child in successors] == ["ready"] * kills
        senders = together(spawn, "deliver_all", 3)
        for kill in range(kills):
            wait_for_lines(log, kill * events // kills + chance.randrange(20))
            victim = senders.pop(chance.randrange(len(senders)))
            victim.kill()
            box.void_leases([victim.owner])
            successors[-1].hears()
            senders.append(successors.pop())
        for child in senders:
            child.ends()
        assert box.counts().delivered == events
    sent = lines(log)
    assert set(sent) == {f"e{number}" for number in range(events)}
    # Twice is sent only what one was killed over between sending and noting it.
    assert len(sent) - len(set(sent)) <= kills
    in_order(sent, path)


def test_recorders_that_are_killed_at_random_have_recorded_what_they_were_told_is_durable(
    spawn: Spawn, path: Path, log: Path
) -> None:
    chance = random.Random(11)
    for round_ in range(4):
        children = [spawn("record_for_ever", f"r{round_}-{count}") for count in range(3)]
        for child in children:
            child.says()
            child.hears()
        wait_for_lines(log, len(lines(log)) + chance.randrange(20, 60))
        for child in children:
            child.kill()
    accepted = set(lines(log))
    with opened(path) as box:
        assert box.set_aside is None
        durable = {row[0] for row in box._database.rows("SELECT event_id FROM events")}
        assert accepted <= durable
        assert len(durable - accepted) <= 12
        for deployment in box.deployments(limit=10_000):
            kinds = [one.event_type for one in deployment.events]
            assert kinds == (["started"] if deployment.state == "open" else ["started", "finished"])
        assert box._database.rows("PRAGMA integrity_check") == [("ok",)]
        assert set(drain(box, now=int(time.time() * 1000))) == durable


def test_who_is_killed_in_the_middle_of_a_group_leaves_nothing_and_holds_nobody_up(spawn: Spawn, path: Path) -> None:
    with opened(path) as box:
        holder = spawn("hold", "half")
        holder.hears()
        assert [holder.says(), holder.says()] == ["ready", "inside"]
        assert box.counts().open == 0
        holder.kill()
        start(box, "next")
        assert drain(box) == ["next-started"]
        assert box.counts().open == 1


def test_writers_wait_for_the_one_that_holds_the_lock(spawn: Spawn, path: Path, log: Path) -> None:
    with opened(path) as box:
        for number in range(4):
            start(box, f"d{number}", of=f"d{number}")
    holder = spawn("hold", "slow")
    holder.hears()
    assert [holder.says(), holder.says()] == ["ready", "inside"]
    waiters = together(spawn, "end_all", 4)
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        assert [child.process.poll() for child in waiters] == [None] * 4
        assert lines(log) == []
        time.sleep(0.01)
    holder.hears()
    assert holder.says() == "committed"
    for child in waiters:
        child.ends()
    with opened(path) as box:
        assert {one.id for one in box.open_of()} <= {"slow"}


FORK = """
import gc, os, sys
from contextlib import ExitStack
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from outbox_kit import *
from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks._outbox import Outbox

path, child_does = Path(sys.argv[2]), sys.argv[3]
# Held by this list alone: what is taken out of it is collected.
held = [Outbox(path), ExitStack()]
held[1].enter_context(held[0].transaction())
for number in range(600):
    # More than SQLite keeps in memory: some of it is in the file before it is committed.
    lone(held[0], f"before{number}-" + "x" * 6000)
pid = os.fork()
if pid == 0:
    if child_does == "close":
        held[0].close()
    elif child_does == "use":
        for use in (held[0].counts, held[0].transaction().__enter__, lambda: lone(held[0], "x")):
            try:
                use()
            except OutboxError as error:
                assert "which this one was forked from" in str(error), error
            else:
                raise AssertionError("used")
    elif child_does == "leave the group":
        held[1].__exit__(RuntimeError, RuntimeError(), None)
    held.clear()
    gc.collect()
    # All of the interpreter's end, with what it collects; not os._exit().
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
for number in range(600):
    lone(held[0], f"after{number}-" + "x" * 6000)
held[1].close()
held[0].close()
with opened(path) as box:
    assert box.set_aside is None
    assert box._database.rows("PRAGMA integrity_check") == [("ok",)]
    print(box.counts().pending)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("child_does", ["forget", "close", "use", "leave the group"])
def test_a_forked_child_does_nothing_to_what_its_parent_is_writing(
    run_python: Callable[..., subprocess.CompletedProcess[str]], path: Path, child_does: str
) -> None:
    done = run_python(FORK, str(PROGRAM.parent), str(path), child_does)
    assert (done.stdout, done.stderr, done.returncode) == ("1200\n", "", 0)


def test_no_process_sees_half_an_end(spawn: Spawn, path: Path, log: Path) -> None:
    """Readers that look all the time never see an ended deployment without its end, nor the other way round."""
    child = spawn("record_for_ever", "r")
    child.says()
    child.hears()
    with opened(path) as box:
        while len(lines(log)) < 60:
            with box.transaction():
                for deployment in box.deployments(limit=3):
                    assert len(deployment.events) == (1 if deployment.state == "open" else 2)
    child.kill()


def test_a_lease_of_a_dead_process_is_void_as_soon_as_somebody_says_so(spawn: Spawn, path: Path) -> None:
    with opened(path) as box:
        start(box, "d")
        end(box, "d")
        claim(box, owner="dead")
    with opened(path) as box:
        assert claim(box) == []
        assert box.void_leases(["dead"]) == 1
        assert drain(box) == ["d-started", "d-finished"]
