"""Built-in plugin ``git``: what the repository that a deploy is started from says of it.

As defaults: the tag on the commit as version if LaunchDarkly takes it, else the commit's SHA; the remote's name as
application. As metadata: ``commit``, ``branch``, ``dirty``. Outside a repository, or without git, it says nothing.
``LD_DEPLOY_PLUGINS=no:git`` switches it off.

Nobody waits for git who did not ask for it: where version and application are given, it is asked in a thread, and what
it says travels with the end of the deployment. Where they are not, one process or two are waited for.
"""

from __future__ import annotations

import _thread
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ld_deploy_hooks.hookspecs import DeploymentEvent, DeploymentRecord, SettingsView, hookimpl
from ld_deploy_hooks.plugins._address import repository_name

__all__ = ["ld_deploy_add_metadata", "ld_deploy_modify_event", "ld_deploy_provide_defaults", "ld_deploy_started"]

# What LaunchDarkly takes as a version; a tag that had to be changed for it would match no pull request.
_LEGAL = re.compile(r"[A-Za-z0-9._-]+")
# Seconds for one question: a repository on a network disk may take long.
_PATIENCE = 2.0
# Seconds that a start or an end waits for what is under way already, in a repository of an ordinary size done by then.
_MOMENT = 0.1


class _Repository:
    """The repository that the working directory lies in, asked when somebody wants to know."""

    def __init__(self) -> None:
        self.is_asked = False
        self._folder = str(Path.cwd())
        self._commit: dict[str, Any] = {}
        self._changes: dict[str, Any] = {}
        self._tags: list[str] = []
        self._known = threading.Event()

    @property
    def metadata(self) -> dict[str, Any]:
        """What is known by now."""
        return {**self._commit, **self._changes} if self._commit else {}

    def version(self) -> str | None:
        """Return a legal tag on the commit, else the commit; the rest of the metadata is asked for meanwhile."""
        self.begin(self._ask_for_changes)
        self._ask_for_commit()
        tags = [tag for tag in self._tags if _LEGAL.fullmatch(tag)]
        if len(tags) > 1:
            # Git's own choice: an annotated tag before any other, the newest first.
            among = [f"--match={tag}" for tag in tags]
            return self._ask("describe", "--tags", "--exact-match", *among, "HEAD") or tags[0]
        return tags[0] if tags else self._commit.get("commit")

    def application(self) -> str | None:
        """Return the name in the remote's address."""
        return repository_name(self._ask("config", "--get", "remote.origin.url"))

    def begin(self, question: Callable[[], None] | None = None) -> None:
        """Have all the metadata asked for in a thread, or by one question."""
        self.is_asked = True

        def ask() -> None:
            try:
                (question or self._ask_for_all)()
            finally:
                self._known.set()

        try:
            # Not by `threading`, which waits without a bound for one that dies before it has begun (of no memory).
            _thread.start_new_thread(ask, ())
        except RuntimeError:  # none can be started any more
            self._known.set()

    def wait(self) -> None:
        """Wait a moment for what was begun."""
        self._known.wait(_MOMENT)

    def _ask_for_all(self) -> None:
        self._ask_for_commit()
        if self._commit:
            self._ask_for_changes()

    def _ask_for_commit(self) -> None:
        # A command for scripts: no setting of the user's changes what it says.
        said = self._ask("rev-list", "--max-count=1", "--format=%H%n%D", "HEAD")
        found = re.fullmatch(r"commit (\w+)\n\1(?:\n(.*))?", said or "")
        if found is None:
            return
        commit, refs = found[1], (found[2] or "").split(", ")
        self._tags = [ref.removeprefix("tag: ") for ref in refs if ref.startswith("tag: ")]
        branch = next((ref.removeprefix("HEAD -> ") for ref in refs if ref.startswith("HEAD -> ")), None)
        self._commit = {"commit": commit, **({"branch": branch} if branch else {})}

    def _ask_for_changes(self) -> None:
        # With the branch on a line of its own: silence is then no answer.
        said = self._ask("status", "--porcelain", "--branch", "--no-ahead-behind", "--untracked-files=no")
        if said:
            self._changes = {"dirty": "\n" in said}

    def _ask(self, *question: str) -> str | None:
        """Return what git answers, None if it fails.

        Where the process ignores SIGCHLD, or somebody else waits for its children, a failure cannot be told from
        success: the answer is then empty, or its beginning.
        """
        # No fsmonitor: it would run the repository's own program. No optional locks: they would race the deploy's git.
        command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", self._folder, *question]
        try:
            import subprocess  # here: where the version is given, nobody waits for that

            answer = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=_PATIENCE,
                check=False,
            )
            return str(answer.stdout, "utf-8", "replace").strip() if answer.returncode == 0 else None
        except Exception:
            # No git, no time; or a test has put something else in the place of subprocess, which may answer anything.
            return None


# What was asked for the defaults of the deployment that this thread is about to start.
_asked = threading.local()
# By the identity of the deployment, until its end.
_open: dict[tuple[str, ...], _Repository] = {}


@hookimpl
def ld_deploy_provide_defaults(settings: SettingsView) -> Mapping[str, Any] | None:
    """Give the tag or commit as version and the remote's name as application, each if it is needed."""
    _asked.repository = None
    if settings.version is not None and settings.application_key is not None:
        return None
    try:
        repository = _Repository()
    except OSError:  # the working directory is gone
        return None
    found: dict[str, str | None] = {}
    if settings.version is None:
        found["version"] = repository.version()
    if settings.application_key is None:
        found["application_key"] = repository.application()
    _asked.repository = repository
    return found


@hookimpl
def ld_deploy_add_metadata(deployment: DeploymentRecord) -> Mapping[str, Any] | None:
    """Add what the version was taken from; what nobody had to know before is asked for later."""
    repository, _asked.repository = getattr(_asked, "repository", None), None
    try:
        repository = repository or _Repository()
    except OSError:
        return None
    _open[deployment.identity] = repository
    if not repository.is_asked:
        return None
    repository.wait()
    return repository.metadata


@hookimpl(trylast=True)
def ld_deploy_started(deployment: DeploymentRecord) -> None:
    """Ask for what nobody had to know before, now that the deploy goes on: even a thread's start is felt before."""
    repository = _open.get(deployment.identity)
    if repository is not None and not repository.is_asked:
        repository.begin()


@hookimpl
def ld_deploy_modify_event(event: DeploymentEvent) -> DeploymentEvent | None:
    """Add to the end of a deployment what was not known at its start."""
    if not event.event_type.is_end:
        return None
    repository = _open.pop(event.identity, None)
    if repository is None:
        return None
    if not repository.is_asked:
        # It has ended before anybody was told that it had started.
        repository.begin()
    repository.wait()
    return replace(event, deployment_metadata={**repository.metadata, **event.deployment_metadata})
