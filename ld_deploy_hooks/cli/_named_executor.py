"""The executor that a host's configuration file names: whether it is one that tells deployments."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from ld_deploy_hooks.cli._findings import FAULT, NOTE, WARNING, Finding

__all__ = ["Host", "of_executor"]

_ABOUT = "host configuration"


@dataclass(frozen=True)
class Host:
    """A host.

    Attributes:
        program: its command.
        tasks: the module with its tasks.
        stem: the name of its configuration files, and of our room for it.
    """

    program: str
    tasks: str
    stem: str


def of_executor(path: Path, tasks: Path, host: Host, named: str | None, *, maps_tasks: bool) -> Iterator[Finding]:
    """Yield what is to be said of the executor that the configuration file ``path`` names.

    Args:
        path: the file.
        tasks: the module with the tasks beside it.
        host: whose it is.
        named: the executor's dotted name.
        maps_tasks: whether the file also names tasks that are deployments.
    """
    right = f"ld_deploy_hooks.{host.stem}.Executor"
    said = f"{path}: tasks: executor_class: is {named}"
    # Invoke's goes to Fabric's hosts, too.
    if named in (right, "ld_deploy_hooks.invoke.Executor"):
        return
    if named is None:
        yield _of_none(path, tasks, right, maps_tasks=maps_tasks)
        return
    module, _, _ = named.rpartition(".")
    wrong = ""
    if named == "ld_deploy_hooks.fabric.Executor":
        wrong = "which is made for fab"
    elif module.partition(".")[0] == "ld_deploy_hooks":
        wrong = "and there is no such executor"
    elif not _is_there(module, tasks):
        wrong = f"and no module {module!r} is found for it" if module else "which is no dotted name of a class"
    if wrong:
        step = f"{host.program} ends with an error before the first task. Write {right}."
        yield Finding(FAULT, _ABOUT, f"{said}, {wrong}: {step}")
        return
    yield Finding(
        WARNING,
        _ABOUT,
        f"{said}, so pre and post tasks and hosts are not told as one deployment"
        + (", and what ld_deploy_hooks: tasks: names is not told at all" if maps_tasks else "")
        + f". Write {right}, or derive that class from ld_deploy_hooks.{host.stem}.Deploying as well (if it is, "
        "all is well: its code is not looked at here).",
    )


def _of_none(path: Path, tasks: Path, right: str, *, maps_tasks: bool) -> Finding:
    if maps_tasks:
        return Finding(
            WARNING,
            _ABOUT,
            f"{path}: ld_deploy_hooks: tasks: is told only if {tasks.name} decorates some task with @deployment, "
            f"since no executor is named. Write `tasks: {{executor_class: {right}}}`.",
        )
    return Finding(NOTE, _ABOUT, f"{path} names no executor; tasks that are decorated with @deployment need none.")


def _is_there(module: str, tasks: Path) -> bool:
    """Whether a module would be found by who has loaded ``tasks``; nothing of it is run, nor of what it lies in."""
    places: list[str] | None = [str(tasks.parent), *sys.path]
    name = ""
    for part in module.split("."):
        name = f"{name}.{part}".lstrip(".")
        spec = PathFinder.find_spec(name, places)
        if spec is None and name == part and part:
            # What is built in, or found by other means: of a name without a dot nothing is imported.
            spec = importlib.util.find_spec(part)
        if spec is None:
            return False
        places = list(spec.submodule_search_locations or ())
    return True
