"""``ld-deploy doctor``: what a deploy that started here would be told by, and what is wrong with it."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import Any

from ld_deploy_hooks.cli._findings import FAULT, WARNING
from ld_deploy_hooks.cli._masking import masked, without_keys
from ld_deploy_hooks.cli._output import say
from ld_deploy_hooks.cli._table import print_table

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "doctor",
        help="show every setting, where it came from, and what is wrong",
        description="Show every setting, where it came from, and what is missing or wrong and how to mend it. It looks "
        "from the working directory, as a deploy would that is started there: at the environment, pyproject.toml, "
        "plugins, the outbox, and at invoke.yaml beside tasks.py or fabric.yaml beside fabfile.py, there or in a "
        "folder above, as inv and fab look for them (if Invoke is installed; your tasks are not run, and the files in "
        "your home folder and /etc are not read). Nothing is sent, made or changed.",
        epilog="Exit status: 0 deployments are told; 1 they are not, or only recorded: something is marked as a fault "
        "(no project, environment or token, one that cannot be used, an outbox that cannot be written, disabled or "
        "dry_run on, a host that runs dry, or whose configuration or executor cannot be loaded, tasks that are no "
        "mapping, that have no application or that no executor tells; with strict on everything that would raise; with "
        "--online a token that is refused, or no answer); 2 the command line cannot be used. Where deploy code may "
        "give them, an application key and a version that nobody has set are only noted.",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.add_argument(
        "--online", action="store_true", help="ask the service who the token is; nothing is changed there either"
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from ld_deploy_hooks.cli._examination import ask_service, examine

    with redirect_stdout(sys.stderr):  # what plugins print is no part of the report
        examination = examine(_working_directory())
    settings, found = examination.settings, list(examination.findings)
    identity = None
    if arguments.online:
        identity, finding = ask_service(examination)
        found.append(finding)
    ok = all(finding.level != FAULT for finding in found)
    report = {
        "ok": ok,
        "settings": {
            name: {"value": _as_json(getattr(settings, name)), "source": settings.sources[name]} for name in _names()
        },
        "host_configuration": None if examination.host_file is None else str(examination.host_file),
        "plugins": [plugin.name for plugin in examination.plugins],
        "identity": None if identity is None else dict(identity),
        "findings": [finding._asdict() for finding in found],
    }
    report = without_keys(report, settings.access_token)
    if arguments.json:
        say(json.dumps(report, indent=2))
    else:
        _show(report)
    return int(not ok)


def _working_directory() -> Path | None:
    try:
        return Path.cwd()
    except OSError:
        return None


def _names() -> list[str]:
    from ld_deploy_hooks._settings import VARIABLES, Settings

    return [field.name for field in fields(Settings) if field.name in VARIABLES]


def _as_json(value: Any) -> Any:
    from ld_deploy_hooks._settings import Secret

    if isinstance(value, Secret):
        return masked(value)
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def _show(report: dict[str, Any]) -> None:
    rows = []
    for name, setting in report["settings"].items():
        unset = setting["value"] is None
        source = "not set" if unset and setting["source"] == "default" else setting["source"]
        rows.append((name, "-" if unset else _in_words(setting["value"]), source))
    print_table(("setting", "value", "from"), rows)
    say(f"plugins loaded: {', '.join(report['plugins']) or 'none'} (`ld-deploy plugins` says more)")
    for finding in report["findings"]:
        say(f"{finding['level']}: {finding['message']}")
    if not report["ok"]:
        say("Deployments are not told as they should be, until what is marked as a fault is mended.")
    elif any(finding["level"] == WARNING for finding in report["findings"]):
        say("Nothing is known that keeps every deployment from being told, but see the warnings above.")
    else:
        say("Nothing here keeps deployments from being told.")


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ", ".join(value) or "-"
    return f"{value:g} s" if isinstance(value, float) else str(value)
