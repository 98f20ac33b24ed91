"""What invoke.yaml beside tasks.py and fabric.yaml beside fabfile.py say, as far as reading them tells.

Those files are only read: no tasks.py, no fabfile.py, no configuration that is written in Python is run.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ld_deploy_hooks.cli._findings import FAULT, WARNING, Finding
from ld_deploy_hooks.cli._mapped_tasks import of_mapped_tasks
from ld_deploy_hooks.cli._named_executor import Host, of_executor

__all__ = ["HostFile", "Tasks", "found_tasks", "host_files", "why_not_ours"]

# In the order in which Invoke looks for them. Its fourth, .py, would have to be run.
_SUFFIXES = ("yaml", "yml", "json")
_ABOUT = "host configuration"
_HOSTS = (Host("inv", "tasks", "invoke"), Host("fab", "fabfile", "fabric"))


class Tasks(NamedTuple):
    """The tasks that a host would find.

    Attributes:
        host: the host.
        path: the module.
        folder: what it, or the package that it begins, lies in.
    """

    host: Host
    path: Path
    folder: Path


@dataclass(frozen=True)
class HostFile:
    """A configuration file that a host would read when it is started in this folder.

    Attributes:
        path: the file.
        tasks: which it lies beside.
        section: what stands under ``ld_deploy_hooks:``; empty if it was not read.
        findings: what is wrong with the file.
        is_read: whether it was read.
    """

    path: Path
    tasks: Tasks
    section: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    is_read: bool = True


def host_files(folder: Path) -> Iterator[HostFile]:
    """Yield the files of ``inv`` and ``fab`` that would be read by who starts them in ``folder``: beside the tasks."""
    for tasks in found_tasks(folder):
        yield from _beside(tasks)


def found_tasks(folder: Path) -> Iterator[Tasks]:
    """Yield the tasks of ``inv`` and ``fab``: both search for theirs in ``folder``, then in each folder above."""
    for host in _HOSTS:
        for place in (folder, *folder.parents):
            names = (place / f"{host.tasks}.py", place / host.tasks / "__init__.py")
            path = next((path for path in names if os.access(path, os.F_OK)), None)
            if path is not None:
                yield Tasks(host, path, place)
                break


def _beside(tasks: Tasks) -> Iterator[HostFile]:
    stem = tasks.host.stem
    variable = f"{stem.upper()}_RUN_DRY"
    if os.environ.get(variable, "") not in ("", "0"):
        yield HostFile(tasks.path, tasks, findings=(_dry(variable, tasks.host),))
    paths = [tasks.folder / f"{stem}.{end}" for end in _SUFFIXES]
    path = next((path for path in paths if os.path.lexists(path)), None)
    if path is not None:
        yield _read(path, tasks)


def _dry(said_by: str, host: Host) -> Finding:
    message = f"{said_by} makes every {host.program} a dry run: its commands are not run, and no deployment is told."
    return Finding(FAULT, "dry_run", f"{message} Take it out.")


def _read(path: Path, tasks: Tasks) -> HostFile:
    from ld_deploy_hooks._door import configuration_file

    host = tasks.host
    why_not = why_not_ours(path)
    if why_not is not None:
        return _unread(path, tasks, WARNING, f"{path} was not read: {why_not}.")
    try:
        found = configuration_file(path)
    except ImportError:
        message = f"{path} was not read: Invoke is not installed beside ld-deploy-hooks here."
        return _unread(path, tasks, WARNING, message)
    if isinstance(found, str):
        message = f"{path} cannot be read: {found}. {host.program} ends with an error before the first task. Mend it."
        return _unread(path, tasks, FAULT, message)
    findings = [_dry(f"run: dry: in {path}", host)] if found.dry else []
    maps_tasks = bool(found.section.get("tasks"))
    findings += of_executor(path, tasks.path, host, found.executor_class, maps_tasks=maps_tasks)
    findings += of_mapped_tasks(path, tasks.path, found.section)
    return HostFile(path, tasks, found.section, tuple(findings))


def _unread(path: Path, tasks: Tasks, level: str, message: str) -> HostFile:
    return HostFile(path, tasks, findings=(Finding(level, _ABOUT, message),), is_read=False)


def why_not_ours(path: Path) -> str | None:
    """Return why a file is not to be trusted, to be read after "was not read:"; None if it is this user's or root's."""
    try:
        status = path.stat()
    except OSError as error:
        return type(error).__name__
    if not stat.S_ISREG(status.st_mode):
        return "it is no regular file"
    if hasattr(os, "geteuid") and status.st_uid not in (os.geteuid(), 0):
        return f"it belongs to user id {status.st_uid}, neither to this user nor to root"
    return None
