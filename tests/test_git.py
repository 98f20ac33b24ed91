"""The built-in plugin ``git``, in real repositories."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from told import Told, script, settings, told_fixture  # noqa: F401

from ld_deploy_hooks import deployment
from ld_deploy_hooks._records import DeploymentEvent, DeploymentRecord, EventType, Identity
from ld_deploy_hooks._settings import resolve
from ld_deploy_hooks.plugins import git
from ld_deploy_hooks.testing import record_deployments

RECORD = DeploymentRecord(id="1", identity=Identity("p", "e", "a", "1"), state="started")


def _git(folder: Path, *command: str) -> str:
    author = {f"GIT_{who}_{what}": "x@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return subprocess.run(
        ["git", "-C", str(folder), *command],
        env={**os.environ, **author},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    _git(tmp_path, "init", "--quiet", "--initial-branch=main")
    (tmp_path / "app.py").write_text("1")
    _git(tmp_path, "add", "app.py")
    _git(tmp_path, "commit", "--quiet", "--message=first")
    _git(tmp_path, "remote", "add", "origin", "https://user:sesame-token@git.example/shop/web.git")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _event(kind: EventType) -> DeploymentEvent:
    return DeploymentEvent(event_type=kind, event_time=1, **RECORD.identity._asdict())


def patient() -> Any:
    """In the block git has all the time that it wants."""
    return mock.patch.object(git, "_MOMENT", 10.0)


def _metadata() -> dict[str, Any]:
    """Return what a deployment is told with in the end, when git has had all the time that it wants."""
    git.ld_deploy_provide_defaults(resolve())
    known = git.ld_deploy_add_metadata(RECORD) or {}
    with patient():
        ended = git.ld_deploy_modify_event(_event(EventType.FINISHED))
    return {**known, **(ended.deployment_metadata if ended is not None else {})}


def test_the_commit_is_the_version_and_the_remote_names_the_application(repository: Path) -> None:
    sha = _git(repository, "rev-parse", "HEAD")
    assert git.ld_deploy_provide_defaults(resolve()) == {"version": sha, "application_key": "web"}
    known = git.ld_deploy_add_metadata(RECORD)
    assert known is not None
    assert (known["commit"], known["branch"]) == (sha, "main")
    assert _metadata() == {"commit": sha, "branch": "main", "dirty": False}


@pytest.mark.parametrize(
    ("given", "asked"), [("version", "application_key"), ("application_key", "version")], ids=lambda name: name
)
def test_git_is_asked_for_what_is_missing_alone(given: str, asked: str, repository: Path) -> None:
    everything = {"version": _git(repository, "rev-parse", "HEAD"), "application_key": "web"}
    assert git.ld_deploy_provide_defaults(resolve({given: "1"})) == {asked: everything[asked]}
    assert _metadata()["dirty"] is False


def test_an_end_of_a_deployment_that_it_has_not_seen_start_stays_as_it_is(repository: Path) -> None:
    assert git.ld_deploy_modify_event(_event(EventType.FAILED)) is None


def test_a_tag_on_the_commit_goes_before_its_sha(repository: Path) -> None:
    _git(repository, "tag", "v1.2.3")
    assert git.ld_deploy_provide_defaults(resolve()) == {"version": "v1.2.3", "application_key": "web"}


def test_of_several_tags_the_annotated_one_is_the_version(repository: Path) -> None:
    for name in ("a-moving-tag", "zz-moving-tag"):
        _git(repository, "tag", name)
    _git(repository, "tag", "--annotate", "--message=release", "v1.2.3")
    assert (git.ld_deploy_provide_defaults(resolve()) or {})["version"] == "v1.2.3"


@pytest.mark.parametrize(
    ("tags", "version"),
    [(["web/v1"], None), (["v1+build"], None), (["v1", "web/v2"], "v1"), (["a1", "v1", "web/v2"], "v1")],
    ids=str,
)
def test_a_tag_that_launchdarkly_refuses_is_no_version(
    repository: Path, tags: list[str], version: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, tag in enumerate(tags):
        # Git's own choice among all of them is the last one.
        monkeypatch.setenv("GIT_COMMITTER_DATE", f"{2000 + number}-01-01T00:00:00Z")
        _git(repository, "tag", "--annotate", "--message=release", tag)
    expected = version or _git(repository, "rev-parse", "HEAD")
    assert (git.ld_deploy_provide_defaults(resolve()) or {})["version"] == expected


def test_a_tag_on_another_commit_is_no_version(repository: Path) -> None:
    _git(repository, "tag", "v1.2.3")
    _git(repository, "commit", "--quiet", "--allow-empty", "--message=second")
    assert (git.ld_deploy_provide_defaults(resolve()) or {})["version"] == _git(repository, "rev-parse", "HEAD")


def test_changes_that_are_not_committed_are_told(repository: Path) -> None:
    (repository / "app.py").write_text("2")
    assert _metadata()["dirty"] is True


@pytest.mark.parametrize("branch", ["release/7", "a,b"])
def test_the_branch_is_told_as_it_is_called(branch: str, repository: Path) -> None:
    _git(repository, "checkout", "--quiet", "-b", branch)
    assert _metadata()["branch"] == branch


def test_without_a_branch_none_is_told(repository: Path) -> None:
    _git(repository, "checkout", "--quiet", "--detach")
    assert "branch" not in _metadata()


def test_a_later_deployment_of_the_process_is_asked_about_anew(repository: Path) -> None:
    before = git.ld_deploy_provide_defaults(resolve())
    _git(repository, "commit", "--quiet", "--allow-empty", "--message=second")
    after = git.ld_deploy_provide_defaults(resolve())
    assert after is not None
    assert after != before
    assert _metadata()["commit"] == after["version"] == _git(repository, "rev-parse", "HEAD")


def test_who_gave_version_and_application_does_not_wait_and_the_end_carries_the_metadata(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = resolve({"version": "1", "application_key": "web"})
    assert git.ld_deploy_provide_defaults(given) is None
    assert git.ld_deploy_add_metadata(RECORD) is None
    git.ld_deploy_started(RECORD)
    assert git.ld_deploy_modify_event(_event(EventType.CUSTOM)) is None
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))  # as deploys do on their way
    with patient():
        ended = git.ld_deploy_modify_event(_event(EventType.FINISHED))
    assert ended is not None
    assert ended.deployment_metadata == {
        "commit": _git(repository, "rev-parse", "HEAD"),
        "branch": "main",
        "dirty": False,
    }
    assert RECORD.identity not in git._open


def test_a_deployment_that_ends_before_its_start_is_told_has_the_metadata_all_the_same(repository: Path) -> None:
    git.ld_deploy_provide_defaults(resolve({"version": "1", "application_key": "web"}))
    git.ld_deploy_add_metadata(RECORD)
    assert git._open[RECORD.identity].is_asked is False
    git.ld_deploy_modify_event(_event(EventType.FINISHED))
    git.ld_deploy_started(RECORD)
    assert RECORD.identity not in git._open


def test_what_the_event_says_already_stays(repository: Path) -> None:
    git.ld_deploy_provide_defaults(resolve())
    git.ld_deploy_add_metadata(RECORD)
    ended = git.ld_deploy_modify_event(replace(_event(EventType.FAILED), deployment_metadata={"branch": "mine"}))
    assert ended is not None
    assert ended.deployment_metadata["branch"] == "mine"


# Stands in for a git that is slow, for as long as the file beside it is there; it notes what it was asked.
SLOW = """#!/bin/sh
echo "$*" >>"${0%/*}/asked"
while test -e "${0%/*}/slow"; do sleep 0.05; done
exec GIT "$@"
"""


@pytest.fixture
def slow_git(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder for PATH with a git that is slow until its file ``slow`` is gone."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "git").write_text(SLOW.replace("GIT", str(shutil.which("git"))))
    (folder / "git").chmod(0o755)
    (folder / "slow").touch()
    yield folder
    (folder / "slow").unlink(missing_ok=True)


ADDRESSES = {
    "https://git.example/shop/web.git": "web",
    "https://user:sesame@git.example/shop/web.git/": "web",
    "https://git.example/shop/web.git?private_token=in/sesame": "web",
    "https://git.example/shop/web.git;token=sesame": "web",
    "https://git.example/shop/web#sesame": "web",
    "https://git.example/shop%2Fmy%20web.git": "my web",
    "https://sesame@git.example": None,
    "https://user:ses/ame@git.example": None,
    "https://user:12/sesame@git.example": None,
    "https://user:sesame?x/ame@git.example/shop/web": None,
    "https://user:ses\\ame@git.example": None,
    "https://git.example/web%0Asesame": None,
    "https://[sesame/web": None,
    "git@git.example:shop/web.git": "web",
    "git@git.example:web": "web",
    "git@[::1]:web.git": "web",
    "[git@git.example:2222]:shop/web.git": "web",
    "user:sesame@git.example": None,
    "ssh://git@git.example:2222/shop/web.git": "web",
    "ext::ssh -i sesame git.example %S web.git": None,
    "codecommit://web": "web",
    "codecommit::eu-west-1://profile@web": "web",
    "file:///srv/git/web.git": "web",
    "file:///C:/repos/web.git": "web",
    r"file://C:\repos\web.git": "web",
    r"C:\repos\web.git": "web",
    r"\\server\share\web.git": "web",
    "/srv/web/.git": "web",
    "../web": "web",
    "..": None,
    "/": None,
}


@pytest.mark.parametrize(("address", "name"), ADDRESSES.items())
def test_of_an_address_the_name_alone_is_read(address: str, name: str | None, repository: Path) -> None:
    _git(repository, "config", "remote.origin.url", address)
    assert git.ld_deploy_provide_defaults(resolve({"version": "1"})) == {"application_key": name}


CHILDREN_UNSEEN = {
    "ignored": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "waited for by another": """
def reap():
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(0.001)
threading.Thread(target=reap, daemon=True).start()
""",
}
ASKED = """
import os, signal, threading, time
from ld_deploy_hooks._records import DeploymentEvent, DeploymentRecord, EventType, Identity
from ld_deploy_hooks._settings import resolve
from ld_deploy_hooks.plugins import git
{}
print(git.ld_deploy_provide_defaults(resolve()))
identity = Identity("p", "e", "a", "1")
git.ld_deploy_add_metadata(DeploymentRecord(id="1", identity=identity, state="started"))
git._MOMENT = 10.0
end = DeploymentEvent(event_type=EventType.FINISHED, event_time=1, **identity._asdict())
print(dict(git.ld_deploy_modify_event(end).deployment_metadata))
"""


@pytest.mark.parametrize("children", CHILDREN_UNSEEN.values(), ids=CHILDREN_UNSEEN.keys())
def test_where_nobody_knows_how_git_ended_what_it_says_counts(
    children: str, repository: Path, run_python: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sha = _git(repository, "rev-parse", "HEAD")
    source = ASKED.format(children)
    found = {"version": sha, "application_key": "web"}
    told = {"commit": sha, "branch": "main", "dirty": False}
    done = run_python(source, cwd=repository)
    assert (done.stdout, done.stderr) == (f"{found}\n{told}\n", "")

    (repository / "app.py").write_text("2")
    assert "'dirty': True" in run_python(source, cwd=repository).stdout

    (repository / ".git" / "index").write_text("broken")
    del told["dirty"]
    done = run_python(source, cwd=repository)
    assert (done.stdout, done.stderr) == (f"{found}\n{told}\n", "")

    empty = tmp_path_factory.mktemp("empty")
    _git(empty, "init", "--quiet")
    done = run_python(source, cwd=empty)
    assert (done.stdout, done.stderr) == ("{'version': None, 'application_key': None}\n{}\n", "")


def test_git_is_called_no_more_often_than_it_must(
    repository: Path, slow_git: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (slow_git / "slow").unlink()
    monkeypatch.setenv("PATH", str(slow_git), prepend=os.pathsep)
    assert _metadata()["dirty"] is False
    asked = [re.findall("rev-list|status|config --get", line) for line in (slow_git / "asked").read_text().splitlines()]
    assert sorted(asked) == [["config --get"], ["rev-list"], ["status"]]


def test_outside_a_repository_it_is_called_once_for_the_metadata(
    tmp_path: Path, slow_git: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (slow_git / "slow").unlink()
    monkeypatch.setenv("PATH", str(slow_git), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    git.ld_deploy_add_metadata(RECORD)
    git.ld_deploy_started(RECORD)
    with patient():
        assert git.ld_deploy_modify_event(_event(EventType.FINISHED)) is not None
    (asked,) = (slow_git / "asked").read_text().splitlines()
    assert "rev-list" in asked


def test_an_end_waits_a_moment_for_git_and_no_longer(
    repository: Path, slow_git: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(slow_git), prepend=os.pathsep)
    git.ld_deploy_provide_defaults(resolve({"version": "1", "application_key": "web"}))
    git.ld_deploy_add_metadata(RECORD)
    begun = time.monotonic()
    ended = git.ld_deploy_modify_event(_event(EventType.FINISHED))
    assert 0.09 <= time.monotonic() - begun < 1.5
    assert ended is not None
    assert ended.deployment_metadata == {}


def test_what_was_asked_for_a_deployment_that_never_came_is_not_told_of_another(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    git.ld_deploy_provide_defaults(resolve())
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    git.ld_deploy_provide_defaults(resolve({"version": "1", "application_key": "web"}))
    assert git.ld_deploy_add_metadata(RECORD) is None


SLOW_DEPLOY = """
import os, time
from pathlib import Path
begun = time.monotonic()
with deployment():
    entered = time.monotonic() - begun
    Path(os.environ["SLOW"]).unlink()
    from ld_deploy_hooks.plugins import git
    git._MOMENT = 20.0
print(entered)
"""


CI = {
    "GITHUB_ACTIONS": "true",
    "GITHUB_REF_NAME": "ci-branch",
    "GITHUB_REF_TYPE": "branch",
    "GITHUB_REPOSITORY": "shop/from-ci",
    "GITHUB_SHA": "a" * 40,
}
GIVEN = {"LD_DEPLOY_APPLICATION_KEY": "billing", "LD_DEPLOY_VERSION": "a90a8a2"}


@pytest.mark.parametrize("given", [GIVEN, CI], ids=["by settings", "by CI"])
def test_a_slow_git_holds_no_start_up_whose_version_is_given(
    given: dict[str, str],
    told: Told,
    repository: Path,
    slow_git: Path,
    run_python: Any,
    child_env: dict[str, str],
) -> None:
    env = _told_env(told, child_env) | given
    env |= {"PATH": f"{slow_git}{os.pathsep}{child_env['PATH']}", "SLOW": str(slow_git / "slow")}
    done = run_python(script(SLOW_DEPLOY), env=env, cwd=repository)
    assert (done.returncode, done.stderr) == (0, "")
    # It would have waited until git's patience ends.
    assert float(done.stdout) < 1.5
    started, finished = told.events()
    assert "dirty" not in started.get("deploymentMetadata", {})
    if given is GIVEN:
        assert "deploymentMetadata" not in started
        found = {"commit": _git(repository, "rev-parse", "HEAD"), "branch": "main", "dirty": False}
        assert finished["deploymentMetadata"] == found
    assert finished["deploymentMetadata"]["dirty"] is False
    assert len((slow_git / "asked").read_text().splitlines()) == 2


def _told_env(told: Told, child_env: dict[str, str]) -> dict[str, str]:
    """Return the environment of a deploy that gives neither version nor application, with ``git`` at work."""
    env = child_env | settings(told.server.base_uri, told.outbox, LD_DEPLOY_PLUGINS="no:console")
    del env["LD_DEPLOY_VERSION"]
    return env


def test_a_deploy_that_gives_nothing_is_told_with_what_its_repository_says(
    told: Told, repository: Path, run_python: Any, child_env: dict[str, str]
) -> None:
    done = run_python(script("with deployment(): pass"), env=_told_env(told, child_env), cwd=repository)
    assert (done.returncode, done.stderr) == (0, "")
    commit = _git(repository, "rev-parse", "HEAD")
    for event in told.events():
        assert (event["applicationKey"], event["version"]) == ("web", commit)
        metadata = event["deploymentMetadata"]
        assert (metadata["commit"], metadata["branch"]) == (commit, "main")


def test_what_ci_says_goes_before_what_git_says(
    told: Told, repository: Path, run_python: Any, child_env: dict[str, str]
) -> None:
    done = run_python(script("with deployment(): pass"), env=_told_env(told, child_env) | CI, cwd=repository)
    assert (done.returncode, done.stderr) == (0, "")
    _, finished = told.events()
    assert (finished["applicationKey"], finished["version"]) == ("from-ci", "a" * 40)
    metadata = finished["deploymentMetadata"]
    assert (metadata["ci"], metadata["commit"], metadata["branch"]) == ("github-actions", "a" * 40, "ci-branch")


def test_outside_a_repository_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert git.ld_deploy_provide_defaults(resolve()) == {"version": None, "application_key": None}
    assert _metadata() == {}


def test_in_a_repository_without_a_commit_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _git(tmp_path, "init", "--quiet")
    monkeypatch.chdir(tmp_path)
    assert git.ld_deploy_provide_defaults(resolve()) == {"version": None, "application_key": None}
    assert _metadata() == {}


def test_without_git_nothing_is_said(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))
    assert git.ld_deploy_provide_defaults(resolve()) == {"version": None, "application_key": None}
    assert _metadata() == {}


def _raises(*_: object, **__: object) -> None:
    raise AssertionError("a test starts no process")


STAND_INS: dict[str, Callable[..., object]] = {
    "raises": _raises,
    "answers text": lambda *_, **__: subprocess.CompletedProcess([], 0, "v1.2.3", ""),
    "answers what its test needs": lambda *_, **__: SimpleNamespace(returncode=0),
    "answers nothing": lambda *_, **__: None,
}


@pytest.mark.parametrize("stand_in", STAND_INS)
def test_where_something_stands_in_for_subprocess_nothing_is_said(
    stand_in: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", STAND_INS[stand_in])
    assert git.ld_deploy_provide_defaults(resolve()) == {"version": None, "application_key": None}
    assert _metadata() == {}


@pytest.mark.parametrize("named", [False, True])
def test_in_a_recording_it_is_loaded_where_it_is_named_alone(
    named: bool, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_DEPLOY_PLUGINS", f"no:console{',ld_deploy_hooks.plugins.git' if named else ''}")
    with record_deployments() as events, deployment():
        pass
    (started,) = events.started
    found = ("web", _git(repository, "rev-parse", "HEAD")) if named else ("test-application", "test-version")
    assert (started.application_key, started.version) == found
    assert ("commit" in started.deployment_metadata) is named


def test_in_a_folder_that_is_gone_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert git.ld_deploy_provide_defaults(resolve(start=tmp_path)) is None
    assert git.ld_deploy_add_metadata(RECORD) is None
    monkeypatch.chdir(tmp_path)


def test_where_no_thread_can_start_nothing_is_said(repository: Path, run_python: Any) -> None:
    source = """
import threading, time
from ld_deploy_hooks._records import DeploymentEvent, DeploymentRecord, EventType, Identity
from ld_deploy_hooks.plugins import git
threading.stack_size(1 << 46)  # more than there is to map: pthread_create fails as at a limit
identity = Identity("p", "e", "a", "1")
print(git.ld_deploy_add_metadata(DeploymentRecord(id="1", identity=identity, state="started")))
end = DeploymentEvent(event_type=EventType.FINISHED, event_time=1, **identity._asdict())
print(dict(git.ld_deploy_modify_event(end).deployment_metadata))
"""
    done = run_python(source, cwd=repository)
    assert (done.stdout, done.stderr) == ("None\n{}\n", "")


def test_the_repository_s_own_program_is_not_run(repository: Path) -> None:
    ran = repository / "ran"
    hook = repository / "monitor"
    hook.write_text(f"#!/bin/sh\ntouch {ran}\n")
    hook.chmod(0o700)
    _git(repository, "config", "core.fsmonitor", str(hook))
    _git(repository, "status")
    assert ran.exists(), "git itself runs it, or this test shows nothing"
    ran.unlink()
    git.ld_deploy_provide_defaults(resolve())
    assert not ran.exists()
