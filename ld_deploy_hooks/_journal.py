"""One outbox as the sender sees it: the events of one service, leased to this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from ld_deploy_hooks._clock import now
from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks._future import Future
from ld_deploy_hooks._log import internal_fault
from ld_deploy_hooks._records import DeploymentEvent, EventType
from ld_deploy_hooks._sender import HOLD_MOST

if TYPE_CHECKING:
    from ld_deploy_hooks._outbox import Claimed, Outbox
    from ld_deploy_hooks._plugins import Plugins
    from ld_deploy_hooks._store import Store

__all__ = ["Journal"]

T = TypeVar("T")

# Milliseconds: more than any retry waits (15 minutes).
_LONGEST = 16 * 60_000


class Journal:
    """One store as the sender sees it: the events of one base URI, leased to this process.

    Args:
        store: the store.
        base_uri: the service that the events go to.
        plugins: told what becomes of them.
        settled: called with each event that was delivered or rejected, once that is noted.
        over: called with the eventId of each as soon as that is known, noted or not.
    """

    def __init__(
        self,
        store: Store,
        base_uri: str,
        plugins: Plugins,
        *,
        settled: Callable[[Claimed], None] = lambda item: None,
        over: Callable[[str], None] = lambda event_id: None,
    ) -> None:
        self.writer = store.writer
        self._store = store
        self._base_uri = base_uri
        self._owner = store.owner_id
        self._plugins = plugins
        self._settled = settled
        self._over = over
        self._own: set[str] = set()
        self._sent: set[str] = set()
        # The events that are being sent, by eventId.
        self._under_way: set[str] = set()

    def owns(self, deployment_id: str) -> None:
        """Events of this deployment go before those of others, until its end has been delivered or rejected."""
        self._own.add(deployment_id)

    def claim(self, limit: int, *, own_only: bool) -> list[Claimed]:
        own = tuple(self._own)

        def command(box: Outbox) -> list[Claimed]:
            if self._held_until(box):
                # Another process has been asked for patience, with the same service.
                return []
            return box.claim(
                base_uri=self._base_uri, owner=self._owner, now=now(), limit=limit, own=own, own_only=own_only
            )

        nothing: list[Claimed] = []
        items = self._ask(command, nothing)
        fresh = []
        for item in items:
            if item.event_id in self._sent:
                # Delivered before, but the outbox could not take the ack then (a full disk): never send it again.
                self.ack(item)
            elif item.event_id not in self._under_way:
                # Else the clock was set, and the lease of what this process is sending seems to be over.
                self._under_way.add(item.event_id)
                fresh.append(item)
        return fresh

    @property
    def sent(self) -> list[str]:
        """The ids of events that were delivered while the outbox has not been told of it yet."""
        return list(self._sent)

    def is_own(self, item: Claimed) -> bool:
        return item.deployment_id in self._own

    def note_sent(self, item: Claimed) -> None:
        self._sent.add(item.event_id)
        self._over(item.event_id)

    def ack(self, item: Claimed) -> None:
        self._under_way.discard(item.event_id)
        done = self.writer.submit(lambda box: box.ack(item.event_id, owner=self._owner, now=now()))

        def told(future: Future[bool]) -> None:
            # False: the lease was over, so it stays known as sent.
            if future.exception() is None and future.result():
                self._sent.discard(item.event_id)
            if future.exception() is None:
                self._is_settled(item)
                self._tell(item, self._plugins.event_delivered)

        done.add_done_callback(told)

    def retry_later(self, item: Claimed, next_attempt: int) -> None:
        self._under_way.discard(item.event_id)
        self.writer.submit(
            lambda box: box.retry_later(item.event_id, owner=self._owner, next_attempt=next_attempt, now=now())
        )

    def release(self, item: Claimed) -> None:
        self._under_way.discard(item.event_id)
        self.writer.submit(lambda box: box.release(item.event_id, owner=self._owner))

    def reject(self, item: Claimed, reason: str) -> None:
        self._under_way.discard(item.event_id)
        self.writer.submit(lambda box: box.reject(item.event_id, owner=self._owner, reason=reason, now=now()))
        self._over(item.event_id)
        self._is_settled(item)
        self._tell(item, lambda event: self._plugins.event_rejected(event, reason))

    def _is_settled(self, item: Claimed) -> None:
        if item.deployment_id is not None and EventType(item.event_type).is_end:
            self._own.discard(item.deployment_id)
        self._settled(item)

    @staticmethod
    def _tell(item: Claimed, tell: Callable[[DeploymentEvent], None]) -> None:
        try:
            tell(DeploymentEvent.from_json(item.payload))
        except Exception as error:
            # What another version wrote may break today's rules; it was delivered or refused all the same.
            internal_fault("Telling plugins of an event that was sent", error)

    def make_due(self) -> None:
        def command(box: Outbox) -> None:
            self._sending_elsewhere(box)
            box.make_due(self._base_uri, now=now())

        self.writer.submit(command)

    def next_due(self) -> int | None:
        def question(box: Outbox) -> int | None:
            due = box.next_due(base_uri=self._base_uri, now=now())
            if due is not None and due - now() > _LONGEST:
                # Nobody is told to wait so long: the clock was set back meanwhile.
                box.make_due(self._base_uri, now=now())
                due = now()
            return None if due is None else max(due, self._held_until(box))

        return self._ask(question, None)

    def hold(self, until: int) -> None:
        self.writer.submit(lambda box: box.hold(self._base_uri, until=until))

    def held_until(self) -> int:
        return self._ask(self._held_until, 0)

    def _held_until(self, box: Outbox) -> int:
        """Return until when the service wants to be left in peace, 0 if it does not mind."""
        until = box.held_until(self._base_uri)
        # One from further ahead was written by a clock that was wrong.
        return until if 0 < until - now() <= HOLD_MOST * 1000 else 0

    def is_busy_elsewhere(self) -> bool:
        return self._ask(self._sending_elsewhere, False)

    def _sending_elsewhere(self, box: Outbox) -> bool:
        """Return whether others are sending, or were: what the dead among them had leased is free again."""
        sending = box.others_sending(base_uri=self._base_uri, owner=self._owner, now=now())
        box.void_leases([other for other in sending if self._store.is_dead(other)])
        return bool(sending)

    def pending(self, timeout: float) -> int:
        return self.writer.submit(lambda box: box.counts(base_uri=self._base_uri).pending).result(timeout)

    def _ask(self, question: Callable[[Outbox], T], otherwise: T) -> T:
        try:
            return self.writer.submit(question).result()
        except OutboxError:
            # Damage was said where it was found, all else by whoever records; without a store there is nothing to send
            # from it.
            return otherwise
