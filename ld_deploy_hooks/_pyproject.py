"""Find and read the ``[tool.ld-deploy-hooks]`` table of ``pyproject.toml``.

The file is found by walking up from wherever the deploy was started, so it may be anybody's: it is judged by its owner
before a byte of it is read. What may be set there is decided in ``_settings``.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

__all__ = ["PyProject", "Unread", "find_table"]

_TABLE = "ld-deploy-hooks"


class Unread(NamedTuple):
    """A ``pyproject.toml`` that was met and not used.

    Attributes:
        path: the file.
        why: what is wrong with it and what to do, as the rest of a sentence that begins with the path.
        fault: False where the file may have nothing to do with us: that must not stop a ``strict`` deploy.
    """

    path: Path
    why: str
    fault: bool


class PyProject(NamedTuple):
    """What the walk up found.

    Attributes:
        path: the file that has our table, None if there is none.
        table: the table, empty if there is none.
        unread: files on the way that were not used.
    """

    path: Path | None = None
    table: Mapping[str, object] = MappingProxyType({})
    unread: tuple[Unread, ...] = ()


def find_table(start: Path) -> PyProject:
    """Return our table of the first ``pyproject.toml`` that has one, from ``start`` up to the repository's root.

    The root is the first folder with ``.git`` or ``.hg``; nothing above it is looked at. Never raises.

    Args:
        start: an absolute path without ``..`` in it.
    """
    unread: list[Unread] = []
    for folder in (start, *start.parents):
        path = folder / "pyproject.toml"
        found = _read(path)
        if isinstance(found, Unread):
            unread.append(found)
            if found.fault:  # it may hold our table: a file further up could speak of another application
                break
        elif found is not None:
            return PyProject(path, found, tuple(unread))
        # Names, not paths: each deployment walks up.
        if any(os.path.lexists(f"{folder}{os.sep}{mark}") for mark in (".git", ".hg")):
            break
    return PyProject(unread=tuple(unread))


def _read(path: Path) -> Mapping[str, object] | Unread | None:
    """Return our table of ``path``, why it was not read, or None where there is no file or no table of ours."""
    try:
        # O_NONBLOCK: a named pipe of that name would otherwise hold the deploy up for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        if not os.path.lexists(path):
            return None
        return Unread(path, f"was not read ({type(error).__name__}); make it readable for this user", fault=False)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return Unread(path, "was not read: it is no regular file; remove or rename it", fault=False)
        if hasattr(os, "geteuid") and status.st_uid not in (os.geteuid(), 0):
            why = (
                f"was not read: it belongs to user id {status.st_uid}, neither to this user nor to root; "
                "chown it, or set what it says by environment variables"
            )
            return Unread(path, why, fault=False)
        with open(descriptor, "rb", closefd=False) as file:
            text = file.read()
    except OSError as error:
        return Unread(path, f"was not read ({type(error).__name__}); look at the disk or the share", fault=False)
    finally:
        os.close(descriptor)
    # Most files do not speak of us: no time for the parser, and no line where such a file is malformed.
    return _table(path, text) if _TABLE.encode() in text else None


def _table(path: Path, text: bytes) -> Mapping[str, object] | Unread | None:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        tool = tomllib.loads(text.decode()).get("tool")
    except (ValueError, RecursionError) as error:
        return Unread(path, f"was not used: it is no valid TOML ({type(error).__name__}); mend the file", fault=True)
    if not isinstance(tool, Mapping) or _TABLE not in tool:
        return None
    table = tool[_TABLE]
    if not isinstance(table, Mapping):
        return Unread(path, f"was not used: tool.{_TABLE} is no table; write [tool.{_TABLE}]", fault=True)
    return table
