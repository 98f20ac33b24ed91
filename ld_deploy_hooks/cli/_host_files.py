"""What invoke.yaml beside tasks.py and fabric.yaml beside fabfile.py say, as far as reading them tells.

Those files are only read: no tasks.py, no fabfile.py, no configuration that is written in Python is run.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ld_deploy_hooks.cli._findings import FAULT, WARNING, Finding
from ld_deploy_hooks.cli._mapped_tasks import of_mapped_tasks
from ld_deploy_hooks.cli._named_executor import Host, of_executor

__all__ = ["HostFile", "host_files"]

# In the order in which Invoke looks for them. Its fourth, .py, would have to be run.
_SUFFIXES = ("yaml", "yml", "json")
_ABOUT = "host configuration"
_HOSTS = (Host("inv", "tasks", "invoke"), Host("fab", "fabfile", "fabric"))


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
    """Yield the files of ``inv`` and ``fab`` that would be read by who starts them in ``folder``.

    Both search for their tasks there, then in each folder above, and for the configuration beside them.
    """
    for host in _HOSTS:
        for place in (folder, *folder.parents):
            names = (place / f"{host.tasks}.py", place / host.tasks / "__init__.py")
            tasks = next((path for path in names if os.access(path, os.F_OK)), None)
            if tasks is not None:
                yield from _beside(tasks, place, host)
                break


def _beside(tasks: Path, place: Path, host: Host) -> Iterator[HostFile]:
    variable = f"{host.stem.upper()}_RUN_DRY"
    if os.environ.get(variable, "") not in ("", "0"):
        yield HostFile(tasks, findings=(_dry(variable, host),))
    path = next((path for path in (place / f"{host.stem}.{end}" for end in _SUFFIXES) if os.path.lexists(path)), None)
    if path is not None:
        yield _read(path, tasks, host)


def _dry(said_by: str, host: Host) -> Finding:
    message = f"{said_by} makes every {host.program} a dry run: its commands are not run, and no deployment is told."
    return Finding(FAULT, "dry_run", f"{message} Take it out.")


def _read(path: Path, tasks: Path, host: Host) -> HostFile:
    from ld_deploy_hooks._door import configuration_file

    why_not = _why_not_ours(path)
    if why_not is not None:
        return HostFile(path, findings=(Finding(WARNING, _ABOUT, f"{path} was not read: {why_not}."),))
    try:
        found = configuration_file(path)
    except ImportError:
        message = f"{path} was not read: Invoke is not installed beside ld-deploy-hooks here."
        return HostFile(path, findings=(Finding(WARNING, _ABOUT, message),))
    if isinstance(found, str):
        message = f"{path} cannot be read: {found}. {host.program} ends with an error before the first task. Mend it."
        return HostFile(path, findings=(Finding(FAULT, _ABOUT, message),))
    findings = [_dry(f"run: dry: in {path}", host)] if found.dry else []
    findings += of_executor(path, tasks, host, found.executor_class, maps_tasks=bool(found.section.get("tasks")))
    findings += of_mapped_tasks(path, tasks, found.section)
    return HostFile(path, found.section, tuple(findings))


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
