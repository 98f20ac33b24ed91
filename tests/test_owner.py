"""Who owns an open deployment, and does that process still live: real processes, real locks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ld_deploy_hooks._owner import Death, Owner, death_of, owners_in

HOUR = 3600.0

OWN = """
import sys, time
from pathlib import Path
from ld_deploy_hooks._owner import Owner
owner = Owner(Path(sys.argv[1]), "theirs")
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db.owners"


@pytest.fixture
def owner(folder: Path) -> Iterator[Owner]:
    owner = Owner(folder, "mine")
    yield owner
    owner.release()


def started(child_env: dict[str, str], folder: Path, *before: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*before, sys.executable, "-c", OWN, str(folder)],
        env=child_env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


NAMESPACE = ("unshare", "--pid", "--uts", "--fork", "--kill-child")


@pytest.mark.parametrize("before", [(), NAMESPACE], ids=["here", "in another pid namespace"])
def test_a_process_lives_until_it_is_killed(child_env: dict[str, str], folder: Path, before: tuple[str, ...]) -> None:
    if before and (not shutil.which("unshare") or os.getuid()):
        pytest.skip("needs root, for a pid namespace")
    with started(child_env, folder, *before) as process:
        assert death_of(folder, "theirs", network=False) is None
        assert owners_in(folder) == ["theirs"]
        alive = (folder / "theirs").stat().st_mtime
        process.kill()
    deadline = time.monotonic() + 10
    while death_of(folder, "theirs", network=False) is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert death_of(folder, "theirs", network=False) == Death(int(alive * 1000))


def test_its_file_is_private_and_gone_after_an_orderly_end(folder: Path) -> None:
    owner = Owner(folder, "mine")
    assert (folder / "mine").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    owner.release()
    assert owners_in(folder) == []
    assert death_of(folder, "mine", network=False) == Death(None)


def test_no_owner_takes_the_place_of_another(folder: Path, owner: Owner) -> None:
    with pytest.raises(OSError, match="exists"):
        Owner(folder, "mine")
    assert death_of(folder, "mine", network=False) is None


def test_asking_many_times_at_once_takes_nobody_for_an_owner(folder: Path) -> None:
    Owner(folder, "mine")
    (folder / "dead").write_bytes((folder / "mine").read_bytes())
    files = [os.open(folder / "dead", os.O_RDWR) for _ in range(3)]
    try:
        import fcntl

        for file in files:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert death_of(folder, "dead", network=False) is not None
    finally:
        for file in files:
            os.close(file)


@pytest.mark.parametrize("lock", ["no lock", "locked"])
@pytest.mark.parametrize(
    ("host", "boot", "counts"),
    [(None, None, True), (None, "another boot", True), ("another-host", None, True), ("another-host", "boot", False)],
    ids=["same", "rebooted", "another container", "another host"],
)
def test_a_lock_counts_on_this_machine_and_a_heartbeat_elsewhere(
    folder: Path, owner: Owner, host: str | None, boot: str | None, counts: bool, lock: str
) -> None:
    import fcntl

    our_host, our_boot = (folder / "mine").read_text().split("\n")
    if not our_boot:
        pytest.skip("this system tells no boot from another")
    path = folder / "theirs"
    path.write_text(f"{host or our_host}\n{boot or our_boot}")
    with path.open("r+b") as file:
        if lock == "locked":
            fcntl.flock(file, fcntl.LOCK_EX)
        for age, fresh in ((10.0, True), (119.0, True), (121.0, False), (-HOUR, True)):
            at = time.time() - age
            os.utime(path, (at, at))
            death = death_of(folder, "theirs", network=False)
            assert (death is None) == (lock == "locked" if counts else fresh)
            if death is not None:
                assert death.last_alive == int(path.stat().st_mtime * 1000)
            assert (death_of(folder, "theirs", network=True) is None) == fresh


def test_a_heartbeat_is_measured_by_the_clock_of_the_disk(folder: Path, owner: Owner) -> None:
    path = folder / "theirs"
    path.write_text("another-host\nanother boot")
    assert death_of(folder, "theirs", network=True, clock=lambda: path.stat().st_mtime + 119) is None
    assert death_of(folder, "theirs", network=True, clock=lambda: path.stat().st_mtime + 121) is not None
    at = time.time() - HOUR
    os.utime(folder / "mine", (at, at))
    assert abs(owner.clock() - time.time()) < 5
    os.utime(folder / "mine", (at, at))
    owner.beat()
    assert abs((folder / "mine").stat().st_mtime - time.time()) < 5


def test_what_is_noted_outlives_the_process(folder: Path) -> None:
    owner = Owner(folder, "mine")
    owner.note({"one": "finished", "two": "failed"})
    owner.release()
    death = death_of(folder, "mine", network=False)
    assert death is not None
    assert death.ended == {"one": "finished", "two": "failed"}


@pytest.mark.parametrize("made", ["a folder", "a link", "empty"])
def test_what_is_no_owners_file_is_taken_for_alive(folder: Path, tmp_path: Path, made: str) -> None:
    folder.mkdir()
    path = folder / "odd"
    if made == "a folder":
        path.mkdir()
    elif made == "a link":
        (tmp_path / "target").touch()
        path.symlink_to(tmp_path / "target")
    else:
        path.touch()  # it is just being made
    assert death_of(folder, "odd", network=False) is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_lets_go_of_the_lock_and_removes_no_file(child_env: dict[str, str], folder: Path) -> None:
    source = """
import os, signal, sys, time
from pathlib import Path
from ld_deploy_hooks._owner import Owner
owner = Owner(Path(sys.argv[1]), "theirs")
if not os.fork():
    print(os.getpid(), flush=True)
    time.sleep(60)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", source, str(folder)], env=child_env, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            assert death_of(folder, "theirs", network=False) is None
            process.kill()
            process.wait()
            assert death_of(folder, "theirs", network=False) is not None
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(sys.platform == "win32", reason="numbers of descriptors")
def test_a_descriptor_that_is_another_file_s_by_now_is_left_open(folder: Path, tmp_path: Path) -> None:
    owner = Owner(folder, "mine")
    os.close(owner._file)
    with (tmp_path / "theirs").open("w") as theirs:
        assert theirs.fileno() == owner._file
        owner.release()
        theirs.write("still open")
    assert (tmp_path / "theirs").read_text() == "still open"
