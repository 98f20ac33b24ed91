"""Every run of this process, and what happens to all of them at once: a signal, the exit, a fork."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from contextlib import suppress
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from ld_deploy_hooks._clock import monotonic
from ld_deploy_hooks._exit import at_exit
from ld_deploy_hooks._future import Future
from ld_deploy_hooks._log import say_fault, say_once
from ld_deploy_hooks._records import Identity

# What it does at exit is registered before our own, and so runs after it: what our own tells is waited for.
from ld_deploy_hooks._reporter import Reporter, close_all, finish_tells  # noqa: F401
from ld_deploy_hooks._signals import Signals
from ld_deploy_hooks._tells import TELLING

__all__ = ["ENDING", "End", "Registry"]

# Seconds that one waits for another thread to have recorded the end of its run.
ENDING = 1.0

# Seconds that a process may live on after SIGTERM: Jenkins kills after 5.
_SIGNAL = 2.0


class End(NamedTuple):
    """An end that is being told.

    Attributes:
        reporter: who does it.
        durable: done when it is on disk.
    """

    reporter: Reporter
    durable: Future[bool]


class Present(Protocol):
    """What the registry needs of a run.

    Attributes:
        id: its UUID.
        settling: whether it is about to start, and may yet turn out to be one that is open already.
        opened_in: the thread, and the asyncio task, of who opened it.
        over: set when its end has been handed over.
    """

    id: str
    settling: bool
    opened_in: tuple[int, Any] | None
    over: threading.Event

    @property
    def is_open(self) -> bool:
        """Whether somebody is inside."""

    @property
    def is_busy_here(self) -> bool:
        """Whether this thread starts or ends it now, and asks plugins for that."""

    def take_in(self, other: Any, /) -> None:
        """Let everybody inside of another run take part in this one instead."""

    def cancel(self, number: int) -> End | None:
        """Have the end told of a run that a signal kills."""

    def note_signal(self, number: int) -> None:
        """Keep in mind that a signal came."""

    def cut_off(self) -> None:
        """End the run, because its process ends."""


R = TypeVar("R", bound=Present)


class Registry(Generic[R]):
    """The runs of this process.

    Attributes:
        lock: guards the runs and what is here; re-entrant, and another one after a fork.
        present: every run with somebody inside, pending ones too.
        open: those that have started, by base URI and identity.
        parents: what the process we were forked from has open, by id: it tells their start and end, not we.
        signals: handled while any run is open.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.present: list[R] = []
        self.open: dict[tuple[str, Identity], R] = {}
        self.parents: dict[str, Identity] = {}
        self.signals = Signals(self._cut_off, self._note_signal)
        # Ends that may not be on disk yet: a signal waits for these, too.
        self._ends: list[End] = []
        # Those who keep events in memory, the outbox being out of use.
        self._in_memory: set[Reporter] = set()
        at_exit(self._at_exit)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork_in_child)

    def only(self) -> R | None:
        """Return the only run that is open or pending; None when there is none, or more than one."""
        with self.lock:
            settled = [run for run in self.present if not run.settling]
            return settled[0] if len(settled) == 1 else None

    def register(self, run: R, key: tuple[str, Identity]) -> bool:
        """Make ``run`` the open one of its base URI and identity; False: there is one, which has taken it in."""
        while True:
            with self.lock:
                other = self.open.get(key)
                if other is None:
                    self.open[key] = run
                    run.settling = False
                    return True
                if other.is_open:
                    other.take_in(run)
                    self.present.remove(run)
                    return False
                if other.is_busy_here:
                    say_once(
                        "A deployment that a plugin makes while the end of one with the same identity is told is not "
                        "told itself. Make it in a tell such as ld_deploy_finished."
                    )
                    return False
            # It has ended, but its end is not queued yet: a start that overtook it would be paired wrongly.
            other.over.wait(ENDING)
            with self.lock:
                if self.open.get(key) is other:
                    del self.open[key]

    def remove(self, run: R, key: tuple[str, Identity] | None, end: End | None = None) -> None:
        """Forget a run that is over, but not an end of it that is being told."""
        with self.lock:
            if end is not None:
                self._ends.append(end)
            if run in self.present:
                self.present.remove(run)
            if key is not None and self.open.get(key) is run:
                del self.open[key]
        self.let_go()

    def watch(self) -> None:
        """Handle signals, unless no deployment is open and every end is on disk."""
        with self.lock:
            if self.open or self._is_any_end_unsafe():
                self.signals.watch()

    def let_go(self) -> None:
        """Put back the handlers of signals, unless a deployment is open or an end is not on disk yet."""
        with self.lock:
            if not self.open and not self._is_any_end_unsafe():
                self.signals.release()

    def _is_any_end_unsafe(self) -> bool:
        """Whether the process would take an end with it, which is not on disk yet or in memory alone."""
        in_memory = {end.reporter for end in self._ends} | self._in_memory
        self._in_memory = {reporter for reporter in in_memory if reporter.holds_in_memory}
        self._ends = [end for end in self._ends if not end.durable.done()]
        return bool(self._ends or self._in_memory)

    def forget(self, kept: Collection[R]) -> None:
        """End every run but these, as the exit of its process would: a test leaves none to the next."""
        for run in [run for run in list(self.present) if run not in kept]:
            run.cut_off()
            self.remove(run, None)

    def _cut_off(self, number: int) -> None:
        deadline = monotonic() + _SIGNAL
        ends = [end for end in self._ends if not end.durable.done()]
        for run in list(self.present):
            with suppress(Exception):
                end = run.cancel(number)
                ends += [end] if end is not None else []
        for end in ends:
            with suppress(Exception):
                end.durable.exception(max(deadline - monotonic(), 0))
        for reporter in {end.reporter for end in ends} | self._in_memory:
            reporter.send(max(deadline - monotonic(), 0))
            reporter.leave_undone()

    def _note_signal(self, number: int) -> None:
        for run in list(self.present):
            run.note_signal(number)

    def _at_exit(self) -> None:
        telling = {thread.ident for thread in threading.enumerate() if thread.name == TELLING}
        mine = [run for run in self.present if run.opened_in is not None and run.opened_in[0] in telling]
        self._cut_off_but(mine)
        if mine:
            # What a plugin deploys when it is told of an end has as long as the plugin.
            finish_tells()
        self._cut_off_but([])

    def _cut_off_but(self, kept: Collection[R]) -> None:
        for run in [run for run in list(self.present) if run not in kept]:
            try:
                run.cut_off()
            except Exception as error:
                say_fault("Ending a deployment at exit", error)

    def _after_fork_in_child(self) -> None:
        self.lock = threading.RLock()
        self.parents.update((run.id, identity) for (_, identity), run in self.open.items())
        self.present.clear()
        self.open.clear()
        self._ends.clear()
        self._in_memory.clear()
