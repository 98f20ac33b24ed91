"""Whether packages bring plugins is known without importlib.metadata, and never otherwise than it would say."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from ld_deploy_hooks._entry_points import may_be_installed

GROUP = "ld_deploy_hooks"
POINTS = f"[console_scripts]\nx = x:main\n\n[{GROUP}]\nchat = chat\n"
METADATA = "Metadata-Version: 2.1\nName: chat\nVersion: 1.0\n"


def package(folder: Path, points: str | None = POINTS, metadata: str = "METADATA") -> None:
    """Write what tells of an installed package into ``folder``."""
    folder.mkdir(parents=True)
    (folder / metadata).write_text(METADATA)
    if points is not None:
        (folder / "entry_points.txt").write_text(points)


def archive(site: Path) -> str:
    with zipfile.ZipFile(site / "chat.zip", "w") as file:
        file.writestr("chat-1.0.dist-info/METADATA", METADATA)
        file.writestr("chat-1.0.dist-info/entry_points.txt", POINTS)
    return "chat.zip"


def egg(site: Path) -> str:
    package(site / "chat-1.0.egg" / "EGG-INFO", metadata="PKG-INFO")
    return "chat-1.0.egg"


INSTALLED: dict[str, Callable[[Path], str | None]] = {
    "a package": lambda site: package(site / "chat-1.0.dist-info"),
    "one in upper case": lambda site: package(site / "Chat-1.0.DIST-INFO"),
    "in development": lambda site: package(site / "chat.egg-info", metadata="PKG-INFO"),
    "an egg": egg,
    "an archive": archive,
}
NOT_INSTALLED: dict[str, Callable[[Path], str | None]] = {
    "nothing": lambda site: None,
    "a package without entry points": lambda site: package(site / "chat-1.0.dist-info", points=None),
    "a package with others": lambda site: package(
        site / "chat-1.0.dist-info", points="[console_scripts]\nx = ld_deploy_hooks.cli:main\n"
    ),
    "a file in place of a folder": lambda site: (site / "chat.egg-info").write_text(METADATA) and None,
    "a folder that is gone": lambda site: "gone",
    "another folder": lambda site: package(site / "chat"),
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the only folder in which packages are looked for."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def points() -> Iterable[importlib.metadata.EntryPoint]:
    importlib.invalidate_caches()
    return importlib.metadata.entry_points(group=GROUP)


@pytest.mark.parametrize("kind", INSTALLED)
def test_what_is_installed_is_seen(site: Path, kind: str) -> None:
    where = INSTALLED[kind](site)
    sys.path[:] = [str(site / (where or ""))]
    assert [point.name for point in points()] == ["chat"]
    assert may_be_installed(GROUP)


@pytest.mark.parametrize("kind", NOT_INSTALLED)
def test_where_nothing_is_installed_that_is_known(site: Path, kind: str) -> None:
    where = NOT_INSTALLED[kind](site)
    sys.path[:] = [str(site / (where or ""))]
    assert not list(points())
    assert not may_be_installed(GROUP)


def test_the_working_directory_is_looked_into_where_it_is_on_the_path(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(site / "chat-1.0.dist-info")
    monkeypatch.chdir(site)
    sys.path[:] = [""]
    assert list(points())
    assert may_be_installed(GROUP)


def test_a_finder_of_somebodys_own_may_know_of_more(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder:
        @staticmethod
        def find_spec(*_: object) -> None:
            return None

        @staticmethod
        def find_distributions(context: object = None) -> Iterable[importlib.metadata.Distribution]:
            return []

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    assert may_be_installed(GROUP)


@pytest.mark.parametrize("what", ["folder", "package"])
def test_what_cannot_be_read_may_be_one(site: Path, what: str) -> None:
    package(site / "chat-1.0.dist-info", points=None)
    loop = site / ("loop" if what == "folder" else "chat-1.0.dist-info/entry_points.txt")
    loop.symlink_to(loop)
    sys.path[:] = [str(loop if what == "folder" else site)]
    assert may_be_installed(GROUP)
