"""One outbox as this process uses it: its writer, and this process as the owner of what it has open there."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ld_deploy_hooks._clock import now
from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks._forking import unforkable
from ld_deploy_hooks._future import Future
from ld_deploy_hooks._left import Step, files_in, leave, remove, take_up
from ld_deploy_hooks._log import say_once
from ld_deploy_hooks._owner import HEARTBEAT, Death, Owner, death_of, forget_dead, owners_in
from ld_deploy_hooks._records import DeploymentRecord, Identity
from ld_deploy_hooks._recovery import recover
from ld_deploy_hooks._writer import Direct, Writer

if TYPE_CHECKING:
    from ld_deploy_hooks._outbox import EventStatus, Outbox

__all__ = ["Store"]

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
        try:
            with unforkable():
                from ld_deploy_hooks._outbox import Outbox, on_network
        except ImportError as error:
            where = str(self._path or ":memory:")
            raise OutboxError(
                f"The outbox {where} cannot be used: {error.name or 'a module'} cannot be imported. Use a Python that "
                "was built with SQLite, and raise the limit of memory if there is one.",
                path=where,
            ) from None

        box = Outbox(self._path)
        try:
            self._get_ready(box, on_network)
        except BaseException:
            box.close()
            raise
        self._box = box
        return box

    def _get_ready(self, box: Outbox, on_network: Callable[[Path], bool]) -> None:
        gone = self._box if self._box is not None and self._box.is_gone else None
        if box.set_aside is not None and gone is None:
            say_once(
                f"The outbox {self._path} was damaged; it was moved to {box.set_aside} and a new one was made. What "
                "waited in it is not sent: keep that file if you need to know what it was."
            )
        if self._path is not None and self._owners is not None:
            self._on_network = on_network(self._path)
            try:
                self._show_life(self._owners)
            except OSError as error:
                raise OutboxError(
                    f"The folder {self._owners} cannot be used ({type(error).__name__}), and without it others would "
                    "take what this process has open for left behind. Make it writable, or set LD_DEPLOY_OUTBOX to "
                    "another place.",
                    path=str(self._path),
                ) from None
        if gone is not None:
            self._carry_over(gone, box)
        if self._left is not None:
            remove(take_up(self._left, box))

    def _carry_over(self, gone: Outbox, box: Outbox) -> None:
        """Record anew what is not over of this process's in a file that was removed, or moved, while it was open."""
        removed = f"The outbox {self._path} was removed, or another took its place, while this process had it open."
        try:
            deployments = gone.not_over(self.owner_id)
        except OutboxError:
            say_once(f"{removed} What this run had recorded there and not delivered yet is not sent.")
            return
        box.adopt(deployments)
        with suppress(OutboxError):
            gone.disown(deployments)
        # It stays open: old versions of SQLite delete a log by its name when they close a file, and it is another's.
        if waiting := sum(len(events) for _, events in deployments):
            say_once(f"{removed} The {waiting} event(s) of this run that waited there were recorded anew.")

    def _show_life(self, owners: Path) -> Owner:
        """Have a file by which others see that this process lives.

        Raises:
            OSError: it cannot be made.
        """
        owner = self._owner
        if owner is None or owner.is_gone:
            before, self._owner = owner, (owner := Owner(owners, self.owner_id))
            if before is not None:
                # Not sooner: whoever sees the old one still, as from outside a chroot, sees that this process lives.
                before.release()
        return owner

    def take_up(self) -> None:
        """Have recorded what other processes have left beside the outbox."""
        left = self._left
        if left is not None:
            self.writer.submit(lambda box: take_up(left, box)).add_done_callback(_remove_when_durable)

    def not_taken_up(self) -> str | None:
        """Return what is still left beside the outbox, or why that cannot be told; None if nothing is."""
        if self._left is None:
            return None
        try:
            files = files_in(self._left)
        except OSError as error:
            return f"What earlier runs have left in {self._left} cannot be looked at ({type(error).__name__})."
        if not files:
            return None
        return (
            f"{len(files)} file(s) that earlier runs have left in {self._left} could not be recorded; what they hold "
            "is not sent. The next run tries again; a line above says what is wrong with those that no run can read."
        )

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
        owner = self._owner
        if ends and owner is not None:
            owner.note(ends)

    def _death_of(self, owner: str) -> Death | None:
        if owner == self.owner_id or self._owners is None:
            return None
        mine = self._owner
        clock = mine.clock if mine is not None else time.time
        return death_of(self._owners, owner, network=self._on_network, clock=clock)

    def _beat(self) -> None:
        if self._owners is not None:
            with suppress(OSError):
                self._show_life(self._owners).beat()

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
