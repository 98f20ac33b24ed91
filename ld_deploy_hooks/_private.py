"""Folders and files for this user alone, whatever the umask: one that takes rights from the owner, too."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["create_file", "is_foreign", "make_folder"]

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


def is_foreign(owner: int) -> bool:
    """Whether ``owner`` is the id of another user."""
    return hasattr(os, "geteuid") and owner != os.geteuid()


def make_folder(folder: Path, *, parents: bool = False) -> None:
    """Make a folder (0700) if it is missing; what is there is left as it is.

    Args:
        folder: which.
        parents: whether those that it lies in are made too, with the rights that the umask leaves, and the owner's.

    Raises:
        OSError: the operating system says no, or a file is in its place.
    """
    if folder.is_dir():
        return
    missing = [folder.parent, *folder.parent.parents] if parents else []
    for parent in reversed(missing):
        if not parent.is_dir():
            _make(parent, 0o777)
    _make(folder, 0o700)


def _make(folder: Path, mode: int) -> None:
    try:
        folder.mkdir(mode=mode)
    except FileExistsError:
        # Another process was faster.
        if folder.is_dir():
            return
        raise
    made = stat.S_IMODE(folder.stat().st_mode)
    if made & 0o700 != 0o700:
        folder.chmod(made | 0o700)


def create_file(path: Path) -> int:
    """Create a file (0600) that is not there yet; return its descriptor, for reading and writing.

    Raises:
        FileExistsError: something is there, be it a symbolic link that leads nowhere.
        OSError: the operating system says no.
    """
    file = os.open(path, _NEW, 0o600)
    if hasattr(os, "fchmod"):
        os.fchmod(file, 0o600)
    return file
