"""Recovery: what a process left open when it died without a word is told as failed, by whoever comes next."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ld_deploy_hooks._clock import now
from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks._log import internal_fault
from ld_deploy_hooks._owner import Death
from ld_deploy_hooks._records import DeploymentEvent, DeploymentRecord, EventType, Identity
from ld_deploy_hooks._version import __version__

if TYPE_CHECKING:
    from ld_deploy_hooks._outbox import OpenDeployment, Outbox

__all__ = ["details_of", "recover"]


def details_of(event: DeploymentEvent) -> dict[str, object]:
    """Return what the outbox keeps of an open deployment, so that another process can tell its end."""
    return {"started": event.to_json()}


def recover(
    box: Outbox,
    death_of: Callable[[str], Death | None],
    *,
    base_uri: str | None = None,
    identity: Identity | None = None,
) -> list[DeploymentRecord]:
    """End what dead owners left open, and void their leases.

    The outbox lets a deployment end only once, so any number of processes may do this at the same time.

    Args:
        box: the outbox, inside a transaction.
        death_of: the death of an owner; None while it lives.
        base_uri: only what goes to this service.
        identity: only what has this identity.

    Returns:
        The deployments that were ended here.
    """
    deaths: dict[str, Death | None] = {}
    ended = []
    for left in box.open_of(base_uri=base_uri, identity=identity):
        if left.owner not in deaths:
            deaths[left.owner] = death_of(left.owner)
        death = deaths[left.owner]
        if death is None:
            continue
        if left.id in death.ended:
            box.settle_deployment(left.id, state=death.ended[left.id], now=now())
            continue
        try:
            event = _killed(left, death)
            if box.end_deployment(id=left.id, event=event, now=now()):
                ended.append(_record(left, event))
        except OutboxError:
            raise
        except Exception as error:
            # What another version has left there; it may not stand in the way of the deployment that starts.
            internal_fault("Recovering a deployment", error)
    box.void_leases([owner for owner, death in deaths.items() if death is not None])
    return ended


def _killed(left: OpenDeployment, death: Death) -> DeploymentEvent:
    if "started" in left.details:
        started = DeploymentEvent.from_json(str(left.details["started"]))
    else:
        # The bytes of its details have changed on the disk: what it is paired by is known all the same.
        started = DeploymentEvent(event_type=EventType.STARTED, event_time=left.started_at, **left.identity._asdict())
    # Last known alive is never before the last event.
    at = max(death.last_alive or 0, left.last_event_at)
    task = started.event_metadata.get("task")
    return replace(
        started,
        event_type=EventType.FAILED,
        event_time=at,
        event_metadata={
            "source": f"ld-deploy-hooks/{__version__}",
            "eventId": str(uuid.uuid4()),
            **({"task": task} if task is not None else {}),
            "durationMs": at - left.started_at,
            "reason": "cancelled" if left.details.get("signal") else "killed",
        },
    )


def _record(left: OpenDeployment, event: DeploymentEvent) -> DeploymentRecord:
    hosts = event.deployment_metadata.get("hosts")
    return DeploymentRecord(
        id=left.id,
        identity=left.identity,
        state="failed",
        started_at=left.started_at,
        ended_at=event.event_time,
        metadata=event.deployment_metadata,
        task=event.event_metadata.get("task"),
        hosts=tuple(hosts) if isinstance(hosts, list) else (),
        application_name=event.application_name,
        version_name=event.version_name,
        reason=event.event_metadata["reason"],
    )
