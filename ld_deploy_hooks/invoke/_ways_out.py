"""How the exceptions of Invoke, and what Ctrl-C comes to under it, are told."""

from __future__ import annotations

from invoke.exceptions import Exit, UnexpectedExit

from ld_deploy_hooks._verdicts import FINISHED, Verdict, exit_code_of, plain_verdict
from ld_deploy_hooks.invoke._running import running_config

__all__ = ["verdict"]

# What ends a command that Ctrl-C was forwarded to: SIGINT, or its shell's 128 + 2.
_INTERRUPTED = (-2, 130)
# Exceptions that were raised while others were handled; where they refer to each other in a circle, looking ends there.
_DEEPEST = 100


def verdict(error: BaseException) -> Verdict | None:
    """Return the verdict on an exception of Invoke's, or on what Ctrl-C came to; None for any other."""
    name = type(error).__name__
    if isinstance(error, Exit):
        code = exit_code_of(error.code)
        found = FINISHED if code == 0 else Verdict(failed=True, reason="error", error=name, exit_code=code)
    elif isinstance(error, UnexpectedExit):
        exited = error.result.exited
        found = Verdict(
            failed=True,
            reason="cancelled" if exited in _INTERRUPTED else "error",
            error=name,
            exit_code=exited if isinstance(exited, int) else None,
        )
    elif isinstance(error, KeyboardInterrupt) and running_config() is not None:
        return plain_verdict(error, interrupted=1)
    else:
        found = plain_verdict(error)
    return found._replace(reason="cancelled") if found.failed and _comes_of_interrupt(error) else found


def _comes_of_interrupt(error: BaseException) -> bool:
    """Whether it was raised while Ctrl-C was handled: Invoke forwards that to the command, whose input may be gone."""
    context: BaseException | None = error
    for _ in range(_DEEPEST):
        context = context.__context__ if context is not None else None
        if isinstance(context, KeyboardInterrupt):
            return True
    return False
