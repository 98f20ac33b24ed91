"""The fields of one ``deployment(...)``: checked where they are written, asked when the deployment starts."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ld_deploy_hooks._door import Surroundings
from ld_deploy_hooks._errors import SettingsError
from ld_deploy_hooks._log import say_once
from ld_deploy_hooks._outside import is_from_outside
from ld_deploy_hooks._testrun import current_recording

if TYPE_CHECKING:
    from ld_deploy_hooks._records import Identity
    from ld_deploy_hooks._settings import Settings

__all__ = ["Fields", "places"]

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
        unclear = {name: value for name, value in values.items() if not _is_clear(name, value)}
        if unclear:
            # Not loaded for what everybody writes: tasks are decorated for `--list` and `--help` too.
            from ld_deploy_hooks._settings import check_argument_types

            check_argument_types(**unclear)
        for name, value in {**values, "metadata": metadata, "event_metadata": event_metadata}.items():
            if inspect.iscoroutinefunction(value):
                raise TypeError(f"deployment({name}=...) is called and not awaited: give it a plain function")
        for name, value in (("metadata", metadata), ("event_metadata", event_metadata)):
            if value is not None and not callable(value) and not isinstance(value, Mapping):
                raise TypeError(f"deployment({name}=...) takes a mapping or a callable, not {type(value).__name__}")
        self._values = dict(values)
        self._metadata = metadata
        self._event_metadata = event_metadata
        self._asks = any(map(callable, (*values.values(), metadata, event_metadata)))

    def fixed_metadata(self) -> dict[str, Any]:
        """Return a new dict with the metadata that need not be asked for."""
        fixed = {} if callable(self._metadata) else _read("metadata", self._metadata, [])
        try:
            return copy.deepcopy(fixed)
        except BaseException as error:
            if is_from_outside(error):
                raise
            # What cannot be copied is told as its type's name.
            return fixed

    def settle(
        self,
        *,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        outer: tuple[Identity, Settings | None] | None,
        surroundings: Surroundings,
        names: Sequence[str] = (),
    ) -> tuple[Settings, dict[str, Any], dict[str, Any]]:
        """Ask every callable, look every setting up, and say what is wrong with them.

        Args:
            args: positional arguments of the function or task, for the callables.
            kwargs: its keyword arguments.
            outer: the deployment of this process that this one lies in, whose fields come right after the arguments.
                Without one they come from the nearest process around this one whose deployment is not over.
            surroundings: the host's configuration, and whether it runs dry.
            names: of the parameters that the positional arguments are for.

        Returns:
            The settings, the deploymentMetadata that was asked for, the started event's eventMetadata.

        Raises:
            SettingsError: a fault, and ``strict`` is on.
        """
        from ld_deploy_hooks._parent import goes_on, parents
        from ld_deploy_hooks._reporter import plugins_defaults
        from ld_deploy_hooks._settings import require, resolve

        recording = current_recording()
        host = {**surroundings.configuration, **surroundings.own}
        if surroundings.dry or self._asks:
            before = resolve(host=host, recording=recording)
            if surroundings.dry:
                # Nobody is asked: a callable's own commands would be echoed on stdout.
                dry_by = before.sources["dry_run"] if before.dry_run else "--dry, or run: dry: of Invoke or Fabric"
                return dataclasses.replace(before, dry_run=True, sources={**before.sources, "dry_run": dry_by}), {}, {}
            if before.silent:
                _say(before)
                return before, {}, {}
        faults: list[tuple[str, str]] = []

        def ask(name: str, value: Any) -> Any:
            return _asked(name, value, faults, args, kwargs, names) if callable(value) else value

        arguments = {name: ask(name, value) for name, value in self._values.items()}
        metadata, event_metadata = (
            _read(name, ask(name, value), faults)
            for name, value in (("metadata", self._metadata), ("event_metadata", self._event_metadata))
        )

        def look_up(outer: tuple[Identity, Settings | None] | None) -> Settings:
            inherited = _inherited(arguments, outer, surroundings.own)
            return resolve(arguments, outer=inherited, host=host, defaults=plugins_defaults, recording=recording)

        settings = None if outer is None else look_up(outer)
        for id, identity, _ in parents() if outer is None else ():
            settings = look_up((identity, None))
            if settings.silent or goes_on(settings, id):
                break
            settings = None
        if settings is None:
            settings = look_up(None)
        if settings.silent:
            _say(settings)
            return settings, {}, {}
        for name, line in faults:
            if settings.strict:
                raise SettingsError(line, field=name)
        require(settings)
        for _, line in faults:
            say_once(line)
        _say(settings)
        return settings, metadata, event_metadata


def _is_clear(name: str, value: object) -> bool:
    """Whether a value is of a right type, whatever the settings make of it."""
    return value is None or callable(value) or (isinstance(value, str) and name != "application_kind")


def _asked(
    name: str,
    value: Callable[..., Any],
    faults: list[tuple[str, str]],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    names: Sequence[str],
) -> Any:
    """Return what a callable field answers; None, and a line, if it raises."""
    try:
        given, named = _taken(value, args, kwargs, names)
        return value(*given, **named)
    except BaseException as error:
        if is_from_outside(error):
            raise
        faults.append(
            (
                name,
                f"deployment({name}=...): the callable raised {type(error).__name__}, so {name} counts as not given "
                "there. It is called with the arguments of the function or task; make it return a value, or None.",
            )
        )
        return None


def _taken(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], names: Sequence[str]
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Return the arguments that ``function`` is called with: all by their places, or none if it takes none.

    Where it has fewer places, the rest is given by name, for such as ``lambda c, **given: given["tag"]``.
    """
    if not args and not kwargs:
        return (), {}
    try:
        signature = inspect.signature(function)
    except ValueError:
        # Written in C and without a signature.
        return args, kwargs
    if not signature.parameters:
        return (), {}
    at = len(places(signature))
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in signature.parameters.values()):
        return args, kwargs
    if at < len(args) <= len(names):
        return args[:at], {**dict(zip(names[at:], args[at:], strict=False)), **kwargs}
    return args, kwargs


def places(signature: inspect.Signature) -> tuple[str, ...]:
    """Return the names of the parameters that have a place each."""
    placed = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(name for name, parameter in signature.parameters.items() if parameter.kind in placed)


def _read(name: str, value: Any, faults: list[tuple[str, str]]) -> dict[str, Any]:
    """Return a new dict with what a mapping holds; what cannot be read is a line."""
    try:
        if value is None or isinstance(value, Mapping):
            return dict(value or {})
        wrong = f"the callable returned {type(value).__name__}"
    except BaseException as error:
        if is_from_outside(error):
            raise
        wrong = f"reading the mapping raised {type(error).__name__}"
    faults.append((name, f"deployment({name}=...): {wrong}; it is left out. Make it a mapping, or None."))
    return {}


def _say(settings: Settings) -> None:
    for problem in settings.problems:
        say_once(problem.message)


def _inherited(
    arguments: Mapping[str, Any], outer: tuple[Identity, Settings | None] | None, own: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the outer deployment's fields, without those that the task has of its own.

    How a key is displayed comes along only with that key.
    """
    if outer is None:
        return {}
    identity, settings = outer
    inherited: dict[str, Any] = dict(identity._asdict())
    said = {**own, **{name: value for name, value in arguments.items() if value is not None}}
    if settings is not None and said.get("application_key") in (None, identity.application_key):
        inherited["application_name"] = settings.application_name
        inherited["application_kind"] = settings.application_kind
    if settings is not None and said.get("version") in (None, identity.version):
        inherited["version_name"] = settings.version_name
    return {name: value for name, value in inherited.items() if own.get(name) is None}
