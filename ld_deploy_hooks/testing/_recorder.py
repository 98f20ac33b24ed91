"""Deployments of a test, recorded in memory: everything runs as in a real deploy, and nothing is sent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ld_deploy_hooks._future import Future
from ld_deploy_hooks._log import forget_said, listeners
from ld_deploy_hooks._records import DeploymentEvent, DeploymentRecord, EventType
from ld_deploy_hooks._testrun import held

if TYPE_CHECKING:
    from ld_deploy_hooks._plugins import Plugins
    from ld_deploy_hooks._run import Run
    from ld_deploy_hooks._settings import Settings

__all__ = ["RecordedEvents", "record_deployments"]

# Seconds that an event waits for the plugins that are told of it: what they do has happened when the deploy goes on.
_TOLD = 1.0


class RecordedEvents(list[DeploymentEvent]):
    """The events of a test's deployments, in the order in which they were recorded.

    A list of :class:`DeploymentEvent`: ``event_type``, ``application_key``, ``version``, ``environment_key``,
    ``event_metadata`` (``reason``, ``error``, ``task``, …), ``deployment_metadata`` (``hosts``, your own).
    """

    def __init__(self) -> None:
        super().__init__()
        self._untold: list[str] = []
        self._lines: list[str] = []

    def __repr__(self) -> str:
        return f"<deployment events: {'; '.join(map(_in_words, self)) or 'none'}>"

    @property
    def started(self) -> list[DeploymentEvent]:
        """The ``started`` events, in order."""
        return self._of(EventType.STARTED)

    @property
    def finished(self) -> list[DeploymentEvent]:
        """The ``finished`` events, in order."""
        return self._of(EventType.FINISHED)

    @property
    def failed(self) -> list[DeploymentEvent]:
        """The ``failed`` events, in order."""
        return self._of(EventType.FAILED)

    @property
    def custom(self) -> list[DeploymentEvent]:
        """The ``custom`` events, in order."""
        return self._of(EventType.CUSTOM)

    def one(self, event_type: str | None = None, **fields: object) -> DeploymentEvent:
        """Return the only event of this type that has these fields.

        Args:
            event_type: ``started``, ``finished``, ``failed`` or ``custom``; None for any.
            **fields: attributes of the event and what they must be: ``application_key="web"``.

        Raises:
            AssertionError: there is none, or more than one. It tells what was seen instead, and what is known of why.
            ValueError: there are no events of this type.
            TypeError: events have no such attribute.
        """
        __tracebackhide__ = True  # pytest then shows the line of the test
        wanted = None if event_type is None else _type(event_type)
        for name in fields:
            if name not in DeploymentEvent.__dataclass_fields__:
                raise TypeError(f"events have no {name!r}; they have {', '.join(DeploymentEvent.__dataclass_fields__)}")
        found = [
            event
            for event in self
            if wanted in (None, event.event_type) and all(getattr(event, name) == fields[name] for name in fields)
        ]
        if len(found) != 1:
            like = "".join(f" {name}={value!r}" for name, value in fields.items())
            kind = "event" if wanted is None else f"{wanted} event"
            raise AssertionError(f"expected one {kind}{like}, saw {len(found) or 'none'}.\n{self._story()}")
        return found[0]

    def _of(self, kind: EventType) -> list[DeploymentEvent]:
        return [event for event in self if event.event_type is kind]

    def _story(self) -> str:
        parts = {
            "recorded": list(map(_in_words, self)),
            "not told": self._untold,
            "said by ld_deploy_hooks": self._lines,
        }
        story = [
            line for title, lines in parts.items() if lines for line in (f"{title}:", *(f"  {one}" for one in lines))
        ]
        return "\n".join(story) or (
            "No deployment was started in this process while it was recorded. What was open before, or was started by "
            "a fixture of a wider scope than the test's, is not recorded; nor are deployments of a child process: they "
            "can be told to a FakeLaunchDarkly."
        )


def _type(name: str) -> EventType:
    try:
        return EventType(name)
    except ValueError:
        raise ValueError(f"no event is of type {name!r}; there are {', '.join(map(str, EventType))}") from None


def _in_words(event: DeploymentEvent) -> str:
    about = event.event_metadata
    why = ", ".join(str(about[name]) for name in ("reason", "error", "exitCode", "detail") if name in about)
    what = f"{event.event_type} {event.application_key} {event.version} to {event.environment_key}"
    return f"{what} ({why})" if why and event.event_type is EventType.FAILED else what


def _done(answer: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(answer)
    return future


class _Tape:
    """A recording that runs: what records the events of every run that starts meanwhile, in whatever thread."""

    def __init__(self, events: RecordedEvents) -> None:
        self._events = events
        self._lock = threading.RLock()
        self._ended: set[str] = set()
        self._closed = False

    def reporter(self, plugins: Plugins) -> _Reporter:
        return _Reporter(self, plugins)

    def untold(self, settings: Settings, why: str | None = None) -> None:
        # Where nothing is told, what was written in code is not asked for.
        known = not settings.silent and settings.application_key
        self._events._untold.append(f"{known or 'a deployment'}: {why or _why_untold(settings)}")

    def record(self, event: DeploymentEvent) -> bool:
        """Record an event; False once the recording is over."""
        with self._lock:
            if not self._closed:
                self._events.append(event)
            return not self._closed

    def begins(self, deployment_id: str) -> None:
        """Note that a deployment starts: by the id of one that has ended, where a test has frozen what makes ids."""
        with self._lock:
            self._ended.discard(deployment_id)

    def ends(self, deployment_id: str) -> bool:
        """Return whether this is the first end of a deployment."""
        with self._lock:
            first = deployment_id not in self._ended
            self._ended.add(deployment_id)
            return first

    def close(self) -> None:
        with self._lock:
            self._closed = True


def _why_untold(settings: Settings) -> str:
    if settings.disabled:
        return f"disabled is on ({settings.sources['disabled']})"
    if settings.dry_run:
        return f"a dry run ({settings.sources['dry_run']})"
    return f"{', '.join(settings.missing)} cannot be used"


class _Reporter:
    """What one run takes for outbox and sender."""

    # There is no next run to leave anything to.
    holds_in_memory = False

    def __init__(self, tape: _Tape, plugins: Plugins) -> None:
        self.plugins = plugins
        self._tape = tape

    def started(self, event: DeploymentEvent, record: DeploymentRecord) -> Future[None]:
        self._tape.begins(record.id)
        return self._record(event, lambda: self.plugins.started(record))

    def ended(self, event: DeploymentEvent, record: DeploymentRecord, error: BaseException | None) -> Future[bool]:
        if not self._tape.ends(record.id):
            return _done(False)
        if record.state == "finished":
            return self._record(event, lambda: self.plugins.finished(record))
        return self._record(event, lambda: self.plugins.failed(record, error))

    def custom(self, event: DeploymentEvent, record: DeploymentRecord, metadata: Mapping[str, Any]) -> Future[None]:
        return self._record(event, lambda: self.plugins.custom(record, metadata))

    def cut_off(
        self, deployment_id: str, known: DeploymentEvent, end: Callable[[], tuple[DeploymentEvent, DeploymentRecord]]
    ) -> Future[bool]:
        # The process is about to die of a signal, and the recording with it.
        return _done(False)

    def leave_undone(self) -> None:
        """There is no next run."""

    def note_signal(self, deployment_id: str, number: int) -> None:
        """The run itself keeps it in mind."""

    def send(self, timeout: float) -> None:
        """Nothing is sent."""

    def _record(self, event: DeploymentEvent, tell: Callable[[], None]) -> Future[Any]:
        if self._tape.record(event):
            tell()
            self.plugins.flush(_TOLD, say=True)
        return _done(True)


@contextmanager
def record_deployments() -> Iterator[RecordedEvents]:
    """Record the deployments of this process in memory, and send nothing::

        with record_deployments() as events:
            deploy()
        assert events.one("finished").version == "a90a8a2"

    Everything else is as in a real deploy: settings, executors, plugins (but for ``git``, which starts processes that
    a test might watch). Each event is in the list when the deploy goes on, and plugins were told of it (they have one
    second for that). What is required and nobody has set is ``test-project``, ``test-environment``,
    ``test-application`` and ``test-version``. Deployments of every thread are recorded, those of a child process are
    not. Of two blocks in each other the inner one records. A deployment that is still open at the end of the block is
    forgotten.
    """
    with recording(set()) as events:
        yield events


@contextmanager
def recording(kept: Set[Run]) -> Iterator[RecordedEvents]:
    """Record as :func:`record_deployments` does, and do not forget at the end what is among ``kept`` by then."""
    from ld_deploy_hooks._reporter import close_plugins_of
    from ld_deploy_hooks._run import runs

    events = RecordedEvents()
    tape = _Tape(events)
    hear = events._lines.append
    before = set(runs.present)
    forget_said()
    listeners.append(hear)
    try:
        with held("a test records what is told", tape):
            yield events
    finally:
        listeners.remove(hear)
        tape.close()
        runs.forget(before | kept)
        close_plugins_of(tape)
        forget_said()
