"""What is recorded: deployments, which go from open to finished or failed once, and the events that tell of them.

An event goes from waiting to delivered or rejected, in one transaction with all that follows from it. Nothing here
reads a clock: the caller says what time it is, in Unix milliseconds.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks._outbox._database import Database
from ld_deploy_hooks._outbox._tables import details_in, stream_of
from ld_deploy_hooks._records import DeploymentEvent, Identity

__all__ = ["Recorded"]


class Recorded:
    """What :class:`ld_deploy_hooks._outbox.Outbox` does for recording."""

    def __init__(self, path: Path | None, *, read_only: bool = False) -> None:
        self._database = Database(path, read_only=read_only)
        self._path = path

    @property
    def set_aside(self) -> Path | None:
        """Where a damaged file was moved to; None if there was none. A new file has taken its place."""
        return self._database.set_aside

    @property
    def is_gone(self) -> bool:
        """Whether the file was removed since it was opened, or another took its place."""
        return self._database.is_gone

    def transaction(self) -> AbstractContextManager[None]:
        """Make one transaction of all that the block does: durable at its end, undone if it raises.

        What raises and is caught within the block is undone alone, the rest of the block stays.
        """
        return self._database.transaction()

    def close(self) -> None:
        """Close the file; nothing can be done with this object afterwards. Leases stay until they end."""
        self._database.close()

    def close_inherited(self) -> None:
        """Close the file in a forked child, whose fork has waited for the end of every transaction."""
        self._database.close_inherited()

    def open_deployment(
        self,
        *,
        id: str,
        base_uri: str,
        identity: Identity,
        owner: str,
        event: DeploymentEvent,
        details: Mapping[str, Any],
        now: int,
    ) -> None:
        """Record that a deployment has started. The very same a second time changes nothing.

        Args:
            id: UUID of this run of the deployment.
            base_uri: the service that its events go to.
            identity: what LaunchDarkly pairs its events by.
            owner: the process that will end it; if that dies, others may.
            event: its started event.
            details: JSON values that recovery and the history need.
            now: Unix milliseconds.

        Raises:
            OutboxError: there is another deployment or another event of this id.
        """
        noted = json.dumps(dict(details))
        stream = stream_of(base_uri, identity)
        with self.transaction():
            if self._add(id, base_uri, stream, event, now):
                self._database.change(
                    "INSERT INTO deployments (id, owner, base_uri, stream, state, started_at, details)"
                    " VALUES (?, ?, ?, ?, 'open', ?, ?)",
                    *(id, owner, base_uri, stream, event.event_time, noted),
                )

    def end_deployment(self, *, id: str, event: DeploymentEvent, now: int) -> bool:
        """Record that a deployment has ended, unless it has ended already: the first wins.

        Returns:
            Whether ``event`` is its end, the very same a second time too; if not, nothing was recorded.

        Raises:
            ValueError: ``event`` is no end.
            OutboxError: the outbox does not know this deployment, since another took its place after it had started.
        """
        if not event.event_type.is_end:
            raise ValueError(f"a deployment does not end with an event {event.event_type}")
        with self.transaction():
            known = self._database.rows("SELECT base_uri FROM deployments WHERE id = ?", id)
            if not known:
                where = str(self._path or ":memory:")
                raise OutboxError(f"The outbox {where} knows no deployment {id}.", path=where)
            ((base_uri,),) = known
            if not self._database.change(
                "UPDATE deployments SET state = ?, ended_at = ? WHERE id = ? AND state = 'open'",
                *(event.event_type.value, event.event_time, id),
            ):
                return bool(
                    self._database.rows(
                        "SELECT 1 FROM events WHERE event_id = ? AND deployment_id = ?", event.event_id, id
                    )
                )
            self._add(id, base_uri, stream_of(base_uri, event.identity), event, now)
            return True

    def note(self, id: str, details: Mapping[str, Any]) -> None:
        """Add to the details of a deployment, for whoever may have to end it in place of its owner."""
        with self.transaction():
            for (noted,) in self._database.rows("SELECT details FROM deployments WHERE id = ?", id):
                both = json.dumps({**details_in(noted), **details})
                self._database.change("UPDATE deployments SET details = ? WHERE id = ?", both, id)

    def add_event(self, *, deployment_id: str | None, base_uri: str, event: DeploymentEvent, now: int) -> None:
        """Record an event that opens and ends nothing here: a custom one, or a lone one of no deployment (None).

        The very same a second time changes nothing.

        Raises:
            OutboxError: there is another event of this eventId.
        """
        with self.transaction():
            self._add(deployment_id, base_uri, stream_of(base_uri, event.identity), event, now)

    def _add(self, deployment_id: str | None, base_uri: str, stream: str, event: DeploymentEvent, now: int) -> bool:
        # One without an id was made elsewhere; here everything has one.
        event_id = event.event_id or str(uuid.uuid4())
        payload = event.to_json()
        if self._database.rows(
            "SELECT 1 FROM events WHERE event_id = ? AND deployment_id IS ? AND payload = ?",
            *(event_id, deployment_id, payload),
        ):
            return False
        self._database.change(
            "INSERT INTO events"
            " (event_id, deployment_id, base_uri, stream, type, payload, event_time, recorded_at, state, since)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'waiting', ?)",
            *(event_id, deployment_id, base_uri, stream, event.event_type.value, payload, event.event_time, now, now),
        )
        self._make_head(stream)
        return True

    def _make_head(self, stream: str) -> None:
        """Let the oldest event that waits in ``stream`` be claimed, unless there is one already."""
        self._database.change(
            "UPDATE events SET due = next_attempt WHERE id ="
            " (SELECT id FROM events WHERE stream = ? AND state = 'waiting' AND due IS NULL ORDER BY id LIMIT 1)"
            " AND NOT EXISTS (SELECT 1 FROM events WHERE stream = ? AND state = 'waiting' AND due IS NOT NULL)",
            *(stream, stream),
        )

    def _settle(self, id: int, state: str, reason: str | None, now: int) -> None:
        with self.transaction():
            for (stream,) in self._database.rows("SELECT stream FROM events WHERE id = ? AND state = 'waiting'", id):
                self._database.change(
                    "UPDATE events SET state = ?, since = ?, reason = ?, next_attempt = 0, due = NULL,"
                    " lease_owner = NULL WHERE id = ?",
                    *(state, now, reason, id),
                )
                self._make_head(stream)
