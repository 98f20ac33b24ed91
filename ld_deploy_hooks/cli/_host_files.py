"""What invoke.yaml beside tasks.py and fabric.yaml beside fabfile.py say, as far as reading them tells.

Those files are only read: no tasks.py, no fabfile.py, no configuration that is written in Python.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ld_deploy_hooks.cli._findings import FAULT, NOTE, WARNING, Finding

__all__ = ["HostFile", "host_files"]

# In the order in which Invoke looks for them. Its fourth, .py, would have to be run.
_SUFFIXES = ("yaml", "yml", "json")
_ABOUT = "host configuration"


@dataclass(frozen=True)
class _Host:
    """A host: its command, the module with its tasks, the name of its configuration files."""

    program: str
    tasks: str
    stem: str


_HOSTS = (_Host("inv", "tasks", "invoke"), _Host("fab", "fabfile", "fabric"))


@dataclass(frozen=True)
class HostFile:
    """A configuration file that a host would read when it is started in this folder.

    Attributes:
        path: the file.
        section: what stands under ``ld_deploy_hooks:``; empty if it was not read.
        findings: what is wrong with the file.
    """

    path: Path
    section: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


def host_files(folder: Path) -> Iterator[HostFile]:
    """Yield the files of ``inv`` and ``fab`` in ``folder``; for neither one above it is searched."""
    for host in _HOSTS:
        paths = [folder / f"{host.stem}.{suffix}" for suffix in _SUFFIXES]
        path = next((path for path in paths if os.path.lexists(path)), None)
        if path is not None and any(
            (folder / name).exists() for name in (f"{host.tasks}.py", f"{host.tasks}/__init__.py")
        ):
            yield _read(path, host)


def _read(path: Path, host: _Host) -> HostFile:
    from ld_deploy_hooks._door import configuration_file

    why_not = _why_not_ours(path)
    found = configuration_file(path) if why_not is None else why_not
    if isinstance(found, str):
        return HostFile(path, findings=(Finding(WARNING, _ABOUT, f"{path} was not read: {found}."),))
    findings = [_executor(path, host, found.executor_class, "tasks" in found.section)]
    return HostFile(path, found.section, tuple(finding for finding in findings if finding is not None))


def _why_not_ours(path: Path) -> str | None:
    try:
        status = path.stat()
    except OSError as error:
        return type(error).__name__
    if not stat.S_ISREG(status.st_mode):
        return "it is no regular file"
    if hasattr(os, "geteuid") and status.st_uid not in (os.geteuid(), 0):
        return f"it belongs to user id {status.st_uid}, neither to this user nor to root"
    return None


def _executor(path: Path, host: _Host, named: str | None, maps_tasks: bool) -> Finding | None:
    """Return what is to be said of the executor that the file names."""
    right = f"ld_deploy_hooks.{host.stem}.Executor"
    said = f"{path}: tasks: executor_class: is {named}"
    # Invoke's goes to Fabric's hosts, too.
    if named in (right, "ld_deploy_hooks.invoke.Executor"):
        return None
    if named == "ld_deploy_hooks.fabric.Executor":
        wrong = "which is made for fab: inv ends with an error before the first task"
        return Finding(FAULT, _ABOUT, f"{said}, {wrong}. Write {right}.")
    if named is not None:
        return Finding(
            WARNING,
            _ABOUT,
            f"{said}, so pre and post tasks and hosts are not told as one deployment"
            + (", and what ld_deploy_hooks: tasks: names is not told at all" if maps_tasks else "")
            + f". Write {right}, or derive that class from ld_deploy_hooks.{host.stem}.Deploying as well (if it is, "
            "all is well: its code is not looked at here).",
        )
    if maps_tasks:
        return Finding(
            WARNING,
            _ABOUT,
            f"{path}: ld_deploy_hooks: tasks: is told only if {host.tasks}.py decorates some task with @deployment, "
            f"since no executor is named. Write `tasks: {{executor_class: {right}}}`.",
        )
    return Finding(NOTE, _ABOUT, f"{path} names no executor; tasks that are decorated with @deployment need none.")
