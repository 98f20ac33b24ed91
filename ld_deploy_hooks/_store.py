"""One outbox as this process uses it: its writer, its owner's lock, and its events as the sender sees them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ld_deploy_hooks._clock import now
from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks._forking import unforkable
from ld_deploy_hooks._left import Step, leave, remove, take_up
from ld_deploy_hooks._log import internal_fault, say_once
from ld_deploy_hooks._owner import HEARTBEAT, Death, Owner, death_of, forget_dead, owners_in
from ld_deploy_hooks._records import DeploymentEvent, DeploymentRecord, EventType, Identity
from ld_deploy_hooks._recovery import recover
from ld_deploy_hooks._writer import Direct, Writer

if TYPE_CHECKING:
    from ld_deploy_hooks._outbox import Claimed, EventStatus, Outbox
    from ld_deploy_hooks._plugins import Plugins

__all__ = ["Journal", "Store"]

T = TypeVar("T")


class Store:
    """One outbox of this process: its writer, and this process as the owner of what it has open there.

    Args:
        path: the outbox file; None keeps everything in memory.

    Raises:
        RuntimeError: no thread can be started, and without one nothing can be kept in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._owners = path.with_name(f"{path.name}.owners") if path is not None else None
        self._left = path.with_name(f"{path.name}.left") if path is not None else None
        self._owner: Owner | None = None
        self._on_network = False
        self._box: Outbox | None = None
        # How many times another file has taken the outbox's place: numbers of events mean nothing in the next one.
        self.generation = 0
        self.owner_id = uuid.uuid4().hex
        self.writer: Writer[Outbox] | Direct[Outbox]
        try:
            self.writer = Writer(self._open, beat=self._beat, every=HEARTBEAT)
        except RuntimeError:
            if path is None:
                raise
            self.writer = Direct(self._open)

    def _open(self) -> Outbox:
        # Imported here, in the writer's thread: sqlite3 is no business of the caller's.
        with unforkable():
            from ld_deploy_hooks._outbox import Outbox, on_network

        box = Outbox(self._path)
        if box.set_aside is not None:
            say_once(
                f"The outbox {self._path} was damaged; it was moved to {box.set_aside} and a new one was made. What "
                "waited in it is not sent: keep that file if you need to know what it was."
            )
        if self._path is not None and self._owners is not None:
            self._on_network = on_network(self._path)
            try:
                self._show_life(self._owners)
            except OSError as error:
                box.close()
                raise OutboxError(
                    f"The folder {self._owners} cannot be used ({type(error).__name__}), and without it others would "
                    "take what this process has open for left behind. Make it writable, or set LD_DEPLOY_OUTBOX to "
                    "another place.",
                    path=str(self._path),
                ) from None
        if self._left is not None:
            remove(take_up(self._left, box))
        if self._box is not None:
            self._carry_over(self._box, box)
        self._box = box
        return box

    def _show_life(self, owners: Path) -> None:
        """Have a file by which others see that this process lives.

        Raises:
            OSError: it cannot be made.
        """
        if self._owner is not None and self._owner.is_gone:
            self._owner.release()
            self._owner = None
        if self._owner is None:
            self._owner = Owner(owners, self.owner_id)

    def _carry_over(self, gone: Outbox, box: Outbox) -> None:
        """Record anew what of this process's events waits in a file that was removed: it can be read while open."""
        self.generation += 1
        waiting: list[tuple[str, str, str]] = []
        # There SQLite would take the new file's journal, which it finds by name, for that of the old one.
        if not self._on_network:
            with suppress(OutboxError):
                waiting = gone.waiting_of(self.owner_id)
        gone.close()
        with box.transaction():
            for deployment_id, base_uri, payload in waiting:
                Step(deployment_id, base_uri, self.owner_id, DeploymentEvent.from_json(payload)).record(box)
        if waiting:
            say_once(
                f"The outbox {self._path} was removed, or another took its place, while this process had it open. "
                f"The {len(waiting)} event(s) of this run that waited there were recorded anew."
            )

    def take_up(self) -> None:
        """Have recorded what other processes have left beside the outbox."""
        left = self._left
        if left is not None:
            self.writer.submit(lambda box: take_up(left, box)).add_done_callback(_remove_when_durable)

    def recover(
        self, box: Outbox, *, base_uri: str | None = None, identity: Identity | None = None
    ) -> list[DeploymentRecord]:
        """End what dead processes left open, as a command of the writer's."""
        return recover(box, self._death_of, base_uri=base_uri, identity=identity)

    def keep_house(self) -> Future[list[DeploymentRecord]]:
        """Do what keeps the outbox in order; the future gives what was recovered."""
        kept: Future[list[DeploymentRecord]] = Future()

        def settle(done: Future[tuple[list[DeploymentRecord], list[str], list[EventStatus]]]) -> None:
            error = done.exception()
            if error is not None:
                kept.set_exception(error)
                return
            recovered, dead, given_up = done.result()
            # Only now: as long as anything of theirs is open in the file, their lock has to tell that they are dead.
            for owner in dead:
                forget_dead(self._owners, owner)
            go_on(recovered, given_up, [])

        def go_on(recovered: list[DeploymentRecord], more: list[EventStatus], given_up: list[EventStatus]) -> None:
            if not more:
                self._say_given_up(given_up)
                kept.set_result(recovered)
                return
            # Some at a time, so that no event of the deploy that runs waits behind them all.
            pruned = self.writer.submit(lambda box: box.prune(now=now()))
            pruned.add_done_callback(
                lambda done: go_on(recovered, [] if done.exception() else done.result(), [*given_up, *more])
            )

        self.take_up()
        self.writer.submit(self._keep_house).add_done_callback(settle)
        return kept

    def _keep_house(self, box: Outbox) -> tuple[list[DeploymentRecord], list[str], list[EventStatus]]:
        recovered = self.recover(box)
        dead = [owner for owner in owners_in(self._owners) if self._death_of(owner) is not None] if self._owners else []
        box.void_leases(dead)
        return recovered, dead, box.prune(now=now())

    def _say_given_up(self, given_up: list[EventStatus]) -> None:
        if given_up:
            say_once(
                f"{len(given_up)} event(s) in {self._path} were given up: {given_up[0].reason}. They are kept as "
                "rejected; `ld-deploy retry` puts them back in line."
            )

    def is_dead(self, owner: str) -> bool:
        """Whether a process that has used this outbox is dead."""
        return self._death_of(owner) is not None

    def leave(self, steps: list[Step], delivered: list[str]) -> Path | None:
        """Leave what the outbox does not take for the next run; return where, None if that is not possible either.

        Args:
            steps: what happened, in order.
            delivered: the ids of events that have been delivered, which the outbox still takes for waiting.
        """
        return leave(self._left, self.owner_id, steps, delivered) if self._left is not None else None

    def delivered_elsewhere(self, ends: Mapping[str, str]) -> None:
        """Note for whoever recovers that these deployments, by id, have ended so; no room on the disk is needed."""
        if ends and self._owner is not None:
            self._owner.note(ends)

    def _death_of(self, owner: str) -> Death | None:
        if owner == self.owner_id or self._owners is None:
            return None
        clock = self._owner.clock if self._owner is not None else time.time
        return death_of(self._owners, owner, network=self._on_network, clock=clock)

    def _beat(self) -> None:
        if self._owner is not None and self._owners is not None:
            with suppress(OSError):
                self._show_life(self._owners)
            self._owner.beat()

    def close(self, timeout: float, *, quiet: bool = True) -> None:
        """Give every lease back and close the outbox; if that takes too long, what is open stays this process's.

        Args:
            timeout: in seconds.
            quiet: whether nothing is on its way. What is stays leased until this process is gone: sent again before,
                it would arrive twice.
        """
        released = self.writer.submit(lambda box: box.release_all(self.owner_id)) if quiet else None
        closed = self.writer.close(timeout)
        if closed and released is not None and released.exception() is None and self._owner is not None:
            self._owner.release()


def _remove_when_durable(done: Future[list[Path]]) -> None:
    if done.exception() is None:
        remove(done.result())


class Journal:
    """One store as the sender sees it: the events of one base URI, leased to this process."""

    def __init__(self, store: Store, base_uri: str, plugins: Plugins) -> None:
        self.writer = store.writer
        self._store = store
        self._base_uri = base_uri
        self._owner = store.owner_id
        self._plugins = plugins
        self._own: set[str] = set()
        self._sent: set[str] = set()
        # Of each event that is being sent, by eventId, its number and the file that this is a number in.
        self._under_way: dict[str, tuple[int, int]] = {}

    def owns(self, deployment_id: str) -> None:
        """Events of this deployment go before those of others, until its end has been delivered or rejected."""
        self._own.add(deployment_id)

    def claim(self, limit: int, *, own_only: bool) -> list[Claimed]:
        own = tuple(self._own)

        def claim(box: Outbox) -> tuple[int, list[Claimed]]:
            return self._store.generation, box.claim(
                base_uri=self._base_uri, owner=self._owner, now=now(), limit=limit, own=own, own_only=own_only
            )

        nothing: tuple[int, list[Claimed]] = (0, [])
        generation, items = self._ask(claim, nothing)
        fresh = []
        for item in items:
            # Else the clock was set, and the lease of what this process is sending seems to be over.
            is_new = item.event_id not in self._under_way
            self._under_way[item.event_id] = (generation, item.id)
            if item.event_id in self._sent:
                # Delivered before, but the outbox could not take the ack then (a full disk): never send it again.
                self.ack(item)
            elif is_new:
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

    def ack(self, item: Claimed) -> None:
        done = self._settle(item, lambda box, id: box.ack(id, owner=self._owner, now=now()))

        def told(future: Future[bool]) -> None:
            # False: the lease was over, so it stays known as sent.
            if future.exception() is None and future.result():
                self._sent.discard(item.event_id)
            if future.exception() is None:
                self._is_settled(item)
                self._tell(item, self._plugins.event_delivered)

        done.add_done_callback(told)

    def retry_later(self, item: Claimed, next_attempt: int) -> None:
        self._settle(item, lambda box, id: box.retry_later(id, owner=self._owner, next_attempt=next_attempt, now=now()))

    def release(self, item: Claimed) -> None:
        self._settle(item, lambda box, id: box.release(id, owner=self._owner))

    def reject(self, item: Claimed, reason: str) -> None:
        self._settle(item, lambda box, id: box.reject(id, owner=self._owner, reason=reason, now=now()))
        self._is_settled(item)
        self._tell(item, lambda event: self._plugins.event_rejected(event, reason))

    def _settle(self, item: Claimed, command: Callable[[Outbox, int], bool]) -> Future[bool]:
        """Tell the outbox what became of an event; False where that knows nothing of it any more."""
        generation, number = self._under_way.pop(item.event_id, (None, 0))
        return self.writer.submit(lambda box: generation == self._store.generation and command(box, number))

    def _is_settled(self, item: Claimed) -> None:
        if item.deployment_id is not None and EventType(item.event_type).is_end:
            self._own.discard(item.deployment_id)

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
        return self._ask(lambda box: box.next_due(base_uri=self._base_uri, now=now()), None)

    def hold(self, until: int) -> None:
        self.writer.submit(lambda box: box.hold(self._base_uri, until=until))

    def held_until(self) -> int:
        return self._ask(lambda box: box.held_until(self._base_uri), 0)

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
