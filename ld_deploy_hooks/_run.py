"""One run of a deployment: from its start to its one end, however many blocks, threads and hosts take part in it."""

from __future__ import annotations

import os
import signal
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from ld_deploy_hooks._clock import monotonic, now
from ld_deploy_hooks._errors import DropEvent, SettingsError
from ld_deploy_hooks._events import Events, identity_of
from ld_deploy_hooks._future import Future
from ld_deploy_hooks._log import internal_fault, say_once
from ld_deploy_hooks._outcome import Outcome
from ld_deploy_hooks._parent import parent_drops, parent_tells
from ld_deploy_hooks._plan import Plan
from ld_deploy_hooks._records import DeploymentEvent, DeploymentRecord, EventType, Identity
from ld_deploy_hooks._registry import ENDING, End, Registry
from ld_deploy_hooks._reporter import Reporter, reporter_of
from ld_deploy_hooks._settings import Settings
from ld_deploy_hooks._verdicts import FINISHED, Verdict

__all__ = ["Run", "runs"]


class Run:
    """The state machine of one deployment: pending → started → finished or failed, each told once."""

    def __init__(self, plan: Plan) -> None:
        self.id = str(uuid.uuid4())
        self.plan = plan
        self.metadata = plan.metadata
        self.outcome = Outcome(plan.hosts)
        self.state = "pending"
        self.identity: Identity | None = None
        self.settings: Settings | None = None
        self.started_at: int | None = None
        self.ended_at: int | None = None
        # Done when the started event is durable, or never will be: whoever joins waits for it too.
        self.durable: Future[None] = Future()
        # The object that deploy code holds; whoever joins gets the same.
        self.handle: Any = None
        # Whether it is about to start: it may turn out to be one that is open already, and counts for nobody.
        self.settling = plan.autostart
        self.opened_in: tuple[int, Any] | None = None  # thread and asyncio task
        # The thread that starts or ends it now, and may find itself in a deployment of a plugin's that it asks.
        self._busy_in: int | None = None
        # The run of the same identity that was open already when this one started.
        self._merged_into: Run | None = None
        self._pid = os.getpid()
        self._started = 0.0
        self._told = False
        # Whether another process tells its start and end, around this one or before the fork.
        self.told_by_parent = False
        self._reporter: Reporter
        self._events: Events
        # Base URI and identity, once it has started.
        self._key: tuple[str, Identity] | None = None
        self._inside = 1
        self._way_out: tuple[Verdict, BaseException | None] = (FINISHED, None)
        # Set when its end has been handed over.
        self.over = threading.Event()
        with runs.lock:
            runs.present.append(self)

    @property
    def current(self) -> Run:
        """The run that counts: this one, or the one that it joined when it started."""
        run = self
        while run._merged_into is not None:
            run = run._merged_into
        return run

    def start(self) -> None:
        """Start, or join the run of the same identity that is open.

        Raises:
            SettingsError: a setting is missing or cannot be used, and ``strict`` is on.
        """
        with runs.lock:
            if self.state != "pending" or not self.is_ours:
                return
            if self._inside:
                self.state, self.settling = "started", True
        if not self._inside:
            say_once("A deployment was not started: its block had been left already. Call start() inside the block.")
            return
        recorded = None
        self._busy_in = threading.get_ident()
        try:
            recorded = self._begin()
        except SettingsError:
            raise
        except Exception as error:
            internal_fault("Starting a deployment", error)
        finally:
            self.settling, self._busy_in = False, None
            if recorded is None:
                self.durable.set_result(None)
            else:
                recorded.add_done_callback(self._on_disk)

    def _begin(self) -> Future[Any] | None:
        """Have the start recorded; None where this run tells none."""
        self.started_at, self._started = now(), monotonic()
        settings = self.settings = self.plan.settle()
        if settings.silent or settings.missing:
            return self._untold(settings)
        self.identity = identity_of(settings)
        self._key = (settings.base_uri, self.identity)
        if not runs.register(self, self._key):
            return None
        self._reporter = reporter_of(settings)
        plugins = self._reporter.plugins
        self._events = Events(
            settings=settings, identity=self.identity, task=self.plan.task, modify=plugins.modify_event
        )
        if parent_tells(settings, self.identity, runs.parents):
            self.told_by_parent, self._told = True, not parent_drops(self.identity)
            return self._untold(settings, "the process that this one was started by tells it")
        self._events.added = self._events.clean(plugins.add_metadata(self.record()))
        try:
            event = self._event(EventType.STARTED, self.started_at, self.plan.event_metadata)
        except DropEvent:
            return self._untold(settings, "a plugin dropped its start (DropEvent)")
        record = self.record()
        if self.state != "started":
            return self._untold(settings, "its process ends")
        runs.signals.watch()
        self._told = True
        return self._reporter.started(event, record)

    @staticmethod
    def _untold(settings: Settings, why: str | None = None) -> None:
        if settings.recording is not None:
            settings.recording.untold(settings, why)

    def _on_disk(self, recorded: Future[Any]) -> None:
        if (error := recorded.exception()) is None:
            self.durable.set_result(None)
        else:
            self.durable.set_exception(error)

    def take_in(self, other: Run) -> None:
        """Let everybody inside of ``other`` take part in this run instead; the registry's lock is held."""
        self._inside += other._inside
        other._merged_into = self
        for key, value in list(other.metadata.items()):
            self.metadata.setdefault(key, value)
        self.outcome.take_over(other.outcome)

    def join(self) -> bool:
        """Take part in a run that is open or pending; undone by :meth:`leave`. False: it has ended."""
        with runs.lock:
            run = self.current
            if run._inside <= 0 or not run.is_ours:
                return False
            run._inside += 1
            return True

    @property
    def tells(self) -> bool:
        """Whether this process tells its start and its end."""
        return self._told and not self.told_by_parent

    @property
    def is_busy_here(self) -> bool:
        """Whether this thread starts or ends it now, and asks plugins for that."""
        return self._busy_in == threading.get_ident()

    @property
    def on_disk(self) -> Future[None] | None:
        """Done when the started event is durable, for whoever waits for that; None before the start, and within it."""
        return None if self.state == "pending" or self.is_busy_here else self.durable

    @property
    def is_open(self) -> bool:
        """Whether somebody is inside."""
        return self.current._inside > 0

    @property
    def is_ours(self) -> bool:
        """Whether this process opened it: a forked child owns none of its parent's."""
        return self._pid == os.getpid()

    def leave(
        self, verdict: Verdict, error: BaseException | None, *, opened: Run | None, where: tuple[int, Any]
    ) -> Future[bool] | None:
        """Count one participant out; the last one out ends the run.

        Args:
            verdict: on the way out that this participant took.
            error: the exception that left it.
            opened: the run that this participant opened, if it opened one: there its outcome is the verdict.
            where: the thread and asyncio task that it entered in; the opener may have caught a failure in its own.

        Returns:
            A future that is done when the end is durable; None when there is nothing to wait for.
        """
        with runs.lock:
            run = self.current
            if not run.is_ours:
                return None
            if opened is run:
                run.outcome.opener_left(verdict, error)
            else:
                run.outcome.joiner_left(verdict, error, inner=where == run.opened_in)
            run._inside -= 1
            if run._inside:
                return None
            if run.state == "pending":
                runs.present.remove(run)
            if run.state != "started":
                return None
            run._finish(*run.outcome.verdict())
        return run._end()

    def cut_off(self) -> None:
        """End the run from outside, because its process ends while somebody is still inside."""
        with runs.lock:
            self._inside = 0
            if self.state == "pending" or not self.is_ours:
                return
            ended_already = self.state != "started"
            if not ended_already:
                reason = "killed" if self.outcome.signal is None else "cancelled"
                self._finish(Verdict(failed=True, reason=reason), None)
        if self._busy_in is not None and not self.is_busy_here:
            # Another thread is starting it, and an end that came first would be none.
            with suppress(Exception):
                self.durable.exception(ENDING)
        # Another thread may be just about to tell it; or Ctrl-C came in between.
        if not (ended_already and self.over.wait(ENDING)):
            self._end()

    def _finish(self, verdict: Verdict, error: BaseException | None) -> None:
        self._way_out = (verdict, error)
        self.ended_at = self._now_at_least()
        # Last: until here Ctrl-C leaves it open, for the exit to end.
        self.state = "failed" if verdict.failed else "finished"

    def cancel(self, number: int) -> End | None:
        """Tell the end of a run that a signal is about to kill; takes no lock, as a signal handler must not."""
        if not self.is_ours or not self.tells or self.over.is_set():
            return None
        assert self.started_at is not None
        # It may have ended already, and plugins are being asked what they make of that.
        at, (verdict, _) = self.ended_at, self._way_out
        if self.state == "started" or at is None:
            name = signal.Signals(number).name
            at, verdict = self._now_at_least(), Verdict(True, "cancelled", error=name, exit_code=128 + number)
        state = "failed" if verdict.failed else "finished"

        # Plugins that are being asked already are too slow for who has to die.
        ask = self._busy_in is None

        def end() -> tuple[DeploymentEvent, DeploymentRecord]:
            return self._ending(verdict, at, ask=ask), replace(self.record(verdict), state=state, ended_at=at)

        known = self._events.ending_unasked(verdict, self.started_at, at)
        return End(self._reporter, self._reporter.cut_off(self.id, known, end))

    def note_signal(self, number: int) -> None:
        """Keep in mind that a signal came, which is the user's own handler's business unless the run fails."""
        if self.is_ours and self.tells:
            self.outcome.signal = number
            self._reporter.note_signal(self.id, number)

    def _now_at_least(self) -> int:
        """Return the time in Unix milliseconds, never one before the start: the wall clock may be set back."""
        return max(now(), (self.started_at or 0) + int((monotonic() - self._started) * 1000))

    def _end(self) -> Future[bool] | None:
        self._busy_in = threading.get_ident()
        end = None
        try:
            end = self._tell_end()
        except BaseException as fault:
            # Ctrl-C meanwhile, or a fault: the end is told all the same, without asking plugins. Twice counts once.
            end = self._tell_end(ask=False)
            if not isinstance(fault, Exception):
                raise
            internal_fault("Telling an end", fault)
        finally:
            # The exception leads to the frames of the deploy, which must not live on for our sake.
            self._way_out = (FINISHED, None)
            self._busy_in = None
            self.over.set()
            runs.remove(self, self._key, end)
        return end.durable if end is not None else None

    @contextmanager
    def noting(self) -> Iterator[Outcome]:
        """Give the outcome, to note something in, while nobody else does."""
        with runs.lock:
            yield self.outcome

    def custom(self, metadata: Mapping[str, Any]) -> Future[None] | None:
        """Tell a custom event of this run."""
        why_not = None
        if self.state != "started":
            why_not = f"is {self.state}. Call custom() between start and end."
        elif not self.is_ours:
            why_not = "belongs to the process that this one was forked from. Call custom() there."
        if why_not is not None:
            say_once(f"A custom event was not told: its deployment {why_not}")
        if why_not is not None or not self._told:
            return None
        at = self._now_at_least()
        try:
            event = self._event(EventType.CUSTOM, at, metadata)
        except DropEvent:
            return None
        return self._reporter.custom(event, replace(self.record(), custom_at=at), self._events.clean(metadata))

    def _tell_end(self, *, ask: bool = True) -> End | None:
        if not self.tells:
            return None
        verdict, error = self._way_out
        assert self.ended_at is not None
        event = self._ending(verdict, self.ended_at, ask=ask)
        return End(self._reporter, self._reporter.ended(event, self.record(verdict), error))

    def _ending(self, verdict: Verdict, at: int, *, ask: bool = True) -> DeploymentEvent:
        assert self.started_at is not None
        hosts = self.outcome.hosts.told_at_end()
        return self._events.ending(verdict, self.started_at, at, metadata=self.metadata, hosts=hosts, ask=ask)

    def _event(self, kind: EventType, at: int, users: Mapping[str, Any]) -> DeploymentEvent:
        return self._events.make(kind, at, users=users, metadata=self.metadata, hosts=self.outcome.hosts.told())

    def record(self, verdict: Verdict = FINISHED) -> DeploymentRecord:
        """Return the run as hooks see it at this moment."""
        return self._events.record(
            verdict,
            id=self.id,
            state=self.state,
            started_at=self.started_at,
            ended_at=self.ended_at,
            metadata=self.metadata,
            hosts=self.outcome.hosts.all,
        )


runs: Registry[Run] = Registry()
