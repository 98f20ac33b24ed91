"""The decorator: how a block is put around a function, a coroutine function or a task."""

from __future__ import annotations

import functools
import inspect
import types
from typing import TYPE_CHECKING, Any

from ld_deploy_hooks._door import host_room
from ld_deploy_hooks._log import internal_fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Around(Protocol):
        """What the decorator needs of a block."""

        def around(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            """Return the context manager of one call, whose ``result`` is to be set."""


__all__ = ["MARK", "decorate", "mark_of"]

# Where a function or task keeps the block that is around it. A task copies the attributes of its body (from Invoke 2.1
# on), and so do decorators made with functools.wraps; the name is unlike any attribute of a task, which it would
# overwrite.
MARK = "__ld_deploy_hooks_block__"


def mark_of(thing: object, kind: type) -> Any:
    """Return the block around a task or function; None if there is none.

    Args:
        thing: a task or a function.
        kind: what a block is; a Mock answers to every attribute, with something else.
    """
    for holder in (thing, getattr(thing, "body", None)):
        block = getattr(holder, MARK, None)
        if isinstance(block, kind):
            return block
    return None


def decorate(block: Around, thing: Any) -> Any:
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
                "at all. "
                "Make the task a plain function that calls asyncio.run(...)."
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


def _wrap(block: Around, function: Any) -> Any:
    _refuse_what_is_no_function(function)
    wrapper: Any
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            async with block.around(function, args, kwargs) as call:
                call.result = await function(*args, **kwargs)
                return call.result

    else:

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with block.around(function, args, kwargs) as call:
                call.result = function(*args, **kwargs)
                return call.result

    # Invoke takes tasks of one name for equal when their bodies share a code object, and silently drops the second.
    code = wrapper.__code__
    wrapper.__code__ = code.replace(co_consts=(*code.co_consts, function.__code__))
    setattr(wrapper, MARK, block)
    return wrapper


def _refuse_what_is_no_function(thing: Any) -> None:
    name = getattr(thing, "__qualname__", None) or type(thing).__name__
    if isinstance(thing, types.FunctionType):
        if inspect.isgeneratorfunction(thing) or inspect.isasyncgenfunction(thing):
            raise TypeError(
                f"@deployment cannot tell when the generator function {name} ends. Use `with deployment(...)` inside "
                "it."
            )
        return
    if isinstance(thing, functools.partial):
        raise TypeError(
            "@deployment cannot decorate a functools.partial, whose arguments Invoke would not see. Write a function "
            "with `def` that "
            "calls it, and decorate that."
        )
    if isinstance(thing, types.MethodType):
        raise TypeError(
            f"@deployment cannot decorate the bound method {name}. Decorate the function in its class, or write a "
            "function with "
            "`def` that calls it, and decorate that."
        )
    if isinstance(thing, (staticmethod, classmethod)):
        raise TypeError(f"@deployment goes below @{type(thing).__name__}, on the function itself.")
    raise TypeError(
        f"@deployment decorates functions, coroutine functions and tasks, not {name}. Write a function with `def` that "
        "calls it, and "
        "decorate that, or use `with deployment(...)`."
    )
