"""``ld-deploy status``: what was deployed lately, and what became of its events."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

from ld_deploy_hooks.cli._asking import ask
from ld_deploy_hooks.cli._lone import identity_in
from ld_deploy_hooks.cli._output import say
from ld_deploy_hooks.cli._table import print_table

if TYPE_CHECKING:
    from ld_deploy_hooks._outbox import Counts, DeploymentStatus, EventStatus
    from ld_deploy_hooks._records import Identity

__all__ = ["add_to"]

_COLUMNS = ("application", "version", "environment", "verdict", "when", "how long", "events")


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "status",
        help="show recent deployments and what became of their events",
        description="Show recent deployments, and for each whether its events were delivered, or what waits and why; "
        "likewise the events that `ld-deploy send` told alone.",
        epilog="Exit status: 0; 2 if the command line, a setting or the outbox cannot be used.",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.add_argument(
        "--limit", type=int, default=20, metavar="N", help="how many deployments, and lone events (default: 20)"
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from ld_deploy_hooks.cli._settings import settings_or_exit

    settings = settings_or_exit()
    counts = ask(settings, lambda box: box.counts())
    deployments = ask(settings, lambda box: box.deployments(limit=arguments.limit))
    lone_events = ask(settings, lambda box: box.lone_events(limit=arguments.limit))
    elsewhere = ask(settings, lambda box: box.waiting_elsewhere(settings.base_uri))
    if arguments.json:
        shown = _as_json(str(settings.outbox), settings.base_uri, counts, deployments, lone_events, elsewhere)
        say(json.dumps(shown, indent=2))
        return 0
    rows = [
        (deployment.started_at, _row(deployment, settings.base_uri, settings.sendable)) for deployment in deployments
    ]
    rows += [(event.event_time, _lone_row(event, settings.base_uri, settings.sendable)) for event in lone_events]
    print_table(_COLUMNS, [row for _, row in sorted(rows, key=lambda dated: dated[0], reverse=True)])
    say(
        f"{counts.pending} event(s) waiting, {counts.delivered} delivered, {counts.rejected} rejected; "
        f"{counts.open} deployment(s) open; in {settings.outbox}"
    )
    for base_uri, number in elsewhere.items():
        say(f"{number} of them wait for {base_uri}, not for {settings.base_uri}")
    return 0


def _as_json(
    outbox: str,
    base_uri: str,
    counts: Counts,
    deployments: list[DeploymentStatus],
    lone_events: list[EventStatus],
    elsewhere: dict[str, int],
) -> dict[str, Any]:
    return {
        "outbox": outbox,
        "base_uri": base_uri,
        "pending": counts.pending,
        "delivered": counts.delivered,
        "rejected": counts.rejected,
        "open": counts.open,
        "waiting_elsewhere": elsewhere,
        "deployments": [
            {
                "id": deployment.id,
                **deployment.identity._asdict(),
                "base_uri": deployment.base_uri,
                "state": "started" if deployment.state == "open" else deployment.state,
                "started_at": deployment.started_at,
                "ended_at": deployment.ended_at,
                "events": [_event_as_json(event) for event in deployment.events],
            }
            for deployment in deployments
        ],
        "lone_events": [
            {**_identity_of(event)._asdict(), "base_uri": event.base_uri, **_event_as_json(event)}
            for event in lone_events
        ],
    }


def _identity_of(event: EventStatus) -> Identity:
    from ld_deploy_hooks._records import Identity

    return identity_in(event) or Identity("?", "?", "?", "?")


def _event_as_json(event: EventStatus) -> dict[str, Any]:
    return {
        "event_id": event.event_id,
        "event_type": event.event_type,
        "event_time": event.event_time,
        "state": "pending" if event.state == "waiting" else event.state,
        "tries": event.tries,
        "next_attempt": event.next_attempt or None,
        "reason": event.reason,
    }


def _row(deployment: DeploymentStatus, base_uri: str, sendable: bool) -> tuple[str, ...]:
    ended = deployment.ended_at
    return (
        deployment.identity.application_key,
        deployment.identity.version,
        deployment.identity.environment_key,
        deployment.state,
        _when(deployment.started_at),
        "" if ended is None else f"{(ended - deployment.started_at) / 1000:.1f} s",
        _fate(deployment.events, base_uri, sendable),
    )


def _lone_row(event: EventStatus, base_uri: str, sendable: bool) -> tuple[str, ...]:
    identity = _identity_of(event)
    return (
        identity.application_key,
        identity.version,
        identity.environment_key,
        f"{event.event_type}, sent alone",
        _when(event.event_time),
        "",
        _fate((event,), base_uri, sendable),
    )


def _when(at: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at / 1000))


def _fate(events: tuple[EventStatus, ...], base_uri: str, sendable: bool) -> str:
    rejected = [event for event in events if event.state == "rejected"]
    waiting = [event for event in events if event.state == "waiting"]
    parts = [f"{event.event_type} rejected: {event.reason}" for event in rejected]
    if waiting:
        first = waiting[0]
        if first.base_uri != base_uri:
            why = f"for {first.base_uri}"
        elif not sendable:
            why = "for a usable access token and base URI"
        elif first.tries:
            why = f"after {first.tries} attempt(s) that failed"
        else:
            why = "to be sent"
        parts.append(f"{len(waiting)} waiting {why}")
    return "; ".join(parts) or "delivered"
