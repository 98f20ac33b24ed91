"""The built-in plugin ``git``, in real repositories."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from ld_deploy_hooks._records import DeploymentEvent, DeploymentRecord, EventType, Identity
from ld_deploy_hooks._settings import resolve
from ld_deploy_hooks.plugins import git

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
    return DeploymentEvent(
        event_type=kind, project_key="p", environment_key="e", application_key="a", version="1", event_time=1
    )


def test_the_commit_is_the_version_and_the_remote_names_the_application(repository: Path) -> None:
    sha = _git(repository, "rev-parse", "HEAD")
    assert git.ld_deploy_provide_defaults(resolve()) == {"version": sha, "application_key": "web"}
    assert git.ld_deploy_add_metadata(RECORD) == {"commit": sha, "branch": "main", "dirty": False}


def test_a_tag_on_the_commit_goes_before_its_sha(repository: Path) -> None:
    _git(repository, "tag", "v1.2.3")
    assert git.ld_deploy_provide_defaults(resolve()) == {"version": "v1.2.3", "application_key": "web"}


def test_changes_that_are_not_committed_are_told(repository: Path) -> None:
    (repository / "app.py").write_text("2")
    git.ld_deploy_provide_defaults(resolve())
    assert (git.ld_deploy_add_metadata(RECORD) or {})["dirty"] is True


def test_without_a_branch_none_is_told(repository: Path) -> None:
    _git(repository, "checkout", "--quiet", "--detach")
    git.ld_deploy_provide_defaults(resolve())
    assert "branch" not in (git.ld_deploy_add_metadata(RECORD) or {})


def test_who_gave_version_and_application_does_not_wait_and_the_end_carries_the_metadata(repository: Path) -> None:
    given = resolve({"version": "1", "application_key": "web"})
    assert git.ld_deploy_provide_defaults(given) is None
    assert git.ld_deploy_add_metadata(RECORD) is None
    for thread in threading.enumerate():
        if thread.name == "ld-deploy-git":
            thread.join(10)
    ended = git.ld_deploy_modify_event(_event(EventType.FINISHED))
    assert ended is not None
    assert ended.deployment_metadata == {
        "commit": _git(repository, "rev-parse", "HEAD"),
        "branch": "main",
        "dirty": False,
    }
    assert git.ld_deploy_modify_event(_event(EventType.CUSTOM)) is None


def test_outside_a_repository_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert git.ld_deploy_provide_defaults(resolve()) == {"version": None, "application_key": None}
    assert git.ld_deploy_add_metadata(RECORD) == {}


def test_without_git_nothing_is_said(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))
    assert git.ld_deploy_provide_defaults(resolve()) == {"version": None, "application_key": None}


def test_in_a_folder_that_is_gone_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert git.ld_deploy_provide_defaults(resolve(start=tmp_path)) is None
    assert git.ld_deploy_add_metadata(RECORD) is None
    monkeypatch.chdir(tmp_path)


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
