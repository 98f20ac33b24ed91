"""The outbox's file as the operating system sees it: made for one user, moved aside when damaged, or refused."""

from __future__ import annotations

import itertools
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks._outbox._refusals import COMPANIONS, ELSEWHERE, no_trust, os_error_name, refusal
from ld_deploy_hooks._private import create_file, is_foreign
from ld_deploy_hooks._private import make_folder as make_private_folder

if sys.platform != "win32":
    import fcntl

__all__ = [
    "check_access",
    "file_id",
    "folder_lock",
    "is_gone",
    "leftover_log",
    "make_file",
    "make_folder",
    "on_network",
    "set_aside",
    "uri_of",
]

# What lies beside it and every run writes too: those, and the folders of its owners and of what it did not take.
_FOLDERS = (".owners", ".left")
_WRITTEN = (*COMPANIONS, *_FOLDERS)

# File systems on which SQLite's shared memory does not work between hosts, and whatever begins with `fuse.`.
_NETWORK = frozenset(
    (
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "davfs",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
    )
)
_NETWORK |= {"ocfs2", "smb2", "smb3", "smbfs", "virtiofs"}
# Those of the kernel's own, in which nobody makes a file, whatever access() says to root.
_NO_FILES = frozenset(
    ("bpf", "cgroup", "cgroup2", "debugfs", "devpts", "mqueue", "proc", "securityfs", "sysfs", "tracefs")
)


def make_folder(path: Path) -> None:
    """Make the folder of the outbox file ``path`` (0700) if it is missing.

    Raises:
        OutboxError: it belongs to another user.
        OSError: the operating system says no.
    """
    make_private_folder(path.parent, parents=True)
    _check_folder(path)


def _check_folder(path: Path) -> None:
    folder = path.parent
    owner = folder.stat().st_uid
    # Root's folders (/tmp, /var/lib/ci) are as safe as the system; those of any third user are not.
    if is_foreign(owner) and owner != 0:
        raise no_trust(path, folder, owner)


def make_file(path: Path) -> None:
    """Make an empty file (0600) if it is missing.

    One that is there is not opened: closing it would drop the locks that this process holds on it (POSIX).

    Raises:
        OutboxError: it belongs to another user, or is no file.
        OSError: the operating system says no.
    """
    try:
        os.close(create_file(path))
    except FileExistsError:
        _check_file(path)


def _check_file(path: Path) -> None:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        kind = "a symbolic link, which could lead anywhere" if stat.S_ISLNK(found.st_mode) else "not a file"
        raise OutboxError(
            f"The outbox {path} cannot be used: it is {kind}. Move it away, or {ELSEWHERE}.", path=str(path)
        ) from None
    if is_foreign(found.st_uid):
        raise no_trust(path, path, found.st_uid) from None


def check_access(path: Path) -> None:
    """Check that this user could record in the outbox file ``path``, there or not; nothing is made for it.

    Raises:
        OutboxError: not so. Its text names the owner of what is in the way, and how to get it back.
    """
    try:
        place = path.parent
        while not _is_there(place):
            place = place.parent
        if not place.is_dir():
            raise refusal(path, "ENOTDIR")
        if _mounted_kind(place) in _NO_FILES:
            raise refusal(path, "ENOENT")
        if place == path.parent:
            _check_folder(path)
        if not os.access(place, os.W_OK | os.X_OK):
            raise refusal(path, "EACCES")
        if os.path.lexists(path):
            _check_file(path)
        for written in (path, *(Path(f"{path}{suffix}") for suffix in _WRITTEN)):
            if os.path.lexists(written) and not os.access(written, os.R_OK | os.W_OK):
                owner = written.lstat().st_uid
                raise no_trust(path, written, owner) if is_foreign(owner) else refusal(path, "EACCES")
        for folder in (Path(f"{path}{suffix}") for suffix in _FOLDERS):
            if os.path.lexists(folder) and not folder.is_dir():
                message = f"The outbox {path} cannot be used: {folder} is no folder. Move it away, or {ELSEWHERE}."
                raise OutboxError(message, path=str(path))
    except OSError as error:
        raise refusal(path, os_error_name(error)) from None


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def set_aside(path: Path) -> Path:
    """Move a damaged file and what SQLite keeps beside it to names that nothing has yet; return the file's new name.

    The name tells when the file was last written (UTC). Call it under :func:`folder_lock`.

    Raises:
        OSError: it cannot be moved.
    """
    written = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(path.stat().st_mtime))
    for count in itertools.count(1):
        target = path.with_name(f"{path.name}.damaged-{written}-{count}")
        if not any(os.path.lexists(f"{target}{companion}") for companion in COMPANIONS):
            try:
                # Renaming overwrites: the name is taken first.
                os.close(create_file(target))
                break
            except FileExistsError:
                continue
    for companion in COMPANIONS:
        with suppress(FileNotFoundError):
            os.replace(f"{path}{companion}", f"{target}{companion}")  # noqa: PTH105 (names, not paths)
    path.replace(target)
    return target


@contextmanager
def folder_lock(folder: Path, *, moving: bool = False) -> Iterator[None]:
    """Keep files from being moved aside in ``folder`` while others open or close them.

    SQLite finds a file's log by name: it would mix the log of one file with another that takes its place meanwhile, and
    delete that one's log when it closes the old.

    Waits 1 s at most; where folders cannot be locked (Windows, some network file systems) it goes on without.

    Args:
        folder: of the outbox file.
        moving: whether a file is to be moved: alone, then; all others share the lock.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for _ in range(50):
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_EX if moving else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.02)
            except OSError:
                break
        yield
    finally:
        os.close(descriptor)


def leftover_log(path: Path) -> bool:
    """Return whether a log lies beside an empty file: SQLite would delete it unread.

    The log is looked at first: a file that has a log in use was written before, and never gets empty again.
    """
    try:
        return os.stat(f"{path}-wal").st_size > 0 and path.stat().st_size == 0  # noqa: PTH116 (a name, not a path)
    except FileNotFoundError:
        return False


def file_id(path: Path) -> tuple[int, int] | None:
    """Return what tells this file from another of the same name, None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def uri_of(path: Path) -> str:
    """Return ``path`` as a ``file:`` URI, to which SQLite's options can be added."""
    # Not Path.as_uri(): from Python 3.14 on it imports urllib.request, with http and ssl, while an entry waits.
    name = path.absolute().as_posix()
    return f"file://{'' if name.startswith('/') else '/'}{quote(os.fsencode(name), safe='/:')}"


def is_gone(path: Path, known: tuple[int, int]) -> bool:
    """Return whether the file of this :func:`file_id` is not at ``path`` any more."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        # After a chroot no path is what it was.
        return file_id(Path("/")) == _ROOT
    except OSError:
        # A process that has given its rights away may not look there; what it has open it can use.
        return False
    return (found.st_dev, found.st_ino) != known


_ROOT = file_id(Path("/"))


def on_network(path: Path, mounts: str | None = None) -> bool:
    """Return whether ``path`` lies on a network file system, as far as Linux tells.

    Args:
        path: the outbox file; its folder exists.
        mounts: the text of ``/proc/self/mounts``, which is read if left out.
    """
    kind = _mounted_kind(path.parent, mounts)
    return kind in _NETWORK or kind.startswith("fuse.")


def _mounted_kind(folder: Path, mounts: str | None = None) -> str:
    """Return the kind of the file system that ``folder`` lies on, as far as Linux tells; else the empty string."""
    if mounts is None:
        try:
            mounts = os.fsdecode(Path("/proc/self/mounts").read_bytes())
        except OSError:
            return ""
    place = f"{os.path.realpath(folder)}/"
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) > 2:
            mounted = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[1]).rstrip("/")
            # Of two that are mounted on one folder the later covers the earlier.
            if len(mounted) >= best and place.startswith(f"{mounted}/"):
                best, kind = len(mounted), fields[2]
    return kind
