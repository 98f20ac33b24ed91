"""The executor that a host's configuration file names: whether it is one that tells deployments."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from ld_deploy_hooks.cli._findings import FAULT, NOTE, WARNING, Finding
from ld_deploy_hooks.cli._foreign_code import is_foreign, tells_nothing

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
    only_mapped = maps_tasks and tells_nothing(tasks) and not _is_named_elsewhere(host)
    if named is None:
        yield _of_none(path, tasks, right, maps_tasks=maps_tasks, only_mapped=only_mapped)
        return
    module, _, _ = named.rpartition(".")
    spec = _spec(module, tasks)
    wrong = ""
    if named == "ld_deploy_hooks.fabric.Executor":
        wrong = "which is made for fab"
    elif module.partition(".")[0] == "ld_deploy_hooks":
        wrong = "and there is no such executor"
    elif spec is None:
        wrong = f"and no module {module!r} is found for it" if module else "which is no dotted name of a class"
    if wrong:
        step = f"{host.program} ends with an error before the first task. Write {right}."
        yield Finding(FAULT, _ABOUT, f"{said}, {wrong}: {step}")
        return
    if only_mapped and (is_foreign(module) or (spec is not None and tells_nothing(Path(spec.origin or "")))):
        step = f"what ld_deploy_hooks: tasks: names is not told, and {tasks.name} tells nothing either. Write {right}."
        yield Finding(FAULT, _ABOUT, f"{said}, which tells no deployment: {step}")
        return
    yield Finding(
        WARNING,
        _ABOUT,
        f"{said}, so pre and post tasks and hosts are not told as one deployment"
        + (", and what ld_deploy_hooks: tasks: names is not told at all" if maps_tasks else "")
        + f". Write {right}, or derive that class from ld_deploy_hooks.{host.stem}.Deploying as well (if it is, "
        "all is well: its code is not looked at here).",
    )


def _of_none(path: Path, tasks: Path, right: str, *, maps_tasks: bool, only_mapped: bool) -> Finding:
    if not maps_tasks:
        return Finding(NOTE, _ABOUT, f"{path} names no executor; tasks that are decorated with @deployment need none.")
    told = f"{path}: ld_deploy_hooks: tasks: is"
    if only_mapped:
        message = f"{told} not told, since no executor is named and {tasks.name} decorates no task with @deployment."
    else:
        message = f"{told} told only if {tasks.name} decorates some task with @deployment, since no executor is named."
    level = FAULT if only_mapped else WARNING
    return Finding(level, _ABOUT, f"{message} Write `tasks: {{executor_class: {right}}}`.")


def _is_named_elsewhere(host: Host) -> bool:
    """Whether an executor may be named where we do not look: by a variable, for this user, for the machine."""
    names = [f"{host.stem}.{end}" for end in ("yaml", "yml", "json", "py")]
    places = [*(Path("~").expanduser() / f".{name}" for name in names), *(Path("/etc") / name for name in names)]
    return f"{host.stem.upper()}_TASKS_EXECUTOR_CLASS" in os.environ or any(map(os.path.lexists, places))


def _spec(module: str, tasks: Path) -> ModuleSpec | None:
    """Return what would be found of a module by who has loaded ``tasks``; nothing is run of it, or of where it lies."""
    places: list[str] | None = [str(tasks.parent), *sys.path]
    name = ""
    spec = None
    for part in module.split("."):
        name = f"{name}.{part}".lstrip(".")
        spec = PathFinder.find_spec(name, places)
        if spec is None and name == part and part:
            # What is built in, or found by other means: of a name without a dot nothing is imported.
            spec = importlib.util.find_spec(part)
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or ())
    return spec
