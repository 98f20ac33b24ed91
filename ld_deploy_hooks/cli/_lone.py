"""What an event that was sent alone tells of: nothing but the event itself says it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ld_deploy_hooks._outbox import EventStatus
    from ld_deploy_hooks._records import Identity

__all__ = ["identity_in"]


def identity_in(event: EventStatus) -> Identity | None:
    """Return the identity in an event; None where it cannot be read, since its bytes have changed on the disk."""
    from ld_deploy_hooks._records import DeploymentEvent

    try:
        return DeploymentEvent.from_json(event.payload).identity
    except (TypeError, ValueError):
        return None
