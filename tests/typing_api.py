"""Never run: mypy reads how users write it, and that each thing has the type that they count on.

``warn_unused_ignores`` makes every ``type: ignore`` below a proof that the mistake on its line is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from typing_extensions import assert_type

import ld_deploy_hooks
from ld_deploy_hooks import (
    DeployHooksError,
    Deployment,
    DeploymentEvent,
    DeploymentRecord,
    DropEvent,
    EventError,
    EventType,
    Identity,
    SettingsError,
    current_deployment,
    deployment,
    flush,
    hookimpl,
)
from ld_deploy_hooks.testing import RecordedEvents, record_deployments

# -- blocks -----------------------------------------------------------------------------------------------------------

with deployment("billing-service", version="a90a8a2", metadata={"ticket": 7}) as d:
    assert_type(d, Deployment)
    assert_type(d.id, str)
    assert_type(d.identity, Identity | None)
    assert_type(d.state, str)
    assert_type(d.started_at, int | None)
    assert_type(d.ended_at, int | None)
    assert_type(d.metadata, dict[str, Any])
    d.metadata["ticket"] = 8
    d.start()
    d.custom(step="migrated", tables=12)
    d.custom({"step": "migrated"})
    d.mark_failed("the smoke test failed")
    d.mark_cancelled("superseded")
    d.host_succeeded("web1")
    d.host_failed("web2", OSError())
    d.record_group(object())


def returns() -> int:
    """A ``with`` never swallows an exception, so no path falls out of this function."""
    with deployment("billing-service"):
        return 1


async def block() -> int:
    async with deployment("billing-service") as d:
        assert_type(d, Deployment)
        return 1


assert_type(current_deployment(), Deployment | None)
assert_type(flush(), bool)
assert_type(flush(60), bool)
assert_type(ld_deploy_hooks.__version__, str)

# -- decorators: the function keeps its type --------------------------------------------------------------------------


@deployment("billing-service", version=lambda tag, *, dry: tag, success=bool)
def deploy(tag: str, *, dry: bool = False) -> int:
    return len(tag)


@deployment
def bare(tag: str) -> bytes:
    return tag.encode()


@deployment(application_key=lambda tag: tag, pre_and_post=False, autostart=False)
async def coroutine(tag: str) -> int:
    return len(tag)


assert_type(deploy("v1", dry=True), int)
assert_type(bare("v1"), bytes)
kept: Callable[[str], Coroutine[Any, Any, int]] = coroutine
deploy(1)  # type: ignore[arg-type]

# -- mistakes ---------------------------------------------------------------------------------------------------------

deployment(version=1)  # type: ignore[call-overload]
deployment("billing-service", verison="a90a8a2")  # type: ignore[call-overload]
ld_deploy_hooks.deploymnet("billing-service")  # type: ignore[attr-defined]

# -- plugins ----------------------------------------------------------------------------------------------------------


@hookimpl
def ld_deploy_add_metadata(deployment: DeploymentRecord) -> Mapping[str, Any] | None:
    assert_type(deployment.identity, Identity)
    assert_type(deployment.hosts, tuple[str, ...])
    assert_type(deployment.reason, str | None)
    return {"project": deployment.identity.project_key}


@hookimpl(tryfirst=True)
def ld_deploy_modify_event(event: DeploymentEvent) -> DeploymentEvent | None:
    assert_type(event.event_type, EventType)
    assert_type(event.event_time, int)
    assert_type(event.deployment_metadata, Mapping[str, Any])
    if event.event_type == "custom":
        raise DropEvent
    event.version = "v2"  # type: ignore[misc]
    return None


# -- tests ------------------------------------------------------------------------------------------------------------

with record_deployments() as events:
    assert_type(events, RecordedEvents)
    assert_type(events.one("failed", application_key="billing-service"), DeploymentEvent)
    assert_type(events.started, list[DeploymentEvent])
    assert_type(events[0], DeploymentEvent)

# -- errors -----------------------------------------------------------------------------------------------------------


def told(error: Exception) -> str | None:
    if isinstance(error, SettingsError):
        return error.field
    if isinstance(error, EventError):
        return error.attribute
    return "ours" if isinstance(error, DeployHooksError) else None
