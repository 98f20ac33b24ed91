"""What LaunchDarkly should show by the outbox' history, and which of its items shows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ld_deploy_hooks._outbox import DeploymentStatus
    from ld_deploy_hooks._records import Identity

__all__ = ["Expected", "Shown", "compare", "expected_of"]

# Milliseconds that a start may be off from what was told: the service may keep whole seconds. It has no id of ours,
# and two deployments of one version are told apart by their times alone.
_CLOSE = 1000


@dataclass(frozen=True)
class Expected:
    """A deployment that LaunchDarkly was told of.

    Attributes:
        id: its id in the outbox.
        identity: what LaunchDarkly pairs by.
        started_at: what it should show as the start, in Unix milliseconds.
        told: the delivered facts, in order: ``started``, ``finished``, ``failed``.
        status: what it should be shown as; None where its end was not delivered: somebody may have set it by hand.
    """

    id: str
    identity: Identity
    started_at: int
    told: tuple[str, ...]
    status: str | None


@dataclass(frozen=True)
class Shown:
    """How a deployment is shown.

    Attributes:
        expected: the deployment.
        status: LaunchDarkly's word, None if it is not shown.
    """

    expected: Expected
    status: str | None

    @property
    def right(self) -> bool:
        """Whether it is there, and as it should be."""
        return self.status is not None and self.expected.status in (None, self.status)


def expected_of(deployment: DeploymentStatus, base_uri: str) -> Expected | None:
    """Return what the service at ``base_uri`` should show of ``deployment``; None if it was told nothing of it yet."""
    told = {
        event.event_type: event.event_time
        for event in deployment.events
        if event.state == "delivered" and event.base_uri == base_uri and event.event_type != "custom"
    }
    if not told:
        return None
    end = next((kind for kind in ("finished", "failed") if kind in told), None)
    # A lone end counts as a start too.
    started_at = told.get("started", told.get(end or "", deployment.started_at))
    return Expected(deployment.id, deployment.identity, started_at, tuple(told), end)


def compare(expected: Iterable[Expected], items: Iterable[Mapping[str, Any]]) -> list[Shown]:
    """Return how each is shown, in the same order; each item shows one deployment at most.

    Args:
        expected: all of one project, environment and application.
        items: what LaunchDarkly answered for it.
    """
    wanted, there = list(expected), list(items)
    pairs = []
    for number, one in enumerate(wanted):
        for place, item in enumerate(there):
            started = item.get("startedAt")
            if item.get("applicationVersion") != one.identity.version or not isinstance(started, (int, float)):
                continue
            off = abs(started - one.started_at)
            if off <= _CLOSE:
                # Of two that began together, the one with the right status: an event that was told twice may have made
                # the other.
                wrong = one.status is not None and _status(item) != one.status
                pairs.append((off, wrong, number, place, item))
    shown: dict[int, str] = {}
    used: set[int] = set()
    for _, _, number, place, item in sorted(pairs, key=lambda pair: pair[:4]):
        if number not in shown and place not in used:
            shown[number] = _status(item)
            used.add(place)
    return [Shown(one, shown.get(number)) for number, one in enumerate(wanted)]


def _status(item: Mapping[str, Any]) -> str:
    return str(item.get("status", "unknown")).lower()
