"""Records the events of deployments in one outbox and has them delivered to one service."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ld_deploy_hooks._clock import monotonic, now
from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks._forking import unforkable
from ld_deploy_hooks._future import Future
from ld_deploy_hooks._journal import Journal
from ld_deploy_hooks._left import Step
from ld_deploy_hooks._log import internal_fault, say_once
from ld_deploy_hooks._records import DeploymentEvent, DeploymentRecord
from ld_deploy_hooks._rest import Rest
from ld_deploy_hooks._sender import Sender
from ld_deploy_hooks._settings import Settings, is_loopback
from ld_deploy_hooks._spare import Spare
from ld_deploy_hooks._store import Store
from ld_deploy_hooks._version import __version__

if TYPE_CHECKING:
    from ld_deploy_hooks._launchdarkly import Client
    from ld_deploy_hooks._outbox import Outbox
    from ld_deploy_hooks._plugins import Plugins

__all__ = ["Recorder"]

# Seconds after which a process that goes on puts the outbox in order again.
_HOUSE = 3600.0

T = TypeVar("T")


class _MovedError(OutboxError):
    """The events of this identity are in memory, and those that follow go there too."""

    def __init__(self) -> None:
        super().__init__("The events of this deployment are in memory.", path="")


class Recorder:
    """Records and delivers for one outbox, one base URI and one token.

    Attributes:
        rest: what it has not recorded or delivered.

    Raises:
        RuntimeError: a thread cannot be started.
    """

    def __init__(self, settings: Settings, plugins: Plugins, store: Store) -> None:
        self.settings = settings
        self.plugins = plugins
        self._store = store
        self._journal = Journal(store, settings.base_uri, plugins, over=lambda event_id: self._spare.is_sent(event_id))
        self._journals = [self._journal]
        self._spare = Spare(settings.base_uri, plugins, self._journals.append, self._has_ended)
        # Monotonic time at which the outbox is to be put in order.
        self._house_due = 0.0
        self._closed = False
        # Open deployments whose start has come to the writer: Ctrl-C may have hit on the way there.
        self._begun: set[str] = set()
        self._sender = Sender(self._journals, self._make_client) if settings.sendable else None
        self.rest = Rest(settings, store, self._journal, self._spare, self._sender)

    def started(self, event: DeploymentEvent, record: DeploymentRecord) -> Future[list[DeploymentRecord]]:
        """Record that a deployment has started; the future is done when that is durable, and then hooks are told."""

        step = self._step(record.id, event)

        def command(box: Outbox) -> list[DeploymentRecord]:
            self._begun.add(record.id)
            # LaunchDarkly pairs by identity: what a dead run left open under it ends before this one starts.
            left = self._store.recover(box, base_uri=self.settings.base_uri, identity=record.identity)
            step.record(box)
            return left

        def tell(left: list[DeploymentRecord]) -> None:
            self._tell_recovered(left)
            self.plugins.started(record)

        self._journal.owns(record.id)
        # First of all: the end of what seems to be left open may lie there.
        self._store.take_up()
        recorded = self._record(command, tell, step)
        if monotonic() >= self._house_due:
            # Whatever else dead runs left behind is recovered behind the event of the deploy that runs.
            self._house_due = monotonic() + _HOUSE
            self._store.keep_house().add_done_callback(self._house_is_kept)
        return recorded

    def _house_is_kept(self, kept: Future[list[DeploymentRecord]]) -> None:
        # An outbox that cannot be used was said by who wanted to record.
        if kept.exception() is None:
            self._tell_recovered(kept.result())
            if self._sender is not None:
                self._sender.wake()

    def _tell_recovered(self, records: list[DeploymentRecord]) -> None:
        for record in records:
            self.plugins.failed(record, None)

    def ended(self, event: DeploymentEvent, record: DeploymentRecord, error: BaseException | None) -> Future[bool]:
        """Record that a deployment has ended; False, and nothing recorded, if it had ended already or never begun."""

        step = self._step(record.id, event)

        def command(box: Outbox) -> bool:
            return record.id in self._begun and step.record(box)

        def tell(recorded: bool) -> None:
            self._begun.discard(record.id)
            if recorded and record.state == "finished":
                self.plugins.finished(record)
            elif recorded:
                self.plugins.failed(record, error)

        return self._record(command, tell, step)

    def _step(self, deployment_id: str | None, event: DeploymentEvent) -> Step:
        return Step(deployment_id, self.settings.base_uri, self._store.owner_id, event)

    def cut_off(
        self, deployment_id: str, known: DeploymentEvent, end: Callable[[], tuple[DeploymentEvent, DeploymentRecord]]
    ) -> Future[bool]:
        """Record the end of a deployment whose process is about to die of a signal.

        Args:
            deployment_id: its UUID.
            known: its end, as far as it is known without asking anybody: for the next run, if the outbox is busy.
            end: makes its end; called in the writer's thread, since a signal handler may do nothing but wait.
        """
        made: list[DeploymentRecord] = []
        step = self._step(deployment_id, known)

        def command(box: Outbox) -> bool:
            event, record = end()
            made[:] = [record]
            ending = step._replace(event=event)
            self._spare.becomes(step, ending)
            return deployment_id in self._begun and ending.record(box)

        def tell(recorded: bool) -> None:
            if recorded and made[0].state == "finished":
                self.plugins.finished(made[0])
            elif recorded:
                self.plugins.failed(made[0], None)

        return self._record(command, tell, step)

    @property
    def holds_in_memory(self) -> bool:
        """Whether events are in memory alone, and are lost with the process unless they are left to the next run."""
        return bool(self._spare) and not self._closed

    def leave_undone(self) -> None:
        """Leave to the next run what is in memory or not on disk yet; takes no lock that others hold."""
        self.rest.leave_undone()

    def note_signal(self, deployment_id: str, number: int) -> None:
        """Keep in the outbox that a signal came, for whoever may have to recover the deployment."""
        self._journal.writer.submit(lambda box: box.note(deployment_id, {"signal": number}))

    def custom(self, event: DeploymentEvent, record: DeploymentRecord, metadata: Mapping[str, Any]) -> Future[None]:
        """Record a custom event of a deployment."""
        step = self._step(record.id, event)

        def command(box: Outbox) -> None:
            step.record(box)

        return self._record(command, lambda _: self.plugins.custom(record, metadata), step)

    def lone(self, event: DeploymentEvent) -> Future[bool]:
        """Record an event that opens and ends no deployment here; nothing is recovered for it, and no hook is told."""
        step = self._step(None, event)
        return self._record(step.record, lambda _: None, step)

    def flush(self, timeout: float) -> None:
        """Wait until nothing more can be delivered and hooks are told, at most ``timeout`` seconds."""
        deadline = monotonic() + timeout
        self.send(timeout)
        # What was delivered meanwhile is told, too.
        self.plugins.flush(max(deadline - monotonic(), 0))

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
        self._house_due = monotonic() + _HOUSE
        recovered = self._store.keep_house().result()
        self._tell_recovered(recovered)
        return recovered

    def close(self, timeout: float) -> bool:
        """Stop sending; nothing is logged by a thread of this reporter afterwards.

        Args:
            timeout: seconds to wait for its threads, and for the answers to what was sent.

        Returns:
            Whether nothing is on its way any more.
        """
        deadline = monotonic() + timeout
        self._closed = True
        self.plugins.close()
        quiet = self._sender is None or self._sender.close(max(deadline - monotonic(), 0))
        self._spare.close(max(deadline - monotonic(), 0))
        return quiet

    def _make_client(self) -> Client:
        with unforkable():
            from ld_deploy_hooks._launchdarkly import Client

            token = self.settings.access_token
            client = Client(
                base_uri=self.settings.base_uri,
                token=token.reveal() if token is not None else "",
                api_version=self.settings.api_version,
                loopback=is_loopback(self.settings.base_uri),
                user_agent=f"ld-deploy-hooks/{__version__}",
            )
            client.load()
            return client

    def _record(
        self,
        command: Callable[[Outbox], T],
        tell: Callable[[T], None],
        step: Step,
    ) -> Future[T]:
        """Have ``command`` done in the outbox, or in memory where that cannot be used, and ``tell`` what it answered.

        Args:
            command: called with the outbox in the writer's thread.
            tell: called with its answer, once that is durable.
            step: what it records, for the next run if this one cannot wait for it.
        """
        durable: Future[T] = Future()
        self.rest.not_on_disk[id(durable)] = step

        def in_turn(box: Outbox) -> T:
            # What came before it may have gone to memory while this waited for the outbox.
            if step.event.identity in self._spare:
                raise _MovedError
            return command(box)

        def on_disk(done: Future[T]) -> None:
            if done.exception() is None and done.result() is not False:
                self._spare.note_on_disk(step)
            settle(done)

        def settle(done: Future[T]) -> None:
            self.rest.not_on_disk.pop(id(durable), None)
            error = done.exception()
            if error is None:
                # Before those who wait go on: they may be about to exit, and wait only for what was told by then.
                say(done.result())
                durable.set_result(done.result())
            else:
                durable.set_exception(error)

        def say(result: T) -> None:
            try:
                tell(result)
                if self._sender is not None:
                    self._sender.wake()
            except Exception as fault:
                internal_fault("Telling plugins what was recorded", fault)

        def fall_back(done: Future[T]) -> None:
            error = done.exception()
            if not isinstance(error, OutboxError) or self._closed:
                on_disk(done)
                return
            if not isinstance(error, _MovedError):
                say_once(
                    f"{error} This run's events are sent straight from memory; what cannot be sent by its end is left "
                    "to the next run, if anything can be written beside the outbox."
                )
            in_memory()

        def in_memory() -> None:
            self._spare.takes(step)
            self.rest.not_on_disk.pop(id(durable), None)
            if self._spare.waits_behind(step, lambda: there(say_late)):
                # Nobody need wait for that: it is left to the next run, if it comes to nothing here.
                durable.set_exception(_MovedError())
            else:
                there(settle)

        def there(settled: Callable[[Future[T]], None]) -> None:
            try:
                taken = self._spare.journal_for(step).writer.submit(command)
            except (OutboxError, RuntimeError) as error:
                taken = Future()
                taken.set_exception(OutboxError(str(error), path=""))
            taken.add_done_callback(lambda done: settle_there(done, settled))

        def settle_there(done: Future[T], settled: Callable[[Future[T]], None]) -> None:
            error = done.exception()
            if isinstance(error, OutboxError):
                self._spare.refuses(step)
            elif error is not None or done.result() is False:
                self._spare.forget(step)
            settled(done)

        def say_late(done: Future[T]) -> None:
            if done.exception() is None:
                say(done.result())

        if step.begins:
            # What was wrong with the outbox may be mended since.
            self._spare.lets_go(step)
        if step.event.identity in self._spare:
            in_memory()
        else:
            self._journal.writer.submit(in_turn).add_done_callback(fall_back)
        return durable

    def _has_ended(self, deployment_id: str, state: str) -> None:
        # Else the outbox, which knows its start, would take it for killed when this process is gone. A note needs no
        # room on the disk, and no lock.
        self._store.delivered_elsewhere({deployment_id: state})
        self._journal.writer.submit(lambda box: box.settle_deployment(deployment_id, state=state, now=now()))
