"""Who is inside of which block, in this context and in this process."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ld_deploy_hooks._door import Surroundings, host_room
from ld_deploy_hooks._fields import places
from ld_deploy_hooks._log import internal_fault
from ld_deploy_hooks._verdicts import Verdict, plain_verdict
from ld_deploy_hooks._waiting import asyncio_task, wait, wait_async

if TYPE_CHECKING:
    from typing import Protocol

    from ld_deploy_hooks._future import Future
    from ld_deploy_hooks._handle import Deployment
    from ld_deploy_hooks._records import Identity
    from ld_deploy_hooks._settings import Settings

__all__ = [
    "Bound",
    "Call",
    "Entry",
    "announced_entries",
    "begun",
    "begun_async",
    "bind",
    "current_deployment",
    "entries",
    "leave",
    "outer",
    "over",
    "over_async",
    "take_bound",
    "unbind",
]


# For the type checker alone: a protocol takes long to make, and tasks are decorated for `--list` and `--help` too.
if TYPE_CHECKING:

    class Block(Protocol):
        """What can be entered."""

        inside: list[Entry]


class Call:
    """What a block is entered with.

    Attributes:
        args: positional arguments of the function or task, which callable fields are asked with.
        kwargs: its keyword arguments.
        names: of the parameters that the positional arguments are for, as far as they have one.
        task: its name; None in a plain ``with``.
        surroundings: what the host says of this place.
        hosts: the hosts that it is going to.
        function: the function itself, without its decorators.
    """

    def __init__(
        self,
        *,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] = MappingProxyType({}),
        names: tuple[str, ...] = (),
        task: str | None = None,
        surroundings: Surroundings,
        function: Callable[..., Any] | None = None,
    ) -> None:
        self.args = args
        self.kwargs = kwargs
        self.names = names
        self.task = task
        self.surroundings = surroundings
        self.hosts: tuple[str, ...] = ()
        self.function = function

    @classmethod
    def of(cls, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], **more: Any) -> Call:
        """Return the call of ``function``, its defaults filled in: callable fields see every argument by its place."""
        try:
            more["function"] = inspect.unwrap(function)
            signature = inspect.signature(function)
            bound = signature.bind(*args, **kwargs)
        except (TypeError, ValueError):
            # The call itself is about to raise just that, and better.
            return cls(args=args, kwargs=kwargs, **more)
        bound.apply_defaults()
        return cls(args=bound.args, kwargs=bound.kwargs, names=places(signature), **more)

    def is_like(self, other: Call) -> bool:
        """Whether ``other`` calls the same function with the same arguments, its context aside."""
        try:
            mine, others = self._without_context(), other._without_context()
            return (
                self.function is not None
                and self.function is other.function
                and bool(mine == others and self.kwargs == other.kwargs)
            )
        except Exception:
            # Arguments that cannot be compared: not known to be the same.
            return False

    def _without_context(self) -> tuple[Any, ...]:
        return self.args[1:] if self.surroundings.context_given else self.args


class Entry:
    """One block that somebody is inside of: who opened a run, or who joined it."""

    def __init__(
        self, block: Block, call: Call, deployment: Deployment, *, joined: bool, frame: int | None = None
    ) -> None:
        self.block = block
        # The id of the frame whose `with` statement it is.
        self.frame = frame
        self.call = call
        self.deployment = deployment
        # The run that this entry opened, if it did; a pending one may find another open when it starts, and join it.
        self._opened = None if joined else deployment._run
        self._where = (threading.get_ident(), asyncio_task())
        if self._opened is not None:
            self._opened.opened_in = self._where
        _entries.set((*entries(), self))
        block.inside.append(self)

    def note_host(self, host: str, error: BaseException | None, *, failed: bool = False) -> None:
        """Note how a call on ``host`` fared: by the exception that left it, or by what its result means."""
        failed = failed or _verdict(error).failed
        with self.deployment._run.noting() as outcome:
            outcome.host_went(host, error, failed=failed)

    def leave(self, error: BaseException | None, *, failed: bool) -> Future[bool] | None:
        """Leave the block, once; the future is done when the end is durable.

        Args:
            error: the exception that leaves it.
            failed: whether it failed without one.
        """
        if self not in self.block.inside:
            return None
        self.block.inside.remove(self)
        _entries.set(tuple(entry for entry in entries() if entry is not self))
        verdict = Verdict(failed=True, reason="error") if failed else _verdict(error)
        return self.deployment._run.leave(verdict, error, opened=self._opened, where=self._where)


class Bound:
    """A call that the executor is about to make, of a task whose deployment it has opened already.

    Attributes:
        entry: the executor's own.
        host: how the host of the call is told; None without one.
        failed: set when the task's ``success`` says that its result means failure.
        taken: set when the task's body has been entered.
    """

    def __init__(self, entry: Entry, host: str | None) -> None:
        self.entry = entry
        self.host = host
        self.failed = False
        self.taken = False


# An entry is taken out, never reset by its token: ``async with`` in a fixture leaves in another context than it
# entered, and what was copied into a thread or task stays there.
_entries: ContextVar[tuple[Entry, ...]] = ContextVar("ld_deploy_hooks_entries", default=())
_bound: ContextVar[tuple[Bound, ...]] = ContextVar("ld_deploy_hooks_bound", default=())
_announced: list[Bound] = []


def entries() -> tuple[Entry, ...]:
    """Return the entries that this context lies in and whose deployment is not over, the innermost last."""
    return tuple(entry for entry in _entries.get() if entry.deployment._run.is_open)


def bind(bound: Sequence[Bound]) -> None:
    """Say which call comes next: the task's own blocks then take part in it without asking their fields again."""
    _announced.extend(bound)
    _bound.set(tuple(bound))


def unbind(bound: Sequence[Bound]) -> None:
    """Say that a call which was announced is over."""
    for one in bound:
        _announced.remove(one)


def take_bound(block: Block) -> Bound | None:
    """Return the call that was announced if it is one of ``block``, once."""
    for one in _announced_for(block):
        if not one.taken:
            one.taken = True
            return one
    return None


def announced_entries(block: Block) -> list[Entry]:
    """Return the executor's entries of the calls that are going on, as far as they are calls of ``block``."""
    return [one.entry for one in _announced_for(block)]


def _announced_for(block: Block) -> list[Bound]:
    # This context's own first: several executors may be at work side by side. But a decorator of the user's may run the
    # body in a thread, or in a context, that knows nothing of this one.
    found = dict.fromkeys((*_bound.get(), *reversed(_announced)))
    return [one for one in found if one in _announced and one.entry.block is block]


def begun(entry: Entry) -> Deployment:
    """Wait until the start that ``entry`` takes part in is on disk."""
    try:
        wait(entry.deployment._run.on_disk)
    except BaseException as error:
        # Ctrl-C in that wait: the block is never entered, and nobody else would leave it.
        leave(entry, error)
        raise
    return entry.deployment


async def begun_async(entry: Entry) -> Deployment:
    """As :func:`begun`, without blocking the event loop."""
    try:
        await wait_async(entry.deployment._run.on_disk)
    except BaseException as error:
        leave(entry, error)
        raise
    return entry.deployment


def leave(entry: Entry | None, error: BaseException | None, *, failed: bool = False) -> Future[bool] | None:
    """Leave ``entry``; no fault of ours reaches the deploy."""
    try:
        return entry.leave(error, failed=failed) if entry is not None else None
    except Exception as fault:
        internal_fault("Ending a deployment", fault)
        return None


def over(end: Future[bool] | None) -> None:
    """Wait until the end that :func:`leave` has told is on disk, and let go of the signals that were to wait for it."""
    if end is not None:
        from ld_deploy_hooks._reporter import end_late
        from ld_deploy_hooks._run import runs

        wait(end)
        runs.let_go()
        end_late()


async def over_async(end: Future[bool] | None) -> None:
    """As :func:`over`, without blocking the event loop."""
    if end is not None:
        from ld_deploy_hooks._reporter import end_late
        from ld_deploy_hooks._run import runs

        await wait_async(end)
        runs.let_go()
        # Blocks the loop, as the exit does that it makes up for: on Python 3.12 no thread can be started for it there.
        end_late()


def _verdict(error: BaseException | None) -> Verdict:
    room = host_room() if error is not None else None
    try:
        verdict = room.verdict(error) if room is not None and error is not None else None
    except Exception as fault:
        internal_fault("Judging an exception", fault)
        verdict = None
    return verdict or plain_verdict(error)


def current_deployment() -> Deployment | None:
    """Return the deployment that this code runs in.

    That is the context's own, else the only one that is open in this process, else None.
    """
    mine = entries()
    if mine:
        return mine[-1].deployment
    from ld_deploy_hooks._run import runs

    run = runs.only()
    return run.handle if run is not None else None


def outer() -> tuple[Identity, Settings | None] | None:
    """Return what a deployment that is entered here lies in, in this process."""
    around = current_deployment()
    if around is None or around.identity is None:
        return None
    return around.identity, around._run.settings
