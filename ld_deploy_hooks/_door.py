"""The lazy door up: to the room of the host (Invoke, Fabric) that this process runs in, if it runs in one.

A task that is decorated inside a running host needs what only the host's room knows, and a room that imports Invoke may
not be loaded for people who do not use it. The other who comes through is `ld-deploy doctor`, when it has found a
configuration file that only Invoke can read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ld_deploy_hooks._log import internal_fault, say_once

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Protocol

    from ld_deploy_hooks._verdicts import Verdict

__all__ = [
    "ConfigurationFile",
    "HostRoom",
    "Surroundings",
    "configuration_file",
    "deployhooks_folder",
    "host_room",
    "surroundings_of",
]


# A named tuple, as a data class takes long to make: tasks are decorated for `--list` and `--help` too.
class Surroundings(NamedTuple):
    """What the host says of the place that a block is entered in.

    Attributes:
        configuration: the host's ``ld_deploy_hooks:`` configuration.
        own: what that configuration says of this very task; no deployment around it overrides that.
        dry: whether the host runs its commands dry.
        context_given: whether the first argument is a context of the host's, which differs from call to call.
    """

    configuration: Mapping[str, Any] = MappingProxyType({})
    own: Mapping[str, Any] = MappingProxyType({})
    dry: bool = False
    context_given: bool = False


class ConfigurationFile(NamedTuple):
    """What a configuration file of a host says to us.

    Attributes:
        executor_class: what it names as ``tasks: executor_class:``.
        section: what stands under ``ld_deploy_hooks:``.
        dry: whether it says ``run: dry: true``.
    """

    executor_class: str | None
    section: Mapping[str, Any]
    dry: bool


# For the type checker alone: a protocol takes long to make, and tasks are decorated for `--list` and `--help` too.
if TYPE_CHECKING:

    class HostRoom(Protocol):
        """What the room of a host offers; ``invoke`` and ``fabric`` are modules of this shape."""

        def install(self) -> None:
            """Make the running program use our executor."""

        def is_task(self, thing: object) -> bool:
            """Whether ``thing`` is one of the host's tasks."""

        def wrap_task(self, task: Any, wrap: Callable[[Any], Any]) -> Any:
            """Return the same task with its body wrapped."""

        def surroundings(self, arguments: tuple[Any, ...]) -> Surroundings:
            """Say where a block is entered: by the Context among ``arguments``, else by the program that runs."""

        def folder_of_tasks(self) -> Path | None:
            """Return the folder of the tasks that the running program has loaded; None where it has loaded none."""

        def host_of(self, arguments: tuple[Any, ...]) -> str | None:
            """Return the host that a task called with ``arguments`` works on, if it is given a connection."""

        def real_host_of(self, arguments: tuple[Any, ...]) -> str | None:
            """Return what that host is called by its connection, which may be another name."""

        def verdict(self, error: BaseException) -> Verdict | None:
            """Return the verdict on an exception of the host; None for one that is not its own."""

        def notice_missing_executor(self) -> None:
            """Say once that another executor is in the way of ours."""


def host_room() -> HostRoom | None:
    """Return the room of the host that is loaded, Fabric's before Invoke's; None in plain Python."""
    try:
        if "fabric" in sys.modules:
            from ld_deploy_hooks import fabric

            return cast("HostRoom", fabric)
    except Exception as error:
        # Another package of that name, a version that nobody has seen yet.
        _pass_over("Fabric", error)
    try:
        if "invoke" in sys.modules:
            from ld_deploy_hooks import invoke

            return cast("HostRoom", invoke)
    except Exception as error:
        _pass_over("Invoke", error)
    return None


def configuration_file(path: Path) -> ConfigurationFile | str:
    """Return what a yaml, yml or json file of Invoke's or Fabric's says to us; if no host can read it either, why.

    Raises:
        ImportError: Invoke is not installed.
    """
    from ld_deploy_hooks import invoke

    try:
        return invoke.read_file(path)
    except Exception as error:
        # Its parser's own, which nobody else can name; and what any YAML but a mapping brings about.
        return f"it is no configuration ({type(error).__name__})"


def _pass_over(host: str, error: Exception) -> None:
    say_once(
        f"The {host} that is loaded here is not one that ld-deploy-hooks knows ({type(error).__name__}): its tasks, "
        "hosts and configuration are passed over, and deployments are told as in plain Python."
    )


def surroundings_of(arguments: tuple[Any, ...]) -> Surroundings:
    """Return what the host says of a block that is entered with ``arguments``; nothing in plain Python."""
    room = host_room()
    try:
        return room.surroundings(arguments) if room is not None else Surroundings()
    except Exception as error:
        internal_fault("Reading the host's configuration", error)
        return Surroundings()


def deployhooks_folder() -> Path | None:
    """Return where a ``deployhooks.py`` may lie: beside the host's tasks, else beside the script; None for nowhere."""
    from ld_deploy_hooks._deployhooks import beside_script

    room = host_room()
    try:
        folder = room.folder_of_tasks() if room is not None else None
        return beside_script() if folder is None else folder
    except Exception as error:
        internal_fault("Looking for deployhooks.py", error)
        return None
