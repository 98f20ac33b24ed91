"""What a parent process (``ld-deploy run``) tells already, so that this one need not."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks._log import say_once
from ld_deploy_hooks._records import Identity
from ld_deploy_hooks._reporter import is_over

if TYPE_CHECKING:
    from ld_deploy_hooks._settings import Settings

__all__ = ["PARENT", "parent_identity", "parent_tells"]

# {"id": …, "identity": [project, environment, application, version]}
PARENT = "LD_DEPLOY_PARENT"
# Seconds that the outbox has to say whether the parent's deployment is over.
_MOMENT = 0.25


def parent_identity() -> Identity | None:
    """Return the identity of the deployment that a parent process tells, or has told; None if there is none."""
    parent = _parent()
    return None if parent is None else parent[1]


def parent_tells(settings: Settings, identity: Identity) -> bool:
    """Whether a parent process tells start and end of this deployment.

    A process that its command leaves behind keeps the variable, so the outbox is asked: what has ended, or whose teller
    is dead, nobody tells any more. Where it does not know, the parent is taken at its word.

    Args:
        settings: of the deployment that is about to start here.
        identity: of that deployment.
    """
    parent = _parent()
    if parent is None or parent[1] != identity:
        return False
    if settings.recording is not None:
        return True
    try:
        return not is_over(settings, parent[0], timeout=_MOMENT)
    except OutboxError:
        return True


def _parent() -> tuple[str, Identity] | None:
    text = os.environ.get(PARENT)
    if not text:
        return None
    try:
        parent = json.loads(text)
        return str(parent["id"]), Identity(*map(str, parent["identity"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        say_once(f"{PARENT} does not hold what `ld-deploy run` exports; this deployment is told by itself.")
        return None
