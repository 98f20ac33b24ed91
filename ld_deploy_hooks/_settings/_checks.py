"""Checking what the sources agreed on: the problems with values that can be read and not be used as they are."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ld_deploy_hooks._records import legal_version
from ld_deploy_hooks._settings._values import WORDS, Secret, is_loopback, parsed_uri, without_user

UNTOLD = "this deployment is not told to LaunchDarkly"
WAITING = "events are recorded and wait"
DEFAULT = "the default is used"
LAUNCHDARKLY = "https://app.launchdarkly.com"
# What a test need not set: obvious in an event, and less than any other source.
IN_TESTS = {
    "project_key": "test-project",
    "environment_key": "test-environment",
    "application_key": "test-application",
    "version": "test-version",
}
_LONGEST_WAIT = 3600.0  # seconds; nobody waits longer than an hour for telemetry

# The mark of each CI system that launchdarkly.md lists, and the one that most of them share.
_CI_MARKS: tuple[str, ...] = ("BITBUCKET_BUILD_NUMBER", "BUILDKITE", "CI", "CIRCLECI", "CODEBUILD_BUILD_ID", "DRONE")
_CI_MARKS += ("GITHUB_ACTIONS", "GITLAB_CI", "JENKINS_URL", "TEAMCITY_VERSION", "TF_BUILD", "TRAVIS")

# Where LaunchDarkly documents engineering insights as not available.
_WITHOUT_INSIGHTS = ("app.launchdarkly.us", "app.eu.launchdarkly.com")


class Problem(NamedTuple):
    """Something that is wrong with the settings.

    Attributes:
        field: the setting's name, or the unknown key, or the name of what could not be read.
        message: one line: what, where, what follows, the next step. Holds neither the token nor a base URI's user.
        fault: False for a mere warning, for which ``strict`` does not raise.
        missing: it is a required field that nobody has set.
    """

    field: str
    message: str
    fault: bool
    missing: bool = False


# The path of the API, which every request brings itself.
_ADDED = "/api/v2"


def new_problem(name: str, source: str, wrong: str, then: str, instead: str, *, fault: bool = True) -> Problem:
    return Problem(name, f"{name} ({source}) {wrong}: {then}; {instead}", fault)


def check_interpreter() -> Problem | None:
    """Return what is wrong with telling from here, if this is not the main interpreter of its process.

    Signals cannot be handled in any other, and from Python 3.12 on most have no daemon threads; where there are some,
    as of 3.10 and 3.11, the end of the interpreter aborts the process.
    """
    if hasattr(sys.modules.get("__main__"), "__file__"):
        # Only a script has one, and that runs in the main interpreter; what follows takes a third of a millisecond.
        return None
    try:
        if sys.version_info >= (3, 13):
            import _interpreters as interpreters
        else:
            # No type stubs know it.
            import _xxsubinterpreters as interpreters  # type: ignore[import-not-found]
    except ImportError:
        # A Python that has no others.
        return None
    if interpreters.get_current() == interpreters.get_main():
        return None
    then = f"{UNTOLD}, as signals and threads cannot be used for it there"
    message = f"This is not the main interpreter of its process: {then}; deploy in a process of its own"
    return Problem("disabled", message, fault=True)


def check_base_uri(values: dict[str, Any], sources: Mapping[str, str]) -> Iterator[Problem]:
    text: str = values["base_uri"]
    source = sources["base_uri"]
    parsed = parsed_uri(text)
    if parsed is None:
        kept = values["base_uri"] = without_user(text)
        wrong, instead = f"({kept!r}) is no plain http(s) address", f"write one such as {LAUNCHDARKLY}"
        if "@" in text:
            wrong, instead = f"holds a user or password (kept is {kept!r})", "leave out what stands before the @"
        elif parsed_uri(kept) is not None:
            wrong, instead = f"holds a query or a fragment (kept is {kept!r})", "leave out what begins with the ? or #"
        yield new_problem("base_uri", source, wrong, WAITING, instead)
        return
    port = f":{int(parsed['port'])}" if parsed["port"] else ""
    kept = f"{parsed['scheme']}://{parsed['host']}".lower() + port + parsed["path"].rstrip("/")
    if kept.endswith(_ADDED):
        kept = kept.removesuffix(_ADDED)
        yield new_problem("base_uri", source, f"ends in {_ADDED}", f"{kept} is used", "leave that out", fault=False)
    values["base_uri"] = kept
    if kept.startswith("http:") and not is_loopback(kept):
        wrong = f"({kept!r}) would show the token to the network"
        instead = "write https (plain http goes to localhost, 127.x.x.x and [::1] only)"
        yield new_problem("base_uri", source, wrong, WAITING, instead)
    if parsed["host"].lower() in _WITHOUT_INSIGHTS:
        wrong = f"({kept!r}) is documented as without engineering insights"
        then, instead = "events are sent all the same", "see whether they arrive, or set LD_BASE_URI"
        yield new_problem("base_uri", source, wrong, then, instead, fault=False)


def check_token(token: Secret | None, source: str) -> Iterator[Problem]:
    value = "" if token is None else token.reveal()
    wrong = ""
    if value.lower().startswith("sdk-"):
        wrong = "is an SDK key (sdk-...), which cannot call LaunchDarkly's API"
    elif value.lower().startswith("mob-"):
        wrong = "is a mobile key (mob-...), which cannot call LaunchDarkly's API"
    elif value.lower().startswith("bearer "):
        wrong = "begins with 'Bearer ', which LaunchDarkly does not take"
    elif not value.isprintable() or any(character > "\xff" for character in value):
        wrong = "holds characters that no HTTP header may hold"
    if wrong:
        instead = "create an access token (api-...) with the Writer role in LaunchDarkly and set"
        yield new_problem("access_token", source, wrong, WAITING, f"{instead} LD_ACCESS_TOKEN")


def check_version(values: dict[str, Any], sources: dict[str, str]) -> Iterator[Problem]:
    version: str = values["version"] or ""
    legal, source = legal_version(version), sources["version"]
    if legal == version:
        return
    wrong = f"is {version!r}, and LaunchDarkly takes letters, digits, '.', '-' and '_' only"
    if not legal:
        values["version"], sources["version"] = None, "default"
        yield new_problem("version", source, wrong, UNTOLD, "give it a version such as the commit's SHA")
        return
    values["version"] = legal
    if values["version_name"] is None:
        values["version_name"], sources["version_name"] = version, source
    then = f"{legal!r} is told, with the name {values['version_name']!r}"
    yield new_problem("version", source, wrong, then, "set a legal version, and this one as version_name")


def check_outbox(values: dict[str, Any], sources: dict[str, str], start: Path | None) -> Iterator[Problem]:
    outbox: Path | None = values["outbox"]
    if outbox is not None and start is not None:
        outbox = start / outbox
    if outbox is not None and not outbox.is_absolute():
        wrong = "is relative to a working directory that is gone"
        yield new_problem("outbox", sources["outbox"], wrong, DEFAULT, "write an absolute path")
        outbox = None
    if outbox is None:
        sources["outbox"] = "default"
        outbox = _state_folder() / "outbox.db"
    if not outbox.is_absolute():
        # /var/tmp outlives a reboot, /tmp need not. A folder for each user: no two share an outbox.
        outbox = Path(os.sep, "var", "tmp", f"ld-deploy-hooks-{os.getuid()}", "outbox.db")
        then, instead = f"events are kept in {outbox}", "set LD_DEPLOY_OUTBOX to a file that stays"
        wrong = "belongs into this user's home folder, which is not known"
        yield new_problem("outbox", "default", wrong, then, instead, fault=False)
    values["outbox"] = outbox


def _state_folder() -> Path:
    import platformdirs

    try:
        return platformdirs.user_state_path("ld-deploy-hooks", appauthor=False)
    except RuntimeError:  # newer versions do not know the home folder so; older ones leave the ~ where it was
        return Path("~")


def _is_on(variable: str | None) -> bool:
    """Return whether a variable that others define is set, and to no plain no."""
    return bool(variable and variable.strip()) and WORDS.get(str(variable).strip().lower()) is not False


def check_flush_timeout(values: dict[str, Any], source: str, environ: Mapping[str, str]) -> Iterator[Problem]:
    if values["flush_timeout"] is None:
        values["flush_timeout"] = 10.0 if any(_is_on(environ.get(mark)) for mark in _CI_MARKS) else 2.0
    elif values["flush_timeout"] > _LONGEST_WAIT:
        values["flush_timeout"] = _LONGEST_WAIT
        then = f"{_LONGEST_WAIT:g} s are used"
        yield new_problem("flush_timeout", source, "is more than an hour", then, "write 3600 or less", fault=False)


def not_for_tests(base_uri: str, sources: Mapping[str, str]) -> str | None:
    """Return why a test that may tell this machine may not tell by these settings; None if it may."""
    if not is_loopback(base_uri):
        return f"{sources['base_uri']} (base_uri) is not this machine"
    return "the outbox is the user's: LD_DEPLOY_OUTBOX is not set" if sources["outbox"] == "default" else None
