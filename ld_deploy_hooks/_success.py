"""``success=``: whether what a function returned means that its deployment went well."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ld_deploy_hooks._log import say_once
from ld_deploy_hooks._outside import is_from_outside

__all__ = ["check_success", "means_success"]


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
