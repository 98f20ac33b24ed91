"""Records the events of deployments in one outbox and has them delivered to one service."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError  # the built-in one only from Python 3.11 on
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ld_deploy_hooks._clock import monotonic
from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks._forking import unforkable
from ld_deploy_hooks._left import Step
from ld_deploy_hooks._log import internal_fault, say_once
from ld_deploy_hooks._records import DeploymentEvent, DeploymentRecord
from ld_deploy_hooks._sender import Sender
from ld_deploy_hooks._settings import Settings, is_loopback
from ld_deploy_hooks._spare import Spare
from ld_deploy_hooks._store import Journal, Store
from ld_deploy_hooks._version import __version__

if TYPE_CHECKING:
    from ld_deploy_hooks._launchdarkly import Client
    from ld_deploy_hooks._outbox import Outbox
    from ld_deploy_hooks._plugins import Plugins

__all__ = ["Recorder"]

# Seconds for each question, when the time for all of them is over.
_LEAST = 0.02
# Seconds that memory has to say what waits in it, when the process dies of a signal.
_LEAVING = 0.1

T = TypeVar("T")


class Recorder:
    """Records and delivers for one outbox, one base URI and one token.

    Attributes:
        lost: whether :meth:`left` found, when it was last asked, what no later run will be able to send.

    Raises:
        RuntimeError: a thread cannot be started.
    """

    def __init__(self, settings: Settings, plugins: Plugins, store: Store) -> None:
        self.settings = settings
        self.plugins = plugins
        self._store = store
        self._journal = Journal(store, settings.base_uri, plugins)
        self._journals = [self._journal]
        self._spare = Spare(settings.base_uri, plugins, self._journals.append)
        self._kept_house = False
        self._closed = False
        # Open deployments whose start has come to the writer: Ctrl-C may have hit on the way there.
        self._begun: set[str] = set()
        # What is not durable yet, in its order.
        self._undone: dict[int, Step] = {}
        self.lost = False
        self._sender = Sender(self._journals, self._make_client) if settings.sendable else None

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
        if not self._kept_house:
            # Whatever else dead runs left behind is recovered once, and behind the event of the deploy that runs.
            self._kept_house = True
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
            return deployment_id in self._begun and step._replace(event=event).record(box)

        def tell(recorded: bool) -> None:
            if recorded and made[0].state == "finished":
                self.plugins.finished(made[0])
            elif recorded:
                self.plugins.failed(made[0], None)

        return self._record(command, tell, step)

    def leave_undone(self) -> None:
        """Leave to the next run what is in memory or not on disk yet; takes no lock that others hold."""
        waiting: list[Step] = []
        with suppress(FutureTimeoutError, OutboxError):
            waiting = self._spare.waiting(self._store.owner_id, _LEAVING)
            self._store.delivered_elsewhere(self._spare.take_ends_but_of(waiting))
        self._leave([*waiting, *self._undone.values()])

    def _leave(self, steps: list[Step]) -> Path | None:
        # What the outbox has not been told of yet would be sent again.
        delivered = self._journal.sent
        return self._store.leave(steps, delivered) if steps or delivered else None

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
        self._kept_house = True
        recovered = self._store.keep_house().result()
        self._tell_recovered(recovered)
        return recovered

    def left(self, timeout: float = 0.3, *, final: bool = False) -> str | None:
        """Return the line that says what could not be delivered so far, and why; None if nothing is left.

        Args:
            timeout: seconds to wait for the outbox, which another process may hold, and for answers to what was sent.
            final: nothing is sent any more, and what is in memory or not on disk yet is left to the next run.
        """
        deadline = monotonic() + timeout
        lines = []
        self.lost = False
        if final and self._sender is not None:
            self._sender.close(timeout)
        try:
            kept = self._journal.pending(max(deadline - monotonic(), _LEAST))
            if kept:
                lines.append(
                    f"{kept} event(s) wait in {self.settings.outbox} for {self.settings.base_uri}: {self._why()}. The "
                    "next deployment sends them; `ld-deploy flush` does it now."
                )
        except FutureTimeoutError:
            lines.append(self._not_on_disk(final=final))
        except OutboxError as error:
            if not self._spare:
                lines.append(str(error))
        with suppress(FutureTimeoutError, OutboxError):
            waiting = self._spare.waiting(self._store.owner_id, max(deadline - monotonic(), _LEAST))
            # Else they would be taken for killed, and told a second end.
            self._store.delivered_elsewhere(self._spare.take_ends_but_of(waiting))
            if waiting:
                lines.append(self._not_from_memory(waiting, final=final))
        return " ".join(lines) or None

    def _not_from_memory(self, waiting: list[Step], *, final: bool) -> str:
        """Return the line that says what has not been delivered from memory."""
        line = f"{len(waiting)} event(s) of this run could not be delivered: {self._why()}."
        if not final:
            return line
        path = self._leave(waiting)
        if path is None:
            self.lost = True
            return f"{line} They are lost: nothing can be written beside the outbox either."
        return f"{line} They are in {path}; the next deployment that can use {self.settings.outbox} sends them."

    def _not_on_disk(self, *, final: bool) -> str:
        """Return the line that says what an outbox which does not answer in time has not taken."""
        steps = list(self._undone.values())
        busy = f"The outbox {self.settings.outbox} did not answer in time; another process may hold it."
        path = self._leave(steps) if final else None
        if not (final and steps):
            return f"{busy} The next deployment sends what waits in it; `ld-deploy status` shows it."
        if path is None:
            self.lost = True
            return f"{busy} The last {len(steps)} event(s) of this run may be lost: nothing can be written beside it."
        return f"{busy} The last {len(steps)} event(s) of this run are in {path}; the next deployment sends them."

    def _why(self) -> str:
        if self._sender is not None:
            if self._sender.stopped:
                return "sending was stopped, as was said above"
            return (self._sender.trouble or "there was not enough time to send them").rstrip(".")
        if self.settings.access_token is not None:
            return "the access token or the base URI cannot be used"
        return "no access token is set (LD_ACCESS_TOKEN)"

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
        self._undone[id(durable)] = step

        def settle(done: Future[T]) -> None:
            self._undone.pop(id(durable), None)
            error = done.exception()
            if error is not None:
                durable.set_exception(error)
                return
            try:
                # Before those who wait go on: they may be about to exit, and wait only for what was told by then.
                tell(done.result())
                if self._sender is not None:
                    self._sender.wake()
            except Exception as fault:
                internal_fault("Telling plugins what was recorded", fault)
            durable.set_result(done.result())

        def fall_back(done: Future[T]) -> None:
            error = done.exception()
            if not isinstance(error, OutboxError) or self._closed:
                settle(done)
                return
            say_once(
                f"{error} This run's events are sent straight from memory; what cannot be sent by its end is left to "
                "the next run, if anything can be written beside the outbox."
            )
            try:
                spare = self._spare.journal()
            except RuntimeError:
                # No thread can be started any more.
                settle(done)
                return
            self._spare.takes(step)
            spare.writer.submit(command).add_done_callback(settle)

        if step.event.identity in self._spare:
            self._spare.journal().writer.submit(command).add_done_callback(settle)
        else:
            self._journal.writer.submit(command).add_done_callback(fall_back)
        return durable
