"""An outbox that is removed, or replaced, while a deployment is open: what it had recorded there is not lost."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from fault_kit import PLAIN, Deploys, deploys_fixture  # noqa: F401
from fault_server import FaultServer, answer, repeats, told
from outbox_kit import HERE, lone, opened

from ld_deploy_hooks._owner import owners_in
from ld_deploy_hooks._store import Journal, Store

if TYPE_CHECKING:
    from ld_deploy_hooks._plugins import Plugins

DEPLOY = """
with deployment("billing", version="v1") as d:
    ready()
    while not Path("go on").exists():
        time.sleep(0.01)
    d.custom(step="migrated")
    print("deploying")
leave(3)
"""
ALL = ["started", "custom", "finished"]


@pytest.fixture
def server(deploys: Deploys) -> Iterator[FaultServer]:
    with FaultServer(answer(503)) as server:
        deploys.set(LD_BASE_URI=server.base_uri, LD_DEPLOY_FLUSH_TIMEOUT="0.5")
        yield server


def remove_folder(deploys: Deploys) -> None:
    shutil.rmtree(deploys.outbox.parent)


def remove_file(deploys: Deploys) -> None:
    deploys.outbox.unlink()


def move_away(deploys: Deploys) -> None:
    deploys.outbox.rename(deploys.folder / "moved.db")


def replace(deploys: Deploys) -> None:
    shutil.rmtree(deploys.outbox.parent)
    assert deploys.run(PLAIN, "v2").status == 3


@pytest.mark.parametrize("how", [remove_folder, remove_file, move_away, replace])
def test_what_waited_in_it_is_recorded_anew(deploys: Deploys, server: FaultServer, how: object) -> None:
    running = deploys.start(DEPLOY).until_ready()
    assert callable(how)
    how(deploys)
    (deploys.folder / "go on").touch()
    ended = running.ends()
    assert (ended.status, ended.stdout) == (3, "deploying\n")
    assert "The 1 event(s) of this run that waited there were recorded anew." in ended.stderr
    assert "Traceback" not in ended.stderr
    server.heal()
    deploys.next_run()
    assert told(server.events)["v1"] == ALL
    assert how is not replace or told(server.events)["v2"] == ["started", "finished"]
    assert not repeats(server.events)


def test_what_is_under_way_meanwhile_is_not_sent_again(deploys: Deploys, server: FaultServer) -> None:
    server.heal(answer(delay=1.0), answer())
    deploys.set(LD_DEPLOY_FLUSH_TIMEOUT="10")
    running = deploys.start(DEPLOY).until_ready()
    wait_for_post(server)
    replace_while_away(deploys)
    (deploys.folder / "go on").touch()
    ended = running.ends()
    assert ended.status == 3
    assert told(server.events)["v1"] == ALL
    deploys.next_run()
    assert told(server.events) == {"v1": ALL, "other": ["custom"]}
    assert not repeats(server.events)


def wait_for_post(server: FaultServer) -> None:
    while not server.posts:
        pass


def replace_while_away(deploys: Deploys) -> None:
    remove_folder(deploys)
    without = dict(deploys.env)
    deploys.set(LD_DEPLOY_FLUSH_TIMEOUT="0", LD_ACCESS_TOKEN="")
    deploys.command("send", "custom", "--application-key", "billing", "--version", "other")
    deploys.env = without


def test_numbers_of_the_old_file_say_nothing_of_events_in_the_new_one(tmp_path: Path) -> None:
    store = Store(tmp_path / "outbox.db")
    journal = Journal(store, HERE, told_nothing())
    try:
        store.writer.submit(lambda box: lone(box, "old", of="v1")).result()
        (old,) = journal.claim(9, own_only=False)
        shutil.rmtree(tmp_path)
        store.writer.submit(lambda box: lone(box, "new", of="v2")).result()
        (new,) = journal.claim(9, own_only=False)
        assert (old.event_id, new.event_id, old.id) == ("old", "new", new.id)
        for settle in (journal.ack, journal.release, lambda item: journal.retry_later(item, 2**62)):
            settle(old)
            assert store.writer.submit(lambda box: box.counts()).result().pending == 1
            assert store.writer.submit(lambda box: box.others_sending(base_uri=HERE, owner="", now=0)).result()
        journal.ack(new)
        assert store.writer.submit(lambda box: box.counts()).result().pending == 0
    finally:
        store.close(5)


def told_nothing() -> Plugins:
    return cast("Plugins", SimpleNamespace(event_delivered=lambda event: None))


def test_the_next_deployment_of_its_process_is_not_taken_for_dead(deploys: Deploys, server: FaultServer) -> None:
    server.heal()
    running = deploys.start(
        """
        with deployment("billing", version="v1"):
            pass
        __import__("shutil").rmtree(Path(os.environ["LD_DEPLOY_OUTBOX"]).parent)
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


def test_a_heartbeat_makes_the_owners_file_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "outbox.db")
    try:
        assert store.writer.submit(lambda box: True).result()
        shutil.rmtree(tmp_path / "outbox.db.owners")
        store.writer.submit(lambda box: store._beat()).result()
        assert owners_in(tmp_path / "outbox.db.owners") == [store.owner_id]
        other = Store(tmp_path / "outbox.db")
        assert not other.is_dead(store.owner_id)
        other.close(5)
    finally:
        store.close(5)
    assert owners_in(tmp_path / "outbox.db.owners") == []


def test_a_file_that_is_gone_takes_no_log_with_it_when_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with opened(path) as old:
        old.hold("somewhere", until=1)
        for file in tmp_path.iterdir():
            file.unlink()
        with opened(path) as new:
            new.hold("elsewhere", until=2)
            assert (old.is_gone, new.is_gone) == (True, False)
            old.close()
            assert Path(f"{path}-wal").stat().st_size > 0
            assert new.held_until("elsewhere") == 2
