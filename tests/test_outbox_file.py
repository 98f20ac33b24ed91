"""The outbox's file: how it is made, what becomes of a damaged one, and what is said of one that cannot be used."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from outbox_kit import claim, drain, end, lone, opened, start

from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks._outbox import Outbox
from ld_deploy_hooks._outbox._connection import name_of
from ld_deploy_hooks._outbox._file import folder_lock, on_network, set_aside

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX users and modes")
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away and mount"
)
linux = pytest.mark.skipif(sys.platform != "linux", reason="mounts of Linux")
NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ld-deploy-hooks" / "outbox.db"


def refused(path: Path) -> str:
    """Return why the outbox at ``path`` cannot be opened."""
    with pytest.raises(OutboxError) as caught:
        Outbox(path)
    assert caught.value.path == str(path)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    assert str(path) in str(caught.value)
    return str(caught.value)


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)  # noqa: PTH116


def pragma(box: Outbox, name: str) -> object:
    return box._database.rows(f"PRAGMA {name}")[0][0]


# -- made for one user ------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("umask", [0, 0o777])
def test_folder_and_files_are_for_this_user_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "deeper" / "state" / "outbox.db"
    before = os.umask(umask)
    try:
        with opened(path) as box:
            start(box, "d")
            assert mode(path.parent) == 0o700
            # What is above is the user's own business, but for the rights without which nothing can be made there.
            assert mode(path.parent.parent) == 0o700 | (0o777 & ~umask)
            assert {one.name: mode(one) for one in path.parent.iterdir()} == {
                "outbox.db": 0o600,
                "outbox.db-wal": 0o600,
                "outbox.db-shm": 0o600,
            }
    finally:
        os.umask(before)
    assert [one.name for one in path.parent.iterdir()] == ["outbox.db"]


@posix
def test_the_modes_of_what_is_there_are_left_alone(path: Path) -> None:
    path.parent.mkdir(parents=True, mode=0o750)
    with opened(path):
        path.chmod(0o640)
    with opened(path):
        pass
    assert (mode(path.parent), mode(path)) == (0o750, 0o640)


@pytest.mark.parametrize("name", ["outbox.db", "name with ? and # and % and é.db"])
def test_any_name_of_a_file_will_do(tmp_path: Path, name: str) -> None:
    with opened(tmp_path / name) as box:
        start(box, "d")
        assert drain(box) == ["d-started"]
    assert [one.name for one in tmp_path.iterdir()] == [name]


def test_a_relative_path_is_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with opened(Path("outbox.db")):
        assert (tmp_path / "outbox.db").exists()


def test_a_folder_may_be_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with opened(tmp_path / "link" / "outbox.db"):
        assert (tmp_path / "real" / "outbox.db").exists()


def test_what_is_committed_is_on_the_disk(path: Path) -> None:
    with opened(path) as box:
        assert (pragma(box, "journal_mode"), pragma(box, "synchronous")) == ("wal", 2)
        # SQLite answers nothing at all where it was built without.
        assert box._database.rows("PRAGMA mmap_size") in ([(0,)], [])


def test_a_writer_that_holds_the_lock_ten_seconds_is_waited_for(path: Path) -> None:
    with opened(path) as box:
        assert pragma(box, "busy_timeout") == 15_000


def test_a_writer_that_never_lets_go_is_an_error_that_says_so(path: Path) -> None:
    with opened(path) as box, opened(path) as other, other.transaction():
        box._database.execute("PRAGMA busy_timeout = 20")
        with pytest.raises(OutboxError, match=r"another process kept it locked for too long \(SQLITE_BUSY\). End what"):
            start(box, "d")
        assert box.counts().pending == 0


# -- damaged ----------------------------------------------------------------------------------------------------------


def full_of_garbage(path: Path) -> None:
    path.write_bytes(b"this is no database " * 1000)


def a_few_bytes(path: Path) -> None:
    path.write_bytes(b"x\n")


def header_alone(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * 5000)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_within_a_page(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1500])


def schema_destroyed(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes(4096 - 100) + content[4096:])


DAMAGE = [full_of_garbage, a_few_bytes, header_alone, cut_off, cut_within_a_page, schema_destroyed]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_moved_aside_and_a_new_one_takes_its_place(
    path: Path, damage: Callable[[Path], None]
) -> None:
    with opened(path) as box:
        start(box, "before")
    damage(path)
    os.utime(path, (0, 1_700_000_000))
    content = path.read_bytes()
    with opened(path) as box:
        assert box.set_aside == path.with_name("outbox.db.damaged-20231114T221320Z-1")
        assert box.set_aside.read_bytes() == content
        assert mode(path) == 0o600
        start(box, "after")
        assert drain(box) == ["after-started"]
    with opened(path) as box:
        assert box.set_aside is None
        assert box.counts().delivered == 1


def test_nothing_is_ever_moved_over_something_else(path: Path) -> None:
    kept = []
    for number in range(3):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no database %d" % number)
        os.utime(path, (0, 1_700_000_000))
        with opened(path) as box:
            assert box.set_aside is not None
            kept.append(box.set_aside)
        if number == 0:
            # Somebody took the file away and forgot its log.
            kept[0].rename(f"{kept[0]}-wal")
    assert [one.name[-2:] for one in kept] == ["-1", "-2", "-3"]
    assert Path(f"{kept[0]}-wal").read_bytes() == b"no database 0"
    assert [one.read_bytes() for one in kept[1:]] == [b"no database 1", b"no database 2"]


def test_what_sqlite_keeps_beside_the_file_goes_with_it(path: Path) -> None:
    path.parent.mkdir(parents=True)
    for companion in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{companion}").write_bytes(b"old" + companion.encode())
    with opened(path) as box:
        for companion in ("", "-wal"):
            assert Path(f"{box.set_aside}{companion}").read_bytes() == b"old" + companion.encode()
        assert Path(f"{box.set_aside}-shm").exists()
        start(box, "d")
        assert drain(box) == ["d-started"]


def test_an_empty_file_is_a_new_one(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.touch()
    with opened(path) as box:
        assert box.set_aside is None
        start(box, "d")
        assert drain(box) == ["d-started"]


@pytest.mark.parametrize("file", ["missing", "empty"])
def test_a_log_without_its_file_is_kept_aside_and_not_mixed_in(path: Path, tmp_path: Path, file: str) -> None:
    with opened(path) as box:
        start(box, "lost")
        log = Path(f"{path}-wal").read_bytes()
        shutil.copy(f"{path}-wal", tmp_path)
    path.unlink()
    shutil.copy(tmp_path / "outbox.db-wal", path.parent)
    if file == "empty":
        path.touch()
    with opened(path) as box:
        assert box.set_aside is not None
        assert Path(f"{box.set_aside}-wal").read_bytes() == log
        assert box.counts().pending == 0
        start(box, "d")
        assert drain(box) == ["d-started"]


def test_a_log_that_was_cut_off_by_a_crash_gives_what_was_committed(path: Path, tmp_path: Path) -> None:
    crashed = tmp_path / "crashed" / "outbox.db"
    crashed.parent.mkdir()
    with opened(path) as box:
        start(box, "kept")
        kept = Path(f"{path}-wal").stat().st_size
        start(box, "torn")
        shutil.copy(path, crashed)
        Path(f"{crashed}-wal").write_bytes(Path(f"{path}-wal").read_bytes()[: kept + 2000])
    with opened(crashed) as box:
        assert box.set_aside is None
        assert drain(box) == ["kept-started"]


def with_broken_pages(path: Path) -> None:
    """Make an outbox whose damage shows only when its events are read."""
    with opened(path) as box, box.transaction():
        for number in range(300):
            lone(box, str(number))
    content = path.read_bytes()
    # The first page, with the schema, stays.
    path.write_bytes(content[:8192] + b"\xa5" * (len(content) - 8192))


@pytest.mark.parametrize("in_group", [False, True])
def test_damage_that_is_found_later_moves_the_file_aside_too(
    path: Path, caplog: pytest.LogCaptureFixture, in_group: bool
) -> None:
    with_broken_pages(path)
    content = path.read_bytes()
    with opened(path) as box:
        assert box.set_aside is None

        def work() -> None:
            if in_group:
                with box.transaction():
                    claim(box)
            else:
                claim(box)

        with pytest.raises(OutboxError, match=r"damaged \(SQLITE_CORRUPT\w*\); a new one has taken its place"):
            work()
        assert box.set_aside is not None
        (line,) = caplog.messages
        assert "is damaged (SQLITE_CORRUPT" in line
        assert f"; it was moved to {box.set_aside} and a new one takes its place" in line
        assert box.set_aside.read_bytes() == content
        start(box, "d")
        assert drain(box) == ["d-started"]


def test_damage_within_a_group_ends_the_group(path: Path) -> None:
    with_broken_pages(path)
    with opened(path) as box:

        def group() -> None:
            with box.transaction():
                with pytest.raises(OutboxError, match="damaged"):
                    claim(box)
                with pytest.raises(OutboxError, match="undid a group"):
                    start(box, "half")

        with pytest.raises(OutboxError, match="undid a group"):
            group()
        assert box.counts().pending == 0


def test_of_two_that_find_the_damage_one_moves_it_and_the_other_takes_the_new_file(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with_broken_pages(path)
    with opened(path) as one, opened(path) as two:
        for box in (one, two):
            with pytest.raises(OutboxError, match="damaged"):
                claim(box)
        assert (one.set_aside is None, two.set_aside is None) == (False, True)
        mine, other = caplog.messages
        assert f"it was moved to {one.set_aside}" in mine
        assert "another process has moved it aside" in other
        start(one, "d")
        end(two, "d")
        assert drain(one) == ["d-started", "d-finished"]
    assert len(list(path.parent.glob("*.damaged-*-?"))) == 1


@posix
def test_somebody_who_holds_the_folder_for_ever_stops_nobody(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with folder_lock(path.parent, moving=True), folder_lock(path.parent):
        full_of_garbage(path)
    with opened(path) as box:
        assert box.set_aside is not None


@posix
def test_a_process_that_still_has_the_damaged_file_open_spares_the_log_of_the_new_one(path: Path) -> None:
    with opened(path) as old:
        set_aside(path)
        with opened(path) as new:
            start(new, "d")
            old.close()
            assert Path(f"{path}-wal").stat().st_size > 0
            with opened(path) as third:
                assert drain(third) == ["d-started"]
            assert new.counts().delivered == 1


# -- not ours to touch ------------------------------------------------------------------------------------------------


def untouched(path: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in path.parent.iterdir()}


def test_a_newer_file_is_left_as_it_is(path: Path) -> None:
    with opened(path) as box:
        start(box, "d")
        box._database.execute("PRAGMA user_version = 99")
    before = untouched(path)
    said = refused(path)
    assert "a newer ld-deploy-hooks wrote it (schema 99, this one knows 1). Upgrade ld-deploy-hooks, or" in said
    assert untouched(path) == before


@pytest.mark.parametrize("version", [0, 1, 7])
def test_another_programs_database_is_left_as_it_is(path: Path, version: int) -> None:
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE theirs (a)")
        other.execute(f"PRAGMA user_version = {version}")
    before = untouched(path)
    assert "it is another program's database. Set LD_DEPLOY_OUTBOX to" in refused(path)
    assert untouched(path) == before


@pytest.mark.parametrize("target", ["outside.db", "missing"])
def test_a_file_that_is_a_symbolic_link_is_refused(path: Path, tmp_path: Path, target: str) -> None:
    path.parent.mkdir(parents=True)
    (tmp_path / "outside.db").write_bytes(b"somebody's")
    path.symlink_to(tmp_path / target)
    assert "it is a symbolic link, which could lead anywhere. Move it away, or set LD_DEPLOY_OUTBOX" in refused(path)
    assert (tmp_path / "outside.db").read_bytes() == b"somebody's"
    assert not (tmp_path / "missing").exists()


def test_a_folder_in_the_files_place_is_refused(path: Path) -> None:
    path.mkdir(parents=True)
    assert "it is not a file" in refused(path)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_file_in_the_folders_place_is_refused(tmp_path: Path, depth: int) -> None:
    (tmp_path / "state").touch()
    path = tmp_path.joinpath("state", *["deeper"] * (depth - 1), "outbox.db")
    assert "its folder is no folder" in refused(path)


@posix
@pytest.mark.parametrize("names", [("a" * 300,), ("a" * 100,) * 5], ids=["of one name", "of the path"])
def test_what_is_too_long_is_called_so(tmp_path: Path, names: tuple[str, ...]) -> None:
    message = refused(tmp_path.joinpath(*names) / "outbox.db")
    assert "its path is too long (" in message
    assert message.endswith("Please set LD_DEPLOY_OUTBOX to a shorter one.")


@as_root
@pytest.mark.parametrize("which", ["folder", "file"])
def test_root_leaves_alone_what_belongs_to_a_user(path: Path, which: str) -> None:
    with opened(path):
        pass
    suspect = path.parent if which == "folder" else path
    os.chown(suspect, NOBODY, NOBODY)
    before = untouched(path)
    said = refused(path)
    assert f"{suspect} belongs to nobody, not to root. Run without sudo, or set LD_DEPLOY_OUTBOX" in said
    assert untouched(path) == before


AS_NOBODY = f"""
import os, sys, tempfile
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from outbox_kit import *
from ld_deploy_hooks._errors import OutboxError
path = Path(sys.argv[1])
# All is imported now: nobody may not be able to read where it comes from.
with tempfile.TemporaryDirectory() as other, opened(Path(other, "outbox.db")):
    pass
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
os.environ["HOME"] = sys.argv[2]
try:
    with opened(path) as box:
        start(box, "d")
except OutboxError as error:
    print(error)
else:
    print("recorded")
"""


@pytest.fixture
def public(tmp_path: Path) -> Iterator[Path]:
    """Return a folder that another user can reach."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def as_nobody(run_python: Callable[..., subprocess.CompletedProcess[str]], public: Path) -> Callable[[Path], str]:
    """Return a function that records something as nobody, whose home is ``public/home``, and gives what is said."""

    def run(path: Path) -> str:
        done = run_python(AS_NOBODY, str(path), str(public / "home"))
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@as_root
def test_sudo_left_a_folder_behind(public: Path, as_nobody: Callable[[Path], str]) -> None:
    path = public / "home" / "my state" / "outbox.db"
    with opened(path):
        pass
    said = as_nobody(path)
    assert said.startswith(
        f"The outbox {path} cannot be used: permission denied (EACCES). {path.parent} belongs to root"
    )
    assert f"not to nobody. Give it back with `sudo chown -R nobody '{path.parent}'`, or set LD_DEPLOY_OUTBOX" in said


@as_root
def test_sudo_left_a_file_behind(public: Path, as_nobody: Callable[[Path], str]) -> None:
    path = public / "home" / "outbox.db"
    with opened(path):
        pass
    os.chown(path.parent, NOBODY, NOBODY)
    said = as_nobody(path)
    assert f"{path} belongs to root, not to nobody. Give it back with `sudo chown nobody {path}*`, or set" in said


@as_root
def test_nobody_is_told_to_take_over_a_folder_of_the_system(public: Path, as_nobody: Callable[[Path], str]) -> None:
    said = as_nobody(public / "lib" / "outbox.db")
    assert f"{public} belongs to root, not to nobody. Please set LD_DEPLOY_OUTBOX to a file elsewhere." in said
    assert "chown" not in said


@as_root
def test_another_users_folder_is_not_trusted_though_it_can_be_written(
    public: Path, as_nobody: Callable[[Path], str]
) -> None:
    folder = public / "open to all"
    folder.mkdir()
    folder.chmod(0o777)
    os.chown(folder, 1, 1)
    said = as_nobody(folder / "outbox.db")
    assert f"{folder} belongs to " in said
    assert "Please set LD_DEPLOY_OUTBOX" in said
    assert list(folder.iterdir()) == []


@as_root
def test_roots_folder_that_can_be_written_will_do(public: Path, as_nobody: Callable[[Path], str]) -> None:
    public.chmod(0o1777)
    assert as_nobody(public / "outbox.db") == "recorded"
    assert (mode(public / "outbox.db"), (public / "outbox.db").stat().st_uid) == (0o600, NOBODY)


@as_root
@pytest.mark.parametrize(
    ("folder_mode", "file_mode", "why"),
    [
        (0o500, None, "permission denied (EACCES"),
        (0o000, None, "permission denied (EACCES"),
        (0o500, 0o600, "it cannot be written (SQLITE_READONLY"),
        (0o700, 0o400, "it cannot be written (SQLITE_READONLY"),
        (0o700, 0o000, "it cannot be opened (SQLITE_CANTOPEN"),
    ],
)
def test_what_a_user_may_not_write_is_refused_when_it_is_opened(
    public: Path, as_nobody: Callable[[Path], str], folder_mode: int, file_mode: int | None, why: str
) -> None:
    path = public / "home" / "outbox.db"
    path.parent.mkdir()
    os.chown(path.parent, NOBODY, NOBODY)
    if file_mode is not None:
        assert as_nobody(path) == "recorded"
        path.chmod(file_mode)
    path.parent.chmod(folder_mode)
    said = as_nobody(path)
    assert said.startswith(f"The outbox {path} cannot be used: {why}")
    assert said.endswith(f"). Let this user write in {path.parent}, or set LD_DEPLOY_OUTBOX to a file elsewhere.")


# -- full and read-only disks -----------------------------------------------------------------------------------------


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("this root may not mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte free in a folder's file system."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    assert shutil.disk_usage(folder).free == 0
    return ballast


@linux
@as_root
@pytest.mark.parametrize("there", [False, True])
def test_a_disk_that_is_full_at_the_start(tmp_path: Path, there: bool) -> None:
    path = tmp_path / "disk" / "outbox.db"
    with mounted(path.parent, "512k"):
        if there:
            path.touch(mode=0o600)
        ballast = fill(path.parent)
        assert "the disk is full (SQLITE_FULL). Make room there, or set LD_DEPLOY_OUTBOX" in refused(path)
        ballast.unlink()
        with opened(path) as box:
            start(box, "d")
            assert drain(box) == ["d-started"]


@linux
@as_root
def test_a_disk_that_gets_full_keeps_what_was_recorded_and_the_rest_works_again_when_there_is_room(
    tmp_path: Path,
) -> None:
    path = tmp_path / "disk" / "outbox.db"
    with mounted(path.parent, "512k"), opened(path) as box:
        start(box, "before")
        (claimed,) = claim(box)
        ballast = fill(path.parent)
        with pytest.raises(OutboxError, match=r"the disk is full \(SQLITE_FULL\)"):
            start_until_full(box)
        recorded = box.counts().pending
        with pytest.raises(OutboxError, match=r"the disk is full \(SQLITE_FULL\)"):
            box.ack(claimed.event_id, owner="me", now=10_000)
        assert box.counts().pending == recorded
        ballast.unlink()
        assert box.ack(claimed.event_id, owner="me", now=10_000)
        assert len(drain(box)) == recorded - 1
        assert drain(box) == []


def start_until_full(box: Outbox) -> None:
    # SQLite writes what it has pages left for.
    for number in range(1000):
        start(box, f"d{number}", of=f"v{number}")


@linux
@as_root
def test_a_disk_that_gets_full_within_a_group_undoes_the_group(tmp_path: Path) -> None:
    path = tmp_path / "disk" / "outbox.db"
    with mounted(path.parent, "512k"), opened(path) as box:
        fill(path.parent)

        def group() -> None:
            with box.transaction():
                for number in range(3000):
                    lone(box, str(number))

        with pytest.raises(OutboxError, match="SQLITE_FULL"):
            group()
        assert box.counts().pending == 0


@linux
@as_root
def test_a_read_only_file_system(tmp_path: Path) -> None:
    path = tmp_path / "disk" / "outbox.db"
    with mounted(path.parent, "1m"):
        with opened(path):
            pass
        subprocess.run(["mount", "-o", "remount,ro", str(path.parent)], check=True)
        assert "(SQLITE_" in refused(path)
        path = path.with_name("new.db")
        assert "the file system is read-only (EROFS). Please set LD_DEPLOY_OUTBOX to a file elsewhere." in refused(path)


# -- network file systems ---------------------------------------------------------------------------------------------

MOUNTS = r"""/dev/vda / ext4 rw 0 0
server:/home {place} {kind} rw 0 0
/dev/vdb {place}/my\040disk xfs rw 0 0
tmpfs {place}x tmpfs rw 0 0
broken
"""


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        *((kind, True) for kind in ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "virtiofs", "lustre")),
        *((kind, False) for kind in ("ext4", "overlay", "fuseblk", "tmpfs", "nfsd", "btrfs")),
    ],
)
def test_network_file_systems_are_known_by_the_kind_of_their_mount(tmp_path: Path, kind: str, expected: bool) -> None:
    mounts = MOUNTS.format(place=tmp_path, kind=kind)
    assert on_network(tmp_path / "outbox.db", mounts) is expected
    assert on_network(tmp_path / "deeper" / "outbox.db", mounts) is expected
    assert on_network(tmp_path / "my disk" / "outbox.db", mounts) is False
    assert on_network(tmp_path.with_name(tmp_path.name + "x") / "outbox.db", mounts) is False
    assert on_network(tmp_path / "outbox.db", f"{mounts}tmpfs {tmp_path} tmpfs rw 0 0\n") is False


def test_links_are_followed_to_the_file_system_behind_them(tmp_path: Path) -> None:
    (tmp_path / "remote").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "remote")
    mounts = f"server:/ {tmp_path / 'remote'} nfs rw 0 0\n"
    assert on_network(tmp_path / "link" / "outbox.db", mounts)
    assert not on_network(tmp_path / "outbox.db", mounts)


ON_NFS = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from outbox_kit import *
path = Path(sys.argv[1])
with opened(path) as one, opened(path) as two:
    start(one, "d")
    end(two, "d")
    print(*drain(one), *sorted(found.name for found in path.parent.iterdir()))
    print(one._database.rows("PRAGMA journal_mode"), one._database.rows("PRAGMA synchronous"))
"""


@linux
@as_root
def test_on_a_network_file_system_nothing_is_shared_in_memory(
    path: Path, tmp_path: Path, child_env: dict[str, str]
) -> None:
    path.parent.mkdir(parents=True)
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/home {path.parent} nfs4 rw 0 0\n")
    # Only this child sees such mounts; exec keeps its number.
    shell = 'mount --bind "$1" /proc/$$/mounts || exit 77; exec "$2" -c "$3" "$4"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", shell, "sh", str(mounts), sys.executable, ON_NFS, str(path)],
        env=child_env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode in (1, 77) and "ld_deploy_hooks" not in done.stderr:
        pytest.skip("this root may not mount")
    assert done.stdout.splitlines() == ["d-started d-finished outbox.db", "[('delete',)] [(2,)]"], done.stderr


# -- Python 3.10 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (sqlite3.OperationalError("database or disk is full"), "SQLITE_FULL"),
        (sqlite3.OperationalError("database is locked"), "SQLITE_BUSY"),
        (sqlite3.DatabaseError("file is not a database"), "SQLITE_NOTADB"),
        (sqlite3.DatabaseError("malformed database schema (events_by_due)"), "SQLITE_CORRUPT"),
        (sqlite3.IntegrityError("UNIQUE constraint failed: events.event_id"), "SQLITE_CONSTRAINT"),
        (sqlite3.ProgrammingError("Cannot operate on a closed database."), "ProgrammingError"),
        (sqlite3.OperationalError("no such table: secrets"), "OperationalError"),
    ],
)
def test_errors_are_named_where_python_does_not_tell(error: sqlite3.Error, name: str) -> None:
    # What is made here has no sqlite_errorname, as nothing has on Python 3.10.
    assert name_of(error) == name
