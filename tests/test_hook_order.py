"""Every hook, in its order, with what it is given: through whole deployments, told to a server on loopback."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from told import Told, told_fixture  # noqa: F401

from ld_deploy_hooks import DeploymentEvent, current_deployment, deployment, flush, hookspecs
from ld_deploy_hooks._reporter import plugins_for
from ld_deploy_hooks._settings import resolve
from ld_deploy_hooks.hookspecs import hookimpl

HOOKS = [name for name in hookspecs.__all__ if name.startswith("ld_deploy_")]


class HealthError(Exception):
    """What leaves the deploy."""


def watching(note: Callable[[str, dict[str, Any]], object]) -> Any:
    """Return a plugin with every hook there is, each of which notes its name and what it was given."""
    functions: dict[str, Any] = {}
    for name in HOOKS:
        arguments = ", ".join(inspect.signature(getattr(hookspecs, name)).parameters)
        scope: dict[str, Any] = {"note": note}
        exec(f"def {name}({arguments}): return note({name!r}, locals())", scope)
        functions[name] = staticmethod(hookimpl(scope[name]))
    return type("Watching", (), functions)()


def in_short(given: dict[str, Any]) -> str:
    """Return what a hook was given, as far as it is the same every time."""
    words: list[object] = []
    for value in given.values():
        if isinstance(value, hookspecs.SettingsView):
            words += ["of", value.application_key, value.version]
        elif isinstance(value, hookspecs.DeploymentRecord):
            open_or_ended = "open" if value.ended_at is None else "ended"
            words += [value.identity.application_key, value.state, open_or_ended, value.reason, value.error_type]
        elif isinstance(value, DeploymentEvent):
            words += [value.application_key, value.event_type.value]
        elif isinstance(value, BaseException):
            words.append(repr(value))
        else:
            words.append(str(value).partition(" answered ")[2][:3] or dict(value))
    return " ".join(str(word) for word in words if word is not None)


def test_a_deployment_calls_every_hook_in_this_order(told: Told) -> None:
    calls: list[str] = []
    plugins_for(resolve()).register(
        watching(lambda hook, given: calls.append(f"{hook.removeprefix('ld_deploy_')}: {in_short(given)}")), "w", "here"
    )

    def deploy(what: str) -> None:
        # What has happened so far is told before the deploy goes on; on its own it would run beside it.
        assert flush(20)
        calls.append(f"-- {what}")

    @deployment("billing")
    def failing() -> None:
        deploy("it has begun")
        current_deployment().custom(step="migrated")
        deploy("it goes wrong")
        raise HealthError("sesame")

    told.server.answer_next(201, 201, 400)
    calls.append("-- a deploy that fails")
    with pytest.raises(HealthError):
        failing()
    deploy("one that ends well")
    with deployment("web"):
        deploy("it has begun")
    deploy("all is told")

    assert calls == [
        "-- a deploy that fails",
        "provide_defaults: of billing a90a8a2",
        "add_metadata: billing started open",
        "modify_event: billing started",
        "started: billing started open",
        "event_delivered: billing started",
        "-- it has begun",
        "modify_event: billing custom",
        "custom: billing started open {'step': 'migrated'}",
        "event_delivered: billing custom",
        "-- it goes wrong",
        "modify_event: billing failed",
        "failed: billing failed ended error HealthError HealthError('sesame')",
        "event_rejected: billing failed 400",
        "-- one that ends well",
        "provide_defaults: of web a90a8a2",
        "add_metadata: web started open",
        "modify_event: web started",
        "started: web started open",
        "event_delivered: web started",
        "-- it has begun",
        "modify_event: web finished",
        "finished: web finished ended",
        "event_delivered: web finished",
        "-- all is told",
    ]
    assert {call.partition(":")[0] for call in calls if not call.startswith("-- ")} == {
        name.removeprefix("ld_deploy_") for name in HOOKS
    }
