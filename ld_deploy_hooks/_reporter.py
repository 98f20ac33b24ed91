"""Ties settings, plugins, outbox and sender together: records events, has them delivered, waits for them at exit."""

from __future__ import annotations

import atexit
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks._log import internal_fault, logger, say_once
from ld_deploy_hooks._owner import HEARTBEAT, Death, Owner, death_of, forget_dead, owners_in
from ld_deploy_hooks._plugins import Plugins
from ld_deploy_hooks._records import DeploymentEvent, DeploymentRecord, Identity
from ld_deploy_hooks._recovery import details_of, recover
from ld_deploy_hooks._sender import Sender
from ld_deploy_hooks._settings import Settings, is_loopback
from ld_deploy_hooks._version import __version__
from ld_deploy_hooks._writer import Writer

if TYPE_CHECKING:
    from ld_deploy_hooks._launchdarkly import Client
    from ld_deploy_hooks._outbox import Claimed, Outbox

__all__ = ["Reporter", "ask_outbox", "close_all", "flush_all", "plugins_for", "reporter_for"]

T = TypeVar("T")

# Seconds that an orderly exit may still take after the flush to give its leases back and close the outbox.
_CLOSING = 0.3


def _now() -> int:
    return int(time.time() * 1000)


class _Store:
    """One outbox of this process: its writer, and this process as the owner of what it has open there.

    Args:
        path: the outbox file; None keeps everything in memory.

    Raises:
        RuntimeError: the thread cannot be started.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._owners = path.with_name(f"{path.name}.owners") if path is not None else None
        self._owner: Owner | None = None
        self._on_network = False
        self.owner_id = uuid.uuid4().hex
        self.writer: Writer[Outbox] = Writer(self._open, beat=self._beat, every=HEARTBEAT)

    def _open(self) -> Outbox:
        # Imported here, in the writer's thread: sqlite3 is no business of the caller's.
        from ld_deploy_hooks._outbox import Outbox, on_network

        box = Outbox(self._path)
        if self._path is not None and self._owners is not None:
            self._on_network = on_network(self._path)
            try:
                self._owner = Owner(self._owners, self.owner_id)
            except OSError as error:
                box.close()
                raise OutboxError(
                    f"The folder {self._owners} cannot be used ({type(error).__name__}), and without it others would take what this "
                    "process has open for left behind. Make it writable, or set LD_DEPLOY_OUTBOX to another place.",
                    path=str(self._path),
                ) from None
        return box

    def recover(
        self, box: Outbox, *, base_uri: str | None = None, identity: Identity | None = None
    ) -> list[DeploymentRecord]:
        """End what dead processes left open, as a command of the writer's."""
        return recover(box, self._death_of, base_uri=base_uri, identity=identity)

    def keep_house(self, box: Outbox) -> list[DeploymentRecord]:
        """Do once in a process what keeps the outbox in order; return what was recovered."""
        recovered = self.recover(box)
        dead = [owner for owner in owners_in(self._owners) if self._death_of(owner) is not None] if self._owners else []
        box.void_leases(dead)
        for given_up in box.prune(now=_now()):
            say_once(
                f"The event {given_up.event_id} was given up: {given_up.reason}. It is kept in the outbox as rejected."
            )
        for owner in dead:
            forget_dead(self._owners, owner)
        return recovered

    def _death_of(self, owner: str) -> Death | None:
        if owner == self.owner_id or self._owners is None:
            return None
        return death_of(self._owners, owner, network=self._on_network)

    def _beat(self) -> None:
        if self._owner is not None:
            self._owner.beat()

    def close(self, timeout: float) -> None:
        """Give every lease back and close the outbox; what is still open stays this process's if that takes too long."""
        released = self.writer.submit(lambda box: box.release_all(self.owner_id))
        if self.writer.close(timeout) and released.exception() is None and self._owner is not None:
            self._owner.release()

    def forget(self) -> None:
        """In a forked child: let go of the parent's lock."""
        if self._owner is not None:
            self._owner.forget()


class _Journal:
    """One store as the sender sees it: the events of one base URI, leased to this process."""

    def __init__(self, store: _Store, base_uri: str, plugins: Plugins) -> None:
        self.writer = store.writer
        self._base_uri = base_uri
        self._owner = store.owner_id
        self._plugins = plugins
        self._own: set[str] = set()
        self._sent: set[str] = set()

    def owns(self, deployment_id: str) -> None:
        """Events of this deployment go before those of others."""
        self._own.add(deployment_id)

    def claim(self, limit: int) -> list[Claimed]:
        own = tuple(self._own)
        items: list[Claimed] = self._ask(
            lambda box: box.claim(base_uri=self._base_uri, owner=self._owner, now=_now(), limit=limit, own=own), []
        )
        fresh = []
        for item in items:
            if item.event_id in self._sent:
                # Delivered before, but the outbox could not take the ack then (a full disk): never send it again.
                self.ack(item)
            else:
                fresh.append(item)
        return fresh

    def ack(self, item: Claimed) -> None:
        self._sent.add(item.event_id)
        done = self.writer.submit(lambda box: box.ack(item.id, owner=self._owner, now=_now()))

        def told(future: Future[bool]) -> None:
            if future.exception() is None:
                self._sent.discard(item.event_id)
                self._plugins.event_delivered(DeploymentEvent.from_json(item.payload))

        done.add_done_callback(told)

    def retry_later(self, item: Claimed, next_attempt: int) -> None:
        self.writer.submit(
            lambda box: box.retry_later(item.id, owner=self._owner, next_attempt=next_attempt, now=_now())
        )

    def release(self, item: Claimed) -> None:
        self.writer.submit(lambda box: box.release(item.id, owner=self._owner))

    def reject(self, item: Claimed, reason: str) -> None:
        self.writer.submit(lambda box: box.reject(item.id, owner=self._owner, reason=reason, now=_now()))
        self._plugins.event_rejected(DeploymentEvent.from_json(item.payload), reason)

    def make_due(self) -> None:
        self.writer.submit(lambda box: box.make_due(self._base_uri, now=_now()))

    def next_due(self) -> int | None:
        return self._ask(lambda box: box.next_due(base_uri=self._base_uri, now=_now()), None)

    def pending(self, timeout: float) -> int:
        return self.writer.submit(lambda box: box.counts(base_uri=self._base_uri).pending).result(timeout)

    def _ask(self, question: Callable[[Outbox], T], otherwise: T) -> T:
        try:
            return self.writer.submit(question).result()
        except OutboxError:
            # Whoever records has said it; without a store there is nothing to send from it.
            return otherwise


class Reporter:
    """Records and delivers for one outbox, one base URI and one token.

    Raises:
        RuntimeError: a thread cannot be started.
    """

    def __init__(self, settings: Settings, plugins: Plugins, store: _Store) -> None:
        self.settings = settings
        self.plugins = plugins
        self._store = store
        self._journal = _Journal(store, settings.base_uri, plugins)
        self._spare: _Journal | None = None
        self._spare_store: _Store | None = None
        self._kept_house = False
        self._spare_lock = threading.Lock()
        self._journals = [self._journal]
        self._sender = Sender(self._journals, self._make_client) if settings.sendable else None

    def started(self, event: DeploymentEvent, record: DeploymentRecord) -> Future[list[DeploymentRecord]]:
        """Record that a deployment has started; the future is done when that is durable, and then hooks are told."""

        def command(box: Outbox) -> list[DeploymentRecord]:
            # LaunchDarkly pairs by identity: what a dead run left open under it ends before this one starts.
            left = self._store.recover(box, base_uri=self.settings.base_uri, identity=record.identity)
            box.open_deployment(
                id=record.id,
                base_uri=self.settings.base_uri,
                identity=record.identity,
                owner=self._store.owner_id,
                event=event,
                details=details_of(event),
                now=_now(),
            )
            return left

        def tell(left: list[DeploymentRecord]) -> None:
            self._tell_recovered(left)
            self.plugins.started(record)

        self._journal.owns(record.id)
        recorded = self._record(command, tell)
        self._keep_house()
        return recorded

    def _keep_house(self) -> None:
        """Recover whatever else dead runs left behind, once and behind the event of the deploy that runs."""
        if not self._kept_house:
            self._kept_house = True
            self._record(self._store.keep_house, self._tell_recovered)

    def _tell_recovered(self, records: list[DeploymentRecord]) -> None:
        for record in records:
            self.plugins.failed(record, None)

    def ended(self, event: DeploymentEvent, record: DeploymentRecord, error: BaseException | None) -> Future[bool]:
        """Record that a deployment has ended; the answer is False when it had ended already and nothing was recorded."""

        def command(box: Outbox) -> bool:
            return box.end_deployment(id=record.id, event=event, now=_now())

        def without_its_start(box: Outbox) -> bool:
            box.add_event(deployment_id=record.id, base_uri=self.settings.base_uri, event=event, now=_now())
            return True

        def tell(recorded: bool) -> None:
            if recorded and record.state == "finished":
                self.plugins.finished(record)
            elif recorded:
                self.plugins.failed(record, error)

        return self._record(command, tell, spare=without_its_start)

    def cut_off(self, deployment_id: str, end: Callable[[], tuple[DeploymentEvent, DeploymentRecord]]) -> Future[bool]:
        """Record the end that ``end`` makes in the writer's thread; for a signal handler, which may do nothing but wait."""
        made: list[DeploymentRecord] = []

        def command(box: Outbox) -> bool:
            event, record = end()
            made[:] = [record]
            return box.end_deployment(id=deployment_id, event=event, now=_now())

        def tell(recorded: bool) -> None:
            if recorded:
                self.plugins.failed(made[0], None)

        return self._record(command, tell)

    def note_signal(self, deployment_id: str, number: int) -> None:
        """Keep in the outbox that a signal came, for whoever may have to recover the deployment."""
        self._journal.writer.submit(lambda box: box.note(deployment_id, {"signal": number}))

    def custom(self, event: DeploymentEvent, record: DeploymentRecord, metadata: Mapping[str, Any]) -> Future[None]:
        """Record a custom event of a deployment."""

        def command(box: Outbox) -> None:
            box.add_event(deployment_id=record.id, base_uri=self.settings.base_uri, event=event, now=_now())

        return self._record(command, lambda _: self.plugins.custom(record, metadata))

    def flush(self, timeout: float) -> None:
        """Wait until hooks are told and nothing more can be delivered, at most ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        self.plugins.flush(timeout)
        self.send(max(deadline - time.monotonic(), 0))

    def send(self, timeout: float, meanwhile: Callable[[], None] | None = None) -> None:
        """Wait until nothing more can be delivered, at most ``timeout`` seconds; takes no lock that others hold.

        Args:
            timeout: in seconds.
            meanwhile: called every now and then while it waits.
        """
        if self._sender is not None:
            self._sender.flush(timeout, meanwhile)

    def recover(self) -> list[DeploymentRecord]:
        """End what dead processes left open, now, and return what that was.

        Raises:
            OutboxError: the outbox cannot be used.
        """
        self._kept_house = True
        recovered = self._store.writer.submit(self._store.keep_house).result()
        self._tell_recovered(recovered)
        return recovered

    def left(self) -> str | None:
        """Return the line that says what could not be delivered so far, why, and how it will be; None if nothing is left."""
        try:
            pending = sum(journal.pending(_CLOSING) for journal in self._journals)
        except (OutboxError, TimeoutError):
            return None
        if not pending:
            return None
        if self._sender is None:
            why = "no access token is set (LD_ACCESS_TOKEN)"
            if self.settings.access_token is not None:
                why = "the access token or the base URI cannot be used"
        else:
            why = self._sender.stopped or self._sender.trouble or "there was not enough time to send them"
        if self._spare is not None:
            return f"{pending} event(s) could not be delivered and are lost, since the outbox cannot be used: {why}"
        return (
            f"{pending} event(s) wait in {self.settings.outbox} for {self.settings.base_uri}: {why}. The next deployment "
            "sends them; `ld-deploy flush` does it now."
        )

    def close(self) -> None:
        """Give back what is leased and close the outbox; nothing is logged by a thread of this reporter afterwards."""
        if self._sender is not None:
            self._sender.mute()
        self.plugins.close()
        if self._spare_store is not None:
            self._spare_store.close(_CLOSING)

    def _make_client(self) -> Client:
        from ld_deploy_hooks._launchdarkly import Client

        token = self.settings.access_token
        return Client(
            base_uri=self.settings.base_uri,
            token=token.reveal() if token is not None else "",
            api_version=self.settings.api_version,
            loopback=is_loopback(self.settings.base_uri),
            user_agent=f"ld-deploy-hooks/{__version__}",
        )

    def _record(
        self, command: Callable[[Outbox], T], tell: Callable[[T], None], *, spare: Callable[[Outbox], T] | None = None
    ) -> Future[T]:
        durable: Future[T] = Future()

        def settle(done: Future[T]) -> None:
            error = done.exception()
            if error is not None:
                durable.set_exception(error)
                return
            durable.set_result(done.result())
            if self._sender is not None:
                self._sender.wake()
            tell(done.result())

        def fall_back(done: Future[T]) -> None:
            if isinstance(done.exception(), OutboxError):
                say_once(
                    f"{done.exception()} This run's events are sent straight from memory; what cannot be sent by its end is lost."
                )
                self._memory().writer.submit(spare or command).add_done_callback(settle)
            else:
                settle(done)

        self._journal.writer.submit(command).add_done_callback(fall_back)
        return durable

    def _memory(self) -> _Journal:
        with self._spare_lock:
            if self._spare is None:
                self._spare_store = _Store(None)
                self._spare = _Journal(self._spare_store, self.settings.base_uri, self.plugins)
                self._journals.append(self._spare)
            return self._spare


_lock = threading.Lock()
_reporters: dict[tuple[Any, ...], Reporter] = {}
_plugins: dict[tuple[Any, ...], Plugins] = {}
# One connection to each outbox, whatever it is used for: SQLite drops the locks of a file with any of its descriptors.
_stores: dict[Path, _Store] = {}
# What a forked child inherits: kept, because closing the parent's connection from the child would drop the parent's locks.
_inherited: list[Any] = []


def plugins_for(settings: Settings) -> Plugins:
    """Return this process's plugins, loaded at first use."""
    key = (settings.plugins, settings.plugin_autoload)
    with _lock:
        if key not in _plugins:
            _plugins[key] = Plugins.load(names=settings.plugins, autoload=settings.plugin_autoload, directory=None)
        return _plugins[key]


def reporter_for(settings: Settings) -> Reporter:
    """Return this process's reporter for the outbox, base URI and token of ``settings``.

    Raises:
        RuntimeError: a thread cannot be started.
    """
    plugins = plugins_for(settings)
    key = (
        settings.outbox,
        settings.base_uri,
        settings.access_token,
        settings.api_version,
        settings.sendable,
        id(plugins),
    )
    with _lock:
        if key not in _reporters:
            _reporters[key] = Reporter(settings, plugins, _store_for(settings))
        return _reporters[key]


def _store_for(settings: Settings) -> _Store:
    if settings.outbox not in _stores:
        _stores[settings.outbox] = _Store(settings.outbox)
    return _stores[settings.outbox]


def ask_outbox(settings: Settings, question: Callable[[Outbox], T]) -> T:
    """Return the answer of the outbox of ``settings``; nothing is sent for it.

    Raises:
        OutboxError: the outbox cannot be used.
    """
    with _lock:
        store = _store_for(settings)
    return store.writer.submit(question).result()


def flush_all(timeout: float | None = None) -> bool:
    """Wait until every reporter has delivered what it can; True when nothing is left.

    Args:
        timeout: seconds for all of them together; None takes the longest ``flush_timeout`` of their settings.
    """
    reporters = list(_reporters.values())
    if timeout is None:
        timeout = max((reporter.settings.flush_timeout for reporter in reporters), default=0.0)
    deadline = time.monotonic() + timeout
    for reporter in reporters:
        reporter.flush(max(deadline - time.monotonic(), 0))
    return all(reporter.left() is None for reporter in reporters)


def close_all() -> None:
    """Close every reporter of this process; a later deployment makes new ones."""
    with _lock:
        reporters, stores = list(_reporters.values()), list(_stores.values())
        _reporters.clear()
        _stores.clear()
        _plugins.clear()
    for reporter in reporters:
        reporter.close()
    for store in stores:
        store.close(_CLOSING)


def _at_exit() -> None:
    try:
        flush_all()
        for reporter in _reporters.values():
            line = reporter.left()
            if line is not None:
                logger.warning("%s", line)
    except KeyboardInterrupt:
        # Somebody does not want to wait: what is recorded stays recorded.
        pass
    except Exception as error:
        internal_fault("Waiting for events at exit", error)
    finally:
        close_all()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    _inherited.extend(_reporters.values())
    for store in _stores.values():
        store.forget()
    _reporters.clear()
    _stores.clear()
    _plugins.clear()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
