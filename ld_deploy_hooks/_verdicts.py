"""How a way out of a block or a task is told: the verdict on an exception, or on a result."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from ld_deploy_hooks._log import say_once
from ld_deploy_hooks._outside import is_from_outside

__all__ = ["FINISHED", "Verdict", "check_success", "exit_code_of", "means_success", "plain_verdict"]


# A named tuple, as a data class takes a millisecond to make, and of annotations that need not be compiled once more:
# tasks are decorated for `--list` and `--help` too.
class Verdict(NamedTuple):
    """What a way out says of the deployment; it holds nothing of an exception but its type's name, numbers and hosts.

    Attributes:
        failed: False means finished.
        reason: ``error``, ``cancelled``, ``killed`` or ``incomplete``; None when finished.
        error: the name of the exception's type.
        exit_code: what the process, or the command that failed, ends with.
        host: where it failed, if that is known.
        detail: the user's own words.
        hosts_succeeded: hosts that a group's exception says went well.
        hosts_failed: hosts that a group's exception says did not.
    """

    failed: bool
    reason: str | None = None
    error: str | None = None
    exit_code: int | None = None
    host: str | None = None
    detail: str | None = None
    hosts_succeeded: tuple[str, ...] = ()
    hosts_failed: tuple[str, ...] = ()


FINISHED = Verdict(failed=False)


def exit_code_of(code: object) -> int:
    """Return the exit status that Python gives to ``SystemExit(code)``: None is 0, text is 1."""
    if code is None:
        return 0
    return int(code) if isinstance(code, int) else 1


def plain_verdict(error: BaseException | None, *, interrupted: int = 130) -> Verdict:
    """Return the verdict on a way out that neither Invoke nor Fabric has a say in.

    Args:
        error: what left the block; None for a return.
        interrupted: exit status of a process that a KeyboardInterrupt ends: 130 under Python itself, 1 under Invoke.
    """
    if error is None:
        return FINISHED
    name = type(error).__name__
    if isinstance(error, SystemExit):
        code = exit_code_of(error.code)
        return FINISHED if code == 0 else Verdict(failed=True, reason="error", error=name, exit_code=code)
    if isinstance(error, KeyboardInterrupt):
        return Verdict(failed=True, reason="cancelled", error=name, exit_code=interrupted)
    if not isinstance(error, Exception):
        # What is no Exception asks the block to stop: GeneratorExit, asyncio's CancelledError, trio's Cancelled.
        return Verdict(failed=True, reason="cancelled", error=name)
    return Verdict(failed=True, reason="error", error=name, exit_code=1)


def check_success(success: object) -> None:
    """Check what the user gave, where it is written.

    Raises:
        TypeError: it cannot be called, or would have to be awaited.
    """
    if not callable(success):
        raise TypeError(f"deployment(success=...) takes a callable, not {type(success).__name__}")
    if inspect.iscoroutinefunction(success) or inspect.iscoroutinefunction(type(success).__call__):
        raise TypeError("deployment(success=...) is called and not awaited: give it a plain function")


def means_success(success: Callable[[Any], object], result: Any) -> bool:
    """Return what the user's ``success`` says of a result; True, and a line, where it says nothing that can be used."""
    try:
        answer = success(result)
        if not inspect.iscoroutine(answer):
            return bool(answer)
        answer.close()  # one that is merely dropped warns on stderr
        wrong = "returned a coroutine, which nobody awaits"
    except BaseException as error:
        if is_from_outside(error):
            raise
        wrong = f"raised {type(error).__name__}"
    say_once(
        f"deployment(success=...): the callable {wrong}, so the result counts as a success. It is called with what the "
        "function returned; make it return True or False."
    )
    return True
