"""Which source wins: the sources one after the other, and the settings that come out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ld_deploy_hooks._errors import SettingsError
from ld_deploy_hooks._outside import is_from_outside
from ld_deploy_hooks._pyproject import find_table
from ld_deploy_hooks._settings._checks import (
    IN_TESTS,
    Problem,
    check_base_uri,
    check_flush_timeout,
    check_interpreter,
    check_outbox,
    check_token,
    check_version,
    new_problem,
    not_for_tests,
)
from ld_deploy_hooks._settings._table import FIELDS, REQUIRED, VARIABLES, missing, nearest
from ld_deploy_hooks._settings._values import WORDS, Secret, Unusable, read_text
from ld_deploy_hooks._testrun import LOOPBACK, VARIABLE, Recording, reason_to_hold

_IN_PYPROJECT = (*REQUIRED, "application_name", "application_kind", "version_name", "strict")
_KEYS_OF_OTHER_ROOMS = ("tasks", "metadata", "event_metadata", "pre_and_post")
_SWITCHES = ("strict", "disabled", "dry_run")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting, as ``docs/settings.md`` lists them.

    Attributes:
        outbox: absolute path of the outbox file.
        flush_timeout: how long the process may wait at its end for events on their way, in seconds, 0 to 3600.
        plugins: modules to load, and ``no:NAME`` for those to block.
        sources: for every field where its value came from; ``"default"`` where nobody set it.
        problems: what is wrong, in the order of the sources. With ``disabled`` on only what concerns the switches.
        sendable: token and base URI can be used. Otherwise events are recorded for ``base_uri`` and wait.
        recording: what records the events of a test in place of outbox and sender; None otherwise.
    """

    access_token: Secret | None
    base_uri: str
    project_key: str | None
    environment_key: str | None
    application_key: str | None
    version: str | None
    application_name: str | None
    application_kind: str | None
    version_name: str | None
    api_version: str
    outbox: Path
    flush_timeout: float
    strict: bool
    disabled: bool
    dry_run: bool
    plugins: tuple[str, ...]
    plugin_autoload: bool
    sources: Mapping[str, str]
    problems: tuple[Problem, ...]
    sendable: bool
    recording: Recording | None = None

    @property
    def silent(self) -> bool:
        """Whether nothing at all is told: ``disabled`` or ``dry_run``."""
        return self.disabled or self.dry_run

    @property
    def missing(self) -> tuple[str, ...]:
        """The names of the required fields that have no value."""
        return tuple(name for name in REQUIRED if getattr(self, name) is None)


def require(settings: Settings) -> None:
    """Raise for the first fault if ``strict`` is on. Lines for the rest are said by who asked for the settings.

    Raises:
        SettingsError: a setting is missing or cannot be used, and ``strict`` is on.
    """
    for problem in settings.problems:
        if settings.strict and problem.fault:
            raise SettingsError(problem.message, field=problem.field)


def _one_line(problem: Problem, token: Secret | None) -> Problem:
    """Return ``problem`` as a line that any stream can print, without the token, wherever that came in from."""
    message = problem.message if token is None else problem.message.replace(token.reveal(), "****")
    return problem._replace(message="".join(sign if sign.isprintable() else "?" for sign in message))


class _Gathering:
    """What the sources have said so far; the first to name a field has it."""

    def __init__(self, recording: Recording | None) -> None:
        self.found: dict[str, tuple[Any, str]] = {}
        self._recording = recording
        self.unusable: set[str] = set()
        self.problems: list[Problem] = []

    def take(self, source: str, values: object, *, plugin: str | None = None) -> None:
        """Take what nobody set before. What a plugin gives and cannot be used leaves the field to the next plugin."""
        if not isinstance(values, Mapping):
            unusable = Unusable(f"are of type {type(values).__name__}, not a mapping", "write field: value")
            self._refuse("settings", source, unusable, "they are ignored", plugin)
            return
        for name, value in values.items():
            if value is None or name in self.found:
                continue
            field = FIELDS.get(name)
            try:
                if field is None:
                    raise Unusable("is no setting", nearest(name))
                if plugin is not None and name in ("plugins", "plugin_autoload"):
                    raise Unusable("comes when plugins are loaded already", f"set {field.variable}")
                self.found[name] = field.read(value), source
            except Exception as error:
                if is_from_outside(error):
                    raise
                # Anything else is of the value's own making.
                unusable = error if isinstance(error, Unusable) else Unusable("cannot be read", "give a plain value")
                if field is None or plugin is not None:
                    self._refuse(str(name), source, unusable, "it is ignored", plugin)
                else:
                    self._refuse(name, source, unusable, field.then)
                    self.found[name] = field.otherwise, source
                    self.unusable.add(name)
                continue
            if field.read is read_text and isinstance(value, float):
                wrong, then = f"is the number {value}, and 1.20 would have become 1.2", "it is used as text"
                self.problems.append(new_problem(name, source, wrong, then, "put it in quotes", fault=False))

    def _refuse(self, name: str, source: str, why: Unusable, then: str, plugin: str | None = None) -> None:
        instead = why.instead
        if plugin is not None:
            instead += f" (in its ld_deploy_provide_defaults, or block it with LD_DEPLOY_PLUGINS=no:{plugin})"
        self.problems.append(new_problem(name, source, why.wrong, then, instead, fault=plugin is None))

    def take_environment(self, environ: Mapping[str, str]) -> None:
        for name, variable in VARIABLES.items():
            value = environ.get(variable, "").strip()
            if name == "plugin_autoload" and value.lower() in WORDS:  # this variable switches it off
                value = str(not WORDS[value.lower()])
            if value:
                self.take(variable, {name: value})

    def take_pyproject(self, start: Path) -> None:
        project = find_table(start)
        for unread in project.unread:
            self.problems.append(Problem("pyproject.toml", f"{unread.path} {unread.why}", unread.fault))
        source = str(project.path)
        refused = [name for name in project.table if name in FIELDS and name not in _IN_PYPROJECT]
        for name in refused:
            wrong = "is refused, as pyproject.toml is found by walking up from wherever the deploy was started"
            then = "it may not decide where the token goes or what code runs"
            instead = f"set {VARIABLES[name]}, or {name} under ld_deploy_hooks: in invoke.yaml or fabric.yaml"
            self.problems.append(new_problem(name, source, wrong, then, instead))
        self.take(source, {name: value for name, value in project.table.items() if name not in refused})

    def settings(self, environ: Mapping[str, str], start: Path | None, *, complete: bool) -> Settings:
        """Return the settings so far; only complete ones tell what is missing."""
        values: dict[str, Any] = {name: field.default for name, field in FIELDS.items()}
        sources = dict.fromkeys(FIELDS, "default")
        for name, (value, source) in self.found.items():
            if value is not None:
                values[name], sources[name] = value, source
        token: Secret | None = values["access_token"]
        checked = [
            *check_token(token, sources["access_token"]),
            *(() if "base_uri" in self.unusable else check_base_uri(values, sources)),
            *check_version(values, sources),
            *check_outbox(values, sources, start),
            *check_flush_timeout(values, sources["flush_timeout"], environ),
        ]
        unusable = self.unusable.union(problem.field for problem in checked if problem.fault)
        problems = [*self.problems, *checked]
        if complete and not values["dry_run"]:
            problems += [missing(name) for name in REQUIRED if values[name] is None and name not in unusable]
        if values["disabled"]:  # the emergency switch: nothing else matters, least of all to strict
            problems = [problem for problem in problems if problem.field in _SWITCHES]
        return Settings(
            **values,
            sources=MappingProxyType(sources),
            problems=tuple(_one_line(problem, token) for problem in problems),
            sendable=token is not None and unusable.isdisjoint(("access_token", "base_uri")),
            recording=self._recording,
        )


def _disabled(settings: Settings, why: str) -> Settings:
    sources = MappingProxyType({**settings.sources, "disabled": why})
    return replace(settings, disabled=True, sources=sources, problems=())


def _folder(start: Path | None) -> Path | None:
    """Return the real, absolute folder to start from; None if the working directory is gone."""
    try:
        return Path.cwd() if start is None else start.resolve()
    except (OSError, RuntimeError):  # RuntimeError: a loop of symbolic links, before Python 3.13
        return None


def resolve(
    arguments: Mapping[str, object] | None = None,
    *,
    outer: Mapping[str, object] | None = None,
    host: Mapping[str, object] | None = None,
    host_name: str = "invoke.yaml or fabric.yaml (ld_deploy_hooks)",
    environ: Mapping[str, str] | None = None,
    start: Path | None = None,
    defaults: Callable[[Settings], Iterable[tuple[str, Mapping[str, object]]]] | None = None,
    recording: Recording | None = None,
) -> Settings:
    """Return the settings of one run. No value, whatever it is, makes it raise; None values mean not set.

    Args:
        arguments: what was given in code or on a command line.
        outer: the fields of the deployment around this one.
        host: Invoke's or Fabric's configuration under ``ld_deploy_hooks``; the keys that other rooms read (``tasks``,
            ``metadata``, ``event_metadata``, ``pre_and_post``) are passed over.
        host_name: how that configuration is named in lines and sources.
        environ: the environment, ``os.environ`` if left out; an empty variable is not set.
        start: where the deploy was started, the working directory if left out.
        defaults: called with the settings so far, unless they are silent; yields plugins' names and values. An earlier
            plugin wins.
        recording: what the test that runs records deployments with. Otherwise a test run is disabled, whatever the
            sources say; one that may tell (``LD_DEPLOY_PYTEST=loopback``) is by :func:`not_for_tests`.
    """
    hold = reason_to_hold(environ) if recording is None else None
    environ = os.environ if environ is None else environ
    start = _folder(start)
    gathering = _Gathering(recording)
    may_tell = hold is not None and environ.get(VARIABLE) == LOOPBACK
    if hold is not None and not may_tell:
        gathering.found["disabled"] = (True, hold)
    if hold is None and recording is None and (elsewhere := check_interpreter()) is not None:
        gathering.problems.append(elsewhere)
        gathering.found["disabled"] = (True, "a subinterpreter")
    gathering.take("argument", arguments or {})
    gathering.take("outer deployment", outer or {})
    gathering.take_environment(environ)
    if isinstance(host, Mapping):
        host = {key: value for key, value in host.items() if key not in _KEYS_OF_OTHER_ROOMS}
    gathering.take(host_name, {} if host is None else host)
    if start is not None:
        gathering.take_pyproject(start)
    if defaults is not None:
        so_far = gathering.settings(environ, start, complete=False)
        for plugin, values in () if so_far.silent else defaults(so_far):
            gathering.take(f"plugin {plugin}", values, plugin=plugin)
    if may_tell or recording is not None:
        gathering.take("test", IN_TESTS)
    settings = gathering.settings(environ, start, complete=True)
    if may_tell and (why := not_for_tests(settings.base_uri, settings.sources)):
        return _disabled(settings, f"{hold}, and {why}")
    return settings
