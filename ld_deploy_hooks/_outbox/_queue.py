"""The queue of events, and the deployments that they tell of.

A deployment goes from open to finished or failed once, and an event from waiting to delivered or rejected, each in one
transaction with all that follows from it. Nothing here reads a clock: the caller says what time it is, in Unix ms.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks._log import say_once
from ld_deploy_hooks._outbox._database import Database
from ld_deploy_hooks._outbox._tables import Claimed, details_in, stream_of
from ld_deploy_hooks._records import DeploymentEvent, Identity

__all__ = ["Queue"]

# SQLite allows 999 parameters.
_NAMES_AT_ONCE = 500
_FOREVER = 2**63 - 1

# By its eventId, not its number: another file may have taken the outbox's place since it was claimed.
_CLAIMED_BY = "event_id = ? AND lease_owner = ?"
_CLAIMED = "id, event_id, deployment_id, base_uri, stream, type, payload, tries, recorded_at"


class Queue:
    """What :class:`ld_deploy_hooks._outbox.Outbox` does for recording and delivering."""

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

    # -- recording ----------------------------------------------------------------------------------------------------

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

    # -- delivering ---------------------------------------------------------------------------------------------------

    def claim(
        self,
        *,
        base_uri: str,
        owner: str,
        now: int,
        limit: int,
        lease_ms: int = 60_000,
        own: Collection[str] | None = None,
        own_only: bool = False,
        ignore_backoff: bool = False,
    ) -> list[Claimed]:
        """Lease events to ``owner``, who sends them: of each stream the oldest, if it is due and nobody's.

        One whose bytes have changed on the disk is rejected instead, and a line says so.

        Args:
            base_uri: only events of this service.
            owner: the process that sends.
            now: Unix milliseconds.
            limit: how many at most.
            lease_ms: for how long nobody else may send them, in milliseconds.
            own: deployments whose streams go first.
            own_only: nothing of any other stream.
            ignore_backoff: also what waits for a retry, again and again; :meth:`make_due` lets each be tried once.
        """
        until = _FOREVER if ignore_backoff else now
        with self.transaction():
            found = self._of_deployments(list(own or ()), base_uri, now, until, limit)
            # Those that were never tried come first, in the order in which they were recorded: their due is 0.
            if not own_only:
                found += self._database.rows(
                    f"SELECT {_CLAIMED} FROM events WHERE state = 'waiting' AND base_uri = ? AND due <= ?"
                    " AND (lease_owner IS NULL OR due <= ?) ORDER BY due, id LIMIT ?",
                    *(base_uri, until, now, max(limit, 0)),
                )
            events = [Claimed(*row) for row in list(dict.fromkeys(found))[: max(limit, 0)]]
            for event in events:
                if event.is_whole:
                    lease = "UPDATE events SET lease_owner = ?, due = ? WHERE id = ?"
                    self._database.change(lease, owner, now + lease_ms, event.id)
                else:
                    # Sent, it could make an application that nobody has, for good.
                    self._settle(event.id, "rejected", "its bytes in the outbox have changed", now)
                    say_once(
                        f"The {event.event_type} event {event.event_id} in {self._path} cannot be read any more: its "
                        "bytes have changed. It is kept as rejected and not sent; `ld-deploy status` shows it."
                    )
        return [event for event in events if event.is_whole]

    def _of_deployments(self, ids: list[str], base_uri: str, now: int, until: int, limit: int) -> list[tuple[Any, ...]]:
        columns = ", ".join(f"events.{column}" for column in _CLAIMED.split(", "))
        found: list[tuple[Any, ...]] = []
        while ids and len(found) < limit:
            some, ids = ids[:_NAMES_AT_ONCE], ids[_NAMES_AT_ONCE:]
            # CROSS JOIN: SQLite keeps this order, from few deployments to the heads of their streams.
            found += self._database.rows(
                f"SELECT {columns} FROM deployments CROSS JOIN events ON events.stream = deployments.stream"
                f" WHERE deployments.id IN ({', '.join('?' * len(some))}) AND deployments.base_uri = ?"
                " AND events.state = 'waiting' AND events.due <= ? AND (events.lease_owner IS NULL OR events.due <= ?)"
                " ORDER BY events.due, events.id",
                *(*some, base_uri, until, now),
            )
        return found

    def ack(self, event_id: str, *, owner: str, now: int) -> bool:
        """Note that a claimed event was delivered; False if the lease is not ``owner``'s any more."""
        return self._settle_claimed(event_id, owner, "delivered", None, now)

    def ack_event(self, event_id: str, *, now: int) -> None:
        """Note that an event was delivered by a process that could not say so any more, whoever has its lease."""
        with self.transaction():
            for (id,) in self._database.rows("SELECT id FROM events WHERE event_id = ?", event_id):
                self._settle(id, "delivered", None, now)

    def reject(self, event_id: str, *, owner: str, reason: str, now: int) -> bool:
        """Note that a claimed event can never be delivered: it is kept, and blocks nothing behind it.

        False if the lease is not ``owner``'s any more.
        """
        reason = reason.encode("utf-8", "replace").decode("utf-8")  # a service's answer may hold half a character
        return self._settle_claimed(event_id, owner, "rejected", reason, now)

    def _settle_claimed(self, event_id: str, owner: str, state: str, reason: str | None, now: int) -> bool:
        with self.transaction():
            for (id,) in (found := self._database.rows(f"SELECT id FROM events WHERE {_CLAIMED_BY}", event_id, owner)):
                self._settle(id, state, reason, now)
        return bool(found)

    def _settle(self, id: int, state: str, reason: str | None, now: int) -> None:
        with self.transaction():
            for (stream,) in self._database.rows("SELECT stream FROM events WHERE id = ? AND state = 'waiting'", id):
                self._database.change(
                    "UPDATE events SET state = ?, since = ?, reason = ?, next_attempt = 0, due = NULL,"
                    " lease_owner = NULL WHERE id = ?",
                    *(state, now, reason, id),
                )
                self._make_head(stream)

    def retry_later(self, event_id: str, *, owner: str, next_attempt: int, now: int) -> bool:
        """Give a lease back after a failed attempt; the event waits until ``next_attempt`` (Unix milliseconds).

        False if the lease is not ``owner``'s any more.
        """
        next_attempt = max(next_attempt, now)
        with self.transaction():
            self._database.change(
                f"UPDATE events SET tries = tries + 1, next_attempt = ? WHERE {_CLAIMED_BY}",
                *(next_attempt, event_id, owner),
            )
            return bool(self._give_back(_CLAIMED_BY, event_id, owner))

    def release(self, event_id: str, *, owner: str) -> bool:
        """Give a lease back as if the event had not been claimed; False if it is not ``owner``'s any more."""
        with self.transaction():
            return bool(self._give_back(_CLAIMED_BY, event_id, owner))

    def _give_back(self, which: str, *parameters: object) -> int:
        """End leases; return how many. One that was put into a stream meanwhile may be older, and goes first then."""
        streams = set(self._database.rows(f"SELECT stream FROM events WHERE {which}", *parameters))
        ended = self._database.change(f"UPDATE events SET due = NULL, lease_owner = NULL WHERE {which}", *parameters)
        for (stream,) in streams:
            self._make_head(stream)
        return ended

    def release_all(self, owner: str) -> int:
        """Give all leases of ``owner`` back; return how many they were."""
        return self.void_leases([owner])

    def void_leases(self, owners: Collection[str]) -> int:
        """End the leases of owners that are dead; return how many they were."""
        with self.transaction():
            return sum(self._give_back("lease_owner = ?", owner) for owner in owners)

    def make_due(self, base_uri: str, *, now: int) -> int:
        """Let everything that waits for a retry be tried at once; return how many events that are."""
        with self.transaction():
            # What an older one, put back in line, has gone before.
            later = "state = 'waiting' AND base_uri = ? AND due IS NULL AND next_attempt > ?"
            self._database.change(f"UPDATE events SET next_attempt = 0 WHERE {later}", base_uri, now)
            return self._database.change(
                # By how often they were tried in vain: what is refused each time stands in nobody's way.
                "UPDATE events SET due = tries, next_attempt = 0"
                " WHERE state = 'waiting' AND base_uri = ? AND due > ? AND lease_owner IS NULL",
                *(base_uri, now),
            )

    def hold(self, base_uri: str, *, until: int) -> None:
        """Note that a service wants to be left in peace until then (Unix milliseconds), for the next run."""
        with self.transaction():
            self._database.change("INSERT OR REPLACE INTO holds (base_uri, until) VALUES (?, ?)", base_uri, until)

    def held_until(self, base_uri: str) -> int:
        """Return until when a service wants to be left in peace (Unix milliseconds), 0 if it never said so."""
        return max(
            (until for (until,) in self._database.rows("SELECT until FROM holds WHERE base_uri = ?", base_uri)),
            default=0,
        )

    def others_sending(self, *, base_uri: str, owner: str, now: int) -> list[str]:
        """Return who else than ``owner`` is sending anything at this moment."""
        # The plus keeps SQLite to the few that are leased; any number may wait for a retry.
        rows = self._database.rows(
            "SELECT DISTINCT lease_owner FROM events"
            " WHERE lease_owner > '' AND lease_owner <> ? AND +base_uri = ? AND due > ?",
            *(owner, base_uri, now),
        )
        return [other for (other,) in rows]

    def next_due(self, *, base_uri: str, now: int) -> int | None:
        """Return when something can be claimed (Unix milliseconds, ``now`` at the earliest), None if nothing waits."""
        ((due,),) = self._database.rows(
            "SELECT min(due) FROM events WHERE state = 'waiting' AND base_uri = ? AND due IS NOT NULL", base_uri
        )
        return None if due is None else max(due, now)
