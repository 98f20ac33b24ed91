"""Resolved, frozen settings, each value knowing where it came from.

First that is set wins: argument, the outer deployment's field, environment variable, the host's configuration
(``ld_deploy_hooks:`` in invoke.yaml or fabric.yaml), ``[tool.ld-deploy-hooks]`` in pyproject.toml, plugins' defaults. A
value that was set and cannot be used is not replaced by one from further down: an application that was named badly must
not become another one.

What is wrong is a :class:`Problem`. Only :func:`require` and :func:`check_argument_types` raise.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ld_deploy_hooks._errors import SettingsError
from ld_deploy_hooks._pyproject import find_table
from ld_deploy_hooks._records import APPLICATION_KINDS, legal_version

__all__ = [
    "REQUIRED",
    "VARIABLES",
    "Problem",
    "Secret",
    "Settings",
    "check_argument_types",
    "is_loopback",
    "require",
    "resolve",
]

REQUIRED = ("project_key", "environment_key", "application_key", "version")

_IN_PYPROJECT = (*REQUIRED, "application_name", "application_kind", "version_name", "strict")
_KEYS_OF_OTHER_ROOMS = ("tasks", "metadata", "event_metadata", "pre_and_post")
_SWITCHES = ("strict", "disabled", "dry_run")
_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_LONGEST_WAIT = 3600.0  # seconds; nobody waits longer than an hour for telemetry
_UNUSABLE_URI = "unusable"  # what events are bound to where nothing of a base URI could be kept

# The mark of each CI system that launchdarkly.md lists, and the one that most of them share.
_CI_MARKS: tuple[str, ...] = ("BITBUCKET_BUILD_NUMBER", "BUILDKITE", "CI", "CIRCLECI", "CODEBUILD_BUILD_ID", "DRONE")
_CI_MARKS += ("GITHUB_ACTIONS", "GITLAB_CI", "JENKINS_URL", "TEAMCITY_VERSION", "TF_BUILD", "TRAVIS")

# Less than RFC 3986 allows, on purpose: what two parsers could read differently is refused, not interpreted.
_BASE_URI = re.compile(
    r"(?P<scheme>https?)://(?P<host>([a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}\.?|\[[0-9a-f:.]+\])"
    r"(:(?P<port>[0-9]{1,5}))?(?P<path>(/[!$-.0-9:;=A-Z_a-z~]*)*)",
    re.ASCII | re.IGNORECASE,
)
# Where LaunchDarkly documents engineering insights as not available.
_WITHOUT_INSIGHTS = ("app.launchdarkly.us", "app.eu.launchdarkly.com")


class Secret:
    """A string that shows itself to nobody: masked in repr, str and format, not picklable. Equal by value."""

    __slots__ = ("__value",)

    def __init__(self, value: str) -> None:
        self.__value = value

    def reveal(self) -> str:
        """Return the value in clear: for the request's header and for redaction, nothing else."""
        return self.__value

    def __repr__(self) -> str:
        return "****"

    def __format__(self, specification: str) -> str:
        return "****"

    def __eq__(self, other: object) -> bool:
        return self.__value == other.__value if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash((Secret, self.__value))

    def __reduce_ex__(self, protocol: object) -> Any:
        raise TypeError("a Secret cannot be pickled or copied: it would leave the process in clear")


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with the settings.

    Attributes:
        field: the setting's name, or the unknown key, or the name of what could not be read.
        message: one line: what, where, what follows, the next step. Holds neither the token nor a base URI's user.
        fault: False for a mere warning, for which ``strict`` does not raise.
    """

    field: str
    message: str
    fault: bool


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


class _Unusable(Exception):
    """A value cannot be used: what is wrong with it, and what to do instead."""

    def __init__(self, wrong: str, instead: str) -> None:
        super().__init__(wrong)
        self.wrong = wrong
        self.instead = instead


def _text(value: object) -> str:
    """Return text, also from what YAML and TOML make of bare words: ``version: 12``, ``version: 2024-01-15``."""
    import datetime

    if isinstance(value, bool):
        raise _Unusable("is true or false, not text", "put it in quotes (YAML reads a bare yes, no, on or off as that)")
    if isinstance(value, (int, float)) and abs(value) < 1e100:  # Python writes no number of 5,000 digits
        value = str(value)
    elif type(value) is datetime.date:
        value = value.isoformat()
    if not isinstance(value, str):
        raise _Unusable(f"is of type {type(value).__name__}, not text", "write it as text, in quotes")
    if not value.strip():
        raise _Unusable("is empty", "give it a value or leave it out")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Unusable("holds bytes that are no UTF-8 text", "write it as UTF-8") from None
    return value.strip()


def _token(value: object) -> Secret:
    return Secret(_text(value.reveal() if isinstance(value, Secret) else value))


def _kind(value: object) -> str:
    kind = _text(value)
    if kind not in APPLICATION_KINDS:
        raise _Unusable(f"is {kind!r}", f"write one of {', '.join(APPLICATION_KINDS)}")
    return kind


def _header(value: object) -> str:
    header = _text(value)
    if not header.isascii() or not header.isprintable():
        raise _Unusable("holds characters that no HTTP header may hold", "write plain ASCII such as beta")
    return header


def _path(value: object) -> Path:
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path.strip() or "\0" in path:
        raise _Unusable("is no path", "write the path of a file, as text")
    try:
        return Path(path.strip()).expanduser()
    except RuntimeError:
        raise _Unusable("begins with a home folder (~) that is not known", "write an absolute path") from None


def _seconds(value: object) -> float:
    seconds = math.nan
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except (ValueError, OverflowError):
            seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0:
        raise _Unusable("is no finite number from 0 up", "write seconds, such as 5, or 0 for no wait")
    return seconds


def _switch(value: object) -> bool:
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    answer = _WORDS.get(value.strip().lower()) if isinstance(value, str) else None
    if answer is None:
        raise _Unusable("is neither on nor off", "write one of 1/true/yes/on or 0/false/no/off")
    return answer


def _names(value: object) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise _Unusable("is no list of names", "write modules' names, separated by commas")
    return tuple(name.strip() for name in names if name.strip())


@dataclass(frozen=True)
class _Field:
    """How a field is read. ``then`` and ``otherwise``: what follows where it was set and cannot be used."""

    variable: str
    read: Callable[[object], object]
    then: str
    types: tuple[type, ...] = (str,)
    default: object = None
    otherwise: object = None


_UNTOLD = "this deployment is not told to LaunchDarkly"
_WAITING = "events are recorded and wait"
_LEFT_OUT = "it is left out"
_DEFAULT = "the default is used"
_ON = "it counts as on, nothing is sent"
_LONELY = "no plugin is loaded by itself"
_LD = "https://app.launchdarkly.com"

_FIELDS: Mapping[str, _Field] = {
    "access_token": _Field("LD_ACCESS_TOKEN", _token, _WAITING, (str, Secret)),
    "base_uri": _Field("LD_BASE_URI", _text, _WAITING, default=_LD, otherwise=_UNUSABLE_URI),
    "project_key": _Field("LD_PROJECT", _text, _UNTOLD),
    "environment_key": _Field("LD_ENVIRONMENT", _text, _UNTOLD),
    "application_key": _Field("LD_DEPLOY_APPLICATION_KEY", _text, _UNTOLD),
    "version": _Field("LD_DEPLOY_VERSION", _text, _UNTOLD),
    "application_name": _Field("LD_DEPLOY_APPLICATION_NAME", _text, _LEFT_OUT),
    "application_kind": _Field("LD_DEPLOY_APPLICATION_KIND", _kind, _LEFT_OUT),
    "version_name": _Field("LD_DEPLOY_VERSION_NAME", _text, _LEFT_OUT),
    "api_version": _Field("LD_DEPLOY_API_VERSION", _header, _DEFAULT, default="beta"),
    "outbox": _Field("LD_DEPLOY_OUTBOX", _path, _DEFAULT, (str, os.PathLike)),
    "flush_timeout": _Field("LD_DEPLOY_FLUSH_TIMEOUT", _seconds, _DEFAULT, (int, float)),
    "strict": _Field("LD_DEPLOY_STRICT", _switch, "it counts as off", (bool,), False, False),
    "disabled": _Field("LD_DEPLOY_DISABLED", _switch, _ON, (bool,), False, True),
    "dry_run": _Field("LD_DEPLOY_DRY_RUN", _switch, _ON, (bool,), False, True),
    "plugins": _Field("LD_DEPLOY_PLUGINS", _names, "none is loaded or blocked by name", (str, list, tuple), ()),
    "plugin_autoload": _Field("LD_DEPLOY_DISABLE_PLUGIN_AUTOLOAD", _switch, _LONELY, (bool,), True, False),
}

VARIABLES: Mapping[str, str] = MappingProxyType({name: field.variable for name, field in _FIELDS.items()})


def check_argument_types(**fields: object) -> None:
    """Check what was written in code, where it was written; None means not set.

    Raises:
        TypeError: a value is of a wrong type, or a keyword is no setting.
        ValueError: ``application_kind`` is none of LaunchDarkly's.
    """
    for name, value in fields.items():
        if name not in _FIELDS:
            raise TypeError(f"{name!r} is no setting: {_nearest(name)}")
        types = _FIELDS[name].types
        if value is None:
            continue
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            wanted = " or ".join(kind.__name__ for kind in types)
            raise TypeError(f"{name} must be of type {wanted}, not {type(value).__name__}")
        if isinstance(value, (list, tuple)) and not all(isinstance(item, str) for item in value):
            raise TypeError(f"{name} must hold names, each of type str")
        if name == "application_kind" and value not in APPLICATION_KINDS:
            raise ValueError(f"application_kind must be one of {', '.join(APPLICATION_KINDS)}, not {value!r}")


def _nearest(name: object) -> str:
    import difflib

    near = difflib.get_close_matches(str(name), _FIELDS, n=1)
    return f"did you mean {near[0]}?" if near else f"what can be set is {', '.join(_FIELDS)}"


def _parsed(base_uri: str) -> re.Match[str] | None:
    parsed = _BASE_URI.fullmatch(base_uri)
    if parsed is None or not 0 < int(parsed["port"] or 1) < 65536:
        return None
    if parsed["host"].startswith("["):
        import ipaddress

        try:
            ipaddress.IPv6Address(parsed["host"][1:-1])
        except ValueError:
            return None
    return parsed


def is_loopback(base_uri: str) -> bool:
    """Return whether the host of ``base_uri`` is plainly this machine: ``localhost``, 127.0.0.0/8 or ``[::1]``.

    What some resolver might read as something else (``localhost.``, ``127.1``, ``2130706433``, anything with an ``@``)
    is not. Never raises.
    """
    import ipaddress

    parsed = _parsed(base_uri)
    host = parsed["host"].lower().strip("[]") if parsed is not None else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address in ipaddress.ip_network("127.0.0.0/8") or address == ipaddress.ip_address("::1")


def _without_user(text: str) -> str:
    """Return what may be kept of a base URI that is none: no user, password or query; nothing where in doubt."""
    rough = re.match(r"([A-Za-z][A-Za-z0-9+.-]*://)?([^/?#]*)([^?#]*)", text)
    scheme, authority, path = rough.groups(default="") if rough is not None else ("", "", "")
    if "@" in text[len(scheme) + len(authority) :]:  # perhaps a password with a slash in it
        return _UNUSABLE_URI
    kept = re.sub("[^!-~]", "?", scheme + authority.rpartition("@")[2] + path)
    return kept.rstrip("/") or _UNUSABLE_URI


def _check_base_uri(values: dict[str, Any], sources: Mapping[str, str]) -> Iterator[Problem]:
    text: str = values["base_uri"]
    source = sources["base_uri"]
    parsed = _parsed(text)
    if parsed is None:
        kept = values["base_uri"] = _without_user(text)
        wrong, instead = f"({kept!r}) is no plain http(s) address", f"write one such as {_LD}"
        if "@" in text:
            wrong, instead = f"holds a user or password (kept is {kept!r})", "leave out what stands before the @"
        yield _problem("base_uri", source, wrong, _WAITING, instead)
        return
    port = f":{int(parsed['port'])}" if parsed["port"] else ""
    kept = f"{parsed['scheme']}://{parsed['host']}".lower() + port + parsed["path"].rstrip("/")
    values["base_uri"] = kept
    if kept.startswith("http:") and not is_loopback(kept):
        wrong = f"({kept!r}) would show the token to the network"
        instead = "write https (plain http goes to localhost, 127.x.x.x and [::1] only)"
        yield _problem("base_uri", source, wrong, _WAITING, instead)
    if parsed["host"].lower() in _WITHOUT_INSIGHTS:
        wrong = f"({kept!r}) is documented as without engineering insights"
        then, instead = "events are sent all the same", f"see whether they arrive, or set {VARIABLES['base_uri']}"
        yield _problem("base_uri", source, wrong, then, instead, fault=False)


def _check_token(token: Secret | None, source: str) -> Iterator[Problem]:
    value = "" if token is None else token.reveal()
    wrong = ""
    if value.lower().startswith("sdk-"):
        wrong = "is an SDK key (sdk-...), which cannot call LaunchDarkly's API"
    elif value.lower().startswith("mob-"):
        wrong = "is a mobile key (mob-...), which cannot call LaunchDarkly's API"
    elif not value.isprintable() or any(character > "\xff" for character in value):
        wrong = "holds characters that no HTTP header may hold"
    if wrong:
        instead = "create an access token (api-...) with the Writer role in LaunchDarkly and set"
        yield _problem("access_token", source, wrong, _WAITING, f"{instead} {VARIABLES['access_token']}")


def _check_version(values: dict[str, Any], sources: dict[str, str]) -> Iterator[Problem]:
    version: str = values["version"] or ""
    legal, source = legal_version(version), sources["version"]
    if legal == version:
        return
    wrong = f"is {version!r}, and LaunchDarkly takes letters, digits, '.', '-' and '_' only"
    if not legal:
        values["version"], sources["version"] = None, "default"
        yield _problem("version", source, wrong, _UNTOLD, "give it a version such as the commit's SHA")
        return
    values["version"] = legal
    if values["version_name"] is None:
        values["version_name"], sources["version_name"] = version, source
    then = f"{legal!r} is told, with the name {values['version_name']!r}"
    yield _problem("version", source, wrong, then, "set a legal version, and this one as version_name")


def _check_outbox(values: dict[str, Any], sources: dict[str, str], start: Path | None) -> Iterator[Problem]:
    outbox: Path | None = values["outbox"]
    if outbox is not None and start is not None:
        outbox = start / outbox
    if outbox is not None and not outbox.is_absolute():
        wrong = "is relative to a working directory that is gone"
        yield _problem("outbox", sources["outbox"], wrong, _DEFAULT, "write an absolute path")
        outbox = None
    if outbox is None:
        sources["outbox"] = "default"
        outbox = _state_folder() / "outbox.db"
    if not outbox.is_absolute():
        # /var/tmp outlives a reboot, /tmp need not. A folder for each user: no two share an outbox.
        outbox = Path(os.sep, "var", "tmp", f"ld-deploy-hooks-{os.getuid()}", "outbox.db")
        then, instead = f"events are kept in {outbox}", f"set {VARIABLES['outbox']} to a file that stays"
        wrong = "belongs into this user's home folder, which is not known"
        yield _problem("outbox", "default", wrong, then, instead, fault=False)
    values["outbox"] = outbox


def _state_folder() -> Path:
    import platformdirs

    try:
        return platformdirs.user_state_path("ld-deploy-hooks", appauthor=False)
    except RuntimeError:  # newer versions do not know the home folder so; older ones leave the ~ where it was
        return Path("~")


def _is_on(variable: str | None) -> bool:
    """Return whether a variable that others define is set, and to no plain no."""
    return bool(variable and variable.strip()) and _WORDS.get(str(variable).strip().lower()) is not False


def _check_flush_timeout(values: dict[str, Any], source: str, environ: Mapping[str, str]) -> Iterator[Problem]:
    if values["flush_timeout"] is None:
        values["flush_timeout"] = 10.0 if any(_is_on(environ.get(mark)) for mark in _CI_MARKS) else 2.0
    elif values["flush_timeout"] > _LONGEST_WAIT:
        values["flush_timeout"] = _LONGEST_WAIT
        then = f"{_LONGEST_WAIT:g} s are used"
        yield _problem("flush_timeout", source, "is more than an hour", then, "write 3600 or less", fault=False)


def _problem(name: str, source: str, wrong: str, then: str, instead: str, *, fault: bool = True) -> Problem:
    return Problem(name, f"{name} ({source}) {wrong}: {then}; {instead}", fault)


def _missing(name: str) -> Problem:
    ways = (
        f"{name}=... in code, {VARIABLES[name]} in the environment, {name} under ld_deploy_hooks: in invoke.yaml or "
        f"fabric.yaml, {name} under [tool.ld-deploy-hooks] in pyproject.toml, or a plugin's ld_deploy_provide_defaults"
    )
    return Problem(name, f"{name} is not set: {_UNTOLD}; set it by one of {ways}", fault=True)


def _one_line(problem: Problem, token: Secret | None) -> Problem:
    """Return ``problem`` as a line that any stream can print, without the token, wherever that came in from."""
    message = problem.message if token is None else problem.message.replace(token.reveal(), "****")
    return replace(problem, message="".join(sign if sign.isprintable() else "?" for sign in message))


class _Gathering:
    """What the sources have said so far; the first to name a field has it."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[Any, str]] = {}
        self.unusable: set[str] = set()
        self.problems: list[Problem] = []

    def take(self, source: str, values: object, *, plugin: str | None = None) -> None:
        """Take what nobody set before. What a plugin gives and cannot be used leaves the field to the next plugin."""
        if not isinstance(values, Mapping):
            unusable = _Unusable(f"are of type {type(values).__name__}, not a mapping", "write field: value")
            self._refuse("settings", source, unusable, "they are ignored", plugin)
            return
        for name, value in values.items():
            if value is None or name in self.found:
                continue
            field = _FIELDS.get(name)
            try:
                if field is None:
                    raise _Unusable("is no setting", _nearest(name))
                if plugin is not None and name in ("plugins", "plugin_autoload"):
                    raise _Unusable("comes when plugins are loaded already", f"set {field.variable}")
                self.found[name] = field.read(value), source
            except _Unusable as unusable:
                if field is None or plugin is not None:
                    self._refuse(str(name), source, unusable, "it is ignored", plugin)
                else:
                    self._refuse(name, source, unusable, field.then)
                    self.found[name] = field.otherwise, source
                    self.unusable.add(name)
                continue
            if field.read is _text and isinstance(value, float):
                wrong, then = f"is the number {value}, and 1.20 would have become 1.2", "it is used as text"
                self.problems.append(_problem(name, source, wrong, then, "put it in quotes", fault=False))

    def _refuse(self, name: str, source: str, why: _Unusable, then: str, plugin: str | None = None) -> None:
        instead = why.instead
        if plugin is not None:
            instead += f" (in its ld_deploy_provide_defaults, or block it with LD_DEPLOY_PLUGINS=no:{plugin})"
        self.problems.append(_problem(name, source, why.wrong, then, instead, fault=plugin is None))

    def take_environment(self, environ: Mapping[str, str]) -> None:
        for name, variable in VARIABLES.items():
            value = environ.get(variable, "").strip()
            if name == "plugin_autoload" and value.lower() in _WORDS:  # this variable switches it off
                value = str(not _WORDS[value.lower()])
            if value:
                self.take(variable, {name: value})

    def take_pyproject(self, start: Path) -> None:
        project = find_table(start)
        for unread in project.unread:
            self.problems.append(Problem("pyproject.toml", f"{unread.path} {unread.why}", unread.fault))
        source = str(project.path)
        refused = [name for name in project.table if name in _FIELDS and name not in _IN_PYPROJECT]
        for name in refused:
            wrong = "is refused, as pyproject.toml is found by walking up from wherever the deploy was started"
            then = "it may not decide where the token goes or what code runs"
            instead = f"set {VARIABLES[name]}, or {name} under ld_deploy_hooks: in invoke.yaml or fabric.yaml"
            self.problems.append(_problem(name, source, wrong, then, instead))
        self.take(source, {name: value for name, value in project.table.items() if name not in refused})

    def settings(self, environ: Mapping[str, str], start: Path | None, *, complete: bool) -> Settings:
        """Return the settings so far; only complete ones tell what is missing."""
        values: dict[str, Any] = {name: field.default for name, field in _FIELDS.items()}
        sources = dict.fromkeys(_FIELDS, "default")
        for name, (value, source) in self.found.items():
            if value is not None:
                values[name], sources[name] = value, source
        token: Secret | None = values["access_token"]
        checked = [
            *_check_token(token, sources["access_token"]),
            *(() if "base_uri" in self.unusable else _check_base_uri(values, sources)),
            *_check_version(values, sources),
            *_check_outbox(values, sources, start),
            *_check_flush_timeout(values, sources["flush_timeout"], environ),
        ]
        unusable = self.unusable.union(problem.field for problem in checked if problem.fault)
        problems = [*self.problems, *checked]
        if complete and not values["dry_run"]:
            problems += [_missing(name) for name in REQUIRED if values[name] is None and name not in unusable]
        if values["disabled"]:  # the emergency switch: nothing else matters, least of all to strict
            problems = [problem for problem in problems if problem.field in _SWITCHES]
        return Settings(
            **values,
            sources=MappingProxyType(sources),
            problems=tuple(_one_line(problem, token) for problem in problems),
            sendable=token is not None and unusable.isdisjoint(("access_token", "base_uri")),
        )


def _is_pytest(environ: Mapping[str, str]) -> bool:
    """Return whether a test runs that did not ask for real deployments by an ``LD_DEPLOY_DISABLED`` that is off."""
    asked = _WORDS.get(environ.get("LD_DEPLOY_DISABLED", "").strip().lower()) is False
    return not asked and bool(environ.get("PYTEST_VERSION") or environ.get("PYTEST_CURRENT_TEST"))


def _folder(start: Path | None) -> Path | None:
    """Return the real, absolute folder to start from; None if the working directory is gone."""
    try:
        return (Path.cwd() if start is None else start).resolve()
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
    """
    environ = os.environ if environ is None else environ
    start = _folder(start)
    gathering = _Gathering()
    if _is_pytest(environ):
        gathering.found["disabled"] = (True, "pytest is running")
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
    return gathering.settings(environ, start, complete=True)
