"""``ld-deploy send``: tell a single event, for pipelines whose steps are processes of their own."""

from __future__ import annotations

import argparse
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ld_deploy_hooks.cli._fields import FIELDS_USAGE, add_fields, fields_of

if TYPE_CHECKING:
    from ld_deploy_hooks._events import Events
    from ld_deploy_hooks._recorder import Recorder
    from ld_deploy_hooks._records import DeploymentEvent, EventType
    from ld_deploy_hooks._settings import Settings

__all__ = ["add_to"]

_KINDS = ("started", "finished", "failed", "custom")
# Seconds that the outbox has to record the event, and then to say what is left.
_RECORDING = 5.0
_MOMENT = 1.0
# Unix milliseconds: 1973 and 5138. What is less are seconds, what is more are micro- or nanoseconds.
_EARLIEST, _LATEST = 10**11, 10**14


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "send",
        usage=f"%(prog)s [-h] {{{','.join(_KINDS)}}} {FIELDS_USAGE} [--event-time TIME]",
        allow_abbrev=False,
        help="tell a single event, where the steps of a deployment are separate processes",
        description="Tell a single event. It stands alone: nothing is left open by `started` and nobody tells it as "
        "failed, so a pipeline has to send `finished` or `failed` later, with the same project, environment, "
        "application and version. Plugins add to it as to any other event, and are told when it is delivered or "
        "rejected, but not of a deployment. Where one process sees start and end, use `ld-deploy run`; within its "
        "command only `custom` is told of the same deployment. No option takes the token: it would show in `ps`; set "
        "LD_ACCESS_TOKEN.",
        epilog="Exit status: 0 if the event is recorded, delivered or not (a line says what waits; the next run or "
        "`ld-deploy flush` sends it), and if it is not to be told (LD_DEPLOY_DISABLED, LD_DEPLOY_DRY_RUN, a plugin, "
        "the `ld-deploy run` around it); 1 "
        "if it was rejected, or could neither be delivered nor kept; 2 if the command line cannot be used, or a "
        "required setting is missing.",
    )
    command.add_argument("kind", choices=_KINDS, help="what has happened; `custom` is a mere annotation")
    add_fields(command)
    command.add_argument(
        "--event-time",
        type=_time,
        metavar="TIME",
        help="when it happened: Unix milliseconds, or ISO 8601 with its zone (default: now)",
    )
    command.set_defaults(run=_run)


def _time(text: str) -> int:
    """Return Unix milliseconds."""
    from datetime import datetime

    if text.isascii() and text.isdigit():
        at = int(text)
    else:
        try:
            # Before Python 3.11 it does not know the Z.
            when = datetime.fromisoformat(text.upper().removesuffix("Z") + "+00:00" * text.upper().endswith("Z"))
        except ValueError:
            raise argparse.ArgumentTypeError("give Unix milliseconds, or ISO 8601 as in 2026-11-23T08:28:14Z") from None
        if when.tzinfo is None:
            raise argparse.ArgumentTypeError("give the time's zone, as in 2026-11-23T08:28:14Z")
        at = round(when.timestamp() * 1000)
    if not _EARLIEST <= at < _LATEST:
        raise argparse.ArgumentTypeError("give Unix milliseconds: 13 digits, not seconds and not microseconds")
    return at


def _run(arguments: argparse.Namespace) -> int:
    from ld_deploy_hooks._clock import now
    from ld_deploy_hooks._door import Surroundings
    from ld_deploy_hooks._errors import DropEvent
    from ld_deploy_hooks._events import Events, identity_of
    from ld_deploy_hooks._fields import Fields
    from ld_deploy_hooks._log import say_once
    from ld_deploy_hooks._parent import parent_drops, parent_tells
    from ld_deploy_hooks._records import EventType
    from ld_deploy_hooks._reporter import reporter_for

    at = arguments.event_time if arguments.event_time is not None else now()
    given = fields_of(arguments)
    metadata, users = given.pop("metadata"), given.pop("event_metadata")
    settings, *_ = Fields(given, None, None).settle(args=(), kwargs={}, outer=None, surroundings=Surroundings())
    if settings.silent:
        switch = "disabled" if settings.disabled else "dry_run"
        say_once(f"ld-deploy: nothing is told: {switch} is on (from {settings.sources[switch]}).")
        return 0
    if settings.missing:
        return 2
    recorder = reporter_for(settings)
    events = Events(settings=settings, identity=identity_of(settings), task=None, modify=recorder.plugins.modify_event)
    kind = EventType(arguments.kind)
    if kind is not EventType.CUSTOM and parent_tells(settings, events.identity, {}):
        say_once(
            "ld-deploy: nothing is told: start and end of this deployment are told by the `ld-deploy run` around it. "
            "Let its command exit with a status other than 0 to have it told as failed."
        )
        return 0
    if parent_drops(events.identity):
        say_once(
            "ld-deploy: nothing is told: a plugin has dropped the deployment that the `ld-deploy run` around it tells."
        )
        return 0
    events.added = _added(recorder, events, kind, at, metadata)
    try:
        event = events.make(kind, at, users=users, metadata=metadata, hosts={})
    except DropEvent:
        say_once("ld-deploy: nothing is told: a plugin dropped this event.")
        return 0
    return _deliver(settings, recorder, event)


def _added(recorder: Recorder, events: Events, kind: EventType, at: int, metadata: dict[str, str]) -> Any:
    """Return what plugins add to the deploymentMetadata; they see as much of a deployment as is known here."""
    from ld_deploy_hooks._verdicts import FINISHED

    ended = kind.value in ("finished", "failed")
    record = events.record(
        FINISHED,
        id=str(uuid.uuid4()),
        state=kind.value if ended else "started",
        started_at=at if kind.value == "started" else None,
        ended_at=at if ended else None,
        metadata=metadata,
    )
    return events.clean(recorder.plugins.add_metadata(record))


def _deliver(settings: Settings, recorder: Recorder, event: DeploymentEvent) -> int:
    from ld_deploy_hooks._errors import OutboxError
    from ld_deploy_hooks._log import say_once
    from ld_deploy_hooks._reporter import ask_outbox

    lost, became = False, None
    recorded = recorder.lone(event)
    try:
        lost = recorded.exception(_RECORDING) is not None
        recorder.flush(settings.flush_timeout)
        event_id = event.event_id
        with suppress(OutboxError):
            became = ask_outbox(settings, lambda box: box.event(str(event_id)), timeout=_MOMENT)
    except TimeoutError:
        # Another process holds the outbox; what is left is written beside it.
        pass
    left = recorder.rest.line(_MOMENT, final=True)
    if left is not None:
        say_once(left)
    rejected = became is not None and became.state == "rejected"
    return int(lost or rejected or recorder.rest.lost)
