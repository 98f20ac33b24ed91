"""Memory in the place of an outbox that cannot be used: this run's events go from there, or to the next run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks._journal import Journal
from ld_deploy_hooks._left import Step
from ld_deploy_hooks._records import EventType, Identity
from ld_deploy_hooks._store import Store

if TYPE_CHECKING:
    from ld_deploy_hooks._outbox import Claimed
    from ld_deploy_hooks._plugins import Plugins

__all__ = ["Spare"]


class Spare:
    """A store in memory for one recorder, made when it is needed.

    Args:
        base_uri: the service that its events go to.
        plugins: told what becomes of them.
        made: called with the journal once there is one.
        ended: called with the id of a deployment whose start is elsewhere, and how it ended, once its end is settled.
    """

    def __init__(
        self,
        base_uri: str,
        plugins: Plugins,
        made: Callable[[Journal], None],
        ended: Callable[[str, str], None],
    ) -> None:
        self._base_uri = base_uri
        self._plugins = plugins
        self._made = made
        self._ended = ended
        # A signal handler may come in while its own thread holds it.
        self._lock = threading.RLock()
        self._store: Store | None = None
        self._journal: Journal | None = None
        # Those of which something is here: what follows goes here too, and not past it.
        self._identities: set[Identity] = set()
        # What is not settled yet, by eventId.
        self._waiting: dict[str, Step] = {}
        # What this process has recorded on disk and not sent yet, by eventId; and what is to be done when it is, since
        # nothing may overtake it.
        self._on_disk: dict[str, Identity] = {}
        self._behind: dict[Identity, list[Callable[[], None]]] = {}
        # Those of which something could not be taken: what follows may not overtake it.
        self._refused: set[Identity] = set()
        # The open deployments whose start is here, by id; and how those ended whose start is elsewhere.
        self._started: dict[str, Identity] = {}
        self._ends: dict[str, str] = {}

    def __bool__(self) -> bool:
        """Whether it was ever needed."""
        return bool(self._journal or self._refused)

    def __contains__(self, identity: Identity) -> bool:
        return identity in self._identities

    @property
    def trouble(self) -> str | None:
        """Why something could not be sent from here, if that is not a matter of sending."""
        if self._refused:
            return "there was no memory for them either"
        return "they may not overtake what waits in the outbox" if self._behind else None

    def journal_for(self, step: Step) -> Journal:
        """Return the journal that ``step`` is to be recorded in.

        Raises:
            OutboxError: what came before it could not be recorded.
            RuntimeError: no thread can be started any more.
        """
        if step.event.identity in self._refused:
            raise OutboxError("Memory could not take what came before it.", path="")
        with self._lock:
            if self._journal is None:
                self._store = Store(None)
                self._journal = Journal(self._store, self._base_uri, self._plugins, settled=self._is_settled)
                self._made(self._journal)
            return self._journal

    def takes(self, step: Step) -> None:
        """Note that ``step`` comes here, and with that all that follows of the same identity, until it starts anew."""
        identity, kind = step.event.identity, step.event.event_type
        self._identities.add(identity)
        self._waiting[str(step.event.event_id)] = step
        if step.deployment_id is None:
            return
        if kind is EventType.STARTED:
            self._started[step.deployment_id] = identity
        elif kind.is_end and step.deployment_id in self._started:
            del self._started[step.deployment_id]
        elif kind.is_end:
            self._ends[step.deployment_id] = kind.value

    def note_on_disk(self, step: Step) -> None:
        """Note that ``step`` is in the outbox, and is to be sent from there."""
        with self._lock:
            self._on_disk[str(step.event.event_id)] = step.event.identity

    def is_sent(self, event_id: str) -> None:
        """Note that an event is not to be sent from the outbox any more, and do what has waited for that."""
        go_ons: list[Callable[[], None]] = []
        with self._lock:
            identity = self._on_disk.pop(event_id, None)
            if identity is not None and identity not in self._on_disk.values():
                go_ons = self._behind.pop(identity, [])
        for go_on in go_ons:
            go_on()

    def waits_behind(self, step: Step, go_on: Callable[[], None]) -> bool:
        """Whether what came before ``step`` waits on disk; ``go_on`` is called once it does not."""
        identity = step.event.identity
        with self._lock:
            if identity not in self._on_disk.values():
                return False
            self._behind.setdefault(identity, []).append(go_on)
            return True

    def lets_go(self, step: Step) -> None:
        """Let ``step``, which begins something new, and what follows it go to the outbox, if nothing of it is here."""
        identity = step.event.identity
        # Copied first, as it is done in one go: other threads are at work.
        waiting = list(self._waiting.values())
        if identity not in [*(one.event.identity for one in waiting), *self._started.values()]:
            self._identities.discard(identity)
            self._refused.discard(identity)

    def forget(self, step: Step) -> None:
        """Note that ``step`` was not recorded here after all."""
        self._waiting.pop(str(step.event.event_id), None)

    def refuses(self, step: Step) -> None:
        """Note that ``step``, and what follows it, can only be left to the next run."""
        self._refused.add(step.event.identity)

    def becomes(self, step: Step, other: Step) -> None:
        """Note that ``other`` is recorded in the place of ``step``, if that is here."""
        if self._waiting.pop(str(step.event.event_id), None) is not None:
            self._waiting[str(other.event.event_id)] = other

    def _is_settled(self, item: Claimed) -> None:
        self._waiting.pop(item.event_id, None)
        if item.deployment_id in self._ends and EventType(item.event_type).is_end:
            self._ended(item.deployment_id, self._ends.pop(item.deployment_id))

    def waiting(self) -> list[Step]:
        """Return what has not been delivered from here, in its order; takes no lock that others hold."""
        sent = self._journal.sent if self._journal is not None else []
        return [step for event_id, step in list(self._waiting.items()) if event_id not in sent]

    def close(self, timeout: float) -> None:
        """Forget everything; waits at most ``timeout`` seconds for its thread."""
        if self._store is not None:
            self._store.close(timeout)
