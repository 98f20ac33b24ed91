"""An outbox whose disk is full, read-only, somebody else's or broken: the deploy goes on, and no event is lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_kit import MARGIN, PLAIN, Deploys, deploys_fixture  # noqa: F401
from fault_server import FaultServer, repeats, told

NOBODY = 65534


@pytest.fixture
def server(deploys: Deploys) -> Iterator[FaultServer]:
    with FaultServer() as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        yield server


FROM_MEMORY = "sent straight from memory"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a disk of 400 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k,mode=700", "none", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root on Linux, for a disk of its own")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


FILL = """
def fill():
    with open({path!r}, "wb", buffering=0) as file:
        try:
            while file.write(b"x" * 512): pass
        except OSError:
            pass
"""


def test_a_disk_that_is_full_before_the_start(deploys: Deploys, server: FaultServer, small_disk: Path) -> None:
    deploys.set(LD_DEPLOY_OUTBOX=str(small_disk / "outbox.db"))
    fill = FILL.format(path=str(small_disk / "filler"))
    ended = deploys.run(f"{fill}\nfill()\n{PLAIN}")
    assert ended.status == 3
    assert ended.stdout == "deploying\n"
    assert len(ended.lines) == 1
    assert "disk is full" in ended.stderr or "FULL" in ended.stderr
    assert told(server.events) == {"v1": ["started", "finished"]}


def test_a_disk_that_fills_up_before_the_end_is_recorded(
    deploys: Deploys, server: FaultServer, small_disk: Path
) -> None:
    deploys.set(LD_DEPLOY_OUTBOX=str(small_disk / "outbox.db"))
    fill = FILL.format(path=str(small_disk / "filler"))
    body = "    print('deploying')\n    flush()\n    fill()"
    ended = deploys.run(f"{fill}\nwith deployment('billing', version='v1'):\n{body}\nleave(3)")
    assert ended.status == 3
    assert len(ended.lines) == 1
    assert ended.lingered < 2 + MARGIN
    (small_disk / "filler").unlink()
    deploys.next_run()
    assert told(server.events) == {"v1": ["started", "finished"]}
    assert repeats(server.events) == 0


def test_a_disk_that_fills_up_before_the_ack(deploys: Deploys, server: FaultServer, small_disk: Path) -> None:
    deploys.set(LD_DEPLOY_OUTBOX=str(small_disk / "outbox.db"))
    fill = FILL.format(path=str(small_disk / "filler"))
    source = f"""{fill}
import ld_deploy_hooks._launchdarkly as service
real = service.Client.post
posts = []
def post(self, payload):
    posts.append(1)
    if len(posts) == 2: fill()
    return real(self, payload)
service.Client.post = post
"""
    ended = deploys.run(source + PLAIN)
    assert ended.status == 3
    assert ended.lingered < 2 + MARGIN
    assert server.posts == 2
    (small_disk / "filler").unlink()
    deploys.next_run()
    assert told(server.events) == {"v1": ["started", "finished"]}
    assert repeats(server.events) <= 1


def test_a_disk_that_is_read_only(deploys: Deploys, server: FaultServer, small_disk: Path) -> None:
    deploys.set(LD_DEPLOY_OUTBOX=str(small_disk / "outbox.db"))
    deploys.run(PLAIN, "v0")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    ended = deploys.run(PLAIN)
    assert (ended.status, ended.stdout) == (3, "deploying\n")
    assert len(ended.lines) == 1
    assert FROM_MEMORY in ended.stderr
    assert told(server.events) == {"v0": ["started", "finished"], "v1": ["started", "finished"]}
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    deploys.next_run()
    assert repeats(server.events) == 0


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Path]:
    """Return the folder of root's outbox, in a tree that everybody may enter."""
    if sys.platform == "win32" or os.getuid() != 0:
        pytest.skip("needs root, to be two users")
    folders = [folder for folder in (tmp_path, *tmp_path.parents) if not folder.stat().st_mode & 0o001]
    modes = [(folder, folder.stat().st_mode & 0o7777) for folder in folders]
    for folder, mode in modes:
        folder.chmod(mode | 0o055)
    yield tmp_path / "state"
    for folder, mode in modes:
        folder.chmod(mode)


def test_a_folder_that_sudo_has_left_to_root(deploys: Deploys, server: FaultServer, foreign: Path) -> None:
    assert deploys.run(PLAIN, "v0").status == 3
    # As root first, with an outbox of its own: another user may not be allowed to load this Python's modules.
    become_nobody = f"""
outbox = os.environ["LD_DEPLOY_OUTBOX"]
os.environ["LD_DEPLOY_OUTBOX"] = {str(foreign.with_name("roots") / "outbox.db")!r}
with deployment("billing", version="v1"):
    pass
flush()
os.environ["LD_DEPLOY_OUTBOX"] = outbox
os.chown(os.environ["MARK"], {NOBODY}, {NOBODY})
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
"""
    deploys.set(HOME=str(foreign.parent))
    ended = deploys.run(become_nobody + PLAIN, "v2")
    assert (ended.status, ended.stdout) == (3, "deploying\n")
    assert len(ended.lines) == 1
    assert FROM_MEMORY in ended.stderr
    assert "sudo chown -R " in ended.stderr
    assert "belongs to root" in ended.stderr
    assert told(server.events) == {f"v{number}": ["started", "finished"] for number in range(3)}


def test_another_process_that_holds_the_outbox_for_longer_than_the_deploy_lives(
    deploys: Deploys, server: FaultServer
) -> None:
    deploys.run(PLAIN, "v0")
    with contextlib.closing(sqlite3.connect(deploys.outbox, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        ended = deploys.run(PLAIN)
        assert (ended.status, ended.stdout) == (3, "deploying\n")
        assert ended.lingered < 2 + MARGIN
        assert 1 <= len(ended.lines) <= 2
        other.execute("ROLLBACK")
    deploys.next_run()
    assert told(server.events) == {"v0": ["started", "finished"], "v1": ["started", "finished"]}


# A name, and what the only line says; none is said where all is well.
PLACES = {
    "a file in the place of the folder": ("file/outbox.db", FROM_MEMORY),
    "a folder in the place of the file": ("folder", FROM_MEMORY),
    "nowhere to write": ("/proc/nowhere/outbox.db", FROM_MEMORY),
    "a symbolic link": ("link.db", FROM_MEMORY),
    "garbage": ("garbage.db", "was damaged; it was moved to"),
    "empty": ("empty.db", None),
    "truncated": ("truncated.db", "was damaged; it was moved to"),
    "a newer one": ("newer.db", FROM_MEMORY),
    "another program's": ("foreign.db", FROM_MEMORY),
    "a log that belongs to no outbox": ("stale.db", "was damaged; it was moved to"),
    "missing folders": ("a/b/c/outbox.db", None),
}


@pytest.mark.parametrize("place", PLACES)
def test_an_outbox_that_cannot_be_used_costs_a_line_and_no_event(
    deploys: Deploys, server: FaultServer, tmp_path: Path, place: str
) -> None:
    name, says = PLACES[place]
    deploys.run(PLAIN, "v0")
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.db").symlink_to(tmp_path / "elsewhere.db")
    (tmp_path / "garbage.db").write_bytes(b"garbage" * 1000)
    (tmp_path / "empty.db").touch()
    (tmp_path / "truncated.db").write_bytes(deploys.outbox.read_bytes()[:5000])
    (tmp_path / "stale.db").touch()
    (tmp_path / "stale.db-wal").write_bytes(b"\\0" * 5000)
    shutil.copy(deploys.outbox, tmp_path / "newer.db")
    for file, statement in (("newer.db", "PRAGMA user_version = 99"), ("foreign.db", "CREATE TABLE other (x)")):
        with contextlib.closing(sqlite3.connect(tmp_path / file)) as connection:
            connection.execute(statement)
            connection.commit()
    before = (tmp_path / "newer.db").read_bytes()
    deploys.set(LD_DEPLOY_OUTBOX=str(tmp_path / name))
    ended = deploys.run(PLAIN)
    assert (ended.status, ended.stdout) == (3, "deploying\n")
    assert len(ended.lines) == (0 if says is None else 1)
    assert (says or "") in ended.stderr
    assert told(server.events)["v1"] == ["started", "finished"]
    assert (tmp_path / "newer.db").read_bytes() == before
    assert not (tmp_path / "elsewhere.db").exists()
