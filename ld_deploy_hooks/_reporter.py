"""Ties settings, plugins, outbox and sender together: records events, has them delivered, waits for them at exit."""

from __future__ import annotations

import atexit
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks._log import internal_fault, logger, say_once
from ld_deploy_hooks._plugins import Plugins
from ld_deploy_hooks._records import DeploymentEvent, DeploymentRecord
from ld_deploy_hooks._sender import Sender
from ld_deploy_hooks._settings import Settings, is_loopback
from ld_deploy_hooks._version import __version__
from ld_deploy_hooks._writer import Writer

if TYPE_CHECKING:
    from ld_deploy_hooks._launchdarkly import Client
    from ld_deploy_hooks._outbox import Claimed, Outbox

__all__ = ["Reporter", "close_all", "flush_all", "plugins_for", "reporter_for"]

T = TypeVar("T")

# Seconds that an orderly exit may still take after the flush to give its leases back and close the outbox.
_CLOSING = 0.3


def _now() -> int:
    return int(time.time() * 1000)


def _open_outbox(path: Any) -> Outbox:
    # Imported in the writer's thread: sqlite3 is no business of the caller's.
    from ld_deploy_hooks._outbox import Outbox

    return Outbox(path)


class _Journal:
    """One store as the sender sees it: the events of one base URI, leased to this process."""

    def __init__(self, path: Any, base_uri: str, owner: str, plugins: Plugins) -> None:
        self.writer: Writer[Outbox] = Writer(lambda: _open_outbox(path))
        self._base_uri = base_uri
        self._owner = owner
        self._plugins = plugins
        self._own: set[str] = set()
        self._sent: set[str] = set()

    def owns(self, deployment_id: str) -> None:
        """Events of this deployment go before those of others."""
        self._own.add(deployment_id)

    def claim(self, limit: int) -> list[Claimed]:
        own = tuple(self._own)
        items = self._ask(
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

    def release_all(self) -> None:
        self.writer.submit(lambda box: box.release_all(self._owner))

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

    def __init__(self, settings: Settings, plugins: Plugins) -> None:
        self.settings = settings
        self.plugins = plugins
        self._owner = uuid.uuid4().hex
        self._journal = _Journal(settings.outbox, settings.base_uri, self._owner, plugins)
        self._spare: _Journal | None = None
        self._spare_lock = threading.Lock()
        self._journals = [self._journal]
        self._sender = Sender(self._journals, self._make_client) if settings.sendable else None

    def started(self, event: DeploymentEvent, record: DeploymentRecord) -> Future[None]:
        """Record that a deployment has started; the future is done when that is durable, and then hooks are told."""

        def command(box: Outbox) -> None:
            box.open_deployment(
                id=record.id,
                base_uri=self.settings.base_uri,
                identity=record.identity,
                owner=self._owner,
                event=event,
                details={"task": record.task},
                now=_now(),
            )

        self._journal.owns(record.id)
        return self._record(command, lambda _: self.plugins.started(record))

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

        return self._record(command, tell, spare=lambda box: command(box) or without_its_start(box))

    def custom(self, event: DeploymentEvent, record: DeploymentRecord, metadata: Mapping[str, Any]) -> Future[None]:
        """Record a custom event of a deployment."""

        def command(box: Outbox) -> None:
            box.add_event(deployment_id=record.id, base_uri=self.settings.base_uri, event=event, now=_now())

        return self._record(command, lambda _: self.plugins.custom(record, metadata))

    def flush(self, timeout: float) -> None:
        """Wait until hooks are told and nothing more can be delivered, at most ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        self.plugins.flush(max(deadline - time.monotonic(), 0))
        if self._sender is not None:
            self._sender.flush(max(deadline - time.monotonic(), 0))

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
            why = self._sender.stopped or f"{self.settings.base_uri} did not accept them in time"
        if self._spare is not None:
            return f"{pending} event(s) could not be delivered and are lost, since the outbox cannot be used: {why}"
        return (
            f"{pending} event(s) wait in {self.settings.outbox} for {self.settings.base_uri}: {why}. The next deployment sends "
            "them; python -c 'import ld_deploy_hooks; ld_deploy_hooks.flush(60)' does it now."
        )

    def close(self) -> None:
        """Give back what is leased and close the outbox; nothing is logged by a thread of this reporter afterwards."""
        if self._sender is not None:
            self._sender.mute()
        self.plugins.close()
        for journal in self._journals:
            journal.release_all()
            journal.writer.close(_CLOSING)

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
                self._spare = _Journal(None, self.settings.base_uri, self._owner, self.plugins)
                self._journals.append(self._spare)
            return self._spare


_lock = threading.Lock()
_reporters: dict[tuple[Any, ...], Reporter] = {}
_plugins: dict[tuple[Any, ...], Plugins] = {}
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
            _reporters[key] = Reporter(settings, plugins)
        return _reporters[key]


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
        reporters = list(_reporters.values())
        _reporters.clear()
        _plugins.clear()
    for reporter in reporters:
        reporter.close()


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
    _reporters.clear()
    _plugins.clear()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
