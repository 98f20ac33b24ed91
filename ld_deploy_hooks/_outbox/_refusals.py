"""Why the outbox's file cannot be used, and what to do about it."""

from __future__ import annotations

import errno
import os
import shlex
import stat
import sys
from contextlib import suppress
from pathlib import Path

from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks._private import is_foreign

if sys.platform != "win32":
    import pwd

__all__ = ["COMPANIONS", "ELSEWHERE", "no_trust", "os_error_name", "refusal"]

# What SQLite keeps beside a file, in the order in which it must go: a file without its log is old, but a log beside a
# file that is not its own would be written into that one.
COMPANIONS = ("-journal", "-wal", "-shm")
ELSEWHERE = "set LD_DEPLOY_OUTBOX to a file elsewhere"
_MAKE_ROOM = f"Make room there, or {ELSEWHERE}"
_DAMAGED = ("it is damaged", "The next deployment moves it aside and makes a new one; what waited in it is not sent")
_LOCKED = ("another process kept it locked for too long", f"End what has it open (`fuser` tells), or {ELSEWHERE}")
# Why, and what to do; None: it is a matter of who may do what.
_NO_FOLDER = ("its folder is no folder", f"Remove what is in its place, or {ELSEWHERE}")
_TOO_LONG = ("its path is too long", "Please set LD_DEPLOY_OUTBOX to a shorter one")
# Bytes of a path that SQLite opens, less what it adds to the names of the files beside it.
_LONGEST = 500
_REASONS: dict[str, tuple[str, str | None]] = {
    "BUSY": _LOCKED,
    "CANTOPEN": ("it cannot be opened", None),
    "CORRUPT": _DAMAGED,
    "NOTADB": _DAMAGED,
    "CONSTRAINT": ("it holds something else of that id", "This is a fault of ld-deploy-hooks: please report it"),
    "FULL": ("the disk is full", _MAKE_ROOM),
    "IOERR": ("the disk answers with an error", f"Look at the system's log, or {ELSEWHERE}"),
    "LOCKED": _LOCKED,
    "NOMEM": ("there is no memory left for it", "Raise the limit of memory"),
    "PROTOCOL": _LOCKED,
    "READONLY": ("it cannot be written", None),
    "EACCES": ("permission denied", None),
    "ENOENT": ("its folder is not there and cannot be made", f"Please {ELSEWHERE}"),
    "EMFILE": ("too many files are open", "Raise the limit (`ulimit -n`)"),
    "ENAMETOOLONG": _TOO_LONG,
    "EDQUOT": ("the disk quota is used up", _MAKE_ROOM),
    "EEXIST": _NO_FOLDER,
    "ENOSPC": ("the disk is full", _MAKE_ROOM),
    "ENOTDIR": _NO_FOLDER,
    "EPERM": ("permission denied", None),
    "EROFS": ("the file system is read-only", f"Please {ELSEWHERE}"),
}


def refusal(path: Path | None, name: str) -> OutboxError:
    """Return the error that says what failed, why and what to do.

    Args:
        path: the outbox file, None for one in memory.
        name: of the failure, as SQLite (``SQLITE_FULL``) or the operating system (``ENOSPC``) calls it.
    """
    kind = name.removeprefix("SQLITE_").partition("_")[0]
    why, step = _REASONS.get(kind, ("it failed", f"Please {ELSEWHERE}, and report this"))
    if path is None:
        return OutboxError(f"The outbox :memory: cannot be used: {why} ({name}).", path=":memory:")
    if kind == "CANTOPEN" and len(os.fsencode(path)) > _LONGEST:
        why, step = _TOO_LONG
    step = step or _how_to_get_access(path)
    return OutboxError(f"The outbox {path} cannot be used: {why} ({name}). {step}.", path=str(path))


def os_error_name(error: OSError) -> str:
    """Return the error's name (``EACCES``), never its text."""
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


def _how_to_get_access(path: Path) -> str:
    for suspect in (path, *(Path(f"{path}{companion}") for companion in COMPANIONS), *path.parents):
        try:
            found = suspect.stat()
        except OSError:
            continue
        if is_foreign(found.st_uid):
            return _give_back(suspect, found.st_uid)
        if stat.S_ISDIR(found.st_mode):
            break
    return f"Let this user write in {path.parent}, or {ELSEWHERE}"


def no_trust(path: Path, suspect: Path, owner: int) -> OutboxError:
    """Return the error that says that ``suspect``, which the outbox ``path`` needs, belongs to user id ``owner``."""
    return OutboxError(f"The outbox {path} cannot be used: {_give_back(suspect, owner)}.", path=str(path))


def _give_back(suspect: Path, owner: int) -> str:
    me = os.geteuid()
    what = f"{suspect} belongs to {_user(owner)}, not to {_user(me)}"
    if me == 0:
        # What root made its own, the owner could not use any more.
        return f"{what}. Run without sudo, or {ELSEWHERE}"
    if not suspect.is_dir():
        return f"{what}. Give it back with `sudo chown {_user(me)} {shlex.quote(str(suspect))}*`, or {ELSEWHERE}"
    if Path(os.path.expanduser("~")) in suspect.parents:  # noqa: PTH111 (Path.home() raises where there is none)
        return f"{what}. Give it back with `sudo chown -R {_user(me)} {shlex.quote(str(suspect))}`, or {ELSEWHERE}"
    return f"{what}. Please {ELSEWHERE}"


def _user(number: int) -> str:
    if sys.platform != "win32":
        with suppress(KeyError):
            return pwd.getpwuid(number).pw_name
    return str(number)
