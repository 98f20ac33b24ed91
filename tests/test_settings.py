"""The settings: which source wins, what is refused, what is said about it, and what never gets into a line."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import math
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from ld_deploy_hooks._errors import SettingsError
from ld_deploy_hooks._settings import (
    REQUIRED,
    VARIABLES,
    Problem,
    Secret,
    Settings,
    check_argument_types,
    is_loopback,
    require,
    resolve,
)

HOST = "invoke.yaml or fabric.yaml (ld_deploy_hooks)"
FULL = {"LD_PROJECT": "p", "LD_ENVIRONMENT": "e", "LD_DEPLOY_APPLICATION_KEY": "a", "LD_DEPLOY_VERSION": "v"}
TOKEN = "api-12345678-90ab"
Defaults = Callable[[Settings], Iterable[tuple[str, Mapping[str, object]]]]

as_root = pytest.mark.skipif(
    not hasattr(os, "setresuid") or os.geteuid() != 0, reason="only root can act as another user and come back"
)
on_posix = pytest.mark.skipif(os.name != "posix", reason="file owners and named pipes are POSIX's")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a folder above which nothing is looked for."""
    root = tmp_path / "repository"
    (root / ".git").mkdir(parents=True)
    return root


@pytest.fixture
def settle(repository: Path) -> Callable[..., Settings]:
    """Return ``resolve`` in a repository without files and with an environment of its own."""

    def settle(
        arguments: Mapping[str, object] | None = None, *, environ: Mapping[str, str] = {}, **how: Any
    ) -> Settings:
        return resolve(arguments, environ=environ, **{"start": repository, **how})

    return settle


def plugins(*values: tuple[str, Mapping[str, object]]) -> Defaults:
    """Return what a plugin manager would hand in: plugins' names and defaults."""
    return lambda settings: values


def about(settings: Settings, field: str) -> Problem:
    """Return the one problem of a field."""
    (problem,) = [problem for problem in settings.problems if problem.field == field]
    return problem


def write(folder: Path, text: str | bytes) -> Path:
    """Write a pyproject.toml and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pyproject.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# -- which source wins ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strongest", range(6))
def test_the_first_source_that_is_set_wins(repository: Path, strongest: int) -> None:
    path = write(repository, "[tool.ld-deploy-hooks]\nproject_key = 'from pyproject'")
    sources = [
        ({"arguments": {"project_key": "from argument"}}, "argument"),
        ({"outer": {"project_key": "from outer"}}, "outer deployment"),
        ({"environ": {"LD_PROJECT": "from environment"}}, "LD_PROJECT"),
        ({"host": {"project_key": "from host"}}, HOST),
        ({}, str(path)),
        ({"defaults": plugins(("git", {"project_key": "from plugin"}))}, "plugin git"),
    ]
    how: dict[str, Any] = {"environ": {}}
    for source, _ in sources[strongest:]:
        how |= source
    if strongest > 4:
        path.unlink()
    settings = resolve(how.pop("arguments", None), start=repository, **how)
    wanted = ["argument", "outer", "environment", "host", "pyproject", "plugin"][strongest]
    assert settings.project_key == f"from {wanted}"
    assert settings.sources["project_key"] == sources[strongest][1]


BY_VARIABLE = [
    ("LD_ACCESS_TOKEN", TOKEN, "access_token", Secret(TOKEN)),
    ("LD_BASE_URI", "https://ld.example", "base_uri", "https://ld.example"),
    ("LD_PROJECT", "p", "project_key", "p"),
    ("LD_ENVIRONMENT", "e", "environment_key", "e"),
    ("LD_DEPLOY_APPLICATION_KEY", "a", "application_key", "a"),
    ("LD_DEPLOY_VERSION", "1.2", "version", "1.2"),
    ("LD_DEPLOY_APPLICATION_NAME", "The A", "application_name", "The A"),
    ("LD_DEPLOY_APPLICATION_KIND", "browser", "application_kind", "browser"),
    ("LD_DEPLOY_VERSION_NAME", "Tuesday", "version_name", "Tuesday"),
    ("LD_DEPLOY_API_VERSION", "20240415", "api_version", "20240415"),
    ("LD_DEPLOY_OUTBOX", "/var/spool/ld.db", "outbox", Path("/var/spool/ld.db")),
    ("LD_DEPLOY_FLUSH_TIMEOUT", "7.5", "flush_timeout", 7.5),
    ("LD_DEPLOY_STRICT", "yes", "strict", True),
    ("LD_DEPLOY_DISABLED", "on", "disabled", True),
    ("LD_DEPLOY_DRY_RUN", "1", "dry_run", True),
    ("LD_DEPLOY_PLUGINS", "acme.hooks, no:console,", "plugins", ("acme.hooks", "no:console")),
    ("LD_DEPLOY_DISABLE_PLUGIN_AUTOLOAD", "1", "plugin_autoload", False),
]


@pytest.mark.parametrize(("variable", "text", "field", "value"), BY_VARIABLE)
def test_every_field_has_its_environment_variable(
    settle: Callable[..., Settings], variable: str, text: str, field: str, value: object
) -> None:
    settings = settle(environ={**FULL, variable: f" {text}\n"})
    assert getattr(settings, field) == value
    assert settings.sources[field] == variable == VARIABLES[field]
    assert settings.problems == ()


def test_every_field_is_among_those_with_a_variable() -> None:
    about_settings = {"sources", "problems", "sendable", "recording"}
    fields = {field.name for field in dataclasses.fields(Settings)} - about_settings
    assert fields == {field for _, _, field, _ in BY_VARIABLE} == set(VARIABLES)


@pytest.mark.parametrize("source", ["argument", "host", "plugin"])
@pytest.mark.parametrize(
    ("field", "given", "value"),
    [
        ("access_token", TOKEN, Secret(TOKEN)),
        ("access_token", Secret(f"{TOKEN}\n"), Secret(TOKEN)),
        ("base_uri", "http://localhost:8030/", "http://localhost:8030"),
        ("project_key", "p", "p"),
        ("application_name", " The A ", "The A"),
        ("application_kind", "mobile", "mobile"),
        ("api_version", 20240415, "20240415"),
        ("outbox", "/var/spool/ld.db", Path("/var/spool/ld.db")),
        ("outbox", Path("/var/spool/ld.db"), Path("/var/spool/ld.db")),
        ("flush_timeout", 0, 0.0),
        ("flush_timeout", "5", 5.0),
        ("strict", True, True),
        ("strict", "off", False),
        ("strict", 1, True),
        ("disabled", True, True),
        ("dry_run", True, True),
    ],
)
def test_values_of_code_yaml_and_plugins_are_read_alike(
    settle: Callable[..., Settings], source: str, field: str, given: object, value: object
) -> None:
    how: dict[str, Any] = {
        "argument": {"arguments": {field: given}},
        "host": {"host": {field: given}},
        "plugin": {"defaults": plugins(("x", {field: given}))},
    }[source]
    settings = settle(environ=FULL if field != "project_key" else {**FULL, "LD_PROJECT": ""}, **how)
    assert getattr(settings, field) == value
    assert settings.sources[field] == {"argument": "argument", "host": HOST, "plugin": "plugin x"}[source]
    assert settings.problems == ()


@pytest.mark.parametrize("given", [["acme", " no:git ", ""], ("acme", "no:git"), "acme,no:git"])
def test_plugins_are_a_list_or_a_comma_list(settle: Callable[..., Settings], given: object) -> None:
    assert settle(host={"plugins": given}).plugins == ("acme", "no:git")


@pytest.mark.parametrize("variable", VARIABLES.values())
@pytest.mark.parametrize("empty", ["", "  \n"])
def test_an_empty_environment_variable_is_not_set(settle: Callable[..., Settings], variable: str, empty: str) -> None:
    assert settle(environ={variable: empty}) == settle()


def test_none_is_not_set(settle: Callable[..., Settings]) -> None:
    nothing = dict.fromkeys(VARIABLES)
    settings = settle(nothing, outer=nothing, host={**nothing, "typo": None}, defaults=plugins(("git", nothing)))
    assert settings == settle()


def test_what_nobody_set_has_the_documented_default(settle: Callable[..., Settings]) -> None:
    settings = settle()
    assert {field: getattr(settings, field) for field in VARIABLES} == {
        "access_token": None,
        "base_uri": "https://app.launchdarkly.com",
        "project_key": None,
        "environment_key": None,
        "application_key": None,
        "version": None,
        "application_name": None,
        "application_kind": None,
        "version_name": None,
        "api_version": "beta",
        "outbox": Path(os.environ["XDG_STATE_HOME"], "ld-deploy-hooks", "outbox.db"),
        "flush_timeout": 2.0,
        "strict": False,
        "disabled": False,
        "dry_run": False,
        "plugins": (),
        "plugin_autoload": True,
    }
    assert settings.sources == dict.fromkeys(VARIABLES, "default")
    assert [problem.field for problem in settings.problems] == list(REQUIRED)


def test_the_environment_is_this_process_own_if_none_is_given(
    monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    monkeypatch.setenv("LD_PROJECT", "mine")
    monkeypatch.chdir(repository)
    assert resolve().project_key == "mine"


def test_settings_are_frozen(settle: Callable[..., Settings]) -> None:
    settings = settle()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.strict = True  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.sources["strict"] = "me"  # type: ignore[index]


# -- switches ---------------------------------------------------------------------------------------------------------

ON, OFF, NEITHER = ["1", "true", "YES", " On "], ["0", "False", "no", "off"], ["maybe", "2", "-1", "truee", "y"]


@pytest.mark.parametrize("field", ["strict", "disabled", "dry_run"])
@pytest.mark.parametrize(("text", "value"), [*((word, True) for word in ON), *((word, False) for word in OFF)])
def test_a_switch_is_on_or_off(settle: Callable[..., Settings], field: str, text: str, value: bool) -> None:
    settings = settle(environ={**FULL, VARIABLES[field]: text})
    assert getattr(settings, field) is value
    assert settings.sources[field] == VARIABLES[field]
    assert settings.problems == ()


@pytest.mark.parametrize("text", NEITHER)
@pytest.mark.parametrize(("field", "value"), [("strict", False), ("disabled", True), ("dry_run", True)])
def test_a_switch_that_is_neither_counts_on_the_safe_side_and_is_told(
    settle: Callable[..., Settings], field: str, value: bool, text: str
) -> None:
    variable = VARIABLES[field]
    settings = settle(environ={**FULL, variable: text})
    assert getattr(settings, field) is value
    assert settings.sources[field] == variable
    assert settings.problems == (about(settings, field),)
    for said in (variable, "counts as on" if value else "counts as off", "1/true/yes/on", "0/false/no/off"):
        assert said in about(settings, field).message
    assert about(settings, field).fault


@pytest.mark.parametrize("given", [[True], 2, pytest.param(10**5000, id="huge"), 1.0, {"on": True}])
def test_a_switch_of_another_type_in_yaml_counts_on_the_safe_side(
    settle: Callable[..., Settings], given: object
) -> None:
    settings = settle(environ=FULL, host={"disabled": given, "strict": given})
    assert (settings.disabled, settings.strict) == (True, False)
    assert [problem.field for problem in settings.problems] == ["disabled", "strict"]
    assert HOST in about(settings, "disabled").message


@pytest.mark.parametrize(
    ("text", "autoload"), [*((word, False) for word in ON), *((word, True) for word in OFF), ("", True)]
)
def test_plugin_autoload_is_switched_off_by_its_variable(
    settle: Callable[..., Settings], text: str, autoload: bool
) -> None:
    settings = settle(environ={**FULL, "LD_DEPLOY_DISABLE_PLUGIN_AUTOLOAD": text})
    assert settings.plugin_autoload is autoload
    assert settings.problems == ()


@pytest.mark.parametrize("text", NEITHER)
def test_plugin_autoload_is_off_if_its_variable_says_anything_else(settle: Callable[..., Settings], text: str) -> None:
    settings = settle(environ={**FULL, "LD_DEPLOY_DISABLE_PLUGIN_AUTOLOAD": text})
    assert settings.plugin_autoload is False
    assert "LD_DEPLOY_DISABLE_PLUGIN_AUTOLOAD" in about(settings, "plugin_autoload").message


def test_plugin_autoload_in_yaml_says_what_it_is_called(settle: Callable[..., Settings]) -> None:
    assert settle(host={"plugin_autoload": False}).plugin_autoload is False
    assert settle(host={"plugin_autoload": True}).plugin_autoload is True


@pytest.mark.parametrize(("disabled", "dry_run", "silent"), [(0, 0, False), (1, 0, True), (0, 1, True), (1, 1, True)])
def test_disabled_and_dry_run_are_silent(
    settle: Callable[..., Settings], disabled: int, dry_run: int, silent: bool
) -> None:
    environ = {"LD_DEPLOY_DISABLED": str(disabled), "LD_DEPLOY_DRY_RUN": str(dry_run)}
    assert settle(environ=environ).silent is silent


# -- tests send nothing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["PYTEST_VERSION", "PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER", "LD_DEPLOY_PYTEST"])
@pytest.mark.parametrize("asked", [{}, {"LD_DEPLOY_DISABLED": "0"}, {"LD_DEPLOY_DISABLED": "perhaps"}])
def test_a_test_run_is_disabled(settle: Callable[..., Settings], mark: str, asked: Mapping[str, str]) -> None:
    settings = settle({"disabled": False}, environ={**FULL, **asked, mark: "x"}, host={"disabled": False})
    assert settings.disabled
    assert settings.sources["disabled"] == "pytest is running"
    assert settings.problems == ()


@pytest.mark.parametrize("base_uri", ["http://localhost:8080", "https://127.0.0.1", "http://[::1]:1"])
def test_a_test_may_tell_this_machine(settle: Callable[..., Settings], base_uri: str) -> None:
    may = {
        "PYTEST_VERSION": "9",
        "PYTEST_CURRENT_TEST": "x",
        "LD_DEPLOY_PYTEST": "loopback",
        "LD_BASE_URI": base_uri,
        "LD_DEPLOY_OUTBOX": "/tests/own.db",
    }
    settings = settle(environ=may)
    assert not settings.silent
    assert settings.problems == ()
    values = [getattr(settings, name) for name in REQUIRED]
    assert values == ["test-project", "test-environment", "test-application", "test-version"]
    assert settle({"version": "1"}, environ={**may, "LD_PROJECT": "mine"}).project_key == "mine"
    assert settle(environ={**may, "LD_DEPLOY_DISABLED": "1"}).sources["disabled"] == "LD_DEPLOY_DISABLED"
    assert "the user's" in settle(environ={**may, "LD_DEPLOY_OUTBOX": ""}).sources["disabled"]


@pytest.mark.parametrize("base_uri", [None, "https://app.launchdarkly.com", "http://localhost.:1", "nonsense", "a@b"])
def test_a_test_that_may_tell_tells_no_other_machine(settle: Callable[..., Settings], base_uri: str | None) -> None:
    settings = settle(environ={**FULL, "LD_DEPLOY_PYTEST": "loopback", "LD_BASE_URI": base_uri or ""})
    assert settings.disabled
    where = "default" if base_uri is None else "LD_BASE_URI"
    assert settings.sources["disabled"] == f"pytest is running, and {where} (base_uri) is not this machine"
    assert settings.problems == ()


def test_this_very_test_run_is_disabled() -> None:
    assert resolve().sources["disabled"] == "pytest is running"


# -- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "value"),
    [(12, "12"), (0, "0"), (1234567, "1234567"), (datetime.date(2024, 1, 5), "2024-01-05"), ("1.20", "1.20")],
)
def test_yaml_need_not_quote_numbers_and_days(settle: Callable[..., Settings], given: object, value: str) -> None:
    settings = settle(environ={**FULL, "LD_DEPLOY_VERSION": ""}, host={"version": given})
    assert (settings.version, settings.problems) == (value, ())


def test_a_number_with_a_point_is_taken_and_its_lost_zero_warned_of(settle: Callable[..., Settings]) -> None:
    settings = settle(environ={**FULL, "LD_DEPLOY_VERSION": ""}, host={"version": 1.2, "strict": True})
    assert settings.version == "1.2"
    assert "quotes" in about(settings, "version").message
    require(settings)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (True, "quotes"),
        (False, "quotes"),  # the environment of Norway
        ([1], "list"),
        ({"a": 1}, "dict"),
        pytest.param(10**5000, "int", id="a number too long to be written"),
        (math.inf, "float"),
        (math.nan, "float"),
        (b"x", "bytes"),
        (datetime.datetime(2024, 1, 5, 10), "datetime"),
        ("", "empty"),
        ("  ", "empty"),
        ("caf\udce9", "UTF-8"),
    ],
)
@pytest.mark.parametrize("field", REQUIRED)
def test_what_is_no_text_is_told_and_no_other_source_guesses(
    settle: Callable[..., Settings], field: str, given: object, said: str
) -> None:
    environ = {variable: value for variable, value in FULL.items() if variable != VARIABLES[field]}
    settings = settle(environ=environ, host={field: given}, defaults=plugins(("git", {field: "guessed"})))
    assert settings.missing == (field,)
    assert settings.problems == (about(settings, field),)
    assert about(settings, field).fault
    for part in (field, HOST, said, "not told"):
        assert part in about(settings, field).message


def test_a_badly_typed_answer_of_a_callable_is_told_not_raised(settle: Callable[..., Settings]) -> None:
    settings = settle({"version": object()}, environ=FULL)
    assert settings.missing == ("version",)
    assert "version (argument) is of type object" in about(settings, "version").message


@pytest.mark.parametrize("key", ["My Project", "UPPER", "a/b", "ключ"])
def test_keys_are_kept_as_they_are(settle: Callable[..., Settings], key: str) -> None:
    settings = settle({"project_key": key, "environment_key": key, "application_key": key, "version": "1"})
    assert (settings.project_key, settings.environment_key, settings.application_key) == (key, key, key)
    assert settings.problems == ()


@pytest.mark.parametrize("kind", ["server", "browser", "mobile"])
def test_an_application_kind_of_the_list_is_taken(settle: Callable[..., Settings], kind: str) -> None:
    assert settle(host={"application_kind": kind}).application_kind == kind


@pytest.mark.parametrize("source", ["environ", "host"])
def test_an_application_kind_outside_the_list_is_left_out_and_told(
    settle: Callable[..., Settings], source: str
) -> None:
    given = {"environ": {**FULL, "LD_DEPLOY_APPLICATION_KIND": "desktop"}, "host": {}}
    if source == "host":
        given = {"environ": FULL, "host": {"application_kind": "desktop"}}
    settings = settle(**given)
    assert settings.application_kind is None
    for part in ("desktop", "server, browser, mobile", "left out"):
        assert part in about(settings, "application_kind").message


@pytest.mark.parametrize("text", ["beta\r\nX-Evil: 1", "béta", "be\tta"])
def test_an_api_version_that_is_no_header_is_told(settle: Callable[..., Settings], text: str) -> None:
    settings = settle(environ={**FULL, "LD_DEPLOY_API_VERSION": text})
    assert (settings.api_version, settings.sources["api_version"]) == ("beta", "default")
    assert "LD_DEPLOY_API_VERSION" in about(settings, "api_version").message


@pytest.mark.parametrize("given", [3, ["a", 1], {"a": 1}])
def test_plugins_that_are_no_names_are_told(settle: Callable[..., Settings], given: object) -> None:
    settings = settle(environ=FULL, host={"plugins": given})
    assert settings.plugins == ()
    assert "commas" in about(settings, "plugins").message


# -- version ----------------------------------------------------------------------------------------------------------


def test_an_illegal_version_is_made_legal_and_gives_the_name(settle: Callable[..., Settings]) -> None:
    settings = settle({"version": "feature/x y"}, environ=FULL)
    assert (settings.version, settings.version_name) == ("feature-x-y", "feature/x y")
    assert settings.sources["version_name"] == settings.sources["version"] == "argument"
    assert settings.missing == ()
    assert about(settings, "version").fault
    for part in ("argument", "'feature/x y'", "'feature-x-y'", "version_name"):
        assert part in about(settings, "version").message


def test_a_version_name_that_was_given_is_kept(settle: Callable[..., Settings]) -> None:
    settings = settle({"version": "feature/x y"}, environ={**FULL, "LD_DEPLOY_VERSION_NAME": "Tuesday"})
    assert (settings.version, settings.version_name) == ("feature-x-y", "Tuesday")
    assert settings.sources["version_name"] == "LD_DEPLOY_VERSION_NAME"


def test_a_legal_version_gives_no_name(settle: Callable[..., Settings]) -> None:
    settings = settle(environ={**FULL, "LD_DEPLOY_VERSION": "v1.2_3-rc"})
    assert (settings.version, settings.version_name, settings.problems) == ("v1.2_3-rc", None, ())


def test_a_version_of_which_nothing_is_legal_is_missing_and_told_once(settle: Callable[..., Settings]) -> None:
    settings = settle(environ={**FULL, "LD_DEPLOY_VERSION": "///"})
    assert (settings.version, settings.version_name, settings.missing) == (None, None, ("version",))
    assert settings.sources["version"] == "default"
    assert settings.problems == (about(settings, "version"),)
    for part in ("LD_DEPLOY_VERSION", "'///'", "not told"):
        assert part in about(settings, "version").message


# -- missing fields and strict ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", REQUIRED)
def test_a_missing_required_field_is_told_with_every_way_to_set_it(settle: Callable[..., Settings], field: str) -> None:
    settings = settle(environ={name: value for name, value in FULL.items() if name != VARIABLES[field]})
    assert settings.missing == (field,)
    assert settings.problems == (about(settings, field),)
    message = about(settings, field).message
    assert message.startswith(f"{field} is not set: this deployment is not told")
    ways = (f"{field}=", VARIABLES[field], "invoke.yaml", "fabric.yaml", "ld_deploy_hooks:", "[tool.ld-deploy-hooks]")
    for way in (*ways, "pyproject.toml", "ld_deploy_provide_defaults"):
        assert way in message


@pytest.mark.parametrize("switch", ["LD_DEPLOY_DISABLED", "LD_DEPLOY_DRY_RUN"])
def test_nothing_is_missing_where_nothing_is_told(settle: Callable[..., Settings], switch: str) -> None:
    settings = settle(environ={switch: "1", "LD_DEPLOY_STRICT": "1"})
    assert settings.missing == REQUIRED
    assert settings.problems == ()
    require(settings)


def test_disabled_leaves_only_what_concerns_the_switches(settle: Callable[..., Settings]) -> None:
    environ = {"LD_DEPLOY_DISABLED": "1", "LD_DEPLOY_STRICT": "1", "LD_ACCESS_TOKEN": "sdk-1", "LD_DEPLOY_DRY_RUN": "?"}
    settings = settle(environ=environ, host={"typo": 1})
    assert settings.problems == (about(settings, "dry_run"),)
    assert not settings.sendable


def test_a_dry_run_still_tells_what_is_wrong(settle: Callable[..., Settings]) -> None:
    settings = settle(environ={"LD_DEPLOY_DRY_RUN": "1", "LD_ACCESS_TOKEN": "sdk-1"})
    assert settings.problems == (about(settings, "access_token"),)


FAULTS = [
    ({}, {"LD_PROJECT": ""}, "project_key"),
    ({}, {"LD_DEPLOY_VERSION": "feature/x y"}, "version"),
    ({}, {"LD_ACCESS_TOKEN": "sdk-1"}, "access_token"),
    ({}, {"LD_BASE_URI": "http://ld.example"}, "base_uri"),
    ({}, {"LD_DEPLOY_FLUSH_TIMEOUT": "soon"}, "flush_timeout"),
    ({"host": {"projet_key": "p"}}, {}, "projet_key"),
]


@pytest.mark.parametrize(("how", "environ", "field"), FAULTS)
def test_strict_raises_the_first_fault(
    settle: Callable[..., Settings], how: dict[str, Any], environ: Mapping[str, str], field: str
) -> None:
    settings = settle(environ={**FULL, "LD_DEPLOY_STRICT": "1", **environ}, **how)
    with pytest.raises(SettingsError) as caught:
        require(settings)
    assert caught.value.field == field
    assert str(caught.value) == about(settings, field).message


@pytest.mark.parametrize(("how", "environ", "field"), FAULTS)
def test_without_strict_no_fault_is_raised(
    settle: Callable[..., Settings], how: dict[str, Any], environ: Mapping[str, str], field: str
) -> None:
    require(settle(environ={**FULL, **environ}, **how))


def test_problems_come_in_the_order_of_the_sources_and_what_is_missing_last(settle: Callable[..., Settings]) -> None:
    environ = {**FULL, "LD_PROJECT": "", "LD_ACCESS_TOKEN": "sdk-1", "LD_DEPLOY_FLUSH_TIMEOUT": "soon"}
    settings = settle({"application_name": ""}, environ=environ, host={"typo": 1}, defaults=plugins(("x", {"nono": 1})))
    wanted = ["application_name", "flush_timeout", "typo", "nono", "access_token", "project_key"]
    assert [problem.field for problem in settings.problems] == wanted


def test_strict_raises_for_no_warning_and_for_no_missing_token(settle: Callable[..., Settings]) -> None:
    settings = settle(environ={**FULL, "LD_DEPLOY_STRICT": "1", "LD_BASE_URI": "https://app.launchdarkly.us"})
    assert [problem.fault for problem in settings.problems] == [False]
    require(settings)


# -- the host's configuration -----------------------------------------------------------------------------------------


def test_an_unknown_key_of_the_host_is_told_with_the_nearest_name(settle: Callable[..., Settings]) -> None:
    settings = settle(environ=FULL, host={"projct_key": "p", "xyz": 1, 7: "seven"})
    assert "did you mean project_key?" in about(settings, "projct_key").message
    assert HOST in about(settings, "projct_key").message
    assert all(field in about(settings, "xyz").message for field in VARIABLES)
    assert about(settings, "7").fault


def test_keys_of_other_rooms_are_passed_over(settle: Callable[..., Settings]) -> None:
    others = {"tasks": {"deploy": {}}, "metadata": {}, "event_metadata": {"a": 1}, "pre_and_post": False}
    assert settle(environ=FULL, host=others).problems == ()


@pytest.mark.parametrize("given", [True, "x", ["project_key"]])
def test_a_host_configuration_that_is_no_mapping_is_told(settle: Callable[..., Settings], given: Any) -> None:
    settings = settle(environ=FULL, host=given, host_name="my.yaml")
    assert "my.yaml" in about(settings, "settings").message


# -- flush_timeout ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["soon", "-1", "-0.001", "nan", "inf", "-inf", "1e999", "2s", "1,5", True, [1], 10**400]
)
def test_a_flush_timeout_that_is_no_number_of_seconds_is_told(settle: Callable[..., Settings], text: object) -> None:
    settings = settle(environ=FULL, host={"flush_timeout": text})
    assert (settings.flush_timeout, settings.sources["flush_timeout"]) == (2.0, "default")
    assert HOST in about(settings, "flush_timeout").message
    assert about(settings, "flush_timeout").fault


@pytest.mark.parametrize(("text", "seconds"), [("0", 0.0), ("3600", 3600.0), ("1e1", 10.0), ("0.25", 0.25)])
def test_a_flush_timeout_is_seconds(settle: Callable[..., Settings], text: str, seconds: float) -> None:
    settings = settle(environ={**FULL, "LD_DEPLOY_FLUSH_TIMEOUT": text})
    assert (settings.flush_timeout, settings.problems) == (seconds, ())


def test_nobody_waits_longer_than_an_hour(settle: Callable[..., Settings]) -> None:
    settings = settle(environ={**FULL, "LD_DEPLOY_FLUSH_TIMEOUT": "3601"})
    assert settings.flush_timeout == 3600.0
    assert not about(settings, "flush_timeout").fault
    assert "3600" in about(settings, "flush_timeout").message


CI_MARKS = (
    "GITHUB_ACTIONS=true GITLAB_CI=true JENKINS_URL=http://ci CIRCLECI=true BUILDKITE=true BITBUCKET_BUILD_NUMBER=7 "
    "TF_BUILD=True TRAVIS=true TEAMCITY_VERSION=2024.1 DRONE=true CI=woodpecker CODEBUILD_BUILD_ID=x:1 CI=true CI=1"
)


@pytest.mark.parametrize("mark", CI_MARKS.split())
def test_the_flush_timeout_is_ten_seconds_on_a_ci_machine(settle: Callable[..., Settings], mark: str) -> None:
    name, _, value = mark.partition("=")
    assert settle(environ={name: value}).flush_timeout == 10.0
    assert settle(environ={name: value, "LD_DEPLOY_FLUSH_TIMEOUT": "3"}).flush_timeout == 3.0
    assert settle(environ={name: value, "LD_DEPLOY_FLUSH_TIMEOUT": "x"}).flush_timeout == 10.0


@pytest.mark.parametrize("environ", [{"CI": "false"}, {"CI": "0"}, {"CI": ""}, {"GITHUB_ACTIONS": "false"}, {"X": "1"}])
def test_the_flush_timeout_is_two_seconds_elsewhere(
    settle: Callable[..., Settings], environ: Mapping[str, str]
) -> None:
    assert settle(environ=environ).flush_timeout == 2.0


# -- outbox -----------------------------------------------------------------------------------------------------------


def test_a_relative_outbox_is_relative_to_the_start(settle: Callable[..., Settings], repository: Path) -> None:
    assert settle(environ={"LD_DEPLOY_OUTBOX": "spool/ld.db"}).outbox == repository.resolve() / "spool" / "ld.db"


def test_a_tilde_in_the_outbox_is_the_home_folder(settle: Callable[..., Settings]) -> None:
    assert settle(environ={"LD_DEPLOY_OUTBOX": "~/ld.db"}).outbox == Path(os.environ["HOME"], "ld.db")


@pytest.mark.parametrize(
    ("given", "said"),
    [("~nobody-of-that-name/ld.db", "~"), ("a\0b", "path"), (12, "path"), ("", "path"), (True, "path")],
)
def test_an_outbox_that_is_no_path_is_told(settle: Callable[..., Settings], given: object, said: str) -> None:
    settings = settle(environ=FULL, host={"outbox": given})
    assert settings.outbox == settle().outbox
    assert settings.sources["outbox"] == "default"
    assert said in about(settings, "outbox").message


@on_posix
def test_a_working_directory_that_is_gone_stops_nothing(run_python: Any, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = run_python(
        "import os; os.rmdir(os.getcwd())\n"
        "from ld_deploy_hooks._settings import resolve\n"
        "settings = resolve({'outbox': 'spool/ld.db', 'project_key': 'p'}, environ={})\n"
        "print(settings.project_key, settings.outbox, [p.message for p in settings.problems if p.field == 'outbox'])\n"
        "print(resolve(environ={}).outbox == settings.outbox, resolve({'outbox': '/ld.db'}, environ={}).outbox)\n",
        cwd=gone,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "working directory that is gone" in done.stdout
    assert "ld-deploy-hooks/outbox.db" in done.stdout
    assert done.stdout.splitlines()[1] == "True /ld.db"


@on_posix
@as_root
def test_a_user_without_home_has_an_outbox_of_its_own_and_is_told(run_python: Any, child_env: dict[str, str]) -> None:
    del child_env["HOME"], child_env["XDG_STATE_HOME"]
    done = run_python(
        "import os, platformdirs\n"
        "from ld_deploy_hooks._settings import resolve\n"
        "os.setresuid(54321, 54321, 0)\n"
        "settings = resolve(environ={'LD_DEPLOY_STRICT': '1'})\n"
        "os.setresuid(0, 0, 0)\n"  # what measures this process may write its file as it would
        "print(settings.outbox)\n"
        "print(*(f'{p.fault} {p.message}' for p in settings.problems if p.field == 'outbox'), sep='\\n')\n",
        env=child_env,
    )
    assert (done.returncode, done.stderr) == (0, "")
    outbox, line = done.stdout.splitlines()
    assert outbox == "/var/tmp/ld-deploy-hooks-54321/outbox.db"
    assert line.startswith("False outbox (default)")
    assert "LD_DEPLOY_OUTBOX" in line


# -- access token -----------------------------------------------------------------------------------------------------


def test_a_token_makes_settings_sendable(settle: Callable[..., Settings]) -> None:
    settings = settle(environ={**FULL, "LD_ACCESS_TOKEN": f"  {TOKEN}\n"})
    assert settings.access_token == Secret(TOKEN)
    assert settings.sendable
    assert settings.problems == ()


def test_a_missing_token_is_no_fault_and_events_wait(settle: Callable[..., Settings]) -> None:
    settings = settle(environ=FULL)
    assert (settings.access_token, settings.sendable, settings.problems) == (None, False, ())


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("sdk-0123-4567", "SDK key"),
        ("SDK-0123-4567", "SDK key"),
        ("Bearer api-0123-4567", "begins with 'Bearer '"),
        ("BEARER api-0123", "begins with 'Bearer '"),
        ("mob-0123-4567", "mobile key"),
        ("api-0123\n4567", "header"),
        ("api-0123\x7f4567", "header"),
        ("api-0123\u20ac4567", "header"),
    ],
)
def test_a_token_that_cannot_be_used_is_told_without_its_value(
    settle: Callable[..., Settings], value: str, said: str
) -> None:
    settings = settle(environ={**FULL, "LD_ACCESS_TOKEN": value})
    assert not settings.sendable
    assert settings.missing == ()
    assert settings.problems == (about(settings, "access_token"),)
    problem = about(settings, "access_token")
    assert problem.fault
    for part in ("LD_ACCESS_TOKEN", said, "wait", "api-...", "Writer"):
        assert part in problem.message
    assert "0123" not in problem.message + repr(settings)


@pytest.mark.parametrize("given", [True, ["api-x"], "api-\udce9"])
def test_a_token_of_another_type_is_told_and_nobody_elses_is_taken(
    settle: Callable[..., Settings], given: object
) -> None:
    settings = settle(environ=FULL, host={"access_token": given}, defaults=plugins(("vault", {"access_token": TOKEN})))
    assert (settings.access_token, settings.sendable) == (None, False)
    assert "wait" in about(settings, "access_token").message


@pytest.mark.parametrize("field", sorted(set(VARIABLES) - {"access_token"}))
@pytest.mark.parametrize("by", ["environ", "plugin"])
def test_the_token_in_a_wrong_variable_is_in_no_message(settle: Callable[..., Settings], field: str, by: str) -> None:
    token = "api-12/34 56"
    environ = {VARIABLES[field]: f"{token}@"}
    how: dict[str, Any] = {"defaults": plugins(("vault", {"access_token": token}))}
    if by == "environ":
        environ["LD_ACCESS_TOKEN"], how = token, {}
    settings = settle(environ=environ, host={token: 1}, **how)
    assert settings.problems or settings.disabled
    if settings.access_token is not None:  # a silent run asks no vault, and does not know the token then
        assert not [problem.message for problem in settings.problems if token in problem.message]


# -- base URI ---------------------------------------------------------------------------------------------------------

LOOPBACK = [
    "http://localhost",
    "http://localhost:8030",
    "http://LOCALHOST:8030/",
    "HTTP://LocalHost/path",
    "http://127.0.0.1",
    "http://127.0.0.1:1",
    "http://127.0.0.1:65535",
    "http://127.255.255.254",
    "http://127.8.9.10/relay",
    "http://[::1]",
    "http://[::1]:8030/",
    "http://[0:0:0:0:0:0:0:1]",
]
NOT_LOOPBACK = [
    "http://localhost.evil.com",
    "http://127.0.0.1@evil.com",
    "http://localhost@evil.com/",
    "http://evil.com@localhost",
    "http://evil.com#@localhost",
    "http://evil.com\\@localhost",
    "http://localhost\\@evil.com",
    "http://localhost#.evil.com",
    "http://localhost?.evil.com",
    "http://127.0.0.1.evil.com",
    "http://evil.com/localhost",
    "http://localhost.",
    "http://127.0.0.1.",
    "http://127.1",
    "http://127.0.1",
    "http://127.0.0.1.1",
    "http://127.0.0.256",
    "http://2130706433",
    "http://0x7f000001",
    "http://0x7f.0.0.1",
    "http://0177.0.0.1",
    "http://0177.0.0.01",
    "http://127.0.0.01",
    "http://0",
    "http://0.0.0.0",
    "http://128.0.0.1",
    "http://126.255.255.255",
    "http://localhost:",
    "http://localhost:0",
    "http://localhost:65536",
    "http://localhost:8o30",
    "http://localhost:80:80",
    "http://localhost:-1",
    "http://localhost:٨٠",
    "http://localhost%2eevil.com",
    "http://lo\tcalhost",
    "http://local\nhost",
    "http://loca\u017fhost",
    "http://localho\u017ft",
    "http://\uff4cocalhost",
    "http://[::1",
    "http://::1",
    "http://[::1]evil.com",
    "http://[::1].evil.com",
    "http://[::2]",
    "http://[::]",
    "http://[::ffff:127.0.0.1]",
    "http://[::1%25lo]",
    "http://[::1%lo]",
    "http://[127.0.0.1]",
    "http://[localhost]",
    "http:localhost",
    "http:/localhost",
    "http:///localhost",
    "//localhost",
    "localhost",
    "localhost:8030",
    "ftp://localhost",
    "http+unix://localhost",
    "http://",
    "",
    " http://localhost",
]


@pytest.mark.parametrize("uri", LOOPBACK)
def test_plain_http_goes_to_loopback(settle: Callable[..., Settings], uri: str) -> None:
    settings = settle(environ={**FULL, "LD_ACCESS_TOKEN": TOKEN, "LD_BASE_URI": uri})
    assert is_loopback(uri)
    assert is_loopback(uri.replace("http", "https", 1).replace("HTTP", "HTTPS", 1))
    assert is_loopback(settings.base_uri)
    assert settings.sendable
    assert settings.problems == ()


@pytest.mark.parametrize("uri", [uri for uri in NOT_LOOPBACK if uri.strip() == uri and uri])
def test_plain_http_goes_nowhere_else(settle: Callable[..., Settings], uri: str) -> None:
    settings = settle(environ={**FULL, "LD_ACCESS_TOKEN": TOKEN, "LD_BASE_URI": uri})
    assert not settings.sendable
    assert settings.missing == ()
    assert settings.sources["base_uri"] == "LD_BASE_URI"
    assert settings.problems == (about(settings, "base_uri"),)
    assert about(settings, "base_uri").fault
    for part in ("LD_BASE_URI", "wait"):
        assert part in about(settings, "base_uri").message


@pytest.mark.parametrize("uri", NOT_LOOPBACK)
def test_only_what_is_plainly_loopback_is_loopback(uri: str) -> None:
    assert not is_loopback(uri)
    assert not is_loopback(uri.replace("http", "https", 1))


@hypothesis_settings(database=None, max_examples=200, deadline=None)
@given(
    st.one_of(
        st.text(max_size=30),
        st.text("htps:/@[]locahst127.0#?\\%1 \t", max_size=25).map("http://".__add__),
        st.tuples(st.sampled_from(LOOPBACK), st.text("@:/#?.\\evil[]%0 ", max_size=8)).map("".join),
        st.tuples(st.sampled_from(LOOPBACK), st.text("@:/#?.\\evil[]%0 ", max_size=8)).map(
            lambda parts: f"http://{parts[1]}{parts[0][7:]}"
        ),
    )
)
def test_what_is_called_loopback_is_loopback_to_every_parser(uri: str) -> None:
    if not is_loopback(uri):
        return
    hosts = {"localhost", "::1", "0:0:0:0:0:0:0:1"}
    standard = urlsplit(uri).hostname or ""
    try:
        requests_own = (parse_url(uri).host or "").strip("[]")
    except LocationParseError:
        requests_own = "localhost"
    for host in (standard, requests_own):
        assert host in hosts or host.startswith("127."), host
    assert urlsplit(uri).username is None


@pytest.mark.parametrize(
    ("uri", "kept"),
    [
        ("https://ld.example", "https://ld.example"),
        ("https://ld.example/", "https://ld.example"),
        ("https://ld.example/relay///", "https://ld.example/relay"),
        ("HTTPS://LD.Example:0443/Relay", "https://ld.example:443/Relay"),
        ("https://[2001:DB8::1]:8443", "https://[2001:db8::1]:8443"),
    ],
)
def test_a_base_uri_is_kept_in_one_spelling(settle: Callable[..., Settings], uri: str, kept: str) -> None:
    settings = settle(environ={**FULL, "LD_BASE_URI": uri})
    assert (settings.base_uri, settings.problems) == (kept, ())


@pytest.mark.parametrize("uri", ["https://ld.example/api/v2", "https://ld.example/api/v2/"])
def test_the_path_of_the_api_is_left_out_of_a_base_uri_and_said(settle: Callable[..., Settings], uri: str) -> None:
    settings = settle(environ={**FULL, "LD_BASE_URI": uri})
    assert settings.base_uri == "https://ld.example"
    (problem,) = settings.problems
    assert not problem.fault
    assert "ends in /api/v2: https://ld.example is used; leave that out" in problem.message


@pytest.mark.parametrize("more", ["?key=hunter2", "/#hunter2"])
def test_the_line_about_a_query_or_fragment_says_that_it_is_one(settle: Callable[..., Settings], more: str) -> None:
    problem = about(settle(environ={**FULL, "LD_BASE_URI": f"https://ld.example{more}"}), "base_uri")
    assert "(LD_BASE_URI) holds a query or a fragment (kept is 'https://ld.example'): events are" in problem.message
    assert "leave out what begins with the ? or #" in problem.message


@pytest.mark.parametrize(
    ("uri", "kept"),
    [
        ("https://user:hunter2@ld.example/x/", "https://ld.example/x"),
        ("https://hunter2@app.launchdarkly.com", "https://app.launchdarkly.com"),
        ("http://user:hunter2@localhost:1", "http://localhost:1"),
        ("https://a@b:hunter2@ld.example", "https://ld.example"),
        ("https://us\\er:hunter2@ld.example", "https://ld.example"),
        ("user:hunter2@ld.example", "ld.example"),
        ("https:user:hunter2@ld.example", "ld.example"),
        ("https://user:hun/hunter2@ld.example", "unusable"),
        ("https://user:hun?hunter2@ld.example", "unusable"),
        ("https://user:hun#hunter2@ld.example", "unusable"),
        ("https:/user:hunter2@ld.example", "unusable"),
        ("hunter2@", "unusable"),
    ],
)
def test_a_user_in_the_base_uri_is_refused_and_stored_nowhere(
    settle: Callable[..., Settings], uri: str, kept: str
) -> None:
    settings = settle(environ={**FULL, "LD_ACCESS_TOKEN": TOKEN, "LD_BASE_URI": uri})
    assert settings.base_uri == kept
    assert not settings.sendable
    assert "hunter2" not in repr(settings)
    problem = about(settings, "base_uri")
    assert problem.fault
    for part in ("LD_BASE_URI", "user or password", "wait", "@"):
        assert part in problem.message


@pytest.mark.parametrize(
    ("uri", "kept"),
    [
        ("http://ld.example/", "http://ld.example"),
        ("ld.example", "ld.example"),
        ("https://ld.example?key=hunter2", "https://ld.example"),
        ("https://ld.example#hunter2", "https://ld.example"),
        ("https://ld.ex\udce9mple", "https://ld.ex?mple"),
        ("https://ld.example:port", "https://ld.example:port"),
        ("/", "unusable"),
        ("https://café.example", "https://caf?.example"),
        ("https://\u017fervice.example", "https://?ervice.example"),  # a long s, which is an s to re.IGNORECASE
    ],
)
def test_an_event_is_bound_to_a_base_uri_that_cannot_be_used(
    settle: Callable[..., Settings], uri: str, kept: str
) -> None:
    settings = settle({"base_uri": uri}, environ={**FULL, "LD_ACCESS_TOKEN": TOKEN})
    assert settings.base_uri == ("unusable" if "\udce9" in uri else kept)
    assert not settings.sendable
    assert about(settings, "base_uri").fault
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize("given", [["https://app.launchdarkly.com"], True, ""])
def test_a_base_uri_of_another_type_does_not_become_the_real_service(
    settle: Callable[..., Settings], given: object
) -> None:
    settings = settle(environ={**FULL, "LD_ACCESS_TOKEN": TOKEN}, host={"base_uri": given})
    assert (settings.base_uri, settings.sendable) == ("unusable", False)
    assert settings.sources["base_uri"] == HOST
    assert about(settings, "base_uri").fault


@pytest.mark.parametrize("host", ["app.launchdarkly.us", "app.eu.launchdarkly.com", "APP.launchdarkly.US:443"])
def test_services_without_engineering_insights_are_warned_of(settle: Callable[..., Settings], host: str) -> None:
    settings = settle(environ={**FULL, "LD_ACCESS_TOKEN": TOKEN, "LD_BASE_URI": f"https://{host}/"})
    assert settings.sendable
    assert not about(settings, "base_uri").fault
    assert host.lower() in about(settings, "base_uri").message


@hypothesis_settings(database=None, max_examples=100, deadline=None)
@given(st.text(max_size=30), st.text("hunter", min_size=3, max_size=9), st.text("/?#@:\\ht.p", max_size=12))
@example("", "eee", "://")
def test_no_base_uri_raises_or_shows_its_user(before: str, secret: str, after: str) -> None:
    secret = f"§{secret}".replace("§", "Q7")
    uri = f"{before}{secret}{after}@ld.example"
    settings = resolve({"base_uri": uri}, environ={}, start=Path(os.sep))
    assert secret not in repr(settings)
    assert settings.base_uri.isascii()


# -- pyproject.toml ---------------------------------------------------------------------------------------------------

TABLE = "[tool.ld-deploy-hooks]\n"


def test_pyproject_may_set_identity_names_and_strict(settle: Callable[..., Settings], repository: Path) -> None:
    path = write(
        repository,
        TABLE + "project_key = 'p'\nenvironment_key = 'e'\napplication_key = 'a'\nversion = 2024-01-05\n"
        "application_name = 'A'\napplication_kind = 'server'\nversion_name = 'V'\nstrict = true\n",
    )
    settings = settle()
    named = (settings.application_name, settings.application_kind, settings.version_name)
    assert [getattr(settings, field) for field in REQUIRED] == ["p", "e", "a", "2024-01-05"]
    assert named == ("A", "server", "V")
    assert settings.strict
    assert {field for field, source in settings.sources.items() if source == str(path)} == {
        *REQUIRED,
        "application_name",
        "application_kind",
        "version_name",
        "strict",
    }
    assert settings.problems == ()


REFUSED = {
    "access_token": "'api-secret'",
    "base_uri": "'https://evil.example'",
    "api_version": "'x'",
    "outbox": "'/tmp/x.db'",
    "flush_timeout": "3000",
    "disabled": "true",
    "dry_run": "true",
    "plugins": "['evil']",
    "plugin_autoload": "false",
}


@pytest.mark.parametrize("field", REFUSED)
@pytest.mark.parametrize("set_elsewhere", [False, True])
def test_pyproject_may_set_nothing_else(
    settle: Callable[..., Settings], repository: Path, field: str, set_elsewhere: bool
) -> None:
    elsewhere = {"access_token": TOKEN, "base_uri": "https://ld.example"}.get(field, "0")
    environ = {**FULL, VARIABLES[field]: elsewhere} if set_elsewhere else FULL
    before = settle(environ=environ)
    path = write(repository, f"{TABLE}{field} = {REFUSED[field]}\napplication_name = 'A'")
    settings = settle(environ=environ)
    assert getattr(settings, field) == getattr(before, field)
    assert settings.sources[field] == before.sources[field]
    assert settings.application_name == "A"
    problem = about(settings, field)
    assert problem.fault
    for part in (field, str(path), "walking up", "where the token goes", VARIABLES[field], "invoke.yaml"):
        assert part in problem.message
    assert "secret" not in problem.message


def test_a_refused_base_uri_does_not_keep_events_back(settle: Callable[..., Settings], repository: Path) -> None:
    write(repository, f"{TABLE}base_uri = 'https://evil.example'")
    assert settle(environ={**FULL, "LD_ACCESS_TOKEN": TOKEN}).sendable


def test_an_unknown_key_of_pyproject_is_told(settle: Callable[..., Settings], repository: Path) -> None:
    path = write(repository, f"{TABLE}project-key = 'p'\ntasks = 1")
    settings = settle(environ=FULL)
    assert "did you mean project_key?" in about(settings, "project-key").message
    assert str(path) in about(settings, "tasks").message
    assert settings.project_key == "p"
    assert settings.sources["project_key"] == "LD_PROJECT"


def found(start: Path) -> str | None:
    return resolve(environ={}, start=start).project_key


def test_pyproject_is_found_by_walking_up(repository: Path) -> None:
    write(repository, f"{TABLE}project_key = 'root'")
    (repository / "a" / "b").mkdir(parents=True)
    assert found(repository / "a" / "b") == "root"


def test_the_first_pyproject_that_has_our_table_counts(repository: Path) -> None:
    write(repository, f"{TABLE}project_key = 'root'")
    write(repository / "a", f"{TABLE}project_key = 'a'")
    write(repository / "a" / "b", "[project]\nname = 'b'\n[tool.other]\nx = 'ld-deploy-hooks'")
    write(repository / "a" / "b" / "c", "[project]\ndependencies = ['ld-deploy-hooks']")
    write(repository / "a" / "b" / "c" / "d", "tool = 'ld-deploy-hooks'")
    assert found(repository / "a" / "b" / "c" / "d") == "a"


@pytest.mark.parametrize("mark", [".git", ".hg", "a worktree's .git"])
def test_nothing_above_the_repository_is_looked_at(tmp_path: Path, mark: str) -> None:
    outside = tmp_path / "outside"
    write(outside, f"{TABLE}project_key = 'outside'")
    root = outside / "repository"
    (root / "a").mkdir(parents=True)
    assert found(root / "a") == "outside"
    if mark.startswith("."):
        (root / mark).mkdir()
    else:
        (root / ".git").write_text("gitdir: elsewhere")
    assert found(root / "a") is None
    assert found(root) is None


def test_walking_up_starts_at_the_real_folder(repository: Path, tmp_path: Path) -> None:
    write(repository, f"{TABLE}project_key = 'real'")
    (repository / "a").mkdir()
    link = tmp_path / "link"
    link.symlink_to(repository / "a", target_is_directory=True)
    assert found(link) == "real"
    assert found(repository / "a" / ".." / "a") == "real"


def test_a_start_that_is_a_loop_of_links_stops_nothing(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert found(loop / "x") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{TABLE}project_key = ", "TOMLDecodeError"),
        (TABLE.encode() + b"project_key = '\xff'", "UnicodeDecodeError"),
        (f"{TABLE}project_key = {'[' * 100_000}", "Error"),
        ("[tool]\nld-deploy-hooks = 3", "[tool.ld-deploy-hooks]"),
    ],
)
def test_a_malformed_pyproject_is_told_once_and_the_rest_goes_on(
    tmp_path: Path, repository: Path, text: str | bytes, said: str
) -> None:
    path = write(repository / "a", text)
    write(repository, f"{TABLE}application_key = 'of another folder'")
    settings = resolve(environ={**FULL, "LD_DEPLOY_APPLICATION_KEY": ""}, start=repository / "a")
    problem = about(settings, "pyproject.toml")
    assert problem.fault
    assert problem.message.startswith(f"{path} was not used")
    assert said in problem.message
    assert settings.project_key == "p"
    assert settings.missing == ("application_key",)


def test_a_malformed_pyproject_that_does_not_speak_of_us_is_no_matter(repository: Path) -> None:
    write(repository / "a", "[tool.other\n")
    write(repository, f"{TABLE}project_key = 'root'")
    settings = resolve(environ={}, start=repository / "a")
    assert settings.project_key == "root"
    assert [problem.field for problem in settings.problems] == list(REQUIRED[1:])


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the list of open files is Linux's")
def test_no_file_stays_open(repository: Path) -> None:
    (repository / "a" / "pyproject.toml").mkdir(parents=True)
    write(repository, f"{TABLE}project_key = 'root'")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  (a Path's iterator would be open itself)
    assert [found(repository / "a") for _ in range(5)] == ["root"] * 5
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@on_posix
@pytest.mark.parametrize("what", ["pipe", "folder"])
def test_what_is_no_file_is_not_read_and_holds_nothing_up(repository: Path, what: str) -> None:
    path = repository / "a" / "pyproject.toml"
    path.parent.mkdir()
    if what == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    write(repository, f"{TABLE}project_key = 'root'")
    settings = resolve(environ=FULL | {"LD_PROJECT": ""}, start=path.parent)
    assert settings.project_key == "root"
    assert not about(settings, "pyproject.toml").fault
    assert about(settings, "pyproject.toml").message.startswith(f"{path} was not read: it is no regular file")


def test_a_pyproject_that_points_nowhere_is_told_and_passed_over(repository: Path) -> None:
    path = repository / "a" / "pyproject.toml"
    path.parent.mkdir()
    path.symlink_to(repository / "missing")
    write(repository, f"{TABLE}project_key = 'root'")
    settings = resolve(environ=FULL | {"LD_PROJECT": ""}, start=path.parent)
    assert settings.project_key == "root"
    assert "FileNotFoundError" in about(settings, "pyproject.toml").message


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="the file that opens and cannot be read is Linux's")
def test_a_pyproject_that_fails_while_it_is_read_is_told_and_passed_over(repository: Path) -> None:
    path = repository / "a" / "pyproject.toml"
    path.parent.mkdir()
    path.symlink_to("/proc/self/mem")
    write(repository, f"{TABLE}project_key = 'root'")
    settings = resolve(environ=FULL | {"LD_PROJECT": ""}, start=path.parent)
    assert settings.project_key == "root"
    assert about(settings, "pyproject.toml").message.startswith(f"{path} was not read (OSError)")


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """Return a folder that every user may enter, as pytest's own may not be entered."""
    folder = Path(tempfile.mkdtemp()).resolve()
    folder.chmod(0o755)
    (folder / ".git").mkdir()
    yield folder
    shutil.rmtree(folder)


@on_posix
@as_root
@pytest.mark.parametrize(
    ("process", "owner", "mode", "said"),
    [
        (0, 0, 0o600, None),
        (54321, 54321, 0o600, None),
        (54321, 0, 0o644, None),
        (54321, 12345, 0o644, "user id 12345"),
        (0, 54321, 0o644, "user id 54321"),
        (54321, 0, 0o600, "PermissionError"),
    ],
)
def test_only_a_pyproject_of_this_user_or_of_root_is_read(
    run_python: Any, shared_folder: Path, process: int, owner: int, mode: int, said: str | None
) -> None:
    path = write(shared_folder, f"{TABLE}project_key = 'theirs'\nstrict = true")
    os.chown(path, owner, owner)
    path.chmod(mode)
    done = run_python(
        "import os, pathlib, sys, platformdirs\n"
        "if sys.version_info >= (3, 11): import tomllib\n"
        "else: import tomli\n"
        "from ld_deploy_hooks._settings import resolve\n"
        f"os.setresuid({process}, {process}, 0)\n"
        "environ = {'LD_PROJECT': 'mine', 'LD_ENVIRONMENT': 'e', 'LD_DEPLOY_APPLICATION_KEY': 'a'}\n"
        f"settings = resolve(environ=environ, start=pathlib.Path({str(shared_folder)!r}))\n"
        "os.setresuid(0, 0, 0)\n"  # what measures this process may write its file as it would
        "print(settings.strict)\n"
        "print(*(f'{p.fault} {p.message}' for p in settings.problems if p.field == 'pyproject.toml'), sep='\\n')\n",
    )
    assert (done.returncode, done.stderr) == (0, "")
    strict, line = done.stdout.splitlines()
    assert strict == str(said is None)
    if said is None:
        assert line == ""
    else:
        assert line.startswith(f"False {path} was not read")
        assert said in line


# -- plugins' defaults ------------------------------------------------------------------------------------------------


def test_plugins_are_asked_with_the_settings_so_far(settle: Callable[..., Settings]) -> None:
    seen: list[Settings] = []

    def defaults(settings: Settings) -> Iterator[tuple[str, Mapping[str, object]]]:
        seen.append(settings)
        yield "ci", {"version": "of ci", "environment_key": None, "project_key": "of ci"}
        yield "git", {"version": "of git", "environment_key": "of git"}

    settings = settle({"project_key": "mine"}, defaults=defaults)
    (so_far,) = seen
    assert (so_far.project_key, so_far.version, so_far.problems) == ("mine", None, ())
    assert settings.project_key == "mine"
    assert (settings.version_name, settings.environment_key) == ("of ci", "of git")
    assert settings.sources["version"] == "plugin ci"
    assert settings.sources["environment_key"] == "plugin git"


@pytest.mark.parametrize("switch", ["LD_DEPLOY_DISABLED", "LD_DEPLOY_DRY_RUN", "PYTEST_VERSION"])
def test_plugins_are_not_asked_where_nothing_is_told(settle: Callable[..., Settings], switch: str) -> None:
    def defaults(settings: Settings) -> Iterable[tuple[str, Mapping[str, object]]]:
        raise AssertionError("asked")

    assert settle(environ={switch: "1"}, defaults=defaults).silent


@pytest.mark.parametrize(
    ("values", "field", "said"),
    [
        ({"version": True}, "version", "true or false"),
        ({"version": ""}, "version", "empty"),
        ({"application_kind": "desktop"}, "application_kind", "desktop"),
        ({"flush_timeout": -1}, "flush_timeout", "finite"),
        ({"disabled": "perhaps"}, "disabled", "neither"),
        ({"verison": "1"}, "verison", "did you mean version?"),
        ({"plugins": "x"}, "plugins", "LD_DEPLOY_PLUGINS"),
        ({"plugin_autoload": False}, "plugin_autoload", "loaded already"),
        ("nonsense", "settings", "str"),
        (["version"], "settings", "list"),
    ],
)
def test_nonsense_of_a_plugin_is_told_with_its_name_and_stops_nobody(
    settle: Callable[..., Settings], values: Any, field: str, said: str
) -> None:
    environ = {**FULL, "LD_DEPLOY_VERSION": "", "LD_DEPLOY_STRICT": "1"}
    settings = settle(environ=environ, defaults=plugins(("bad", values), ("git", {"version": "1"})))
    assert settings.version == "1"
    assert not settings.silent
    assert settings.plugin_autoload
    assert settings.problems == (about(settings, field),)
    for part in ("plugin bad", "no:bad", "ld_deploy_provide_defaults", said):
        assert part in about(settings, field).message
    require(settings)


def test_what_is_still_missing_after_a_plugin_failed_is_told_too(settle: Callable[..., Settings]) -> None:
    settings = settle(environ={**FULL, "LD_DEPLOY_VERSION": ""}, defaults=plugins(("bad", {"version": []})))
    assert [(problem.field, problem.fault) for problem in settings.problems] == [("version", False), ("version", True)]


# -- arguments, where they are written --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            (field, "x")
            for field in (*REQUIRED, "application_name", "version_name", "api_version", "base_uri", "outbox")
        ),
        ("access_token", "x"),
        ("access_token", Secret("x")),
        ("application_kind", "mobile"),
        ("outbox", Path("x")),
        ("flush_timeout", 1),
        ("flush_timeout", 1.5),
        ("strict", True),
        ("disabled", False),
        ("dry_run", True),
        ("plugins", ("a",)),
        ("plugins", ["a"]),
        ("plugins", "a,b"),
        ("plugin_autoload", False),
        *((field, None) for field in VARIABLES),
    ],
)
def test_a_right_type_passes(field: str, value: object) -> None:
    check_argument_types(**{field: value})


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        *((field, 12, f"{field} must be of type str, not int") for field in REQUIRED),
        ("application_name", b"x", "str, not bytes"),
        ("application_kind", True, "str, not bool"),
        ("access_token", 12, "str or Secret, not int"),
        ("outbox", 12, "str or PathLike, not int"),
        ("flush_timeout", True, "int or float, not bool"),
        ("flush_timeout", "5", "int or float, not str"),
        ("strict", 1, "bool, not int"),
        ("disabled", "yes", "bool, not str"),
        ("plugins", {"a"}, "not set"),
        ("plugins", ["a", 1], "each of type str"),
        ("plugin_autoload", 0, "bool, not int"),
        ("verison", "1", "did you mean version?"),
    ],
)
def test_a_wrong_type_or_keyword_is_a_type_error_where_it_is_written(field: str, value: object, said: str) -> None:
    with pytest.raises(TypeError) as caught:
        check_argument_types(**{field: value})
    assert said in str(caught.value)


def test_an_application_kind_outside_its_list_is_a_value_error_where_it_is_written() -> None:
    with pytest.raises(ValueError, match="server, browser, mobile"):
        check_argument_types(application_kind="desktop")


# -- no secret gets out -----------------------------------------------------------------------------------------------


def test_a_secret_shows_itself_to_nobody() -> None:
    secret = Secret("hunter2")
    assert [repr(secret), str(secret), f"{secret}", f"{secret:>20}", f"{secret!s:s}", "%s" % secret] == ["****"] * 6  # noqa: UP031
    assert "hunter2" not in repr({"a": [secret]})
    assert secret.reveal() == "hunter2"
    assert not hasattr(secret, "__dict__")


def test_secrets_are_equal_by_value_and_to_secrets_only() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2
    assert hash(Secret("a")) != hash("a")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_secret_is_not_pickled(protocol: int) -> None:
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(Secret("hunter2"), protocol)
    with pytest.raises(TypeError, match="pickled"):
        copy.deepcopy(Secret("hunter2"))


@hypothesis_settings(database=None, max_examples=100, deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted(VARIABLES.values())), st.text(max_size=20), max_size=8),
    st.dictionaries(
        st.one_of(st.sampled_from(sorted(VARIABLES)), st.text(max_size=10)),
        st.recursive(
            st.one_of(
                st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=4)
            ),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
            ),
            max_leaves=6,
        ),
        max_size=8,
    ),
)
def test_whatever_is_set_nothing_raises_and_every_problem_is_one_clean_line(
    environ: dict[str, str], host: dict[str, Any]
) -> None:
    token = "api-Q7Q7-token"
    environ = {name: value.replace("e", token) for name, value in environ.items()} | {"LD_ACCESS_TOKEN": token}
    settings = resolve(environ=environ, host=host, start=Path(os.sep), defaults=plugins(("x", host)))
    assert settings.outbox.is_absolute()
    assert 0 <= settings.flush_timeout <= 3600
    assert math.isfinite(settings.flush_timeout)
    assert set(settings.sources) == set(VARIABLES)
    for problem in settings.problems:
        assert problem.message.isprintable(), problem
        assert problem.message.encode()
        assert token not in problem.message


# -- the price of an import -------------------------------------------------------------------------------------------


def test_importing_the_settings_loads_nothing_dear(run_python: Any) -> None:
    dear = {"tomllib", "tomli", "platformdirs", "ipaddress", "subprocess", "requests", "pluggy", "sqlite3", "difflib"}
    dear |= {"datetime", "tempfile", "urllib.parse", "hypothesis", "pytest", "invoke", "fabric"}
    done = run_python(
        "import dataclasses, json, logging, pathlib, re, sys\n"  # what pathlib itself loads differs between Pythons
        "before = set(sys.modules)\n"
        "import ld_deploy_hooks._settings\n"
        "print(*sorted(set(sys.modules) - before), sep='\\n')\n"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "ld_deploy_hooks._settings" in done.stdout.splitlines()
    assert dear & set(done.stdout.splitlines()) == set()
