"""What LaunchDarkly should show by the outbox' history, and which of its items shows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ld_deploy_hooks.cli._lone import identity_in

if TYPE_CHECKING:
    from ld_deploy_hooks._outbox import DeploymentStatus, EventStatus
    from ld_deploy_hooks._records import Identity

__all__ = ["Expected", "Shown", "compare", "expected_of", "expected_of_lone"]

# Milliseconds that a start may be off from what was told: the service may keep whole seconds. It has no id of ours,
# and two deployments of one version are told apart by their times alone.
_CLOSE = 1000


@dataclass(frozen=True)
class Expected:
    """A deployment that LaunchDarkly was told of.

    Attributes:
        id: its id in the outbox; of one that lone events make, the eventId of the first.
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


def expected_of(deployments: Iterable[DeploymentStatus], base_uri: str) -> list[Expected | None]:
    """Return what the service at ``base_uri`` should show of each; None for one that it was told nothing of yet."""
    return [_expected(one.id, one.identity, one.events, base_uri) for one in deployments]


def expected_of_lone(
    lone_events: Iterable[EventStatus], base_uri: str, beside: Iterable[Expected | None]
) -> tuple[list[Expected | None], list[Expected | None]]:
    """Return what should be shown of the deployments that lone events make: paired as LaunchDarkly pairs them.

    Args:
        lone_events: in the order in which they were recorded; annotations are passed over.
        base_uri: of the service.
        beside: what is expected of the other deployments. A lone end may be that of one which has none.

    Returns:
        Those deployments, as :func:`expected_of` has them, and ``beside``, with such ends.
    """
    others = list(beside)
    made: list[tuple[Identity, list[EventStatus]]] = []
    open_: dict[tuple[str, Identity], list[list[EventStatus]]] = {}
    for event in lone_events:
        identity = identity_in(event)
        if event.event_type == "custom" or identity is None:
            continue
        started = open_.setdefault((event.base_uri, identity), [])
        if event.event_type != "started" and started:
            started.pop().append(event)
        elif event.event_type == "started" or not _ends_other(event, identity, base_uri, others):
            made.append((identity, [event]))
            if event.event_type == "started":
                started.append(made[-1][1])
    return [_expected(events[0].event_id, identity, events, base_uri) for identity, events in made], others


def _ends_other(event: EventStatus, identity: Identity, base_uri: str, others: list[Expected | None]) -> bool:
    """Note a lone end with the last of ``others`` that it can be the end of, if there is one."""
    if event.state != "delivered" or event.base_uri != base_uri:
        return False
    starts = [
        (one.started_at, -place)
        for place, one in enumerate(others)
        if one is not None and one.identity == identity and one.status is None and one.started_at <= event.event_time
    ]
    if not starts:
        return False
    place = -max(starts)[1]
    one = others[place]
    assert one is not None
    others[place] = replace(one, told=(*one.told, event.event_type), status=event.event_type)
    return True


def _expected(id: str, identity: Identity, events: Iterable[EventStatus], base_uri: str) -> Expected | None:
    told = {
        event.event_type: event.event_time
        for event in events
        if event.state == "delivered" and event.base_uri == base_uri and event.event_type != "custom"
    }
    if not told:
        return None
    end = next((kind for kind in ("finished", "failed") if kind in told), None)
    # An end whose start was not delivered counts as a start too.
    started_at = told["started"] if "started" in told else told[str(end)]
    return Expected(id, identity, started_at, tuple(told), end)


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
