"""The tasks that a host's configuration file names as deployments: ``ld_deploy_hooks: tasks:``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ld_deploy_hooks._mapping import is_no_name, no_name
from ld_deploy_hooks.cli._findings import FAULT, WARNING, Finding

__all__ = ["RUNS_CODE", "of_mapped_tasks"]

# What a host's configuration may say to the host, which runs the tasks beside it anyway; here nothing of it is run.
RUNS_CODE = ("plugins", "plugin_autoload")

_ABOUT = "host configuration"
# What deployment() takes in an entry, besides settings.
_OPTIONS = ("metadata", "event_metadata", "pre_and_post")


def of_mapped_tasks(path: Path, tasks: Path, section: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong with the entries in the configuration file ``path``.

    Args:
        path: the file.
        tasks: the module with the tasks beside it, which is read and not run.
        section: what stands under ``ld_deploy_hooks:``.
    """
    entries = section.get("tasks")
    if entries is None:
        return
    where = f"{path}: ld_deploy_hooks: tasks:"
    if not isinstance(entries, Mapping):
        message = "is no mapping, so no task is a deployment by it. Write `deploy: {application_key: ...}` under it."
        yield Finding(FAULT, _ABOUT, f"{where} {message}")
        return
    words = _words(tasks)
    for name, entry in entries.items():
        if is_no_name(name):
            yield Finding(FAULT, _ABOUT, f"{where} {no_name(name)}")
            continue
        if not isinstance(name, str):
            message = "is a number, at which Invoke ends with an error before the first task. Put it in quotes."
            yield Finding(FAULT, _ABOUT, f"{where} {name} {message}")
            continue
        if words is not None and _is_plain(name) and _spelled(name) not in words:
            message = f"{name} is nowhere in {tasks.name}: if no task is called so, this entry tells nothing."
            yield Finding(WARNING, _ABOUT, f"{where} {message}")
        entry = {} if entry is None else entry
        if not isinstance(entry, Mapping):
            message = f"is no mapping, so the task is not told. Write `{name}: {{application_key: ...}}`."
            yield Finding(FAULT, _ABOUT, f"{where} {name}: {message}")
            continue
        yield from _of_entry(f"{where} {name}", entry)
        # A decorator may say it, or a plugin that only the host loads.
        plugins = "plugins" in section or os.path.lexists(tasks.parent / "deployhooks.py")
        certain = words is not None and "deployment" not in words and not plugins
        yield from _of_what_counts(f"{where} {name}", {**section, **entry}, entry, certain=certain)


def _of_entry(where: str, entry: Mapping[str, Any]) -> Iterator[Finding]:
    from ld_deploy_hooks._deployment import deployment
    from ld_deploy_hooks._settings import REQUIRED, resolve

    for problem in resolve(host=entry, host_name=where).problems:
        if where in problem.message:
            unsent = problem.field in (*REQUIRED, "access_token", "base_uri")
            yield Finding(FAULT if problem.fault and unsent else WARNING, _ABOUT, problem.message)
    for option in _OPTIONS:
        if option in entry:
            try:
                deployment(**{option: entry[option]})
            except TypeError as error:
                yield Finding(WARNING, _ABOUT, f"{where}: {error}. The options beside it are passed over as well.")


def _of_what_counts(
    where: str, section: Mapping[str, Any], entry: Mapping[str, Any], *, certain: bool
) -> Iterator[Finding]:
    from ld_deploy_hooks._reporter import plugins_defaults
    from ld_deploy_hooks._settings import resolve

    # Of plugins only those that are loaded here anyway.
    host = {name: value for name, value in section.items() if name not in RUNS_CODE}
    settings = resolve(host=host, host_name=where, defaults=plugins_defaults)
    for switch in ("disabled", "dry_run"):
        if getattr(settings, switch) and settings.sources[switch] == where and switch in entry:
            yield Finding(FAULT, _ABOUT, f"{where}: {switch} is on, so the task is not told. Take it out.")
    if any(problem.missing and problem.field == "application_key" for problem in settings.problems):
        message = "application_key is not set, so the task is not told. Set it there, or LD_DEPLOY_APPLICATION_KEY."
        yield Finding(FAULT if certain else WARNING, _ABOUT, f"{where}: {message}")


def _words(tasks: Path) -> set[str] | None:
    """Return the words of a module, with dashes for underscores; None where tasks may come from elsewhere."""
    if tasks.name == "__init__.py":
        return None
    try:
        text = tasks.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    return None if re.search(r"import\s*\*", text) else set(map(_spelled, re.findall(r"[\w-]+", text)))


def _is_plain(name: str) -> bool:
    """Whether it is no pattern, and no name of a collection's."""
    return re.fullmatch(r"[\w-]+", name) is not None


def _spelled(name: str) -> str:
    return name.replace("_", "-")
