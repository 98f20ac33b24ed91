"""Release a static site into a folder, as Invoke tasks: ``inv deploy --tag 1.4.0``, then ``inv search``."""

from __future__ import annotations

import http.client
import json
import re
import urllib.request
from html.parser import HTMLParser
from pathlib import Path
from shlex import quote
from urllib.parse import urljoin

from invoke import Context, Exit, task

from ld_deploy_hooks import current_deployment, deployment

HERE = Path(__file__).resolve().parent


@task
def build(c: Context) -> None:
    """Pack the pages."""
    archive = packed(c)
    archive.parent.mkdir(parents=True, exist_ok=True)
    c.run(f"tar -czf {quote(str(archive))} -C {quote(str(HERE / c.site.pages))} .")


@task
def smoke(c: Context) -> None:
    """Follow every link of the live site."""
    found = crawl(f"{c.site.url}/index.html")
    print(f"{len(found)} files of {c.site.url} can be reached")
    # None when somebody runs `inv smoke` by itself.
    if (told := current_deployment()) is not None:
        told.custom(step="smoke", files=len(found))


@task(pre=[build], post=[smoke])
@deployment("docs-intranet", version=lambda c, tag: tag)
def deploy(c: Context, tag: str) -> None:
    """Release the pages as TAG; a release that the web server does not serve is taken back."""
    if not re.fullmatch(r"\w[\w.-]*", tag, re.ASCII):
        raise Exit(f"{tag!r} is no tag")
    if c.config.run.dry:
        print(f"would release {tag}")
        return
    root = Path(c.site.root)
    before = live(root)
    unpack(c, root / "releases", tag)
    switch(root, tag)
    try:
        served = fetch(f"{c.site.url}/version.txt").strip()
        if served != tag:
            raise Exit(f"{c.site.url} serves {served}, not {tag}")
    except BaseException:
        roll_back(c, root, tag, before)
        raise
    with c.cd(str(root / "releases")):
        c.run(f"ls -1t | tail -n +{max(c.site.keep, 1) + 1} | xargs rm -rf")
    print(f"{tag} is live at {c.site.url}")


@task
def search(c: Context) -> None:
    """Put a fresh search index beside the live pages."""
    current = Path(c.site.root) / "current"
    index = {page.name: Page(page.read_text()).words for page in sorted(current.glob("*.html"))}
    if not c.config.run.dry:
        part = current / "search.json.new"
        part.write_text(json.dumps(index))
        part.replace(current / "search.json")
    print(f"{len(index)} pages can be searched")


def packed(c: Context) -> Path:
    """Return the path of the packed pages."""
    return HERE / c.site.build / "site.tar.gz"


def live(root: Path) -> str | None:
    """Return the release that is live."""
    current = root / "current"
    return current.readlink().name if current.is_symlink() else None


def unpack(c: Context, releases: Path, tag: str) -> None:
    """Make the release, whole or not at all; one that is there already stays as it is."""
    releases.mkdir(parents=True, exist_ok=True)
    with c.cd(str(releases)):
        c.run(
            f"test -d {tag} || (rm -rf .{tag} && mkdir .{tag} && tar -xzf {quote(str(packed(c)))} -C .{tag}"
            f" && echo {tag} > .{tag}/version.txt && mv .{tag} {tag})"
        )
        c.run(f"touch {tag}")


def switch(root: Path, tag: str) -> None:
    """Let ``current`` lead to a release, in one step: no request finds the link missing."""
    link = root / "current.new"
    link.unlink(missing_ok=True)
    link.symlink_to(Path("releases", tag))
    link.replace(root / "current")


def roll_back(c: Context, root: Path, tag: str, before: str | None) -> None:
    """Make ``before`` live again and remove the release that failed."""
    if before is None:
        (root / "current").unlink()
    else:
        switch(root, before)
    if tag != before:
        with c.cd(str(root / "releases")):
            c.run(f"rm -rf {tag}")
    print(f"{tag} was taken back; {before or 'nothing'} is live")


def fetch(url: str) -> str:
    """Return what the web server answers; anything but an answer ends the run."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read().decode()
    except (OSError, http.client.HTTPException) as error:
        raise Exit(f"{url} does not answer: {error}") from error


def crawl(start: str) -> set[str]:
    """Return every address that can be reached from ``start`` without leaving its server."""
    site = urljoin(start, "/")
    seen, todo = set(), {start}
    while todo:
        url = todo.pop()
        seen.add(url)
        found = {urljoin(url, link) for link in Page(fetch(url)).links}
        todo |= {address for address in found if address.startswith(site)} - seen
    return seen


class Page(HTMLParser):
    """The links and words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links |= {value for name, value in attrs if name in ("href", "src") and value}

    def handle_data(self, data: str) -> None:
        self.words += data.lower().split()
