"""An outbox that is removed, moved or replaced while a deployment is open: nothing of that deployment is lost."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_kit import PATIENCE, PLAIN, Deploys, deploys_fixture  # noqa: F401
from fault_server import Exchange, FaultServer, answer, repeats, told
from outbox_kit import claim, ids, opened, start

from ld_deploy_hooks._log import forget_said
from ld_deploy_hooks._owner import owners_in
from ld_deploy_hooks._store import Store

DEPLOY = """
import shutil
folder = Path(os.environ["LD_DEPLOY_OUTBOX"]).parent

def remove():
    # At once, whatever is being written there.
    shutil.rmtree(folder.rename(f"gone-{{time.monotonic_ns()}}"), ignore_errors=True)

def go_on():
    ready()
    while not Path("go on").exists():
        time.sleep(0.01)

def put_file_in_its_place():
    while folder.is_dir():
        remove()
        try:
            folder.touch(exist_ok=False)
        except FileExistsError:
            # What is sent meanwhile has made it anew.
            pass

with deployment("billing", version="v1") as d:
    {first}
    d.custom(step="migrated")
    {then}
    print("deploying")
leave(3)
"""
GOES_ON = DEPLOY.format(first="go_on()", then="pass")
ALL = ["started", "custom", "finished"]


@pytest.fixture
def server(deploys: Deploys) -> Iterator[FaultServer]:
    with FaultServer(answer(503)) as server:
        deploys.set(LD_BASE_URI=server.base_uri, LD_DEPLOY_FLUSH_TIMEOUT="0.5")
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    forget_said()
    store = Store(tmp_path / "state" / "outbox.db")
    yield store
    store.close(5)


def remove_folder(deploys: Deploys) -> None:
    # At once, whatever is being written there.
    shutil.rmtree(deploys.outbox.parent.rename(deploys.folder / "gone"), ignore_errors=True)


def remove_file(deploys: Deploys) -> None:
    deploys.outbox.unlink()


def move_file(deploys: Deploys) -> None:
    deploys.outbox.rename(deploys.folder / "moved.db")


def move_folder(deploys: Deploys) -> None:
    deploys.outbox.parent.rename(deploys.folder / "moved")


def replace(deploys: Deploys) -> None:
    remove_folder(deploys)
    assert deploys.run(PLAIN, "v2").status == 3


@pytest.mark.parametrize("how", [remove_folder, remove_file, move_file, move_folder, replace])
def test_what_waited_in_it_is_recorded_anew(
    deploys: Deploys, server: FaultServer, how: Callable[[Deploys], None]
) -> None:
    running = deploys.start(GOES_ON).until_ready()
    how(deploys)
    (deploys.folder / "go on").touch()
    ended = running.ends()
    assert (ended.status, ended.stdout) == (3, "deploying\n")
    assert "The 1 event(s) of this run that waited there were recorded anew." in ended.stderr
    assert "damaged" not in ended.stderr
    assert "Traceback" not in ended.stderr
    server.heal()
    deploys.next_run()
    assert told(server.events)["v1"] == ALL
    assert how is not replace or told(server.events)["v2"] == ["started", "finished"]
    moved = deploys.folder / "moved" / "outbox.db"
    if moved.exists():
        deploys.set(LD_DEPLOY_OUTBOX=str(moved))
        deploys.next_run()
        assert told(server.events) == {"v1": ALL}
    assert not repeats(server.events)


def test_what_is_removed_time_and_again_arrives(deploys: Deploys, server: FaultServer) -> None:
    server.heal()
    removes = "flush(5); remove()"
    assert deploys.run(DEPLOY.format(first=removes, then=f"remove(); {removes}")).status == 3
    deploys.next_run()
    assert told(server.events) == {"v1": ALL}
    assert not repeats(server.events)


def test_a_deploy_that_is_killed_after_it_is_seen(deploys: Deploys, server: FaultServer) -> None:
    server.heal()
    running = deploys.start(DEPLOY.format(first="flush(5); remove()", then="flush(5); go_on()")).until_ready()
    running.send(signal.SIGKILL).ends()
    deploys.next_run()
    assert told(server.events) == {"v1": ["started", "custom", "failed"]}


def test_what_could_not_be_recorded_anew_at_first_is_later(deploys: Deploys, server: FaultServer) -> None:
    server.heal(answer(503), answer())
    ended = deploys.run(DEPLOY.format(first="put_file_in_its_place()", then="folder.unlink()"))
    assert (ended.status, ended.stdout) == (3, "deploying\n")
    deploys.next_run()
    assert sorted(told(server.events)["v1"]) == sorted(ALL)
    assert not repeats(server.events)


def test_what_is_under_way_meanwhile_is_not_sent_again(deploys: Deploys, server: FaultServer) -> None:
    arrived, free = threading.Event(), threading.Event()

    def held(exchange: Exchange) -> bool:
        arrived.set()
        free.wait(PATIENCE)
        return answer()(exchange)

    server.heal(held, answer())
    deploys.set(LD_DEPLOY_FLUSH_TIMEOUT="10")
    running = deploys.start(GOES_ON).until_ready()
    assert arrived.wait(PATIENCE)
    remove_folder(deploys)
    (deploys.folder / "go on").touch()
    while "deploying" not in running.so_far():
        pass
    # Nor by another process, which finds it in the new file.
    assert deploys.command("flush", "--timeout", "0.5").status == 1
    free.set()
    assert running.ends().status == 3
    assert told(server.events) == {"v1": ALL}
    deploys.next_run()
    assert not repeats(server.events)


def test_the_next_deployment_of_its_process_is_not_taken_for_dead(deploys: Deploys, server: FaultServer) -> None:
    server.heal()
    running = deploys.start(
        """
        with deployment("billing", version="v1"):
            pass
        Path(os.environ["LD_DEPLOY_OUTBOX"]).parent.rename("gone")
        with deployment("billing", version="v2"):
            ready()
            while not Path("go on").exists():
                time.sleep(0.01)
        leave(3)
        """
    ).until_ready()
    with opened(deploys.outbox) as box:
        assert [one.identity.version for one in box.open_of()] == ["v2"]
    deploys.next_run()
    (deploys.folder / "go on").touch()
    assert running.ends().status == 3
    deploys.next_run()
    assert told(server.events) == {version: ["started", "finished"] for version in ("v1", "v2")}


def test_a_lease_goes_along(store: Store, tmp_path: Path) -> None:
    store.writer.submit(lambda box: start(box, "d", owner=store.owner_id)).result()
    (claimed,) = store.writer.submit(lambda box: claim(box, owner=store.owner_id)).result()
    shutil.rmtree(tmp_path / "state")
    assert store.writer.submit(lambda box: ids(claim(box, owner="another"))).result() == []
    assert store.writer.submit(lambda box: box.ack(claimed.event_id, owner=store.owner_id, now=10_000)).result()
    assert store.writer.submit(lambda box: box.counts()).result()[:2] == (0, 1)


def test_of_what_waits_in_one_stream_one_event_is_sent_at_a_time(store: Store, tmp_path: Path) -> None:
    store.writer.submit(lambda box: start(box, "old", owner=store.owner_id)).result()
    shutil.rmtree(tmp_path / "state")
    with opened(tmp_path / "state" / "outbox.db") as box:
        start(box, "new", owner="another")
        assert store.writer.submit(lambda box: box.counts()).result().pending == 2
        assert ids(claim(box)) == ["new-started"]


def test_where_it_cannot_be_read_any_more_a_line_says_so(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def lose_log(box: object) -> None:
        # As on a network file system.
        box._database.has_log = False  # type: ignore[attr-defined]

    store.writer.submit(lambda box: start(box, "d", owner=store.owner_id)).result()
    store.writer.submit(lose_log).result()
    shutil.rmtree(tmp_path / "state")
    with caplog.at_level(logging.WARNING):
        assert store.writer.submit(lambda box: box.counts()).result().pending == 0
    (line,) = caplog.messages
    assert "was removed, or another took its place" in line
    assert line.endswith("What this run had recorded there and not delivered yet is not sent.")


def test_a_heartbeat_makes_the_owners_file_again(store: Store, tmp_path: Path) -> None:
    def beat() -> None:
        store.writer.submit(lambda box: store._beat()).result()

    owners = tmp_path / "state" / "outbox.db.owners"
    assert store.writer.submit(lambda box: True).result()
    shutil.rmtree(owners)
    owners.touch()
    beat()
    owners.unlink()
    beat()
    assert owners_in(owners) == [store.owner_id]
    other = Store(tmp_path / "state" / "outbox.db")
    assert not other.is_dead(store.owner_id)
    other.close(5)


def test_a_heartbeat_does_not_bring_a_folder_back(store: Store, tmp_path: Path) -> None:
    assert store.writer.submit(lambda box: True).result()
    shutil.rmtree(tmp_path / "state")
    store._beat()
    assert not (tmp_path / "state").exists()
    store.writer.submit(lambda box: True).result()
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_without_a_thread_for_it_what_arrived_is_noted(deploys: Deploys, server: FaultServer) -> None:
    server.heal()
    deploys.set(LD_DEPLOY_FLUSH_TIMEOUT="10")
    ended = deploys.run(
        """
        begin = threading.Thread.start

        def start(thread):
            if thread.name == "ld-deploy-writer":
                raise RuntimeError("can't start new thread")
            begin(thread)

        threading.Thread.start = start
        with deployment("billing", version="v1"):
            print("deploying")
        leave(3)
        """
    )
    assert (ended.status, ended.stdout, ended.stderr) == (3, "deploying\n", "")
    status = json.loads(deploys.command("status", "--json").stdout)
    assert (status["pending"], status["delivered"], status["open"]) == (0, 2, 0)
    assert told(server.events) == {"v1": ["started", "finished"]}
