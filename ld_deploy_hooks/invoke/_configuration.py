"""What Invoke's configuration says of deployments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from invoke.config import Config, DataProxy
from invoke.context import Context

from ld_deploy_hooks._door import ConfigurationFile, Surroundings
from ld_deploy_hooks._log import say_once
from ld_deploy_hooks.invoke._running import running_config

__all__ = ["read_file", "section", "surroundings"]

_SECTION = "ld_deploy_hooks"


def _plain(value: Any) -> Any:
    if isinstance(value, (DataProxy, Mapping)):
        return {key: _plain(value[key]) for key in value.keys()}  # noqa: SIM118 (a DataProxy iterates, but is no Mapping)
    return value


def section(config: Any) -> dict[str, Any]:
    """Return what stands under ``ld_deploy_hooks:``."""
    found = config[_SECTION] if isinstance(config, (DataProxy, Mapping)) and _SECTION in config else {}
    if isinstance(found, (DataProxy, Mapping)):
        return cast("dict[str, Any]", _plain(found))
    say_once(
        f"{_SECTION}: in the host's configuration is no mapping, so it is passed over. Write "
        f"`{_SECTION}: {{project_key: ...}}`."
    )
    return {}


def read_file(path: Path) -> ConfigurationFile:
    """Return what a configuration file (yaml, yml, json) says to us; no code of anybody's runs for it.

    Raises whatever Invoke, its parser and the file have to raise.
    """
    # As a runtime file: Invoke reads that one alone, and not what it finds elsewhere, some of which is Python.
    config = Config(runtime_path=path, lazy=True)
    config.load_runtime()
    named = config.tasks.executor_class
    return ConfigurationFile(None if named is None else str(named), section(config), config.run.dry is True)


def surroundings(arguments: tuple[Any, ...]) -> Surroundings:
    """Return the configuration that counts for a block that is entered with ``arguments``, and whether it runs dry.

    A Context among them that somebody made by hand knows neither ``--dry`` nor ``-f``: what runs counts too.
    """
    # By its real type: it is anybody's object, and one that is lazy would be made for isinstance().
    given = arguments[0].config if arguments and issubclass(type(arguments[0]), Context) else None
    running = running_config()
    said = {**section(running), **section(given)}
    said.pop("tasks", None)
    return Surroundings(
        configuration=said,
        dry=any(isinstance(config, DataProxy) and config.run.dry is True for config in (given, running)),
        context_given=given is not None,
    )
