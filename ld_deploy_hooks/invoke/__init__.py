"""Invoke: the executor that tells each call of the command line as one deployment, and what else its tasks need.

In ``invoke.yaml``, with no change to any task::

    tasks:
      executor_class: ld_deploy_hooks.invoke.Executor
    ld_deploy_hooks:
      tasks:
        deploy: {application_key: billing-service}
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from invoke.tasks import Task

from ld_deploy_hooks.invoke._configuration import read_file, surroundings
from ld_deploy_hooks.invoke._executor import Deploying, Executor, add_kind, deploying, install
from ld_deploy_hooks.invoke._running import folder_of_tasks, notice_missing_executor
from ld_deploy_hooks.invoke._ways_out import verdict

__all__ = [
    "Deploying",
    "Executor",
    "add_kind",
    "deploying",
    "folder_of_tasks",
    "host_of",
    "install",
    "is_task",
    "notice_missing_executor",
    "read_file",
    "real_host_of",
    "surroundings",
    "verdict",
    "wrap_task",
]


def is_task(thing: object) -> bool:
    """Whether ``thing`` is a task."""
    return isinstance(thing, Task)


def wrap_task(task: Any, wrap: Callable[[Any], Any]) -> Any:
    """Return the same task, its body wrapped: a plain function in its place would make the task vanish."""
    task.body = wrap(task.body)
    return task


def host_of(arguments: tuple[Any, ...]) -> str | None:
    """Return None: a Context of Invoke's is no connection."""
    return None


def real_host_of(arguments: tuple[Any, ...]) -> str | None:
    """Return None: a Context of Invoke's is no connection."""
    return None
