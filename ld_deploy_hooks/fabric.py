"""Fabric: the executor that tells a task over many hosts as one deployment, with how each host fared.

In ``fabric.yaml``, with no change to any task::

    tasks:
      executor_class: ld_deploy_hooks.fabric.Executor
    ld_deploy_hooks:
      tasks:
        deploy: {application_key: billing-service}
"""

from __future__ import annotations

from typing import Any

import fabric
from fabric.connection import derive_shorthand
from fabric.exceptions import GroupException
from invoke.exceptions import UnexpectedExit

from ld_deploy_hooks import invoke as _invoke
from ld_deploy_hooks._hosts import connection_labels, labels
from ld_deploy_hooks._verdicts import Verdict, plain_verdict
from ld_deploy_hooks.invoke import (
    folder_of_tasks,
    install,
    is_task,
    notice_missing_executor,
    surroundings,
    wrap_task,
)

__all__ = [
    "Deploying",
    "Executor",
    "folder_of_tasks",
    "host_of",
    "install",
    "is_task",
    "notice_missing_executor",
    "real_host_of",
    "surroundings",
    "verdict",
    "wrap_task",
]


class Deploying(_invoke.Deploying):
    """Mix-in for executors of Fabric's kind: ``class Executor(Deploying, fabric.Executor)``."""

    def keeps_hands_off(self) -> bool:
        """Whether the command line is ``fab … -- command``, which is no deployment."""
        return bool(getattr(self.core, "remainder", None))

    def hosts_of(self, calls: list[Any]) -> list[str | None]:
        """Return how the host of each call is told; None for a call that is made without a connection."""
        return labels([_address(getattr(call, "init_kwargs", None)) for call in calls])


class Executor(Deploying, fabric.Executor):
    """Fabric's executor, telling deployments; for ``tasks: executor_class:`` in ``fabric.yaml``."""


def _address(init_kwargs: Any) -> tuple[str, Any] | None:
    # Nothing but host and port is read of these arguments: they hold passwords too.
    given = init_kwargs.get("host") if isinstance(init_kwargs, dict) else None
    if not isinstance(given, str):
        return None
    try:
        parsed = derive_shorthand(given)
    except ValueError:
        # Fabric is going to say so, once it comes to that host.
        return (given.rpartition("@")[2], None)
    return (parsed["host"] or given, parsed["port"] or init_kwargs.get("port"))


def host_of(arguments: tuple[Any, ...]) -> str | None:
    """Return the host that a task called with ``arguments`` works on; None without a connection."""
    if arguments and issubclass(type(arguments[0]), fabric.Connection):
        return connection_labels([arguments[0]])[0]
    return None


def real_host_of(arguments: tuple[Any, ...]) -> str | None:
    """Return what the connection among ``arguments`` calls its host; None without a connection."""
    if arguments and issubclass(type(arguments[0]), fabric.Connection):
        return str(arguments[0].host)
    return None


def verdict(error: BaseException) -> Verdict | None:
    """Return the verdict on an exception of Fabric's or Invoke's; None for any other."""
    if isinstance(error, GroupException):
        failed = dict(error.result.failed)
        named = connection_labels([*error.result.succeeded, *failed])
        count = len(named) - len(failed)
        return plain_verdict(error)._replace(hosts_succeeded=tuple(named[:count]), hosts_failed=tuple(named[count:]))
    plain = _invoke.verdict(error)
    connection = getattr(error.result, "connection", None) if isinstance(error, UnexpectedExit) else None
    if plain is not None and isinstance(connection, fabric.Connection):
        return plain._replace(host=connection_labels([connection])[0])
    return plain


_invoke.add_kind(fabric.Executor, Deploying, Executor)
