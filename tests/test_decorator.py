"""``@deployment``: functions stay what they are, and what cannot be decorated is refused where it is written."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from told import Told, told_fixture  # noqa: F401

from ld_deploy_hooks import current_deployment, deployment


def test_a_function_stays_itself(told: Told) -> None:
    @deployment("billing")
    def deploy(c: str, tag: str = "v1", *more: int, **options: int) -> tuple[Any, ...]:
        """Deploy."""
        return c, tag, more, options

    assert (deploy.__name__, deploy.__doc__) == ("deploy", "Deploy.")
    assert (
        str(inspect.signature(deploy))
        == "(c: 'str', tag: 'str' = 'v1', *more: 'int', **options: 'int') -> 'tuple[Any, ...]'"
    )
    assert deploy("a", "b", 3, x=4) == ("a", "b", (3,), {"x": 4})
    started, finished = told.events()
    assert started["eventMetadata"]["task"] == finished["eventMetadata"]["task"] == "deploy"


def test_bare_and_with_parentheses(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_DEPLOY_APPLICATION_KEY", "billing")

    @deployment
    def one() -> int:
        return 1

    @deployment()
    def two() -> int:
        return 2

    assert (one(), two()) == (1, 2)
    assert [event["eventMetadata"]["task"] for event in told.events()] == ["one", "one", "two", "two"]


def test_one_function_that_deploys_two_applications(told: Told) -> None:
    @deployment("web")
    @deployment("billing")
    def deploy() -> None:
        pass

    deploy()
    told_in_all = [(event["applicationKey"], event["eventType"]) for event in told.events()]
    assert sorted(told_in_all) == [
        ("billing", "finished"),
        ("billing", "started"),
        ("web", "finished"),
        ("web", "started"),
    ]


def test_methods_are_decorated_in_their_class(told: Told) -> None:
    class Deployer:
        @deployment("billing")
        def deploy(self) -> Deployer:
            return self

        @staticmethod
        @deployment("web")
        def switch() -> int:
            return 2

    deployer = Deployer()
    assert deployer.deploy() is deployer
    assert Deployer.switch() == 2
    assert sorted(told.kinds()) == ["finished", "finished", "started", "started"]


def generate() -> Iterator[int]:
    yield 1


async def generate_async() -> AsyncIterator[int]:
    yield 1


class Callable:
    """Can be called, and is no function."""

    def __call__(self) -> None:
        """Do nothing."""

    def method(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    ("thing", "instead"),
    [
        (generate, "Use `with deployment(...)` in it"),
        (generate_async, "Use `with deployment(...)` in it"),
        (functools.partial(print, 1), "Write a function with `def`"),
        (Callable().method, "Decorate the function in its class"),
        (Callable(), "Write a function with `def`"),
        (Callable, "Write a function with `def`"),
        (print, "Write a function with `def`"),
        (Mock(), "Write a function with `def`"),
        (staticmethod(generate), "goes below @staticmethod"),
        (classmethod(generate), "goes below @classmethod"),
        (None, "Write a function with `def`"),
        ("billing", "Write a function with `def`"),
    ],
)
def test_what_cannot_be_decorated_is_refused_with_what_to_do(thing: Any, instead: str) -> None:
    with pytest.raises(TypeError, match="@deployment") as caught:
        deployment("billing")(thing)
    assert instead in str(caught.value)


@pytest.mark.parametrize(
    ("result", "kind"),
    [(True, "finished"), ([1], "finished"), (False, "failed"), (0, "failed"), (None, "failed"), ([], "failed")],
)
def test_success_judges_the_result(told: Told, result: Any, kind: str) -> None:
    @deployment("billing", success=lambda answer: answer)
    def deploy() -> Any:
        return result

    assert deploy() is result
    assert told.end()["eventType"] == kind
    if kind == "failed":
        assert told.failure() == {"reason": "error"}


def test_success_is_not_asked_of_what_raised(told: Told) -> None:
    @deployment("billing", success=lambda answer: pytest.fail("asked"))
    def deploy() -> None:
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        deploy()
    assert told.failure()["error"] == "ValueError"


class Unjudgeable:
    """Neither true nor false."""

    def __bool__(self) -> bool:
        raise RuntimeError("secret")


@pytest.mark.parametrize("error", [ValueError("secret"), SystemExit(3)])
def test_success_that_raises_is_a_line(told: Told, error: BaseException) -> None:
    def judge(_: object) -> bool:
        raise error

    @deployment("billing", success=judge)
    def deploy() -> int:
        return 5

    assert deploy() == 5
    assert told.end()["eventType"] == "finished"
    (line,) = told.lines
    assert line.startswith(f"deployment(success=...): the callable raised {type(error).__name__}")


def test_an_answer_that_cannot_be_judged_is_a_line(told: Told) -> None:
    @deployment("billing", success=lambda _: Unjudgeable())
    def deploy() -> int:
        return 5

    assert deploy() == 5
    assert told.end()["eventType"] == "finished"
    assert "secret" not in told.lines[0]


def test_ctrl_c_while_the_result_is_judged_ends_it_as_cancelled(told: Told) -> None:
    def judge(_: object) -> bool:
        raise KeyboardInterrupt

    @deployment("billing", success=judge)
    def deploy() -> None:
        pass

    with pytest.raises(KeyboardInterrupt):
        deploy()
    assert told.failure()["reason"] == "cancelled"


def test_an_inner_result_that_means_failure_was_the_callers_to_see(told: Told) -> None:
    @deployment("billing", success=bool)
    def step() -> bool:
        return False

    with deployment("billing"):
        assert step() is False
    assert told.end()["eventType"] == "finished"


def test_a_function_finds_its_deployment(told: Told) -> None:
    @deployment("billing", autostart=False)
    def deploy(wanted: bool) -> None:
        d = current_deployment()
        assert d is not None
        assert d.state == "pending"
        if wanted:
            d.start()

    deploy(False)
    assert told.kinds() == []
    deploy(True)
    assert told.kinds() == ["started", "finished"]


def test_each_call_is_a_deployment_of_its_own(told: Told) -> None:
    @deployment("billing")
    def deploy() -> str:
        d = current_deployment()
        assert d is not None
        return d.id

    assert deploy() != deploy()
    assert told.kinds() == ["started", "finished"] * 2


def test_functions_of_one_name_are_not_taken_for_equal() -> None:
    """Invoke compares the code of tasks' bodies, and silently drops the second of two that are equal."""

    def make(answer: int) -> Any:
        def deploy() -> int:
            return answer

        return deploy

    def other() -> int:
        return 3

    one, two = deployment("web")(make(1)), deployment("api")(other)
    assert one.__code__ != two.__code__


async def _judges(result: object) -> bool:
    return False


class _Judge:
    async def __call__(self, result: object) -> bool:
        return False


@pytest.mark.parametrize("success", [_judges, _Judge()], ids=["a function", "an object"])
def test_a_judge_that_would_have_to_be_awaited_is_refused(success: Any) -> None:
    with pytest.raises(TypeError, match="is called and not awaited: give it a plain function"):
        deployment("billing", success=success)


def test_a_coroutine_is_no_judgement(told: Told) -> None:
    @deployment("billing", success=lambda result: _judges(result))
    def deploy() -> int:
        return 1

    assert deploy() == 1
    assert told.kinds() == ["started", "finished"]
    (line,) = told.lines
    assert line.startswith("deployment(success=...): the callable returned a coroutine, which nobody awaits")
