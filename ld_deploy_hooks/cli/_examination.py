"""What a deploy that started here would find: settings, plugins, outbox, the service. Nothing is changed for it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks.cli._findings import FAULT, NOTE, WARNING, Finding
from ld_deploy_hooks.cli._host_files import HostFile, host_files
from ld_deploy_hooks.cli._lines import caught_lines
from ld_deploy_hooks.cli._mapped_tasks import RUNS_CODE
from ld_deploy_hooks.cli._masking import without_keys

if TYPE_CHECKING:
    from ld_deploy_hooks._plugins import PluginInfo
    from ld_deploy_hooks._settings import Problem, Settings

__all__ = ["Examination", "ask_service", "examine"]

# What deploy code usually says itself, as an argument.
_SAID_IN_CODE = ("application_key", "version")
# Characters of a name that the service gives.
_LONGEST = 120


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes:
        settings: with plugins' defaults, and with what one host's configuration says.
        host_file: where that is from; None where there is none.
        plugins: what is loaded.
        findings: faults first, notes last.
    """

    settings: Settings
    host_file: Path | None
    plugins: tuple[PluginInfo, ...]
    findings: tuple[Finding, ...]


def examine(folder: Path | None) -> Examination:
    """Look at all that a deploy started in ``folder`` (None: it is gone) would be told by.

    Nothing is sent, and nothing is made or changed.
    """
    from ld_deploy_hooks._reporter import plugins_defaults, plugins_for
    from ld_deploy_hooks._settings import resolve

    with caught_lines() as lines:
        files = list(host_files(folder)) if folder is not None else []
        taken = next((file for file in files if file.section), None)
        section = taken.section if taken is not None else {}
        settings = resolve(
            host={name: value for name, value in section.items() if name not in RUNS_CODE},
            host_name=str(taken.path) if taken is not None else "",
            defaults=plugins_defaults,
        )
        plugins = tuple(plugins_for(settings).plugins())
    found = [
        *_of_settings(settings),
        *(finding for file in files for finding in file.findings),
        *_of_what_is_not_taken(files, taken, settings),
        *(Finding(WARNING, "plugins", line) for line in lines),
        *_of_deployhooks(folder),
        *_of_outbox(settings),
    ]
    order = (FAULT, WARNING, NOTE)
    found.sort(key=lambda finding: order.index(finding.level))
    return Examination(settings, taken.path if taken is not None else None, plugins, tuple(found))


def _of_settings(settings: Settings) -> Iterator[Finding]:
    if settings.silent:
        switch = "disabled" if settings.disabled else "dry_run"
        yield Finding(
            FAULT,
            switch,
            f"{switch} is on (from {settings.sources[switch]}): no deployment is told, and nothing is sent. Unset it, "
            "and ask again: what else is wrong is not looked for meanwhile.",
        )
    elif settings.access_token is None and settings.sources["access_token"] == "default":
        yield Finding(
            FAULT,
            "access_token",
            "access_token is not set: events are recorded and wait in the outbox. Set LD_ACCESS_TOKEN to an API access "
            "token (api-...) with the Writer role.",
        )
    for problem in settings.problems:
        message = problem.message
        if problem.missing and problem.field in _SAID_IN_CODE:
            message = f"{problem.field} is left to the deploy code. Where that does not give it: {message}"
        yield Finding(_level(problem, settings), problem.field, message)


def _level(problem: Problem, settings: Settings) -> str:
    from ld_deploy_hooks._settings import REQUIRED

    if problem.missing and problem.field in _SAID_IN_CODE:
        return NOTE
    if not problem.fault:
        return WARNING
    unsent = problem.field in ("access_token", "base_uri") and not settings.sendable
    untold = problem.field in REQUIRED and getattr(settings, problem.field) is None
    # With strict on a fault raises before the first line of the deploy.
    return FAULT if unsent or untold or settings.strict else WARNING


def _of_what_is_not_taken(files: list[HostFile], taken: HostFile | None, settings: Settings) -> Iterator[Finding]:
    for file in files:
        if file.section and file is not taken and taken is not None:
            message = f"{file.path} has settings too; shown are those of {taken.path}."
            yield Finding(NOTE, "host configuration", message)
            yield from _of_another(file, settings)
        for name in sorted(set(RUNS_CODE).intersection(file.section)):
            message = f"{name} of {file.path} counts for its host alone: `ld-deploy plugins` looks at it."
            yield Finding(NOTE, "plugins", message)


def _of_another(file: HostFile, shown: Settings) -> Iterator[Finding]:
    """Yield why a deployment of the host of ``file`` would not be told, where one with the ``shown`` settings would."""
    from ld_deploy_hooks._reporter import plugins_defaults
    from ld_deploy_hooks._settings import resolve

    host = {name: value for name, value in file.section.items() if name not in RUNS_CODE}
    settings = resolve(host=host, host_name=str(file.path), defaults=plugins_defaults)
    if settings.silent and not shown.silent:
        switch = "disabled" if settings.disabled else "dry_run"
        message = f"{switch} is on in {file.path}: its host tells no deployment. Take it out."
        yield Finding(FAULT, "host configuration", message)
    for problem in settings.problems:
        if problem.missing and problem.field not in (*_SAID_IN_CODE, *shown.missing):
            yield Finding(FAULT, "host configuration", f"For the tasks beside {file.path}: {problem.message}")


def _of_deployhooks(folder: Path | None) -> Iterator[Finding]:
    if folder is not None and os.path.lexists(folder / "deployhooks.py"):
        message = "is not loaded here, only by inv, fab or a script whose file lies beside it."
        yield Finding(NOTE, "plugins", f"{folder / 'deployhooks.py'} {message}")


def _of_outbox(settings: Settings) -> Iterator[Finding]:
    from ld_deploy_hooks._outbox import check_access, looking

    try:
        check_access(settings.outbox)
        with looking(settings.outbox) as box:
            if box is None:
                return
            here, all_of_it = box.counts(base_uri=settings.base_uri), box.counts()
            elsewhere = box.waiting_elsewhere(settings.base_uri)
    except OutboxError as error:
        yield Finding(FAULT, "outbox", str(error))
        return
    if all_of_it.rejected:
        message = (
            f"{all_of_it.rejected} event(s) were rejected: `ld-deploy status` says why, and `ld-deploy retry` puts "
        )
        yield Finding(WARNING, "outbox", message + "them back in line when it is mended.")
    for base_uri, number in elsewhere.items():
        message = f"{number} event(s) wait for {base_uri}, not for {settings.base_uri}: set LD_BASE_URI to it, or "
        yield Finding(WARNING, "outbox", f"{message}`ld-deploy retry --base-uri {base_uri}`.")
    if here.pending:
        message = f"{here.pending} event(s) wait for {settings.base_uri}: `ld-deploy flush` sends them now."
        yield Finding(NOTE, "outbox", message)
    if all_of_it.open:
        message = f"{all_of_it.open} deployment(s) are open: they run, or were killed, and then "
        yield Finding(
            NOTE, "outbox", f"{message}`ld-deploy flush --recover` or the next deployment tells them as failed."
        )


def ask_service(examination: Examination) -> tuple[Mapping[str, Any] | None, Finding]:
    """Ask the service who the token is; return its answer, None if there is none, and what to say of it."""
    from ld_deploy_hooks._launchdarkly import LaunchDarklyError
    from ld_deploy_hooks.cli._client import client_for

    settings = examination.settings
    if not settings.sendable:
        return None, Finding(
            NOTE, "online", "The service was not asked: there is no token and base URI to ask it with."
        )
    if examination.host_file is not None and settings.sources["base_uri"] == str(examination.host_file):
        # That file may have come with somebody else's repository; who runs `inv` there trusts it, who asks us may not.
        message = (
            f"The service was not asked: a base URI from {examination.host_file} is not given the token by a mere "
        )
        return None, Finding(
            WARNING, "online", message + f"question. Set LD_BASE_URI={settings.base_uri} to have it asked."
        )
    client = client_for(settings)
    try:
        # Before anything is cut, which could leave half of the token.
        identity: dict[str, Any] = without_keys(client.caller_identity(), settings.access_token)
    except LaunchDarklyError as error:
        return None, Finding(FAULT, "online", str(error))
    finally:
        client.close()
    kind = "service token" if identity.get("serviceToken") is True else "personal token"
    name, account = (str(identity.get(key, "unknown"))[:_LONGEST] for key in ("tokenName", "accountId"))
    message = (
        f"{settings.base_uri} knows the token: {kind} {name!r} of account {account!r}. Whether it may write shows with "
    )
    return identity, Finding(NOTE, "online", message + "the first event.")
