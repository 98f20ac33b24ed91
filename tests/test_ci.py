"""The built-in plugin ``ci``: each system by the variables that it really exports."""

from __future__ import annotations

import pytest

from ld_deploy_hooks._records import DeploymentRecord, Identity
from ld_deploy_hooks._settings import resolve
from ld_deploy_hooks.plugins import ci

SHA = "0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c"
RECORD = DeploymentRecord(id="1", identity=Identity("p", "e", "a", "1"), state="started")

GITHUB = {
    "CI": "true",
    "GITHUB_ACTIONS": "true",
    "GITHUB_ACTOR": "mona",
    "GITHUB_REF": "refs/heads/main",
    "GITHUB_REF_NAME": "main",
    "GITHUB_REF_TYPE": "branch",
    "GITHUB_REPOSITORY": "shop/web",
    "GITHUB_RUN_ID": "1658821493",
    "GITHUB_SERVER_URL": "https://github.example",
    "GITHUB_SHA": SHA,
    "GITHUB_TRIGGERING_ACTOR": "hubot",
}
GITLAB = {
    "CI": "true",
    "CI_COMMIT_REF_NAME": "main",
    "CI_COMMIT_SHA": SHA,
    "CI_ENVIRONMENT_NAME": "production",
    "CI_JOB_URL": "https://gitlab.example/shop/web/-/jobs/99",
    "CI_PROJECT_PATH": "shop/web",
    "GITLAB_CI": "true",
    "GITLAB_USER_LOGIN": "mona",
}
AZURE = {
    "BUILD_BUILDID": "77",
    "BUILD_REPOSITORY_NAME": "web",
    "BUILD_REQUESTEDFOR": "Mona Lisa",
    "BUILD_SOURCEBRANCH": "refs/heads/release/7",
    "BUILD_SOURCEVERSION": SHA,
    "ENVIRONMENT_NAME": "production",
    "SYSTEM_TEAMFOUNDATIONSERVERURI": "https://dev.azure.example/shop/",
    "SYSTEM_TEAMPROJECTID": "1234",
    "TF_BUILD": "True",
}
BUILDKITE = {
    "BUILDKITE": "true",
    "BUILDKITE_BRANCH": "main",
    "BUILDKITE_BUILD_CREATOR": "mona",
    "BUILDKITE_BUILD_URL": "https://buildkite.example/shop/web/builds/5",
    "BUILDKITE_COMMIT": SHA,
    "BUILDKITE_REPO": "git@github.example:shop/web.git",
    "CI": "true",
}

# name: variables, then the expected ci, application, environment, branch, tag, runUrl, actor.
SYSTEMS = {
    "GitHub, a branch": (
        GITHUB,
        (
            "github-actions",
            "web",
            None,
            "main",
            None,
            "https://github.example/shop/web/actions/runs/1658821493",
            "hubot",
        ),
    ),
    "GitHub, a pull request": (
        GITHUB | {"GITHUB_HEAD_REF": "fix-login", "GITHUB_REF_NAME": "12/merge"},
        (
            "github-actions",
            "web",
            None,
            "fix-login",
            None,
            "https://github.example/shop/web/actions/runs/1658821493",
            "hubot",
        ),
    ),
    "GitHub, a tag": (
        GITHUB | {"GITHUB_REF_NAME": "v1.2.3", "GITHUB_REF_TYPE": "tag"},
        (
            "github-actions",
            "web",
            None,
            None,
            "v1.2.3",
            "https://github.example/shop/web/actions/runs/1658821493",
            "hubot",
        ),
    ),
    "GitLab, a branch": (
        GITLAB,
        ("gitlab-ci", "web", "production", "main", None, "https://gitlab.example/shop/web/-/jobs/99", "mona"),
    ),
    "GitLab, a tag": (
        GITLAB | {"CI_COMMIT_REF_NAME": "v2", "CI_COMMIT_TAG": "v2"},
        ("gitlab-ci", "web", "production", None, "v2", "https://gitlab.example/shop/web/-/jobs/99", "mona"),
    ),
    "Jenkins": (
        {
            "BUILD_URL": "https://ci.example/job/web/7/",
            "BUILD_USER_ID": "mona",
            "GIT_BRANCH": "origin/main",
            "GIT_COMMIT": SHA,
            "GIT_URL": "https://user:secret@git.example/shop/web.git",
            "JENKINS_URL": "https://ci.example/",
        },
        ("jenkins", "web", None, "main", None, "https://ci.example/job/web/7/", "mona"),
    ),
    "CircleCI": (
        {
            "CI": "true",
            "CIRCLECI": "true",
            "CIRCLE_BRANCH": "main",
            "CIRCLE_BUILD_URL": "https://circle.example/gh/shop/web/7",
            "CIRCLE_PROJECT_REPONAME": "web",
            "CIRCLE_PROJECT_USERNAME": "shop",
            "CIRCLE_SHA1": SHA,
            "CIRCLE_USERNAME": "mona",
        },
        ("circleci", "web", None, "main", None, "https://circle.example/gh/shop/web/7", "mona"),
    ),
    "Buildkite": (
        BUILDKITE,
        ("buildkite", "web", None, "main", None, "https://buildkite.example/shop/web/builds/5", "mona"),
    ),
    "Bitbucket": (
        {
            "BITBUCKET_BRANCH": "main",
            "BITBUCKET_BUILD_NUMBER": "7",
            "BITBUCKET_COMMIT": SHA,
            "BITBUCKET_DEPLOYMENT_ENVIRONMENT": "production",
            "BITBUCKET_REPO_FULL_NAME": "shop/web",
            "CI": "true",
        },
        (
            "bitbucket-pipelines",
            "web",
            "production",
            "main",
            None,
            "https://bitbucket.org/shop/web/addon/pipelines/home#!/results/7",
            None,
        ),
    ),
    "Azure, a branch": (
        AZURE,
        (
            "azure-pipelines",
            "web",
            "production",
            "release/7",
            None,
            "https://dev.azure.example/shop/1234/_build/results?buildId=77",
            "Mona Lisa",
        ),
    ),
    "Azure, a tag": (
        AZURE | {"BUILD_SOURCEBRANCH": "refs/tags/v3"},
        (
            "azure-pipelines",
            "web",
            "production",
            None,
            "v3",
            "https://dev.azure.example/shop/1234/_build/results?buildId=77",
            "Mona Lisa",
        ),
    ),
    "Travis": (
        {
            "CI": "true",
            "TRAVIS": "true",
            "TRAVIS_BRANCH": "main",
            "TRAVIS_COMMIT": SHA,
            "TRAVIS_JOB_WEB_URL": "https://travis.example/shop/web/jobs/7",
            "TRAVIS_REPO_SLUG": "shop/web",
            "TRAVIS_TAG": "",
        },
        ("travis", "web", None, "main", None, "https://travis.example/shop/web/jobs/7", None),
    ),
    "TeamCity": (
        {"BUILD_URL": "https://tc.example/7", "BUILD_VCS_NUMBER": SHA, "TEAMCITY_VERSION": "2026.1"},
        ("teamcity", None, None, None, None, "https://tc.example/7", None),
    ),
    "Drone": (
        {
            "CI": "true",
            "DRONE": "true",
            "DRONE_BRANCH": "main",
            "DRONE_BUILD_LINK": "https://drone.example/shop/web/7",
            "DRONE_COMMIT_AUTHOR": "mona",
            "DRONE_COMMIT_SHA": SHA,
            "DRONE_DEPLOY_TO": "production",
            "DRONE_REPO": "shop/web",
        },
        ("drone", "web", "production", "main", None, "https://drone.example/shop/web/7", "mona"),
    ),
    "Woodpecker": (
        {
            "CI": "woodpecker",
            "CI_COMMIT_BRANCH": "main",
            "CI_COMMIT_SHA": SHA,
            "CI_PIPELINE_AUTHOR": "mona",
            "CI_PIPELINE_DEPLOY_TARGET": "production",
            "CI_PIPELINE_URL": "https://woodpecker.example/repos/1/pipeline/7",
            "CI_REPO": "shop/web",
        },
        ("woodpecker", "web", "production", "main", None, "https://woodpecker.example/repos/1/pipeline/7", "mona"),
    ),
    "CodeBuild": (
        {
            "CODEBUILD_BUILD_ID": "web:1",
            "CODEBUILD_BUILD_URL": "https://codebuild.example/7",
            "CODEBUILD_INITIATOR": "mona",
            "CODEBUILD_RESOLVED_SOURCE_VERSION": SHA,
            "CODEBUILD_SOURCE_REPO_URL": "https://git.example/shop/web.git",
            "CODEBUILD_WEBHOOK_HEAD_REF": "refs/heads/main",
        },
        ("codebuild", "web", None, "main", None, "https://codebuild.example/7", "mona"),
    ),
}


def _export(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("variables", "expected"), SYSTEMS.values(), ids=SYSTEMS.keys())
def test_each_system_says_what_is_deployed_and_where(
    variables: dict[str, str], expected: tuple[str | None, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    _export(monkeypatch, variables)
    name, application, environment, branch, tag, run_url, actor = expected
    defaults = ci.ld_deploy_provide_defaults(resolve())
    assert defaults == {"version": SHA, "application_key": application, "environment_key": environment}
    metadata = {"ci": name, "commit": SHA, "branch": branch, "tag": tag, "runUrl": run_url, "actor": actor}
    assert ci.ld_deploy_add_metadata(RECORD) == {key: value for key, value in metadata.items() if value is not None}


@pytest.mark.parametrize(
    ("system", "variables", "told"),
    [
        ("CodeBuild", {"CODEBUILD_WEBHOOK_HEAD_REF": "refs/tags/v1"}, (None, "v1")),
        ("Travis", {"TRAVIS_BRANCH": "v1", "TRAVIS_TAG": "v1"}, (None, "v1")),
        ("Jenkins", {"BRANCH_NAME": "v1", "GIT_BRANCH": "v1", "TAG_NAME": "v1"}, (None, "v1")),
        ("Buildkite", {"BUILDKITE_BRANCH": "v1", "BUILDKITE_TAG": "v1"}, (None, "v1")),
        ("Drone", {"DRONE_BRANCH": "refs/tags/v1", "DRONE_TAG": "v1"}, (None, "v1")),
        ("Buildkite", {"BUILDKITE_BRANCH": "main", "BUILDKITE_TAG": "v1"}, ("main", "v1")),
    ],
)
def test_a_tag_is_no_branch(
    system: str, variables: dict[str, str], told: tuple[str | None, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _export(monkeypatch, SYSTEMS[system][0] | variables)
    metadata = ci.ld_deploy_add_metadata(RECORD) or {}
    assert (metadata.get("branch"), metadata.get("tag")) == told


def test_a_commit_that_is_no_sha_is_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    _export(monkeypatch, BUILDKITE | {"BUILDKITE_COMMIT": "HEAD"})
    assert ci.ld_deploy_provide_defaults(resolve()) == {
        "version": None,
        "application_key": "web",
        "environment_key": None,
    }
    assert "commit" not in (ci.ld_deploy_add_metadata(RECORD) or {})


def test_no_token_of_an_address_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "BUILD_URL": "https://user:sesame@ci.example/job/web/7/?by=a@b",
        "GIT_URL": "https://git.example/shop/web.git?private_token=in/sesame",
        "JENKINS_URL": "https://ci.example/",
    }
    _export(monkeypatch, variables)
    assert (ci.ld_deploy_provide_defaults(resolve()) or {})["application_key"] == "web"
    assert ci.ld_deploy_add_metadata(RECORD) == {"ci": "jenkins", "runUrl": "https://ci.example/job/web/7/?by=a@b"}


def test_on_no_known_system_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    _export(monkeypatch, {"CI": "true", "CI_COMMIT_SHA": SHA})
    assert ci.ld_deploy_provide_defaults(resolve()) is None
    assert ci.ld_deploy_add_metadata(RECORD) is None
