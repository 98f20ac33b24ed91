"""What is in the file: its tables, and the records that are read from them.

An event's ``state`` is ``waiting``, ``delivered`` or ``rejected``, and ``since`` is when it came into that state. Of
each stream (base URI and identity: what LaunchDarkly pairs by) only one waiting event at a time can be claimed, its
head: the oldest, unless an older one came back while it was being sent. The head alone has a ``due``: when it may be
claimed, which is the end of its lease while it is leased and its ``next_attempt`` otherwise. So the head of each stream
and the earliest due are found in an index, however many events wait.

The SQL in this folder keeps to SQLite 3.7.17, which is what CentOS 7 and Amazon Linux 2 bring: no partial indexes, no
WITH, no upserts, no RETURNING.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ld_deploy_hooks._records import Identity

__all__ = [
    "APPLICATION_ID",
    "SCHEMA",
    "SCHEMA_VERSION",
    "Claimed",
    "Counts",
    "DeploymentStatus",
    "EventStatus",
    "OpenDeployment",
    "details_in",
    "identity_of",
    "identity_text",
    "is_whole",
    "stream_of",
]

SCHEMA_VERSION = 1
# "LDDH": tells our files from those of other programs.
APPLICATION_ID = 0x4C444448

SCHEMA = (
    """
    CREATE TABLE deployments (
        id TEXT PRIMARY KEY NOT NULL,
        owner TEXT NOT NULL,
        base_uri TEXT NOT NULL,
        stream TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('open', 'finished', 'failed')),
        started_at INTEGER NOT NULL,
        ended_at INTEGER,
        details TEXT NOT NULL
    )
    """,
    "CREATE INDEX deployments_by_state ON deployments (state, base_uri, stream)",
    "CREATE INDEX deployments_by_start ON deployments (started_at)",
    # AUTOINCREMENT: the number of an event that is gone is never given to another.
    """
    CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        event_id TEXT UNIQUE NOT NULL,
        deployment_id TEXT,
        base_uri TEXT NOT NULL,
        stream TEXT NOT NULL,
        type TEXT NOT NULL,
        payload TEXT NOT NULL,
        event_time INTEGER NOT NULL,
        recorded_at INTEGER NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('waiting', 'delivered', 'rejected')),
        since INTEGER NOT NULL,
        reason TEXT,
        tries INTEGER NOT NULL DEFAULT 0,
        next_attempt INTEGER NOT NULL DEFAULT 0,
        due INTEGER,
        lease_owner TEXT
    )
    """,
    "CREATE INDEX events_by_due ON events (state, base_uri, due)",
    "CREATE INDEX events_by_stream ON events (stream, state, due)",
    "CREATE INDEX events_by_age ON events (state, since)",
    "CREATE INDEX events_by_deployment ON events (deployment_id)",
    "CREATE INDEX events_by_lease ON events (lease_owner)",
    # A rate limit's hold-back outlives the process that met with it.
    "CREATE TABLE holds (base_uri TEXT PRIMARY KEY NOT NULL, until INTEGER NOT NULL)",
)


def identity_text(identity: Identity) -> str:
    """Return an identity as the tables hold it."""
    return json.dumps(identity, separators=(",", ":"))


def stream_of(base_uri: str, identity: Identity) -> str:
    """Return the stream of an identity's events: their base URI, a space, the identity."""
    return f"{base_uri} {identity_text(identity)}"


def identity_of(base_uri: str, stream: str) -> Identity:
    """Return the identity in a stream; question marks where its bytes have changed on the disk."""
    try:
        parts = json.loads(stream[len(base_uri) + 1 :])
    except ValueError:
        parts = None
    if isinstance(parts, list) and len(parts) == len(Identity._fields) and all(isinstance(part, str) for part in parts):
        return Identity(*parts)
    return Identity("?", "?", "?", "?")


def details_in(text: str) -> dict[str, Any]:
    """Return the details of a deployment; none where their bytes have changed on the disk."""
    try:
        details = json.loads(text)
    except ValueError:
        return {}
    return details if isinstance(details, dict) else {}


def is_whole(text: object) -> bool:
    """Return whether a text that was written as ASCII is still one, as far as reading it tells."""
    return isinstance(text, str) and "\ufffd" not in text


class Claimed(NamedTuple):
    """An event that is leased to be sent.

    Attributes:
        id: its number in the file that it was claimed from.
        event_id: the UUID in its eventMetadata, with which its fate is told.
        deployment_id: of the deployment that it belongs to, None for a lone event.
        base_uri: the service that it was recorded for.
        stream: what its order is kept within; of a stream only one event at a time is claimed.
        event_type: ``started``, ``finished``, ``failed`` or ``custom``.
        payload: the body of the POST.
        tries: how many attempts failed so far.
        recorded_at: when it was recorded, in Unix milliseconds.
    """

    id: int
    event_id: str
    deployment_id: str | None
    base_uri: str
    stream: str
    event_type: str
    payload: str
    tries: int
    recorded_at: int

    @property
    def is_whole(self) -> bool:
        """Whether it can be sent as it was recorded, and its fate be told."""
        return is_whole(self.payload) and is_whole(self.event_id)


class Counts(NamedTuple):
    """How many events wait, were delivered and were rejected, and how many deployments are open."""

    pending: int
    delivered: int
    rejected: int
    open: int


class OpenDeployment(NamedTuple):
    """A deployment that has not ended.

    Attributes:
        id: UUID of this run of the deployment.
        owner: the process that recorded it.
        base_uri: the service that it is told to.
        identity: what LaunchDarkly pairs its events by.
        started_at: Unix milliseconds.
        last_event_at: the latest eventTime of its events, in Unix milliseconds: it was alive then.
        details: what was noted of it when it started.
    """

    id: str
    owner: str
    base_uri: str
    identity: Identity
    started_at: int
    last_event_at: int
    details: Mapping[str, Any]


class EventStatus(NamedTuple):
    """An event and what became of it. Times are Unix milliseconds.

    Attributes:
        event_id: the UUID in its eventMetadata.
        base_uri: the service that it was recorded for.
        event_type: ``started``, ``finished``, ``failed`` or ``custom``.
        payload: the body of the POST.
        event_time: when it happened.
        recorded_at: when it was recorded.
        state: ``waiting``, ``delivered`` or ``rejected``.
        since: when it came into that state; of a delivered event, when it was delivered.
        tries: how many attempts failed so far.
        next_attempt: while it waits for a retry, when that is; 0 otherwise.
        reason: why it was rejected.
    """

    event_id: str
    base_uri: str
    event_type: str
    payload: str
    event_time: int
    recorded_at: int
    state: str
    since: int
    tries: int
    next_attempt: int
    reason: str | None


class DeploymentStatus(NamedTuple):
    """A deployment of the history.

    Attributes:
        id: UUID of this run of the deployment.
        owner: the process that recorded it.
        base_uri: the service that it is told to.
        identity: what LaunchDarkly pairs its events by.
        state: ``open``, ``finished`` or ``failed``.
        started_at: Unix milliseconds.
        ended_at: Unix milliseconds, None while open.
        details: what was noted of it when it started.
        events: in the order in which they were recorded.
    """

    id: str
    owner: str
    base_uri: str
    identity: Identity
    state: str
    started_at: int
    ended_at: int | None
    details: Mapping[str, Any]
    events: tuple[EventStatus, ...]
