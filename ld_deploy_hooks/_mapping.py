"""The ``tasks:`` mapping of the host's configuration: which tasks are deployments, without a change to any of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from ld_deploy_hooks._log import say_once

__all__ = ["is_no_name", "mapped", "no_name"]


def mapped(configuration: Mapping[str, Any], names: Iterable[str]) -> Mapping[str, Any] | None:
    """Return the entry of ``ld_deploy_hooks: tasks:`` for a task; None when there is none.

    A whole name wins over a pattern (``release.*``), an earlier pattern over a later one. Dashes and underscores are
    alike, as on Invoke's command line.

    Args:
        configuration: what stands under ``ld_deploy_hooks:``.
        names: every name that the task can be called by, dotted.
    """
    tasks = configuration.get("tasks")
    if tasks is None:
        return None
    if not isinstance(tasks, Mapping):
        say_once(
            "ld_deploy_hooks: tasks: in the host's configuration is no mapping, so no task is a deployment by "
            "it. Write `deploy: {application_key: billing-service}` under it."
        )
        return None
    for name in filter(is_no_name, tasks):
        say_once(f"ld_deploy_hooks: tasks: in the host's configuration: {no_name(name)}")
    spelled = {str(pattern).replace("_", "-"): entry for pattern, entry in tasks.items()}
    wanted = [name.replace("_", "-") for name in names]
    found = next((name for name in wanted if name in spelled), None)
    if found is None:
        found = next((pattern for pattern in spelled if any(fnmatchcase(name, pattern) for name in wanted)), None)
    if found is None:
        return None
    entry = spelled[found]
    if entry is None:
        return {}
    if not isinstance(entry, Mapping):
        say_once(
            f"ld_deploy_hooks: tasks: {found}: in the host's configuration is no mapping, so the task is not told. "
            f"Write `{found}: {{application_key: ...}}`."
        )
        return None
    return entry


def is_no_name(key: object) -> bool:
    """Whether no task is called by ``key``; a number is taken for its digits."""
    return isinstance(key, bool) or not isinstance(key, (str, int, float))


def no_name(key: object) -> str:
    """Return what is to be said of such a key."""
    return (
        f"{key!r} is the name of no task: YAML takes on, off, yes, no and the like for something else than text. Put "
        "it in quotes."
    )
