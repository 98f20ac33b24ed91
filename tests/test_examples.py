"""The examples: real releases by real programs, told to a stand-in for LaunchDarkly."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ssh import SSHHosts, WebServer

from ld_deploy_hooks.testing import FakeLaunchDarkly

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
HOSTS = ["web1", "web2", "web3"]
TOKEN = "api-example-token"

Finished = subprocess.CompletedProcess[str]
Run = Callable[..., Finished]

needs_fabric = pytest.mark.skipif(importlib.util.find_spec("fabric") is None, reason="Fabric is not installed")


@pytest.fixture
def launchdarkly() -> Iterator[FakeLaunchDarkly]:
    with FakeLaunchDarkly(TOKEN) as server:
        yield server


@pytest.fixture
def env(child_env: dict[str, str], launchdarkly: FakeLaunchDarkly, tmp_path: Path) -> dict[str, str]:
    """The environment of every example: its settings, and its files in this test's folder."""
    return child_env | {
        "LD_BASE_URI": launchdarkly.base_uri,
        "LD_ACCESS_TOKEN": TOKEN,
        "LD_PROJECT": "planes",
        "LD_ENVIRONMENT": "test",
        "LD_DEPLOY_OUTBOX": str(tmp_path / "outbox.db"),
        "LD_DEPLOY_FLUSH_TIMEOUT": "10",
        "INVOKE_SITE_BUILD": str(tmp_path / "build"),
        "FABRIC_SITE_BUILD": str(tmp_path / "build"),
    }


@pytest.fixture
def run(env: dict[str, str]) -> Run:
    """Return a function that runs a command in the folder of an example; it takes more environment by keyword."""

    def run(example: str, *command: str, **more: str) -> Finished:
        program = shutil.which(command[0], path=env["PATH"])
        assert program is not None, f"{command[0]} is not on PATH"
        return subprocess.run(
            [program, *command[1:]],
            cwd=EXAMPLES / example,
            env=env | more,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[SSHHosts]:
    folder = tmp_path / "hosts"
    folder.mkdir()
    with SSHHosts(folder, HOSTS) as hosts:
        yield hosts


def fetch(url: str) -> str:
    """Return a page, or the status of a refusal."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return str(error.code)


def events(launchdarkly: FakeLaunchDarkly) -> list[str]:
    return [event["eventType"] for event in launchdarkly.events]


class Site:
    """Where an example releases to, seen from outside: its folder, its web server, and what releases to it."""

    def __init__(self, root: Path, web: WebServer, release: Callable[..., Finished]) -> None:
        self.root = root
        self.web = web
        self.release = release

    @property
    def live(self) -> str | None:
        current = self.root / "current"
        return str(current.readlink()) if current.is_symlink() else None

    @property
    def releases(self) -> list[str]:
        return sorted(path.name for path in (self.root / "releases").iterdir())

    @property
    def served(self) -> str:
        return fetch(f"{self.web.url}/version.txt").strip()

    def pin(self) -> None:
        """Let the web server serve the folder that ``current`` leads to now, whatever it leads to later."""
        self.web.folder = self.web.folder.resolve(strict=True)


@pytest.fixture
def docs(hosts: SSHHosts) -> Iterator[dict[str, WebServer]]:
    """The web server of each host."""
    with contextlib.ExitStack() as stack:
        docs = {name: stack.enter_context(WebServer(hosts[name].home / "docs" / "current")) for name in HOSTS}
        for name, web in docs.items():
            hosts[name].environment["PORT"] = str(web.port)
        yield docs


@pytest.fixture(params=["plain", "invoke", pytest.param("fabric", marks=needs_fabric)])
def site(request: pytest.FixtureRequest, run: Run, tmp_path: Path) -> Iterator[Site]:
    """Each of the examples, with one place to release to."""
    if request.param == "fabric":
        hosts, docs = request.getfixturevalue("hosts"), request.getfixturevalue("docs")

        def fab(version: str, *flags: str, keep: int = 3) -> Finished:
            command = ("fab", *flags, "--ssh-config", str(hosts.config), "-H", "web1", "deploy", "--tag", version)
            return run("fabric", *command, FABRIC_SITE_KEEP=str(keep))

        yield Site(hosts["web1"].home / "docs", docs["web1"], fab)
        return
    root = tmp_path / "www"
    with WebServer(root / "current") as web:

        def plain(version: str, keep: int = 3) -> Finished:
            options = ("--root", str(root), "--url", web.url, "--keep", str(keep))
            return run("plain", sys.executable, "deploy.py", version, *options)

        def inv(version: str, *flags: str, keep: int = 3) -> Finished:
            more = {"INVOKE_SITE_ROOT": str(root), "INVOKE_SITE_URL": web.url, "INVOKE_SITE_KEEP": str(keep)}
            return run("invoke", "inv", *flags, "deploy", "--tag", version, **more)

        yield Site(root, web, plain if request.param == "plain" else inv)


# -- what every example does ------------------------------------------------------------------------------------------


def test_a_release_is_live_and_old_ones_go(site: Site, launchdarkly: FakeLaunchDarkly) -> None:
    for version, keep in (("1.0.0", 2), ("1.1.0", 2), ("1.0.0", 1)):
        done = site.release(version, keep=keep)
        assert done.returncode == 0, done.stderr
        assert f"{version} is live" in done.stdout
        assert site.live == f"releases/{version}"
        assert site.served == version
        assert site.releases == (["1.0.0", "1.1.0"] if version == "1.1.0" else ["1.0.0"])
    assert fetch(f"{site.web.url}/fold.html") == (EXAMPLES / "site" / "fold.html").read_text()
    assert [(one["applicationVersion"], one["status"], one["kind"]) for one in launchdarkly.deployments] == [
        ("1.0.0", "finished", "deployment"),
        ("1.1.0", "finished", "deployment"),
        ("1.0.0", "finished", "redeployment"),
    ]


def test_a_release_that_is_not_served_is_taken_back(site: Site, launchdarkly: FakeLaunchDarkly) -> None:
    assert site.release("1.0.0").returncode == 0
    site.pin()
    launchdarkly.clear()
    done = site.release("1.1.0")
    assert done.returncode == 1
    assert "serves 1.0.0, not 1.1.0" in done.stderr
    assert "Traceback" not in done.stderr
    assert site.live == "releases/1.0.0"
    assert site.releases == ["1.0.0"]
    assert (events(launchdarkly)[0], events(launchdarkly)[-1]) == ("started", "failed")
    assert [one["status"] for one in launchdarkly.deployments] == ["failed"]


def test_a_first_release_that_is_not_served_leaves_nothing_live(site: Site, launchdarkly: FakeLaunchDarkly) -> None:
    site.web.folder = site.web.folder / "elsewhere"
    done = site.release("1.0.0")
    assert done.returncode == 1
    assert "404" in done.stderr
    assert site.live is None
    assert site.releases == []
    assert [one["status"] for one in launchdarkly.deployments] == ["failed"]


def test_a_version_that_leads_out_of_the_folder_is_refused(site: Site) -> None:
    done = site.release("..")
    assert done.returncode != 0
    assert "'..' is no" in done.stderr
    assert not site.root.exists()


@pytest.mark.parametrize("site", ["invoke", pytest.param("fabric", marks=needs_fabric)], indirect=True)
def test_a_dry_run_changes_and_tells_nothing(site: Site, launchdarkly: FakeLaunchDarkly, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "site", site.root / "releases" / "1.0.0")
    (site.root / "current").symlink_to("releases/1.0.0")
    done = site.release("1.1.0", "--dry")
    assert done.returncode == 0, done.stderr
    assert "would release 1.1.0" in done.stdout
    assert site.live == "releases/1.0.0"
    assert site.releases == ["1.0.0"]
    assert launchdarkly.requests == []


# Notes what a Python process does to a link of this name: for a sitecustomize.py, which every process imports.
WATCH = """
import os, sys

def told(event, arguments):
    if event.startswith("os.") and any(str(one).endswith("/current") for one in arguments):
        with open(os.environ["WATCHED"], "a") as file:
            print(event, os.path.basename(arguments[0]), file=file)

sys.addaudithook(told)
"""


@pytest.mark.parametrize("site", ["plain", "invoke"], indirect=True)
def test_the_link_is_switched_in_one_step(site: Site, env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(tmp_path), env.get("PYTHONPATH"))))
    env["WATCHED"] = str(tmp_path / "watched")
    site.release("1.0.0")
    site.release("1.1.0")
    assert (tmp_path / "watched").read_text().splitlines() == ["os.rename current.new"] * 2


# Notes how it was called, and is the real command of its name then.
NOTED = """#!/bin/sh
echo "${0##*/} $*" >>"$HOME/commands"
PATH=${PATH#*:}
exec "${0##*/}" "$@"
"""


@needs_fabric
@pytest.mark.parametrize("site", ["fabric"], indirect=True)
def test_no_command_on_a_host_takes_the_link_away(site: Site, hosts: SSHHosts) -> None:
    host = hosts["web1"]
    folder = host.home / "bin"
    folder.mkdir()
    for name in ("ln", "mv", "rm", "unlink"):
        (folder / name).write_text(NOTED)
        (folder / name).chmod(0o755)
    host.environment["PATH"] = f"{folder}{os.pathsep}{host.environment['PATH']}"
    assert site.release("1.0.0").returncode == 0
    commands = [line.split() for line in (host.home / "commands").read_text().splitlines()]
    assert ["ln", "-sfn", "releases/1.0.0", "current.new"] in commands
    assert [command for command in commands if "current" in command] == []


# -- plain ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["plain"], indirect=True)
def test_plain_tells_its_steps(site: Site, launchdarkly: FakeLaunchDarkly) -> None:
    site.release("1.0.0")
    site.pin()
    site.release("1.1.0")
    told = [(event["version"], event["eventType"], event["eventMetadata"]) for event in launchdarkly.events]
    assert {event["applicationKey"] for event in launchdarkly.events} == {"docs-site"}
    assert [(version, kind, data.get("step"), data.get("error")) for version, kind, data in told] == [
        ("1.0.0", "started", None, None),
        ("1.0.0", "custom", "switched", None),
        ("1.0.0", "finished", None, None),
        ("1.1.0", "started", None, None),
        ("1.1.0", "custom", "switched", None),
        ("1.1.0", "custom", "rolled back", None),
        ("1.1.0", "failed", None, "UnhealthyError"),
    ]


# -- invoke -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["invoke"], indirect=True)
def test_invoke_tells_pre_and_post_tasks_as_one_deployment(site: Site, launchdarkly: FakeLaunchDarkly) -> None:
    site.release("1.0.0")
    told = [(event["eventType"], event["eventMetadata"]["task"]) for event in launchdarkly.events]
    assert told == [("started", "deploy"), ("custom", "deploy"), ("finished", "deploy")]
    assert launchdarkly.events[1]["eventMetadata"]["files"] == 4
    assert {event["applicationKey"] for event in launchdarkly.events} == {"docs-intranet"}


def test_invoke_fails_with_its_post_task(run: Run, launchdarkly: FakeLaunchDarkly, tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "index.html").write_text('<a href="missing.html">a dead link</a>')
    root = tmp_path / "www"
    with WebServer(root / "current") as web:
        more = {"INVOKE_SITE_PAGES": str(pages), "INVOKE_SITE_ROOT": str(root), "INVOKE_SITE_URL": web.url}
        done = run("invoke", "inv", "deploy", "--tag", "1.0.0", **more)
    assert done.returncode == 1
    assert "missing.html does not answer" in done.stderr
    assert events(launchdarkly) == ["started", "failed"]


def test_invoke_tells_a_task_that_only_the_mapping_makes_a_deployment(
    run: Run, launchdarkly: FakeLaunchDarkly, tmp_path: Path
) -> None:
    current = tmp_path / "www" / "current"
    shutil.copytree(EXAMPLES / "site", current)
    more = {"INVOKE_SITE_ROOT": str(current.parent), "LD_DEPLOY_VERSION": "2.0.0"}
    assert run("invoke", "inv", "--dry", "search", **more).returncode == 0
    assert not (current / "search.json").exists()
    done = run("invoke", "inv", "search", **more)
    assert done.returncode == 0, done.stderr
    index = json.loads((current / "search.json").read_text())
    assert sorted(index) == ["fold.html", "index.html", "throw.html"]
    assert "sheet" in index["fold.html"]
    told = [
        (one["eventType"], one["applicationKey"], one["applicationKind"], one["version"]) for one in launchdarkly.events
    ]
    assert told == [
        ("started", "docs-search", "browser", "2.0.0"),
        ("finished", "docs-search", "browser", "2.0.0"),
    ]


# -- fabric -----------------------------------------------------------------------------------------------------------


@needs_fabric
def test_fabric_stops_at_the_host_that_fails(
    run: Run, hosts: SSHHosts, docs: dict[str, WebServer], launchdarkly: FakeLaunchDarkly
) -> None:
    fab = ("fab", "--ssh-config", str(hosts.config), "-H", ",".join(HOSTS), "deploy", "--tag")
    assert run("fabric", *fab, "1.0.0").returncode == 0
    docs["web2"].folder = docs["web2"].folder.resolve(strict=True)
    done = run("fabric", *fab, "1.1.0")
    assert done.returncode == 1
    assert "web2: the web server serves 1.0.0, not 1.1.0" in done.stderr
    assert [str((hosts[name].home / "docs" / "current").readlink()) for name in HOSTS] == [
        "releases/1.1.0",
        "releases/1.0.0",
        "releases/1.0.0",
    ]
    told = [
        (event["eventType"], event["version"], event["applicationKey"], event["applicationKind"])
        for event in launchdarkly.events
    ]
    assert told == [
        ("started", "1.0.0", "docs-web", "browser"),
        ("finished", "1.0.0", "docs-web", "browser"),
        ("started", "1.1.0", "docs-web", "browser"),
        ("failed", "1.1.0", "docs-web", "browser"),
    ]
    planned = {"hosts": HOSTS, "hostCount": 3}
    assert [of_hosts(event) for event in launchdarkly.events] == [
        planned,
        planned | {"hostsSucceeded": HOSTS, "hostsFailed": [], "hostsPending": []},
        planned,
        planned | {"hostsSucceeded": ["web1"], "hostsFailed": ["web2"], "hostsPending": ["web3"]},
    ]


@needs_fabric
def test_fabric_names_ports_where_only_they_tell_hosts_apart(
    run: Run, hosts: SSHHosts, docs: dict[str, WebServer], launchdarkly: FakeLaunchDarkly
) -> None:
    names = [f"127.0.0.1:{hosts[name].port}" for name in ("web1", "web2")]
    addresses = ",".join(f"deploy@{name}" for name in names)
    done = run("fabric", "fab", "-i", str(hosts.key), "-H", addresses, "deploy", "--tag", "1.0.0")
    assert done.returncode == 0, done.stderr
    assert of_hosts(launchdarkly.events[-1]) == {
        "hosts": names,
        "hostCount": 2,
        "hostsSucceeded": names,
        "hostsFailed": [],
        "hostsPending": [],
    }


def of_hosts(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event["deploymentMetadata"].items() if name.startswith("host")}


# -- the show ---------------------------------------------------------------------------------------------------------


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.parent.name != "__pycache__" and path.is_file())


def show(script: Path, env: dict[str, str], cwd: Path) -> Finished:
    """Run the show from ``cwd``; nothing of it is left in its process group, its temporary folder and its checkout."""
    before = files_of(script.parent)
    with subprocess.Popen(
        [sys.executable, str(script)],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        stdout, stderr = process.communicate(timeout=120)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert list(Path(env["TMPDIR"]).iterdir()) == []
    assert files_of(script.parent) == before
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@needs_fabric
def test_the_show(child_env: dict[str, str], tmp_path: Path) -> None:
    # What is set where somebody tries it: it must not get in the way.
    more = {"LD_ACCESS_TOKEN": "api-real", "LD_DEPLOY_DISABLED": "1", "GITHUB_ACTIONS": "true", "GITHUB_SHA": "f" * 40}
    more |= {"http_proxy": "http://127.0.0.1:9"}
    done = show(EXAMPLES / "show.py", child_env | more, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    table = [line.split() for line in done.stdout.partition("read back:")[2].strip().splitlines()]
    fared = ["succeeded:", "web1,", "failed:", "web2,", "pending:", "web3"]
    assert table[0] == ["APPLICATION", "VERSION", "ENVIRONMENT", "STATUS", "DURATION", "HOSTS"]
    # Of the duration, its unit alone is known.
    assert [[*row[:4], *row[5:]] for row in table[1:5]] == [
        ["docs-site", "1.0.0", "production", "finished", "s", "-"],
        ["docs-intranet", "1.1.0", "production", "finished", "s", "-"],
        ["docs-web", "2.0.0", "production", "finished", "s", "succeeded:", *HOSTS],
        ["docs-web", "2.1.0", "production", "failed", "s", *fared],
    ]
    assert done.stdout.endswith("All as announced.\n")


@needs_fabric
def test_the_show_says_what_did_not_go_as_announced(child_env: dict[str, str], tmp_path: Path) -> None:
    broken = tmp_path / "examples"
    shutil.copytree(EXAMPLES, broken)
    (broken / "invoke" / "tasks.py").write_text("")
    (broken / "fabric" / "fabfile.py").write_text("")
    done = show(broken / "show.py", child_env, tmp_path)
    assert done.returncode == 1
    assert "deploy --tag 1.1.0: announced was exit status 0, not 1" in done.stdout
    assert "deploy --tag 2.0.0: announced was exit status 0, not 1" in done.stdout
    assert "announced were the deployments" in done.stdout
    assert "All as announced." not in done.stdout
