"""The decorator: how a block is put around a function, a coroutine function or a task."""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ld_deploy_hooks._door import host_room, surroundings_of
from ld_deploy_hooks._entries import Bound, Call, Entry, begun, begun_async, leave, over, over_async, take_bound
from ld_deploy_hooks._errors import SettingsError
from ld_deploy_hooks._log import internal_fault
from ld_deploy_hooks._outside import is_from_outside
from ld_deploy_hooks._verdicts import Verdict

if TYPE_CHECKING:
    from typing import Protocol

    from ld_deploy_hooks._future import Future

__all__ = ["MARK", "decorate", "marks_of"]

# Where a function or task keeps the block that is around it. A task copies the attributes of its body (from Invoke 2.1
# on), and so do decorators made with functools.wraps; the name is unlike any attribute of a task, which it would
# overwrite.
MARK = "__ld_deploy_hooks_block__"

# Decorators around one function; where they wrap each other in a circle, looking ends there.
_DEEPEST = 100

Kind = TypeVar("Kind")


# For the type checker alone: a protocol takes long to make, and tasks are decorated for `--list` and `--help` too.
if TYPE_CHECKING:

    class Block(Protocol):
        """What the decorator needs of a block."""

        inside: list[Entry]

        def enter(self, call: Call) -> Entry:
            """Open a run, or join the one of the same identity that is open."""

        def join(self, entry: Entry, call: Call) -> Entry | None:
            """Take part in the deployment of ``entry``; None if it has ended."""

        def succeeded(self, result: Any) -> bool:
            """Whether what the function returned means success."""


def marks_of(thing: object, kind: type[Kind]) -> list[Kind]:
    """Return the blocks around a task or function, the outermost first.

    Args:
        thing: a task or a function.
        kind: what a block is; a Mock answers to every attribute, with something else.
    """
    found: list[Kind] = []
    for holder in (getattr(thing, "body", None), thing):
        for _ in range(_DEEPEST):
            block = getattr(holder, MARK, None)
            if isinstance(block, kind) and block not in found:
                found.append(block)
            holder = getattr(holder, "__wrapped__", None)
    return found


def decorate(block: Block, thing: Any) -> Any:
    """Return ``thing`` with ``block`` around it: a function for a function, the same task for a task.

    Raises:
        TypeError: ``thing`` cannot be decorated; the message says what to do instead.
    """
    room = host_room()
    if room is not None and room.is_task(thing):
        body = thing.body
        if inspect.iscoroutinefunction(body):
            raise TypeError(
                f"@deployment on the task {thing.name!r}: Invoke never awaits an `async def` task, so it would not run "
                "at all. Make the task a plain function that calls asyncio.run(...)."
            )
        wrapped = room.wrap_task(thing, functools.partial(_wrap, block))
    else:
        wrapped = _wrap(block, thing)
    if room is not None:
        try:
            room.install()
        except Exception as error:
            internal_fault("Installing the executor", error)
    return wrapped


class Around:
    """The context manager of one call of a decorated function or task, sync or async.

    Attributes:
        result: what the function returned.
    """

    def __init__(
        self, block: Block, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.result: Any = None
        self._block = block
        self._function = function
        self._args = args
        self._kwargs = kwargs
        self._bound: Bound | None = None
        self._entry: Entry | None = None
        self._handed_over = False
        self._host: str | None = None

    def __enter__(self) -> Around:
        try:
            self._entry = self._enter()
            begun(self._entry)
        except SettingsError:
            raise
        except Exception as error:
            internal_fault("Starting a deployment", error)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> Literal[False]:
        if not self._handed_over:
            over(self._leave(error))
        return False

    async def __aenter__(self) -> Around:
        try:
            self._entry = self._enter()
            await begun_async(self._entry)
        except SettingsError:
            raise
        except Exception as error:
            internal_fault("Starting a deployment", error)
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> Literal[False]:
        await over_async(self._leave(error))
        return False

    def _enter(self) -> Entry:
        call = Call.of(
            self._function,
            self._args,
            self._kwargs,
            task=self._function.__name__,
            surroundings=surroundings_of(self._args),
        )
        self._bound = take_bound(self._block)
        if self._bound is None:
            self._look_at_host()
        else:
            self._name_host(self._bound)
            entry = self._block.join(self._bound.entry, call)
            if entry is not None:
                return entry
        return self._block.enter(call)

    def _look_at_host(self) -> None:
        room = host_room()
        try:
            if room is not None:
                room.notice_missing_executor()
                self._host = room.host_of(self._args)
        except Exception as error:
            internal_fault("Reading the host's configuration", error)

    def _name_host(self, bound: Bound) -> None:
        room = host_room()
        name = room.real_host_of(self._args) if room is not None and bound.host is not None else None
        if bound.host is not None and name is not None:
            with bound.entry.deployment._run.noting() as outcome:
                outcome.host_is_also(bound.host, name)

    def hand_over(self, coroutine: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
        """Return what awaits ``coroutine`` and then leaves the block, which :meth:`__exit__` leaves alone."""
        self._handed_over = True
        return self._awaited(coroutine)

    async def _awaited(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        try:
            self.result = await coroutine
        except BaseException as error:
            await over_async(self._leave(error))
            raise
        await over_async(self._leave(None))
        return self.result

    def _leave(self, error: BaseException | None) -> Future[bool] | None:
        failed = False
        if self._entry is None:
            return None
        try:
            failed = error is None and not self._block.succeeded(self.result)
            if self._bound is not None:
                self._bound.failed = failed
                if failed:
                    # The executor's outcome is the verdict, and it knows nothing of results.
                    with self._entry.deployment._run.noting() as outcome:
                        outcome.mark(Verdict(failed=True, reason="error"))
            elif self._host is not None:
                self._entry.note_host(self._host, error, failed=failed)
        except BaseException as fault:
            if not isinstance(fault, Exception) or is_from_outside(fault):
                # It came while the user's function judged the result.
                leave(self._entry, fault)
                raise
            internal_fault("Noting how a task fared", fault)
        return leave(self._entry, error, failed=failed)


def _wrap(block: Block, function: Any) -> Any:
    _refuse_what_is_no_function(function)
    wrapper: Any
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            async with Around(block, function, args, kwargs) as call:
                call.result = await function(*args, **kwargs)
                return call.result

    else:

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with Around(block, function, args, kwargs) as call:
                call.result = function(*args, **kwargs)
                # A coroutine function that somebody's decorator made a plain one: it ends when it was awaited.
                return call.hand_over(call.result) if inspect.iscoroutine(call.result) else call.result

    # Invoke takes tasks of one name for equal when their bodies share a code object, and silently drops the second.
    code = wrapper.__code__
    wrapper.__code__ = code.replace(co_consts=(*code.co_consts, function.__code__))
    setattr(wrapper, MARK, block)
    return wrapper


def _refuse_what_is_no_function(thing: Any) -> None:
    name = getattr(thing, "__qualname__", None) or type(thing).__name__
    if isinstance(thing, types.FunctionType):
        is_context_manager = thing.__code__.co_filename == contextlib.__file__
        if inspect.isgeneratorfunction(thing) or inspect.isasyncgenfunction(thing) or is_context_manager:
            raise TypeError(
                f"@deployment cannot tell when the generator or context manager {name} ends. Use "
                "`with deployment(...)` in it."
            )
        return
    if isinstance(thing, functools.partial):
        raise TypeError(
            "@deployment cannot decorate a functools.partial, whose arguments Invoke would not see. Write a function "
            "with `def` that calls it, and decorate that."
        )
    if isinstance(thing, types.MethodType):
        raise TypeError(
            f"@deployment cannot decorate the bound method {name}. Decorate the function in its class, or write a "
            "function with `def` that calls it, and decorate that."
        )
    if isinstance(thing, (staticmethod, classmethod)):
        raise TypeError(f"@deployment goes below @{type(thing).__name__}, on the function itself.")
    raise TypeError(
        f"@deployment decorates functions, coroutine functions and tasks, not {name}. Write a function with `def` that "
        "calls it, and decorate that, or use `with deployment(...)`."
    )
