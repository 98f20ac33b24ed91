"""The fields of one ``deployment(...)``: checked where they are written, asked when the deployment starts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ld_deploy_hooks._door import Surroundings
from ld_deploy_hooks._errors import SettingsError
from ld_deploy_hooks._log import say_once

if TYPE_CHECKING:
    from ld_deploy_hooks._records import Identity
    from ld_deploy_hooks._settings import Settings

__all__ = ["Fields"]

_NAMES = (
    "application_key",
    "version",
    "environment_key",
    "project_key",
    "application_name",
    "application_kind",
    "version_name",
)


class Fields:
    """What the user gave to one ``deployment(...)``.

    Args:
        values: by name; a string, a callable, or None.
        metadata: the user's deploymentMetadata; a mapping, a callable, or None.
        event_metadata: the started event's eventMetadata; likewise.

    Raises:
        TypeError: a value is of a wrong type.
        ValueError: application_kind is outside its list.
    """

    def __init__(self, values: Mapping[str, Any], metadata: Any, event_metadata: Any) -> None:
        from ld_deploy_hooks._settings import check_argument_types

        check_argument_types(**{name: value for name, value in values.items() if not callable(value)})
        for name, value in (("metadata", metadata), ("event_metadata", event_metadata)):
            if value is not None and not callable(value) and not isinstance(value, Mapping):
                raise TypeError(f"deployment({name}=...) takes a mapping or a callable, not {type(value).__name__}")
        self._values = dict(values)
        self._metadata = metadata
        self._event_metadata = event_metadata

    def fixed_metadata(self) -> dict[str, Any]:
        """Return a new dict with the metadata that need not be asked for."""
        return {} if self._metadata is None or callable(self._metadata) else dict(self._metadata)

    def settle(
        self,
        *,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        outer: tuple[Identity, Settings | None] | None,
        surroundings: Surroundings,
    ) -> tuple[Settings, Mapping[str, Any], dict[str, Any]]:
        """Ask every callable, look every setting up, and say what is wrong with them.

        Args:
            args: positional arguments of the function or task, for the callables.
            kwargs: its keyword arguments.
            outer: the deployment that this one lies in, whose fields come right after the arguments.
            surroundings: the host's configuration, and whether it runs dry.

        Returns:
            The settings, the deploymentMetadata that was asked for, the started event's eventMetadata.

        Raises:
            SettingsError: a fault, and ``strict`` is on.
        """
        from ld_deploy_hooks._reporter import plugins_for
        from ld_deploy_hooks._settings import require, resolve

        before = resolve(host=surroundings.configuration)
        if surroundings.dry:
            # Nobody is asked: a callable's own commands would be echoed on stdout.
            return replace(before, dry_run=True), {}, {}
        if before.silent:
            _say(before)
            return before, {}, {}
        asked: list[str] = []

        def ask(name: str, value: Any) -> Any:
            if not callable(value):
                return value
            try:
                return value(*args, **kwargs) if inspect.signature(value).parameters else value()
            except Exception as error:
                asked.append(
                    f"deployment({name}=...): the callable raised {type(error).__name__}, so {name} counts as not given there. It is "
                    "called with the arguments of the function or task; make it return a string, or None."
                )
                return None

        arguments = {name: ask(name, value) for name, value in self._values.items()}
        metadata, event_metadata = (
            self._mapping(name, ask(name, value), asked)
            for name, value in (("metadata", self._metadata), ("event_metadata", self._event_metadata))
        )
        settings = resolve(
            arguments,
            outer=_inherited(arguments, outer),
            host=surroundings.configuration,
            defaults=lambda so_far: plugins_for(so_far).provide_defaults(so_far),
        )
        if settings.strict and asked:
            raise SettingsError(asked[0], field="application_key")
        require(settings)
        for line in asked:
            say_once(line)
        _say(settings)
        return settings, metadata, dict(event_metadata)

    @staticmethod
    def _mapping(name: str, value: Any, faults: list[str]) -> Mapping[str, Any]:
        if value is None:
            return {}
        if isinstance(value, Mapping):
            return value
        faults.append(
            f"deployment({name}=...): the callable returned {type(value).__name__}; make it return a mapping, or None."
        )
        return {}


def _say(settings: Settings) -> None:
    for problem in settings.problems:
        say_once(problem.message)


def _inherited(arguments: Mapping[str, Any], outer: tuple[Identity, Settings | None] | None) -> dict[str, Any]:
    """Return the outer deployment's fields; how a key is displayed comes along only with that key."""
    if outer is None:
        return {}
    identity, settings = outer
    inherited: dict[str, Any] = dict(identity._asdict())
    if settings is not None and arguments.get("application_key") in (None, identity.application_key):
        inherited["application_name"] = settings.application_name
        inherited["application_kind"] = settings.application_kind
    if settings is not None and arguments.get("version") in (None, identity.version):
        inherited["version_name"] = settings.version_name
    return inherited
