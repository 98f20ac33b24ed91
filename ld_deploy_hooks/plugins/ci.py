"""Built-in plugin ``ci``: what the CI system that a deploy runs in says of it.

As defaults: the commit as version, the repository's name as application, the environment where the system has one. As
metadata: ``ci``, ``commit``, ``branch``, ``runUrl``, ``actor``. ``LD_DEPLOY_PLUGINS=no:ci`` switches it off.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ld_deploy_hooks.hookspecs import DeploymentRecord, SettingsView, hookimpl
from ld_deploy_hooks.plugins._address import repository_name, without_user

__all__ = ["ld_deploy_add_metadata", "ld_deploy_provide_defaults"]

Env = Mapping[str, str]
Value = Callable[[Env], str | None]


def _first(*names: str) -> Value:
    """Return what answers with the first of these variables that is set."""
    return lambda env: next((env[name] for name in names if env.get(name)), None)


def _text(form: str, *names: str) -> Value:
    """Return what fills ``form`` with these variables, if all are set."""
    return lambda env: form.format(*(env[name] for name in names)) if all(env.get(name) for name in names) else None


_NOWHERE = _first()


@dataclass(kw_only=True, eq=False, repr=False)
class _System:
    """A CI system, and which of its variables say what.

    Attributes:
        mark: the variable that gives it away, and its value if that counts.
    """

    name: str
    mark: str
    mark_value: str | None = None
    commit: Value
    branch: Value
    tag: Value = _NOWHERE
    run_url: Value
    actor: Value = _NOWHERE
    repository: Value = _NOWHERE
    environment: Value = _NOWHERE

    def is_here(self, env: Env) -> bool:
        value = env.get(self.mark)
        return value == self.mark_value if self.mark_value is not None else bool(value)


def _github_ref(kind: str) -> Value:
    return lambda env: env.get("GITHUB_REF_NAME") if env.get("GITHUB_REF_TYPE") == kind else None


def _full_ref(name: str, prefix: str) -> Value:
    """Return what answers with a variable that holds branches and tags alike, if it begins with ``prefix``."""

    def ref(env: Env) -> str | None:
        found = env.get(name, "")
        return found if found.startswith(prefix) else None

    return ref


# Woodpecker shares CI_* with GitLab: each is known by its own mark.
_SYSTEMS = (
    _System(
        name="github-actions",
        mark="GITHUB_ACTIONS",
        commit=_first("GITHUB_SHA"),
        branch=lambda env: env.get("GITHUB_HEAD_REF") or _github_ref("branch")(env),
        tag=_github_ref("tag"),
        run_url=_text("{}/{}/actions/runs/{}", "GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_RUN_ID"),
        actor=_first("GITHUB_TRIGGERING_ACTOR", "GITHUB_ACTOR"),
        repository=_first("GITHUB_REPOSITORY"),
    ),
    _System(
        name="gitlab-ci",
        mark="GITLAB_CI",
        commit=_first("CI_COMMIT_SHA"),
        branch=lambda env: None if env.get("CI_COMMIT_TAG") else env.get("CI_COMMIT_REF_NAME"),
        tag=_first("CI_COMMIT_TAG"),
        run_url=_first("CI_JOB_URL"),
        actor=_first("GITLAB_USER_LOGIN"),
        repository=_first("CI_PROJECT_PATH"),
        environment=_first("CI_ENVIRONMENT_NAME"),
    ),
    _System(
        name="jenkins",
        mark="JENKINS_URL",
        commit=_first("GIT_COMMIT"),
        branch=_first("BRANCH_NAME", "GIT_BRANCH"),
        tag=_first("TAG_NAME"),
        run_url=_first("BUILD_URL"),
        actor=_first("BUILD_USER_ID"),
        repository=_first("GIT_URL"),
    ),
    _System(
        name="circleci",
        mark="CIRCLECI",
        commit=_first("CIRCLE_SHA1"),
        branch=_first("CIRCLE_BRANCH"),
        tag=_first("CIRCLE_TAG"),
        run_url=_first("CIRCLE_BUILD_URL"),
        actor=_first("CIRCLE_USERNAME"),
        repository=_text("{}/{}", "CIRCLE_PROJECT_USERNAME", "CIRCLE_PROJECT_REPONAME"),
    ),
    _System(
        name="buildkite",
        mark="BUILDKITE",
        commit=_first("BUILDKITE_COMMIT"),
        branch=_first("BUILDKITE_BRANCH"),
        tag=_first("BUILDKITE_TAG"),
        run_url=_first("BUILDKITE_BUILD_URL"),
        actor=_first("BUILDKITE_BUILD_CREATOR"),
        repository=_first("BUILDKITE_REPO"),
    ),
    _System(
        name="bitbucket-pipelines",
        mark="BITBUCKET_BUILD_NUMBER",
        commit=_first("BITBUCKET_COMMIT"),
        branch=_first("BITBUCKET_BRANCH"),
        tag=_first("BITBUCKET_TAG"),
        run_url=_text(
            "https://bitbucket.org/{}/addon/pipelines/home#!/results/{}",
            "BITBUCKET_REPO_FULL_NAME",
            "BITBUCKET_BUILD_NUMBER",
        ),
        repository=_first("BITBUCKET_REPO_FULL_NAME"),
        environment=_first("BITBUCKET_DEPLOYMENT_ENVIRONMENT"),
    ),
    _System(
        name="azure-pipelines",
        mark="TF_BUILD",
        commit=_first("BUILD_SOURCEVERSION"),
        branch=_full_ref("BUILD_SOURCEBRANCH", "refs/heads/"),
        tag=_full_ref("BUILD_SOURCEBRANCH", "refs/tags/"),
        run_url=_text(
            "{}{}/_build/results?buildId={}",
            "SYSTEM_TEAMFOUNDATIONSERVERURI",
            "SYSTEM_TEAMPROJECTID",
            "BUILD_BUILDID",
        ),
        actor=_first("BUILD_REQUESTEDFOR"),
        repository=_first("BUILD_REPOSITORY_NAME"),
        environment=_first("ENVIRONMENT_NAME"),
    ),
    _System(
        name="travis",
        mark="TRAVIS",
        commit=_first("TRAVIS_COMMIT"),
        branch=_first("TRAVIS_BRANCH"),
        tag=_first("TRAVIS_TAG"),
        run_url=_first("TRAVIS_JOB_WEB_URL"),
        repository=_first("TRAVIS_REPO_SLUG"),
    ),
    _System(
        name="teamcity",
        mark="TEAMCITY_VERSION",
        commit=_first("BUILD_VCS_NUMBER"),
        branch=_NOWHERE,
        run_url=_first("BUILD_URL"),
    ),
    _System(
        name="drone",
        mark="DRONE",
        commit=_first("DRONE_COMMIT_SHA"),
        branch=_first("DRONE_BRANCH"),
        tag=_first("DRONE_TAG"),
        run_url=_first("DRONE_BUILD_LINK"),
        actor=_first("DRONE_COMMIT_AUTHOR"),
        repository=_first("DRONE_REPO"),
        environment=_first("DRONE_DEPLOY_TO"),
    ),
    _System(
        name="woodpecker",
        mark="CI",
        mark_value="woodpecker",
        commit=_first("CI_COMMIT_SHA"),
        branch=_first("CI_COMMIT_BRANCH"),
        tag=_first("CI_COMMIT_TAG"),
        run_url=_first("CI_PIPELINE_URL"),
        actor=_first("CI_PIPELINE_AUTHOR"),
        repository=_first("CI_REPO"),
        environment=_first("CI_PIPELINE_DEPLOY_TARGET"),
    ),
    _System(
        name="codebuild",
        mark="CODEBUILD_BUILD_ID",
        commit=_first("CODEBUILD_RESOLVED_SOURCE_VERSION"),
        branch=_full_ref("CODEBUILD_WEBHOOK_HEAD_REF", "refs/heads/"),
        tag=_full_ref("CODEBUILD_WEBHOOK_HEAD_REF", "refs/tags/"),
        run_url=_first("CODEBUILD_BUILD_URL"),
        actor=_first("CODEBUILD_INITIATOR"),
        repository=_first("CODEBUILD_SOURCE_REPO_URL"),
    ),
)


@hookimpl
def ld_deploy_provide_defaults(settings: SettingsView) -> Mapping[str, Any] | None:
    """Give commit, repository and environment of the CI job as version, application and environment."""
    system = _here(os.environ)
    if system is None:
        return None
    return {
        "version": _commit(system, os.environ),
        "application_key": repository_name(system.repository(os.environ)),
        "environment_key": system.environment(os.environ),
    }


@hookimpl
def ld_deploy_add_metadata(deployment: DeploymentRecord) -> Mapping[str, Any] | None:
    """Add where the deploy ran and what it was built from."""
    system = _here(os.environ)
    if system is None:
        return None
    branch, tag = _ref(system.branch(os.environ)), _ref(system.tag(os.environ))
    found = {
        "ci": system.name,
        "commit": _commit(system, os.environ),
        # Building a tag, several systems give it as branch, too.
        "branch": branch if branch != tag else None,
        "tag": tag,
        "runUrl": without_user(system.run_url(os.environ)),
        "actor": system.actor(os.environ),
    }
    return {key: value for key, value in found.items() if value}


def _here(env: Env) -> _System | None:
    return next((system for system in _SYSTEMS if system.is_here(env)), None)


def _commit(system: _System, env: Env) -> str | None:
    # Buildkite gives the word HEAD before it has looked the commit up.
    commit = system.commit(env)
    return commit if commit and re.fullmatch(r"[0-9A-Fa-f]{7,64}", commit) else None


def _ref(name: str | None) -> str | None:
    return re.sub(r"^(refs/(heads|tags)/|origin/)", "", name) if name else None
