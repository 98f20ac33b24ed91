"""A question to the outbox, by somebody who waits for the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from ld_deploy_hooks._outbox import Outbox
    from ld_deploy_hooks._settings import Settings

__all__ = ["ask"]

# Seconds. A deploy waits for longer, in the background; here somebody sits in front of it.
_PATIENCE = 5.0

T = TypeVar("T")


def ask(settings: Settings, question: Callable[[Outbox], T]) -> T:
    """Return the answer of the outbox of ``settings``.

    Raises:
        OutboxError: it cannot be used, or does not answer within 5 seconds since another process holds it.
    """
    from ld_deploy_hooks._reporter import ask_outbox

    return ask_outbox(settings, question, timeout=_PATIENCE)
