"""Built-in plugin ``git``: what the repository that a deploy is started from says of it.

As defaults: the tag on the commit as version, else the commit's SHA; the remote's name as application. As metadata:
``commit``, ``branch``, ``dirty``. Outside a repository, or without git, it says nothing. ``LD_DEPLOY_PLUGINS=no:git``
switches it off.

Nobody waits for git who did not ask for it: where version and application are given, it is asked in a thread, and what
it says travels with the end of the deployment.
"""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ld_deploy_hooks.hookspecs import DeploymentEvent, DeploymentRecord, SettingsView, hookimpl

__all__ = ["ld_deploy_add_metadata", "ld_deploy_modify_event", "ld_deploy_provide_defaults"]

# Seconds for one question: a repository on a network disk may take long.
_PATIENCE = 2.0


class _Repository:
    """What git said of one folder, once it has been asked."""

    def __init__(self, folder: str) -> None:
        self.version: str | None = None
        self.application: str | None = None
        self.metadata: Mapping[str, Any] = {}
        self._folder = folder
        commit = self._ask("rev-parse", "--verify", "HEAD")
        if commit is None:
            return
        tag = self._ask("describe", "--tags", "--exact-match", "HEAD")
        branch = self._ask("symbolic-ref", "--short", "-q", "HEAD")
        changes = self._ask("status", "--porcelain", "--untracked-files=no")
        remote = self._ask("config", "--get", "remote.origin.url")
        self.version = tag or commit
        # Only the last part of the address is read: what stands before the host may be a user and a token.
        name = re.split(r"[/:\\]", remote.rstrip("/"))[-1] if remote else ""
        self.application = name.removesuffix(".git") or None
        found = {"commit": commit, "branch": branch, "dirty": None if changes is None else bool(changes)}
        self.metadata = {key: value for key, value in found.items() if value is not None}

    def _ask(self, *question: str) -> str | None:
        # No fsmonitor: it would run the repository's own program. No optional locks: they would race the deploy's git.
        command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", self._folder, *question]
        try:
            answer = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=_PATIENCE,
                check=False,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return answer.stdout.decode("utf-8", "replace").strip() if answer.returncode == 0 else None


_known: dict[str, _Repository] = {}


@hookimpl
def ld_deploy_provide_defaults(settings: SettingsView) -> Mapping[str, Any] | None:
    """Give the tag or commit as version and the remote's name as application, if one of them is needed."""
    if settings.version is not None and settings.application_key is not None:
        return None
    repository = _asked()
    if repository is None:
        return None
    return {"version": repository.version, "application_key": repository.application}


@hookimpl
def ld_deploy_add_metadata(deployment: DeploymentRecord) -> Mapping[str, Any] | None:
    """Add what is known of the repository by now, and have it asked if nobody needed it before."""
    folder = _folder()
    if folder is None:
        return None
    if folder in _known:
        return _known[folder].metadata
    threading.Thread(target=_asked, name="ld-deploy-git", daemon=True).start()
    return None


@hookimpl
def ld_deploy_modify_event(event: DeploymentEvent) -> DeploymentEvent | None:
    """Add to the end of a deployment what was not known at its start."""
    repository = _known.get(_folder() or "")
    if repository is None or event.event_type not in ("finished", "failed"):
        return None
    return replace(event, deployment_metadata={**repository.metadata, **event.deployment_metadata})


def _folder() -> str | None:
    try:
        return str(Path.cwd())
    except OSError:
        return None


def _asked() -> _Repository | None:
    folder = _folder()
    if folder is None:
        return None
    if folder not in _known:
        _known[folder] = _Repository(folder)
    return _known[folder]
