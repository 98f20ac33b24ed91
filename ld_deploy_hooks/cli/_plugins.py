"""``ld-deploy plugins``: what is loaded, where it came from, and what could not be loaded."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from ld_deploy_hooks.cli._lines import caught_lines
from ld_deploy_hooks.cli._masking import without_keys
from ld_deploy_hooks.cli._output import say
from ld_deploy_hooks.cli._table import print_table

if TYPE_CHECKING:
    from ld_deploy_hooks._settings import Settings

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "plugins",
        help="show the plugins that are loaded, and their hooks",
        description="Show the plugins that a deployment loads, the one that is called first at the top: where each "
        "came from and the hooks that it implements; which are blocked; and what could not be loaded, and why. Modules "
        "that LD_DEPLOY_PLUGINS names are looked for where this command's Python finds modules; a script also finds "
        "those beside itself: set PYTHONPATH to that folder. What invoke.yaml or fabric.yaml name "
        "is not looked at, nor is a deployhooks.py beside tasks.py, fabfile.py or a script.",
        epilog="Exit status: 0 all is loaded; 1 something could not be loaded, or will never be called; 2 the command "
        "line cannot be used.",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from ld_deploy_hooks._reporter import plugins_for
    from ld_deploy_hooks._settings import resolve

    settings = resolve()
    with caught_lines() as lines:
        plugins = plugins_for(settings).plugins()
    problems = [problem.message for problem in settings.problems if problem.field in ("plugins", "plugin_autoload")]
    report = {
        "plugins": [plugin._asdict() for plugin in plugins],
        "blocked": sorted({name.removeprefix("no:").strip() for name in settings.plugins if name.startswith("no:")}),
        "autoload": settings.plugin_autoload,
        "problems": [*problems, *lines],
    }
    report = without_keys(report, settings.access_token)
    if arguments.json:
        say(json.dumps(report, indent=2))
    else:
        _show(report, settings)
    return int(bool(report["problems"]))


def _show(report: dict[str, Any], settings: Settings) -> None:
    rows = [(each["name"], each["origin"], ", ".join(each["hooks"]) or "none") for each in report["plugins"]]
    print_table(("plugin", "came from", "hooks"), rows)
    if not rows:
        say("no plugin is loaded")
    for name in report["blocked"]:
        say(f"{name} is blocked (by no:{name} in {settings.sources['plugins']})")
    if not settings.plugin_autoload:
        say(f"entry points are not loaded (by {settings.sources['plugin_autoload']})")
    if settings.silent:
        switch = "disabled" if settings.disabled else "dry_run"
        say(f"a deploy loads none of them now: {switch} is on (from {settings.sources[switch]})")
    for problem in report["problems"]:
        say(f"problem: {problem}")
