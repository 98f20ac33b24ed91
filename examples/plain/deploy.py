"""Release a static site into a folder, and tell LaunchDarkly: plain Python, no framework.

::

    python deploy.py 1.4.0 --root /srv/www/docs --url http://127.0.0.1:8000

The web server at ``--url`` serves ``ROOT/current``, a link to the release that is live. A release that does not answer
there is taken back, and its deployment has failed.
"""

from __future__ import annotations

import argparse
import http.client
import os
import re
import shutil
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from ld_deploy_hooks import deployment

SITE = Path(__file__).resolve().parent.parent / "site"


class UnhealthyError(Exception):
    """The web server does not serve the release that it should."""


def deploy(version: str, *, site: Path, root: Path, url: str, keep: int) -> None:
    """Release ``site`` as ``version`` and keep the last ``keep`` releases.

    Raises:
        UnhealthyError: the web server does not serve it; the release before it is live again.
    """
    before = live(root)
    with deployment("docs-site", version=version) as d:
        unpack(site, root, version)
        switch(root, version)
        d.custom(step="switched", previous=before)
        try:
            check(url, version)
        except BaseException:
            roll_back(root, version, before)
            d.custom(step="rolled back", to=before)
            raise
        tidy(root, keep)


def live(root: Path) -> str | None:
    """Return the version that is live."""
    current = root / "current"
    return current.readlink().name if current.is_symlink() else None


def unpack(site: Path, root: Path, version: str) -> None:
    """Copy ``site`` to ``releases/<version>``, whole or not at all; a release that is there already stays as it is."""
    release = root / "releases" / version
    if not release.is_dir():
        part = release.with_name(f".{version}")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(site, part)
        (part / "version.txt").write_text(f"{version}\n")
        part.rename(release)
    os.utime(release)


def switch(root: Path, version: str) -> None:
    """Let ``current`` lead to a release, in one step: no request finds the link missing."""
    link = root / "current.new"
    link.unlink(missing_ok=True)
    link.symlink_to(Path("releases", version))
    link.replace(root / "current")


def check(url: str, version: str) -> None:
    """Ask the web server which release it serves.

    Raises:
        UnhealthyError: another one, or none.
    """
    try:
        with urllib.request.urlopen(f"{url}/version.txt", timeout=5) as answer:
            served = answer.read().decode().strip()
    except (OSError, http.client.HTTPException) as error:
        raise UnhealthyError(f"{url} does not serve {version}: {error}") from error
    if served != version:
        raise UnhealthyError(f"{url} serves {served}, not {version}")


def roll_back(root: Path, version: str, before: str | None) -> None:
    """Make ``before`` live again and remove the release that failed."""
    if before is None:
        (root / "current").unlink()
    else:
        switch(root, before)
    if version != before:
        shutil.rmtree(root / "releases" / version)


def tidy(root: Path, keep: int) -> None:
    """Remove all but the newest releases; the newest is the one that is live."""
    releases = sorted((root / "releases").glob("[!.]*"), key=lambda release: release.stat().st_mtime, reverse=True)
    for release in releases[max(keep, 1) :]:
        shutil.rmtree(release)


def main(argv: Sequence[str] | None = None) -> int:
    """Release the site; the answer is the exit status."""
    parser = argparse.ArgumentParser(description="Release the site.")
    parser.add_argument("version", help="letters, digits, '.', '-' and '_'; best the tag or the commit")
    parser.add_argument("--site", type=Path, default=SITE, help="folder with the pages (default: %(default)s)")
    parser.add_argument("--root", type=Path, required=True, help="folder with `releases` and `current`")
    parser.add_argument("--url", required=True, help="where a web server serves ROOT/current")
    parser.add_argument("--keep", type=int, default=3, help="how many releases to keep (default: %(default)s)")
    options = parser.parse_args(argv)
    if not re.fullmatch(r"\w[\w.-]*", options.version, re.ASCII):
        parser.error(f"{options.version!r} is no version")
    try:
        deploy(options.version, site=options.site, root=options.root, url=options.url, keep=options.keep)
    except UnhealthyError as error:
        print(f"The release was taken back: {error}", file=sys.stderr)
        return 1
    print(f"{options.version} is live at {options.url}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
