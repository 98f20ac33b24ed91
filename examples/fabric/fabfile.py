"""Release a static site to many hosts over SSH: ``fab -H web1,web2,web3 deploy --tag 1.4.0``.

A host needs a shell, tar, Python 3 and a web server that serves ``docs/current``.
"""

from __future__ import annotations

import re
from pathlib import Path
from shlex import quote

from fabric import Connection, task
from invoke import Context, Exit

from ld_deploy_hooks import deployment

HERE = Path(__file__).resolve().parent

# What asks a host's own web server, from the host: not every host has curl.
FETCH = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=5).read().decode())"


@task
def build(c: Context) -> None:
    """Pack the pages."""
    archive = packed(c)
    archive.parent.mkdir(parents=True, exist_ok=True)
    c.run(f"tar -czf {quote(str(archive))} -C {quote(str(HERE / c.site.pages))} .")


@task(pre=[build])
@deployment(version=lambda c, tag: tag)
def deploy(c: Connection, tag: str) -> None:
    """Release the pages as TAG, host after host; the first that does not serve them ends the run."""
    if not re.fullmatch(r"\w[\w.-]*", tag, re.ASCII):
        raise Exit(f"{tag!r} is no tag")
    if c.config.run.dry:
        print(f"{c.original_host}: would release {tag}")
        return
    upload(c, tag)
    with c.cd(c.site.root):
        before = c.run("readlink current || true", hide=True).stdout.strip()
        switch(c, f"releases/{tag}")
        try:
            check(c, tag)
        except BaseException:
            roll_back(c, f"releases/{tag}", before)
            raise
        c.run(f"cd releases && ls -1t | tail -n +{max(c.site.keep, 1) + 1} | xargs rm -rf")
    print(f"{c.original_host}: {tag} is live")


def packed(c: Context) -> Path:
    """Return the path of the packed pages."""
    return HERE / c.site.build / "site.tar.gz"


def upload(c: Connection, tag: str) -> None:
    """Make the release, whole or not at all; one that is there already stays as it is."""
    c.run(f"mkdir -p {c.site.root}/releases")
    c.put(str(packed(c)), f"{c.site.root}/{tag}.tar.gz")
    with c.cd(f"{c.site.root}/releases"):
        c.run(
            f"test -d {tag} || (rm -rf .{tag} && mkdir .{tag} && tar -xzf ../{tag}.tar.gz -C .{tag}"
            f" && echo {tag} > .{tag}/version.txt && mv .{tag} {tag})"
        )
        c.run(f"touch {tag} && rm ../{tag}.tar.gz")


def switch(c: Connection, release: str) -> None:
    """Let ``current`` lead to ``release``, in one step: no request finds the link missing."""
    c.run(f"ln -sfn {release} current.new")
    # rename(2) on the host. Not every `mv` can replace a link that leads to a folder.
    c.sftp().posix_rename(f"{c.site.root}/current.new", f"{c.site.root}/current")


def check(c: Connection, tag: str) -> None:
    """Ask the host's web server which release it serves."""
    answer = c.run(f'python3 -c {quote(FETCH)} "{c.site.url}/version.txt"', hide=True, warn=True)
    if answer.failed:
        why = answer.stderr.strip().rpartition("\n")[2]
        raise Exit(f"{c.original_host}: the web server does not serve {tag}: {why}")
    served = answer.stdout.strip()
    if served != tag:
        raise Exit(f"{c.original_host}: the web server serves {served}, not {tag}")


def roll_back(c: Connection, release: str, before: str) -> None:
    """Make ``before`` live again and remove the release that failed."""
    if before:
        switch(c, before)
    else:
        c.run("rm current")
    if release != before:
        c.run(f"rm -rf {release}")
    print(f"{c.original_host}: {release} was taken back, {before or 'nothing'} is live")
