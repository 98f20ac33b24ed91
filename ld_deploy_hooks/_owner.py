"""Who owns an open deployment, and does that process still live?

Every process that records has a file beside the outbox, locked for as long as it lives: the kernel drops a ``flock``
with the process, whatever kills it, and other pid namespaces see it too. ``lockf`` and SQLite's own locks are dropped
by any close of the file, and pids lie across namespaces. The file's mtime is the process's heartbeat: when it was last
known to be alive.
"""

from __future__ import annotations

import errno
import os
import platform
import stat
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from ld_deploy_hooks._forking import unforkable
from ld_deploy_hooks._private import create_file, make_folder

__all__ = ["HEARTBEAT", "Death", "Owner", "death_of", "forget_dead", "owners_in"]

# Seconds between two heartbeats, and without one until a process counts as dead where its lock proves nothing.
HEARTBEAT = 15.0
_TIME_TO_LIVE = 120.0
# Bytes of an owner's file that are read.
_LONGEST = 65_536


class Death(NamedTuple):
    """A process that is dead.

    Attributes:
        last_alive: its last heartbeat in Unix milliseconds; None when its file is gone.
        ended: the deployments that it told the end of past the outbox, by id: ``finished`` or ``failed``.
    """

    last_alive: int | None
    ended: Mapping[str, str] = MappingProxyType({})


class Owner:
    """This process, as others can see that it lives. A forked child lets go of it, and is no owner.

    Args:
        folder: where the files of all owners are; made if it is not there.
        id: what this process calls itself in the outbox; no other owner ever does.

    Raises:
        OSError: the file cannot be made or locked.
    """

    def __init__(self, folder: Path, id: str) -> None:
        # Not what is above it: that is the outbox's, which makes it for one user alone.
        make_folder(folder)
        self._path = folder / id
        self._noted = False
        # A fork waits for it, and finds it among the files.
        with unforkable():
            self._file = create_file(self._path)
            _files.add(self._file)
            self._status = os.fstat(self._file)
        try:
            _lock(self._file)
            os.write(self._file, _machine().encode())
            # Somebody may have taken it for a dead one's before it was locked: nobody would see the lock.
            if self.is_gone:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        except OSError:
            self.release()
            raise

    @property
    def is_gone(self) -> bool:
        """Whether its file was removed: others take this process for dead."""
        try:
            return not os.path.samestat(self._status, self._path.stat())
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False

    def beat(self) -> None:
        """Say that this process is alive now."""
        with suppress(OSError):
            os.utime(self._file if os.utime in os.supports_fd else self._path)

    def clock(self) -> float:
        """Return the time of the disk that the files are on, in Unix seconds: another host's, on a network."""
        self.beat()
        return os.fstat(self._file).st_mtime

    def note(self, ended: Mapping[str, str]) -> None:
        """Note deployments, by id, whose end was told past the outbox; the file then outlives this process."""
        with suppress(OSError):
            # It fits into what the file occupies already: the disk may be full.
            os.write(self._file, "".join(f"\n{id} {state}" for id, state in ended.items()).encode())
            self._noted = True

    def release(self) -> None:
        """Remove the file: nothing that this process has open is left behind, unless something is noted in it."""
        if not self._noted and not self.is_gone:
            with suppress(OSError):
                self._path.unlink()
        # In a forked child it is closed already, and so it may be by the deploy: the number may be another file's.
        if self._file in _files:
            _files.discard(self._file)
            with suppress(OSError):
                if os.path.samestat(os.fstat(self._file), self._status):
                    os.close(self._file)


# The locks of this process: a child that kept them would keep a dead parent alive.
_files: set[int] = set()


def _after_fork_in_child() -> None:
    for file in _files:
        with suppress(OSError):
            os.close(file)
    _files.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def owners_in(folder: Path) -> list[str]:
    """Return the ids of the owners that have a file in ``folder``."""
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []


def forget_dead(folder: Path | None, owner: str) -> None:
    """Remove the file of an owner that is dead and has nothing open any more."""
    if folder is not None:
        with suppress(OSError):
            (folder / owner).unlink()


def death_of(folder: Path, owner: str, *, network: bool, clock: Callable[[], float] = time.time) -> Death | None:
    """Return the death of an owner; None while it lives, or may.

    Args:
        folder: where the files of all owners are.
        owner: its id.
        network: whether ``folder`` is on a network file system, whose locks prove nothing about other hosts.
        clock: the time that heartbeats are measured by, in Unix seconds.
    """
    path = folder / owner
    try:
        file = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        return Death(None)
    except OSError:
        return None
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            return None
        host, boot, *notes = [*os.read(file, _LONGEST).decode("utf-8", "replace").split("\n"), "", ""]
        if not network and _is_of_this_machine(host, boot):
            alive = not _is_free(file)
        else:
            alive = clock() - status.st_mtime < _TIME_TO_LIVE
        ended = dict(note.split(" ", 1) for note in notes if " " in note)
        return None if alive else Death(int(status.st_mtime * 1000), ended)
    finally:
        os.close(file)


def _machine() -> str:
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{platform.node()}\n{boot}"


def _is_of_this_machine(host: str, boot: str) -> bool:
    """Whether a lock on a local disk means anything: the host is the same after a reboot, the boot in a container."""
    our_host, our_boot = _machine().split("\n")
    return host == our_host or (bool(our_boot) and boot == our_boot)


if sys.platform == "win32":
    import msvcrt

    def _lock(file: int) -> None:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)

    def _is_free(file: int) -> bool:
        try:
            os.lseek(file, 0, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        os.lseek(file, 0, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_UNLCK, 1)
        return True

else:
    import fcntl

    def _lock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _is_free(file: int) -> bool:
        try:
            # Shared, so that many who ask at once do not take one another for the owner.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
