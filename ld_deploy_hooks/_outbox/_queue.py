"""The queue: who sends which event when, under a lease, and what became of it.

Nothing here reads a clock: the caller says what time it is, in Unix milliseconds.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ld_deploy_hooks._log import say_once
from ld_deploy_hooks._outbox._recorded import Recorded
from ld_deploy_hooks._outbox._tables import Claimed

__all__ = ["Queue"]

# SQLite allows 999 parameters.
_NAMES_AT_ONCE = 500
_FOREVER = 2**63 - 1

# By its eventId, not its number: another file may have taken the outbox's place since it was claimed.
_CLAIMED_BY = "event_id = ? AND lease_owner = ?"
_CLAIMED = "id, event_id, deployment_id, base_uri, stream, type, payload, tries, recorded_at"


class Queue(Recorded):
    """What :class:`ld_deploy_hooks._outbox.Outbox` does for delivering."""

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
