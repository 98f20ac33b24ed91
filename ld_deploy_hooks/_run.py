"""One run of a deployment: from its start to its one end, however many blocks, threads and hosts take part in it."""

from __future__ import annotations

import atexit
import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from ld_deploy_hooks._errors import DropEvent, SettingsError
from ld_deploy_hooks._hosts import Hosts
from ld_deploy_hooks._log import internal_fault, say_once
from ld_deploy_hooks._metadata import fit, jsonable, redact
from ld_deploy_hooks._records import DeploymentEvent, DeploymentRecord, EventType, Identity
from ld_deploy_hooks._reporter import Reporter, reporter_for
from ld_deploy_hooks._settings import Settings
from ld_deploy_hooks._signals import Signals
from ld_deploy_hooks._verdicts import FINISHED, Verdict
from ld_deploy_hooks._version import __version__

__all__ = ["PARENT", "Plan", "Run", "only_run", "parent_identity"]

# Names the deployment that a parent process (``ld-deploy run``) tells: {"id": …, "identity": [project, environment, application, version]}.
PARENT = "LD_DEPLOY_PARENT"

# Seconds that a process may live on after SIGTERM: Jenkins kills after 5.
_SIGNAL = 2.0


@dataclass(kw_only=True)
class Plan:
    """What a deployment is going to be, before it starts.

    Attributes:
        settle: asks for every field and returns the settings; called once, when the deployment starts.
        task: name of the task or function, None in a plain ``with``.
        metadata: the user's deploymentMetadata, live until the end.
        event_metadata: the user's eventMetadata of the started event.
        hosts: the hosts that it is going to, as far as they are known.
    """

    settle: Callable[[], Settings]
    task: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    event_metadata: dict[str, Any] = field(default_factory=dict)
    hosts: tuple[str, ...] = ()


class Run:
    """The state machine of one deployment: pending → started → finished or failed, each told once."""

    def __init__(self, plan: Plan) -> None:
        self.id = str(uuid.uuid4())
        self.plan = plan
        self.metadata = plan.metadata
        self.hosts = Hosts()
        for host in plan.hosts:
            self.hosts.plan(host)
        self.state = "pending"
        self.identity: Identity | None = None
        self.settings: Settings | None = None
        self.started_at: int | None = None
        self.ended_at: int | None = None
        # Done when the started event is durable, or never will be: whoever joins waits for it too.
        self.durable: Future[None] = Future()
        # The object that deploy code holds; whoever joins gets the same.
        self.handle: Any = None
        self.opened_in: tuple[int, Any] | None = None
        self._pid = os.getpid()
        self._started = 0.0
        self._told = False
        self._told_by_parent = False
        self._reporter: Reporter
        # The last signal that a handler of the user's was given; it explains a failure that follows.
        self._signal: int | None = None
        self._added: dict[str, Any] = {}
        self._inside = 1
        self._over = threading.Event()
        self._mark: Verdict | None = None
        self._failed_host: tuple[str | None, str | None] = (None, None)
        self._opener: tuple[Verdict, BaseException | None] | None = None
        self._joiner: tuple[Verdict, BaseException | None] | None = None
        with _lock:
            _present.append(self)

    def start(self) -> Run:
        """Start, or join the run of the same identity that is open; return the one that now counts.

        Raises:
            SettingsError: a setting is missing or cannot be used, and ``strict`` is on.
        """
        with _lock:
            if self.state != "pending":
                return self
            self.state = "started"
        self.started_at = int(time.time() * 1000)
        self._started = time.monotonic()
        try:
            settings = self.settings = self.plan.settle()
        except SettingsError:
            raise
        except Exception as error:
            internal_fault("Reading the settings", error)
            self.durable.set_result(None)
            return self
        if settings.silent or settings.missing:
            self.durable.set_result(None)
            return self
        self.identity = Identity(
            settings.project_key or "",
            settings.environment_key or "",
            settings.application_key or "",
            settings.version or "",
        )
        other = self._register((settings.base_uri, self.identity))
        if other is not None:
            return other._absorb(self)
        self._told = True
        self._told_by_parent = self.identity in _parents or self.identity == parent_identity()
        try:
            self._reporter = reporter_for(settings)
            _signals.watch()
            self._announce()
        except Exception as error:
            self._told = False
            internal_fault("Starting a deployment", error)
        if not self._told:
            self.durable.set_result(None)
        return self

    def _register(self, key: tuple[str, Identity]) -> Run | None:
        while True:
            with _lock:
                other = _open.get(key)
                if other is None:
                    _open[key] = self
                    return None
                if other._inside:
                    other._inside += 1
                    return other
            # It has ended, but its end is not queued yet: a start that overtook it would be paired wrongly.
            other._over.wait(1.0)
            with _lock:
                if _open.get(key) is other:
                    del _open[key]

    def _absorb(self, joiner: Run) -> Run:
        for key, value in joiner.metadata.items():
            self.metadata.setdefault(key, value)
        with _lock:
            for host in joiner.plan.hosts:
                self.hosts.plan(host)
            _present.remove(joiner)
            self._mark = self._mark or joiner._mark
            # One was counted in when it was found open.
            self._inside += joiner._inside - 1
        return self

    def join(self) -> bool:
        """Take part in a run that is open or pending; undone by :meth:`leave`. False: it has ended."""
        with _lock:
            if not self._inside or not self.is_ours:
                return False
            self._inside += 1
            return True

    @property
    def on_disk(self) -> Future[None] | None:
        """Done when the started event is durable, for whoever waits for that; None before the start."""
        return None if self.state == "pending" else self.durable

    @property
    def is_ours(self) -> bool:
        """Whether this process opened it: a forked child owns none of its parent's."""
        return self._pid == os.getpid()

    def leave(
        self, verdict: Verdict, error: BaseException | None, *, opener: bool, inner: bool = False
    ) -> Future[bool] | None:
        """Count one participant out; the last one out ends the run.

        Args:
            verdict: on the way out that this participant took.
            error: the exception that left it.
            opener: whether this is who opened the run: its outcome is the verdict.
            inner: a joiner in the opener's own thread and task, whose failure the opener may have caught.

        Returns:
            A future that is done when the end is durable; None when there is nothing to wait for.
        """
        if not self.is_ours:
            return None
        with _lock:
            if opener:
                self._opener = (verdict, error)
            elif verdict.failed and self._joiner is None and not (inner and self._opener is None):
                self._joiner = (verdict, error)
            self._inside -= 1
            if self._inside:
                return None
            if self.state == "pending":
                _present.remove(self)
                return None
        return self._end(*self._outcome())

    def _outcome(self) -> tuple[Verdict, BaseException | None]:
        verdict, error = self._opener or (FINISHED, None)
        if not verdict.failed and self._joiner is not None:
            verdict, error = self._joiner
        mark = self._mark
        if mark is not None and verdict.failed:
            verdict = replace(verdict, detail=mark.detail)
        elif mark is not None:
            verdict = mark
        elif not verdict.failed and self.hosts.pending:
            verdict = Verdict(failed=True, reason="incomplete", exit_code=0)
        if verdict.failed and self._signal is not None:
            verdict = replace(verdict, reason="cancelled")
        return verdict, error

    def cut_off(self) -> None:
        """End the run from outside, because its process ends while somebody is still inside."""
        with _lock:
            self._inside = 0
            if self.state != "started" or not self.is_ours:
                return
        self._end(Verdict(failed=True, reason="killed" if self._signal is None else "cancelled"), None)

    def cancel(self, number: int) -> Future[bool] | None:
        """Tell the end of a run that a signal is about to kill the process of; takes no lock, as a signal handler must not."""
        if not self.is_ours or self.state != "started" or not self._told or self._told_by_parent:
            return None
        at = self._now_at_least()
        ours = {
            "durationMs": at - (self.started_at or 0),
            "reason": "cancelled",
            "error": signal.Signals(number).name,
            "exitCode": 128 + number,
        }

        def end() -> tuple[DeploymentEvent, DeploymentRecord]:
            event = self._event(EventType.FAILED, at, ours=ours, hosts=self.hosts.told_at_end())
            record = self.record(Verdict(failed=True, reason="cancelled", error=signal.Signals(number).name))
            return event, replace(record, state="failed", ended_at=at)

        return self._reporter.cut_off(self.id, end)

    def note_signal(self, number: int) -> None:
        """Keep in mind that a signal came, which is the user's own handler's business unless the run fails."""
        if self.is_ours and self._told and not self._told_by_parent:
            self._signal = number
            self._reporter.note_signal(self.id, number)

    def _now_at_least(self) -> int:
        """Return the time in Unix milliseconds; the wall clock may be set back, but a deployment never ends before it began."""
        elapsed = int((time.monotonic() - self._started) * 1000)
        return max(int(time.time() * 1000), (self.started_at or 0) + elapsed)

    def _end(self, verdict: Verdict, error: BaseException | None) -> Future[bool] | None:
        self.state = "failed" if verdict.failed else "finished"
        self.ended_at = self._now_at_least()
        try:
            if self._told and not self._told_by_parent:
                return self._tell_end(verdict, error)
        except Exception as fault:
            internal_fault("Ending a deployment", fault)
        finally:
            self._over.set()
            with _lock:
                _present.remove(self)
                if self.settings is not None and self.identity is not None:
                    key = (self.settings.base_uri, self.identity)
                    if _open.get(key) is self:
                        del _open[key]
                if not _open:
                    _signals.release()
        return None

    def host_succeeded(self, host: str) -> None:
        """Note that ``host`` went well."""
        with _lock:
            self.hosts.succeeded(host)

    def host_failed(self, host: str, error: BaseException | None) -> None:
        """Note that ``host`` did not go well."""
        with _lock:
            self.hosts.failed(host)
            self._failed_host = (host, type(error).__name__ if error is not None else None)

    def mark(self, verdict: Verdict) -> None:
        """Make the run fail at its end, whatever its outcome; the first mark counts."""
        with _lock:
            self._mark = self._mark or verdict

    def custom(self, metadata: Mapping[str, Any]) -> Future[None] | None:
        """Tell a custom event of this run."""
        if self.state != "started":
            say_once(
                f"A custom event was not told: its deployment is {self.state}. Call custom() between start and end."
            )
            return None
        if not self._told:
            return None
        users = jsonable(dict(metadata))
        try:
            event = self._event(EventType.CUSTOM, int(time.time() * 1000), users=users)
        except DropEvent:
            return None
        return self._reporter.custom(event, self.record(), users)

    def _announce(self) -> None:
        if self._told_by_parent:
            self.durable.set_result(None)
            return
        plugins = self._reporter.plugins
        self._added = jsonable(plugins.add_metadata(self.record()))
        assert self.started_at is not None
        try:
            event = self._event(EventType.STARTED, self.started_at, users=self.plan.event_metadata)
        except DropEvent:
            self._told = False
            return
        done = self._reporter.started(event, self.record())

        def settle(future: Future[Any]) -> None:
            error = future.exception()
            if error is None:
                self.durable.set_result(None)
            else:
                self.durable.set_exception(error)

        done.add_done_callback(settle)

    def _tell_end(self, verdict: Verdict, error: BaseException | None) -> Future[bool]:
        for host in verdict.hosts_succeeded:
            self.hosts.succeeded(host)
        for host in verdict.hosts_failed:
            self.hosts.failed(host)
        assert self.ended_at is not None
        assert self.started_at is not None
        if verdict.failed:
            failed_host, error_type = self._failed_host
            verdict = replace(verdict, host=failed_host or verdict.host, error=verdict.error or error_type)
        ours = {
            "durationMs": self.ended_at - self.started_at,
            "reason": verdict.reason,
            "detail": verdict.detail,
            "error": verdict.error,
            "exitCode": verdict.exit_code,
            "host": verdict.host,
        }
        event = self._event(
            EventType.FAILED if verdict.failed else EventType.FINISHED,
            self.ended_at,
            ours={key: value for key, value in ours.items() if value is not None},
            hosts=self.hosts.told_at_end(),
        )
        return self._reporter.ended(event, self.record(verdict), error)

    def _event(
        self,
        kind: EventType,
        at: int,
        *,
        users: Mapping[str, Any] | None = None,
        ours: Mapping[str, Any] | None = None,
        hosts: Mapping[str, Any] | None = None,
    ) -> DeploymentEvent:
        """Return the event as it is sent.

        Raises:
            DropEvent: a plugin will not have it told.
        """
        assert self.settings is not None
        assert self.identity is not None
        users = jsonable(dict(users or {}))
        metadata = jsonable(dict(self.metadata))
        named = {"source": f"ld-deploy-hooks/{__version__}", "eventId": str(uuid.uuid4()), "task": self.plan.task}
        event = DeploymentEvent(
            event_type=kind,
            project_key=self.identity.project_key,
            environment_key=self.identity.environment_key,
            application_key=self.identity.application_key,
            version=self.identity.version,
            event_time=at,
            application_name=self.settings.application_name,
            application_kind=self.settings.application_kind,
            version_name=self.settings.version_name,
            event_metadata={
                **users,
                **{key: value for key, value in named.items() if value is not None},
                **(ours or {}),
            },
            deployment_metadata={**self._added, **metadata, **(hosts or self.hosts.told())},
        )
        try:
            event = self._reporter.plugins.modify_event(event)
        except DropEvent:
            if kind in (EventType.STARTED, EventType.CUSTOM):
                raise
            say_once(
                f"A plugin wanted to drop the {kind} event of {self.identity.application_key}; an end is always told, or "
                "LaunchDarkly would show the deployment as in progress for ever."
            )
        return self._sealed(event, users.keys(), metadata.keys())

    def _sealed(self, event: DeploymentEvent, users: Any, metadata: Any) -> DeploymentEvent:
        """Return ``event`` without the token and within the bound of its size."""
        assert self.settings is not None
        token = self.settings.access_token
        secret = token.reveal() if token is not None else ""
        about_event, about_deployment, cut = fit(
            redact(jsonable(event.event_metadata), secret),
            redact(jsonable(event.deployment_metadata), secret),
            users=(frozenset(users), frozenset(metadata)),
        )
        if cut:
            say_once(f"Metadata of more than 8 KiB was cut to fit: {', '.join(cut)}. Send less, or a link to it.")
        return replace(
            event,
            application_name=redact(event.application_name, secret),
            version_name=redact(event.version_name, secret),
            event_metadata=about_event,
            deployment_metadata=about_deployment,
        )

    def record(self, verdict: Verdict = FINISHED) -> DeploymentRecord:
        """Return the run as hooks see it at this moment."""
        settings = self.settings
        return DeploymentRecord(
            id=self.id,
            identity=self.identity or Identity("", "", "", ""),
            state=self.state,
            started_at=self.started_at,
            ended_at=self.ended_at,
            metadata={**self._added, **jsonable(dict(self.metadata))},
            task=self.plan.task,
            hosts=self.hosts.all,
            application_name=settings.application_name if settings is not None else None,
            version_name=settings.version_name if settings is not None else None,
            reason=verdict.reason,
            detail=verdict.detail,
            error_type=verdict.error,
        )


_lock = threading.RLock()
# Every run with somebody inside, pending ones too; those that have started, by base URI and identity.
_present: list[Run] = []
_open: dict[tuple[str, Identity], Run] = {}
# Identities that the process we were forked from has open: it tells their start and end, not we.
_parents: set[Identity] = set()


def _cut_off(number: int) -> None:
    deadline = time.monotonic() + _SIGNAL
    told = [(run._reporter, future) for run in list(_present) if (future := run.cancel(number)) is not None]
    for _, future in told:
        with suppress(Exception):
            future.exception(max(deadline - time.monotonic(), 0))
    for reporter in {reporter for reporter, _ in told}:
        reporter.send(max(deadline - time.monotonic(), 0))


def _note_signal(number: int) -> None:
    for run in list(_present):
        run.note_signal(number)


_signals = Signals(_cut_off, _note_signal)


def only_run() -> Run | None:
    """Return the only run that is open or pending in this process; None when there is none, or more than one."""
    with _lock:
        return _present[0] if len(_present) == 1 else None


def parent_identity() -> Identity | None:
    """Return the identity of the deployment that a parent process tells, by ``LD_DEPLOY_PARENT``."""
    text = os.environ.get(PARENT)
    if not text:
        return None
    try:
        return Identity(*map(str, json.loads(text)["identity"]))
    except (ValueError, TypeError, KeyError):
        say_once(
            f"{PARENT} does not hold what `ld-deploy run` exports; it is ignored, and this deployment is told by itself."
        )
        return None


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    _parents.update(identity for _, identity in _open)
    _present.clear()
    _open.clear()


def _at_exit() -> None:
    for run in list(_present):
        try:
            run.cut_off()
        except Exception as error:
            internal_fault("Ending a deployment at exit", error)


# Registered after the reporter's own, so that it runs before it and what it tells is waited for.
atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
