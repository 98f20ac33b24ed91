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

__all__ = ["PARENT", "exported", "parent_identity", "parent_tells"]

# {"id": …, "identity": [project, environment, application, version], "outer": the same of the one around it, or null}
PARENT = "LD_DEPLOY_PARENT"
# Seconds that the outbox has to say whether the parent's deployment is over.
_MOMENT = 0.25


def parent_identity() -> Identity | None:
    """Return the identity of the deployment that a parent process tells, or has told; None if there is none."""
    parents = _parents()
    return parents[0][1] if parents else None


def exported(id: str, identity: Identity) -> dict[str, str]:
    """Return the variables that tell a child process of a deployment which is told here, and of those around it."""
    outer = json.loads(os.environ[PARENT]) if _parents() else None
    return {PARENT: json.dumps({"id": id, "identity": identity, "outer": outer})}


def parent_tells(settings: Settings, identity: Identity) -> bool:
    """Whether a parent process tells start and end of this deployment.

    A process that its command leaves behind keeps the variable, so the outbox is asked: what has ended, or whose teller
    is dead, nobody tells any more. Where it does not know, the parent is taken at its word.

    Args:
        settings: of the deployment that is about to start here.
        identity: of that deployment.
    """
    for id, told in _parents():
        if told == identity:
            if settings.recording is not None:
                return True
            try:
                return not is_over(settings, id, timeout=_MOMENT)
            except OutboxError:
                return True
    return False


def _parents() -> list[tuple[str, Identity]]:
    """Return id and identity of each deployment that processes around this one tell, the innermost first."""
    text = os.environ.get(PARENT)
    if not text:
        return []
    found: list[tuple[str, Identity]] = []
    try:
        parent = json.loads(text)
        while parent is not None or not found:
            found.append((str(parent["id"]), Identity(*map(str, parent["identity"]))))
            parent = parent.get("outer")
    except (ValueError, TypeError, KeyError, RecursionError):
        say_once(f"{PARENT} does not hold what `ld-deploy run` exports; this deployment is told by itself.")
        return []
    return found
