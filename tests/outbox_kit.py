"""What the tests of the outbox share: events of a deployment, in few words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ld_deploy_hooks._outbox import Claimed, Outbox
from ld_deploy_hooks._records import DeploymentEvent, EventType, Identity

HERE = "http://127.0.0.1:9/here"
THERE = "http://127.0.0.1:9/there"
DAY = 86_400_000


def identity(name: str = "a") -> Identity:
    """Return the identity of version ``name``."""
    return Identity("project", "production", "billing", name)


def event(kind: str, event_id: str, *, of: str = "a", at: int = 1000) -> DeploymentEvent:
    """Return an event of the identity ``of`` that happened at ``at``."""
    return DeploymentEvent(
        event_type=EventType(kind),
        event_time=at,
        event_metadata={"eventId": event_id},
        **identity(of)._asdict(),
    )


def start(box: Outbox, name: str, *, of: str = "a", base_uri: str = HERE, owner: str = "me", now: int = 1000) -> None:
    """Record that the deployment ``name`` has started; its event is ``<name>-started``."""
    box.open_deployment(
        id=name,
        base_uri=base_uri,
        identity=identity(of),
        owner=owner,
        event=event("started", f"{name}-started", of=of, at=now),
        details={"task": "deploy"},
        now=now,
    )


def end(box: Outbox, name: str, *, of: str = "a", kind: str = "finished", now: int = 2000) -> bool:
    """Record that the deployment ``name`` has ended; its event is ``<name>-<kind>``."""
    return box.end_deployment(id=name, event=event(kind, f"{name}-{kind}", of=of, at=now), now=now)


def lone(box: Outbox, event_id: str, *, of: str = "a", base_uri: str = HERE, now: int = 1000) -> None:
    """Record an event that belongs to no deployment."""
    box.add_event(deployment_id=None, base_uri=base_uri, event=event("custom", event_id, of=of, at=now), now=now)


def claim(
    box: Outbox, *, owner: str = "me", base_uri: str = HERE, now: int = 10_000, limit: int = 100
) -> list[Claimed]:
    """Claim everything that can be claimed."""
    return box.claim(base_uri=base_uri, owner=owner, now=now, limit=limit)


def ids(claimed: list[Claimed]) -> list[str]:
    """Return the eventIds."""
    return [one.event_id for one in claimed]


def drain(box: Outbox, *, base_uri: str = HERE, now: int = 10_000) -> list[str]:
    """Deliver everything that can be delivered; return the eventIds in the order in which they were sent."""
    sent = []
    while claimed := claim(box, base_uri=base_uri, now=now):
        for one in claimed:
            sent.append(one.event_id)
            assert box.ack(one.event_id, owner="me", now=now)
    return sent


@contextmanager
def opened(path: Path | None) -> Iterator[Outbox]:
    """Open an outbox for a block."""
    box = Outbox(path)
    try:
        yield box
    finally:
        box.close()


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold an outbox for a block, as another process may: nobody else can write to it."""
    with opened(path) as box, box.transaction():
        box.hold("somebody else's", until=0)
        yield
