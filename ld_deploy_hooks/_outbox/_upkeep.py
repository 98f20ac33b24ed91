"""What looks at the outbox and keeps it in order: recovery, counts, history, another address, giving up."""

from __future__ import annotations

from typing import Any

from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks._outbox._queue import Queue
from ld_deploy_hooks._outbox._tables import (
    Counts,
    DeploymentStatus,
    EventStatus,
    OpenDeployment,
    details_in,
    identity_of,
    identity_text,
    is_whole,
    stream_of,
)
from ld_deploy_hooks._records import Identity

__all__ = ["Outbox"]

Row = tuple[Any, ...]

_DAY = 86_400_000
_GIVE_UP_AFTER = 7 * _DAY
_GIVE_UP_ABOVE = 10_000
_HISTORY = 30 * _DAY
# How many rows prune() takes in one go: a deploy may be waiting for the lock.
_AT_ONCE = 1_000

_STATUS = "event_id, base_uri, type, payload, event_time, recorded_at, state, since, tries, next_attempt, reason"
_NOT_OVER = (
    "SELECT id FROM deployments WHERE owner = ? AND (state = 'open' OR EXISTS"
    " (SELECT 1 FROM events WHERE deployment_id = deployments.id AND events.state = 'waiting')) ORDER BY rowid"
)
_OF_DEPLOYMENTS = "id, owner, base_uri, stream, state, started_at, ended_at, details"
_OF_EVENTS = (
    "event_id, deployment_id, base_uri, stream, type, payload, event_time, recorded_at, state, since, reason, tries,"
    " next_attempt, due, lease_owner"
)
_IS_START = "start.type = 'started'"
_ENDS = "('finished', 'failed')"
# Nobody may be sending it at this moment; takes the time as parameter.
_AT_REST = "(lease_owner IS NULL OR due <= ?)"


class Outbox(Queue):
    """The outbox, for one thread of one process; other processes may use the same file at the same time.

    Each method that changes something is a transaction, or a part of the one that the caller has begun: it happens
    wholly or not at all.

    Args:
        path: the file, made if it is missing; None keeps everything in memory, for as long as this object lives.
        read_only: see :func:`ld_deploy_hooks._outbox.looking`.

    Raises:
        OutboxError: from here and from every method: the file cannot be opened, read or written. Its text says why and
            what to do.
    """

    # -- looking ------------------------------------------------------------------------------------------------------

    def open_of(self, *, base_uri: str | None = None, identity: Identity | None = None) -> list[OpenDeployment]:
        """Return the deployments that have not ended, the oldest first: all, of one service, of one identity."""
        conditions, parameters = ["state = 'open'"], []
        if base_uri is not None:
            conditions.append("base_uri = ?")
            parameters.append(base_uri)
        if identity is not None and base_uri is not None:
            conditions.append("stream = ?")
            parameters.append(stream_of(base_uri, identity))
        elif identity is not None:
            conditions.append("substr(stream, length(base_uri) + 2) = ?")
            parameters.append(identity_text(identity))
        rows = self._database.rows(
            "SELECT id, owner, base_uri, stream, started_at, details,"
            " (SELECT max(event_time) FROM events WHERE deployment_id = deployments.id)"
            f" FROM deployments WHERE {' AND '.join(conditions)} ORDER BY started_at, rowid",
            *parameters,
        )
        return [
            OpenDeployment(
                id=id,
                owner=owner,
                base_uri=uri,
                identity=identity_of(uri, stream),
                started_at=started_at,
                last_event_at=max(started_at, last or 0),
                details=details_in(details),
            )
            for id, owner, uri, stream, started_at, details, last in rows
            # By an id that has changed on the disk it could not be ended.
            if is_whole(id)
        ]

    def settle_deployment(self, id: str, *, state: str, now: int) -> None:
        """Note that a deployment has ended (``finished``, ``failed``) whose end was delivered past this outbox."""
        with self.transaction():
            self._database.change(
                "UPDATE deployments SET state = ?, ended_at = ? WHERE id = ? AND state = 'open'", state, now, id
            )

    def counts(self, *, base_uri: str | None = None) -> Counts:
        """Return how much is in the outbox, of one service or of all."""
        where, parameters = ("", ()) if base_uri is None else (" AND base_uri = ?", (base_uri,))

        def count(table: str, state: str) -> int:
            ((number,),) = self._database.rows(
                f"SELECT count(*) FROM {table} WHERE state = ?{where}", state, *parameters
            )
            return int(number)

        return Counts(
            pending=count("events", "waiting"),
            delivered=count("events", "delivered"),
            rejected=count("events", "rejected"),
            open=count("deployments", "open"),
        )

    def waiting_elsewhere(self, base_uri: str) -> dict[str, int]:
        """Return how many events wait for each other service than ``base_uri``."""
        rows = self._database.rows("SELECT base_uri, count(*) FROM events WHERE state = 'waiting' GROUP BY base_uri")
        return {uri: number for uri, number in rows if uri != base_uri}

    def deployments(self, *, limit: int) -> list[DeploymentStatus]:
        """Return the last ``limit`` deployments with their events, the latest first."""
        rows = self._database.rows(
            "SELECT id, owner, base_uri, stream, state, started_at, ended_at, details FROM deployments"
            " ORDER BY started_at DESC, rowid DESC LIMIT ?",
            max(limit, 0),
        )
        return [
            DeploymentStatus(
                id=id,
                owner=owner,
                base_uri=base_uri,
                identity=identity_of(base_uri, stream),
                state=state,
                started_at=started_at,
                ended_at=ended_at,
                details=details_in(details),
                events=tuple(self._events("deployment_id = ? ORDER BY id", id)),
            )
            for id, owner, base_uri, stream, state, started_at, ended_at, details in rows
        ]

    def state_and_owner(self, deployment_id: str) -> tuple[str, str] | None:
        """Return the state of a deployment and the process that recorded it; None if it is not in the history."""
        rows = self._database.rows("SELECT state, owner FROM deployments WHERE id = ?", deployment_id)
        return next(iter(rows), None)

    def lone_events(self, *, limit: int) -> list[EventStatus]:
        """Return the last ``limit`` events that belong to no deployment, the latest first."""
        return self._events("deployment_id IS NULL ORDER BY id DESC LIMIT ?", max(limit, 0))

    def event(self, event_id: str) -> EventStatus | None:
        """Return what became of one event; None if it was never recorded here."""
        return next(iter(self._events("event_id = ?", event_id)), None)

    def _events(self, which: str, *parameters: object) -> list[EventStatus]:
        return [
            EventStatus(*row) for row in self._database.rows(f"SELECT {_STATUS} FROM events WHERE {which}", *parameters)
        ]

    # -- another file in the place of one that is open ----------------------------------------------------------------

    def not_over(self, owner: str) -> list[tuple[list[Row], list[Row]]]:
        """Return what is not over of ``owner``'s deployments, from a file that was removed while it was open.

        Raises:
            OutboxError: it cannot be read any more.
        """
        if not self._database.has_log:
            # SQLite would take the journal of the new file, which it finds by name, for this one's.
            raise OutboxError("The outbox was removed, and keeps no log.", path=str(self._path))
        return [
            (
                self._database.rows(f"SELECT {_OF_DEPLOYMENTS} FROM deployments WHERE id = ?", id),
                self._database.rows(
                    f"SELECT {_OF_EVENTS} FROM events WHERE deployment_id = ? AND state = 'waiting' ORDER BY id", id
                ),
            )
            for (id,) in self._database.rows(_NOT_OVER, owner)
        ]

    def adopt(self, deployments: list[tuple[list[Row], list[Row]]]) -> None:
        """Take in what :meth:`not_over` has found elsewhere, row for row: what is being sent keeps its lease."""
        with self.transaction():
            for rows, events in deployments:
                self._insert("deployments", _OF_DEPLOYMENTS, rows)
                self._insert("events", _OF_EVENTS, events)
                for id, _, _, stream, *_ in rows:
                    # Others may wait in its stream by now.
                    self._database.change(
                        "UPDATE events SET due = NULL WHERE deployment_id = ? AND lease_owner IS NULL", id
                    )
                    self._make_head(stream)

    def disown(self, deployments: list[tuple[list[Row], list[Row]]]) -> None:
        """Forget what another file has adopted: this one may have been moved, and whoever opens it would send it."""
        with self.transaction():
            for rows, _ in deployments:
                for id, *_ in rows:
                    self._database.change("DELETE FROM events WHERE deployment_id = ? AND state = 'waiting'", id)
                    self._database.change("DELETE FROM deployments WHERE id = ?", id)

    def _insert(self, table: str, columns: str, rows: list[Row]) -> None:
        for row in rows:
            places = ", ".join("?" * len(row))
            self._database.change(f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({places})", *row)

    # -- another chance -----------------------------------------------------------------------------------------------

    def readdress(self, *, from_base_uri: str | None, to_base_uri: str, now: int) -> int:
        """Send what waits for one service (None: for all others) to another, as if it had been recorded for that.

        What is being sent at this moment stays. A deployment goes with its started event.

        Returns:
            How many events were re-addressed.
        """
        which = f"state = 'waiting' AND base_uri <> ? AND {_AT_REST}"
        parameters: tuple[object, ...] = (to_base_uri, now)
        if from_base_uri is not None:
            which += " AND base_uri = ?"
            parameters += (from_base_uri,)
        stream = "? || substr(stream, length(base_uri) + 1)"
        with self.transaction():
            self._behead(f"SELECT {stream} FROM events WHERE {which}", to_base_uri, *parameters)
            self._database.change(
                f"UPDATE deployments SET stream = {stream}, base_uri = ? WHERE id IN"
                f" (SELECT deployment_id FROM events WHERE type = 'started' AND {which})",
                *(to_base_uri, to_base_uri, *parameters),
            )
            moved = self._database.change(
                f"UPDATE events SET stream = {stream}, base_uri = ?, since = ?, next_attempt = 0, due = NULL,"
                f" lease_owner = NULL WHERE {which}",
                *(to_base_uri, to_base_uri, now, *parameters),
            )
            self._make_heads(to_base_uri)
        return moved

    def requeue_rejected(self, *, base_uri: str, now: int) -> tuple[int, int]:
        """Let everything that was rejected or given up be sent again.

        A start that arrives behind its end is a deployment in progress for ever: its end is sent once more, behind it.

        Returns:
            How many rejected events are sent again, and how many ends that were delivered.
        """
        again = "UPDATE events SET state = 'waiting', since = ?, reason = NULL, tries = 0 WHERE"
        first_end = (
            "SELECT min(id) FROM events AS ended WHERE ended.stream = start.stream AND ended.id > start.id"
            f" AND ended.deployment_id IS start.deployment_id AND ended.type IN {_ENDS}"
        )
        rejected_starts = f"start.state = 'rejected' AND start.base_uri = ? AND {_IS_START}"
        with self.transaction():
            self._behead("SELECT stream FROM events WHERE state = 'rejected' AND base_uri = ?", base_uri)
            ends = self._database.change(
                f"{again} state = 'delivered' AND id IN"
                f" (SELECT ({first_end}) FROM events AS start WHERE {rejected_starts})",
                *(now, base_uri),
            )
            rejected = self._database.change(f"{again} state = 'rejected' AND base_uri = ?", now, base_uri)
            self._make_heads(base_uri)
        return rejected, ends

    def _behead(self, streams: str, *parameters: object) -> None:
        """Leave these streams without a head, where it is not leased, since older events are coming back to them."""
        self._database.change(
            "UPDATE events SET due = NULL, next_attempt = 0"
            f" WHERE state = 'waiting' AND due IS NOT NULL AND lease_owner IS NULL AND stream IN ({streams})",
            *parameters,
        )

    def _make_heads(self, base_uri: str) -> None:
        """Give each stream that has no head its oldest event as one."""
        waits = "SELECT 1 FROM events AS other WHERE other.stream = events.stream AND other.state = 'waiting'"
        self._database.change(
            "UPDATE events SET due = next_attempt WHERE state = 'waiting' AND base_uri = ? AND due IS NULL"
            f" AND NOT EXISTS ({waits} AND other.due IS NOT NULL)"
            f" AND NOT EXISTS ({waits} AND other.due IS NULL AND other.id < events.id)",
            base_uri,
        )

    # -- giving up ----------------------------------------------------------------------------------------------------

    def prune(self, *, now: int) -> list[EventStatus]:
        """Reject what waited for 7 days and the oldest above 10,000; delete history older than 30 days.

        Returns:
            What was given up, at most 1,000 events; if any, call again. What is rejected is never deleted, nor the end
            of a rejected start, which goes with it should it be sent again.
        """
        with self.transaction():
            given_up = self._give_up(
                f"since < ? AND {_AT_REST}",
                now - _GIVE_UP_AFTER,
                now,
                limit=_AT_ONCE,
                reason="not delivered within 7 days",
                now=now,
            )
            room = _AT_ONCE - len(given_up)
            above = self.counts().pending - _GIVE_UP_ABOVE
            reason = f"more than {_GIVE_UP_ABOVE} events waited"
            given_up += self._give_up(_AT_REST, now, limit=max(0, min(room, above)), reason=reason, now=now)
            self._database.change(
                "DELETE FROM events WHERE id IN"
                f" (SELECT id FROM events WHERE state = 'delivered' AND since < ? AND NOT (type IN {_ENDS} AND EXISTS"
                " (SELECT 1 FROM events AS start WHERE start.stream = events.stream AND start.state = 'rejected'"
                f" AND start.deployment_id IS events.deployment_id AND {_IS_START})) LIMIT ?)",
                *(now - _HISTORY, _AT_ONCE),
            )
            self._database.change(
                "DELETE FROM deployments WHERE id IN (SELECT id FROM deployments WHERE started_at < ? AND ended_at < ?"
                " AND NOT EXISTS (SELECT 1 FROM events WHERE deployment_id = deployments.id) LIMIT ?)",
                *(now - _HISTORY, now - _HISTORY, _AT_ONCE),
            )
        return given_up

    def _give_up(self, which: str, *parameters: object, limit: int, reason: str, now: int) -> list[EventStatus]:
        rows: list[tuple[Any, ...]] = self._database.rows(
            f"SELECT id FROM events WHERE state = 'waiting' AND {which} ORDER BY since, id LIMIT ?", *parameters, limit
        )
        for (event,) in rows:
            self._settle(event, "rejected", reason, now)
        return [status for (event,) in rows for status in self._events("id = ?", event)]
