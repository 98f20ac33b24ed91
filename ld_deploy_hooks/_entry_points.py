"""The entry points of installed packages. A glance at files comes first: importlib.metadata takes 15 ms to import."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["entry_points", "may_be_installed"]


def entry_points(group: str, complain: Callable[[str], None]) -> list[tuple[EntryPoint, str]]:
    """Return the entry points of ``group``, each with the name of its package.

    Args:
        group: their group.
        complain: called with a line about each package that cannot be read; the others are returned all the same.
    """
    if not may_be_installed(group):
        return []
    import re
    from importlib.metadata import distributions

    found: list[tuple[EntryPoint, str]] = []
    seen: set[str] = set()
    # Not importlib.metadata's entry_points(): a single file that cannot be read would take all others with it.
    for distribution in distributions():
        package = "an installed package"
        try:
            if group in (distribution.read_text("entry_points.txt") or ""):
                package = distribution.name
                # Of a package that is there twice the first counts, as for imports, however either writes its name.
                key = re.sub(r"[-_.]+", "-", str(package)).lower()
                if key in seen:
                    continue
                seen.add(key)
                found += [(point, package) for point in distribution.entry_points.select(group=group)]
        except Exception as error:
            complain(
                f"The entry points of {package} cannot be read: {type(error).__name__}. Its plugins are not loaded: "
                "install it again, or name their modules in LD_DEPLOY_PLUGINS."
            )
    return found


def may_be_installed(group: str) -> bool:
    """Return False only if no installed package has an entry point of ``group``.

    True as well where importlib.metadata alone can tell: packages in an archive, those that a finder of somebody's own
    finds, what cannot be read.
    """
    if any(finder is not PathFinder and hasattr(finder, "find_distributions") for finder in sys.meta_path):
        return True
    return any(_may_be_in(folder, f"[{group}]".encode()) for folder in sys.path)


def _may_be_in(folder: str, section: bytes) -> bool:
    try:
        names = os.listdir(folder or os.curdir)  # noqa: PTH208  # a Path for each of hundreds of names takes its time
    except FileNotFoundError:
        return False
    except OSError:
        return True
    # What importlib.metadata takes for a package; the last lies in a folder that is an egg.
    packages = (name for name in names if name.lower().endswith((".dist-info", ".egg-info", "egg-info")))
    return any(_may_bring(Path(folder, package), section) for package in packages)


def _may_bring(package: Path, section: bytes) -> bool:
    try:
        return section in (package / "entry_points.txt").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
