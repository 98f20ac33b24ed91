"""Whether any installed package may bring plugins: a glance at files, as importlib.metadata takes 15 ms to import."""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from pathlib import Path

__all__ = ["may_be_installed"]


def may_be_installed(group: str) -> bool:
    """Return False only if no installed package has an entry point of ``group``.

    True as well where importlib.metadata alone can tell: packages in an archive, those that a finder of somebody's own
    finds, what cannot be read.
    """
    if any(finder is not PathFinder and hasattr(finder, "find_distributions") for finder in sys.meta_path):
        return True
    return any(_may_be_in(Path(folder), f"[{group}]".encode()) for folder in sys.path)


def _may_be_in(folder: Path, section: bytes) -> bool:
    try:
        return any(_may_bring(package, section) for package in folder.iterdir())
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _may_bring(package: Path, section: bytes) -> bool:
    # What importlib.metadata takes for a package; the last lies in a folder that is an egg.
    if not package.name.lower().endswith((".dist-info", ".egg-info", "egg-info")):
        return False
    try:
        return section in (package / "entry_points.txt").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return False
