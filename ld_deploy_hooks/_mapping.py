"""The ``tasks:`` mapping of the host's configuration: which tasks are deployments, without a change to any of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from ld_deploy_hooks._log import say_once

__all__ = ["mapped"]


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
