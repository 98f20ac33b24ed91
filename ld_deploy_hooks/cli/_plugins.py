"""``ld-deploy plugins``: what is loaded, where it came from, and what could not be loaded."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ld_deploy_hooks.cli._host_files import HostFile, Tasks, found_tasks, host_files, why_not_ours
from ld_deploy_hooks.cli._lines import caught_lines
from ld_deploy_hooks.cli._masking import without_keys
from ld_deploy_hooks.cli._output import say
from ld_deploy_hooks.cli._table import print_table

if TYPE_CHECKING:
    from ld_deploy_hooks._settings import Settings

__all__ = ["add_to"]

_FIELDS = ("plugins", "plugin_autoload")


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "plugins",
        help="show the plugins that are loaded, and their hooks",
        description="Show the plugins that a deployment loads, the one that is called first at the top: where each "
        "came from and the hooks that it implements; which are blocked; and what could not be loaded, and why. Where "
        "inv or fab would find tasks, from the working directory or a folder above, it is what they would load: a "
        "deployhooks.py beside the tasks as well, and what invoke.yaml or fabric.yaml beside them says of plugins (of "
        "both hosts the first whose file says anything). The plugins are run as far as loading them goes, the tasks "
        "are not. Without tasks, modules that LD_DEPLOY_PLUGINS names are looked for where this command's Python finds "
        "modules; a script also finds those beside itself: set PYTHONPATH to that folder. A deployhooks.py beside a "
        "script is not looked at.",
        epilog="Exit status: 0 all is loaded; 1 something could not be loaded, or will never be called; 2 the command "
        "line cannot be used.",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from ld_deploy_hooks._plugins import Plugins
    from ld_deploy_hooks._settings import resolve

    # What plugins print is no part of the report.
    with caught_lines() as lines, redirect_stdout(sys.stderr):
        tasks, file, unread = _of_host()
        settings = resolve(
            host=file.section if file is not None else {}, host_name=str(file.path) if file is not None else ""
        )
        if tasks is not None and why_not_ours(tasks.path) is None:
            # As the host does, which runs those tasks anyway.
            sys.path.insert(0, str(tasks.folder))
        directory = tasks.folder if tasks is not None else None
        plugins = Plugins.load(names=settings.plugins, autoload=settings.plugin_autoload, directory=directory).plugins()
    problems = [problem.message for problem in settings.problems if problem.field in _FIELDS]
    report = {
        "host_configuration": None if file is None else str(file.path),
        "plugins": [plugin._asdict() for plugin in plugins],
        "blocked": sorted({name.removeprefix("no:").strip() for name in settings.plugins if name.startswith("no:")}),
        "autoload": settings.plugin_autoload,
        "problems": [*unread, *problems, *lines],
    }
    report = without_keys(report, settings.access_token)
    if arguments.json:
        say(json.dumps(report, indent=2))
    else:
        _show(report, settings)
    return int(bool(report["problems"]))


def _of_host() -> tuple[Tasks | None, HostFile | None, list[str]]:
    """Return the tasks that a host would find here, what is configured beside them, and what could not be read."""
    try:
        folder = Path.cwd()
    except OSError:
        return None, None, []
    files = list(host_files(folder))
    taken = next((file for file in files if file.section), None)
    tasks = taken.tasks if taken is not None else next(found_tasks(folder), None)
    return tasks, taken, [finding.message for file in files if not file.is_read for finding in file.findings]


def _show(report: dict[str, Any], settings: Settings) -> None:
    rows = [(each["name"], each["origin"], ", ".join(each["hooks"]) or "none") for each in report["plugins"]]
    print_table(("plugin", "came from", "hooks"), rows)
    if not rows:
        say("no plugin is loaded")
    if report["host_configuration"] is not None:
        say(f"settings of {report['host_configuration']} count here")
    for name in report["blocked"]:
        say(f"{name} is blocked (by no:{name} in {settings.sources['plugins']})")
    if not settings.plugin_autoload:
        say(f"entry points are not loaded (by {settings.sources['plugin_autoload']})")
    if settings.silent:
        switch = "disabled" if settings.disabled else "dry_run"
        say(f"a deploy loads none of them now: {switch} is on (from {settings.sources[switch]})")
    for problem in report["problems"]:
        say(f"problem: {problem}")
