"""The fields of a deployment: given, asked for, left open."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from told import Told, told_fixture  # noqa: F401

from ld_deploy_hooks import SettingsError, deployment


class BrokenMapping(Mapping[str, Any]):
    """Cannot be read."""

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError("secret")

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("secret")

    def __len__(self) -> int:
        return 1


def test_every_field_may_be_a_callable(told: Told) -> None:
    with deployment(
        application_key=lambda: "billing",
        version=lambda: "v1",
        environment_key=lambda: "test",
        project_key=lambda: "p",
        application_name=lambda: "Billing",
        application_kind=lambda: "browser",
        version_name=lambda: "One",
        metadata=lambda: {"asked": 1},
        event_metadata=lambda: {"asked": 2},
    ) as d:
        assert d.metadata == {"asked": 1}
    started, finished = told.events()
    for event in (started, finished):
        keys = ("projectKey", "environmentKey", "applicationKey", "applicationName", "applicationKind")
        assert [event[key] for key in keys] == ["p", "test", "billing", "Billing", "browser"]
        assert (event["version"], event["versionName"]) == ("v1", "One")
        assert event["deploymentMetadata"] == {"asked": 1}
    assert started["eventMetadata"]["asked"] == 2
    assert "asked" not in finished["eventMetadata"]


@pytest.mark.parametrize(
    ("call", "version"),
    [
        (lambda deploy: deploy("v1"), "v1-8"),
        (lambda deploy: deploy("v1", 9), "v1-9"),
        (lambda deploy: deploy(tag="v1"), "v1-8"),
        (lambda deploy: deploy(size=9, tag="v1"), "v1-9"),
    ],
)
def test_a_callable_gets_the_functions_own_arguments(told: Told, call: Callable[[Any], str], version: str) -> None:
    @deployment("billing", version=lambda tag, size: f"{tag}-{size}", environment_key=lambda: "asked-with-none")
    def deploy(tag: str, size: int = 8) -> str:
        return f"{tag}{size}"

    assert call(deploy) == version.replace("-", "")
    assert {(event["version"], event["environmentKey"]) for event in told.events()} == {(version, "asked-with-none")}


@pytest.mark.parametrize(
    "asks",
    [
        lambda **given: f"{given['tag']}-{given['size']}-{given['force']}",
        lambda tag, **given: f"{tag}-{given['size']}-{given['force']}",
        lambda *, size, **given: f"{given['tag']}-{size}-{given['force']}",
        lambda tag, size, force: f"{tag}-{size}-{force}",
        lambda *given, force: f"{given[0]}-{given[1]}-{force}",
    ],
    ids=["all by name", "the first by its place", "one by name", "by their places", "any number of places"],
)
def test_a_callable_takes_the_arguments_as_it_likes(told: Told, asks: Callable[..., str]) -> None:
    @deployment("billing", version=asks)
    def deploy(tag: str, size: int = 8, *, force: bool = False) -> None:
        pass

    deploy("v1")
    deploy(size=9, tag="v2", force=True)
    assert sorted(event["version"] for event in told.events()) == ["v1-8-False"] * 2 + ["v2-9-True"] * 2


def test_it_is_asked_once_when_the_deployment_starts(told: Told) -> None:
    asked = itertools.count()
    block = deployment("billing", version=lambda: f"v{next(asked)}", autostart=False)
    with block as d:
        assert next(asked) == 0
        d.start()
        d.custom()
    assert {event["version"] for event in told.events()} == {"v1"}
    assert next(asked) == 2


def test_what_is_answered_counts_as_given_in_code(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_DEPLOY_VERSION", "from-the-environment")
    with deployment("billing", version=lambda: "v1"), deployment("web", version=lambda: None):
        pass
    assert {(event["applicationKey"], event["version"]) for event in told.events()} == {
        ("billing", "v1"),
        ("web", "v1"),
    }


def raising(error: BaseException) -> Callable[[], Any]:
    """Return a callable that raises ``error``."""

    def call() -> Any:
        raise error

    return call


@pytest.mark.parametrize("error", [ValueError("secret"), SystemExit(3), GeneratorExit("secret")])
@pytest.mark.parametrize("field", ["version", "metadata"])
def test_a_callable_that_raises_counts_as_not_given(told: Told, field: str, error: BaseException) -> None:
    with deployment("billing", **{field: raising(error)}):
        pass
    assert {event["version"] for event in told.events()} == {"a90a8a2"}
    (line,) = told.lines
    assert line.startswith(f"deployment({field}=...): the callable raised {type(error).__name__}")
    assert "secret" not in line


def test_ctrl_c_in_a_callable_is_the_deploys(told: Told) -> None:
    with pytest.raises(KeyboardInterrupt), deployment("billing", version=raising(KeyboardInterrupt())):
        pytest.fail("entered")
    assert told.kinds() == []


@pytest.mark.parametrize(
    ("field", "answer", "line"),
    [
        ("version", ["v1"], "version (argument) is of type list"),
        ("version", "", "version (argument) is empty"),
        ("application_kind", "desktop", "application_kind (argument) is 'desktop'"),
        ("metadata", "text", "deployment(metadata=...): the callable returned str; it is left out"),
        ("event_metadata", 5, "deployment(event_metadata=...): the callable returned int; it is left out"),
        ("metadata", BrokenMapping(), "deployment(metadata=...): reading the mapping raised RuntimeError"),
    ],
)
def test_an_answer_of_a_wrong_type_is_a_line(told: Told, field: str, answer: Any, line: str) -> None:
    with deployment("billing", **{field: lambda: answer}):
        pass
    assert told.lines[0].startswith(line)


def test_under_strict_what_a_callable_does_wrong_raises(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_DEPLOY_STRICT", "1")
    for field, answer in (("version", raising(ValueError())), ("metadata", lambda: 5)):
        with pytest.raises(SettingsError) as caught, deployment("billing", **{field: answer}):
            pytest.fail("entered")
        assert caught.value.field == field
    assert told.kinds() == []


@pytest.mark.parametrize("field", ["metadata", "event_metadata"])
def test_a_mapping_that_cannot_be_read_stops_nothing(told: Told, field: str) -> None:
    with deployment("billing", **{field: BrokenMapping()}):
        pass
    assert told.kinds() == ["started", "finished"]


def test_a_callable_that_would_have_to_be_awaited_is_refused() -> None:
    async def version() -> str:
        return "v1"

    with pytest.raises(TypeError, match="not awaited"):
        deployment("billing", version=version)  # type: ignore[arg-type]


def test_builtins_are_asked_too(told: Told) -> None:
    @deployment("billing", version=str)
    def deploy(tag: int) -> None:
        pass

    deploy(12)
    assert {event["version"] for event in told.events()} == {"12"}


def test_a_call_that_does_not_fit_raises_as_it_would(told: Told) -> None:
    @deployment("billing", version=lambda tag: tag)
    def deploy(tag: str) -> None:
        pass

    with pytest.raises(TypeError, match="missing 1 required positional argument: 'tag'"):
        deploy()  # type: ignore[call-arg]


def test_mocks_are_told_by_their_types_name(told: Told) -> None:
    from unittest.mock import MagicMock, Mock

    @deployment("billing", metadata=lambda c: {"context": c})
    def deploy(c: Any) -> str:
        return "done"

    assert deploy(Mock()) == deploy(MagicMock()) == "done"
    sent = [event["deploymentMetadata"] for event in told.events()]
    assert sent == [{"context": "Mock"}] * 2 + [{"context": "MagicMock"}] * 2
