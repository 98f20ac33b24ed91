"""The one logger: a fault of ours is one clear line through it, never an exception."""

from __future__ import annotations

import logging

__all__ = ["internal_fault", "logger", "say_once"]

# No handler of ours: without the user's own logging set-up, logging's last resort writes warnings to stderr.
logger = logging.getLogger("ld_deploy_hooks")

_said: set[str] = set()


def say_once(message: str) -> None:
    """Log ``message`` as a warning, unless this process has said the very same already."""
    if message not in _said:
        _said.add(message)
        logger.warning("%s", message)


def internal_fault(doing: str, error: BaseException) -> None:
    """Log a fault of this package: what it was doing and the error's type, never its text, which may hold secrets."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" at {trace.tb_frame.f_globals.get('__name__')}:{trace.tb_lineno}" if trace is not None else ""
    say_once(
        f"{doing} failed with {type(error).__name__}{where}; the deploy goes on and this deployment may not be told to "
        "LaunchDarkly. This is a fault of ld-deploy-hooks: please report it."
    )
