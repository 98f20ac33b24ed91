"""What a parent process (``ld-deploy run``) tells already, so that this one need not."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks._log import say_once
from ld_deploy_hooks._records import Identity
from ld_deploy_hooks._reporter import is_over

if TYPE_CHECKING:
    from ld_deploy_hooks._settings import Settings

__all__ = ["PARENT", "exported", "goes_on", "parent_drops", "parent_tells", "parents"]

# {"id": …, "identity": [project, environment, application, version], "dropped": whether nothing of it is to be told,
# "outer": the same of the one around it, or null}
PARENT = "LD_DEPLOY_PARENT"
# Seconds that the outbox has to say whether the parent's deployment is over.
_MOMENT = 0.25


def exported(id: str, identity: Identity, *, dropped: bool) -> dict[str, str]:
    """Return the variables that tell a child process of a deployment which is told here, and of those around it.

    Args:
        id: of the deployment.
        identity: of the deployment.
        dropped: whether a plugin wants nothing of it to be told.
    """
    outer = json.loads(os.environ[PARENT]) if parents() else None
    return {PARENT: json.dumps({"id": id, "identity": identity, "dropped": dropped, "outer": outer})}


def parent_drops(identity: Identity) -> bool:
    """Whether a plugin of a parent process wants nothing of this deployment to be told."""
    return any(told == identity and dropped for _, told, dropped in parents())


def parent_tells(settings: Settings, identity: Identity, forked_from: Mapping[str, Identity]) -> bool:
    """Whether a parent process tells start and end of this deployment.

    Args:
        settings: of the deployment that is about to start here.
        identity: of that deployment.
        forked_from: what was open, by id, in the process that this one was forked from.
    """
    around = (*forked_from.items(), *(parent[:2] for parent in parents()))
    return any(told == identity and goes_on(settings, id) for id, told in around)


def goes_on(settings: Settings, id: str) -> bool:
    """Whether a deployment of a process around this one is not over.

    A process that its command leaves behind keeps the variable, and a forked worker outlives what was open then, so the
    outbox is asked: what has ended, or whose teller is dead, nobody tells any more. Where it does not know, the parent
    is taken at its word.

    Args:
        settings: name the outbox.
        id: of that deployment.
    """
    if settings.recording is not None:
        return True
    try:
        return not is_over(settings, id, timeout=_MOMENT)
    except OutboxError:
        return True


def parents() -> list[tuple[str, Identity, bool]]:
    """Return id, identity, and whether it is dropped, of each deployment of processes around this one, inner first."""
    text = os.environ.get(PARENT)
    if not text:
        return []
    found: list[tuple[str, Identity, bool]] = []
    try:
        parent = json.loads(text)
        while parent is not None or not found:
            identity = Identity(*map(str, parent["identity"]))
            found.append((str(parent["id"]), identity, parent.get("dropped") is True))
            parent = parent.get("outer")
    except (ValueError, TypeError, KeyError, RecursionError):
        say_once(f"{PARENT} does not hold what `ld-deploy run` exports; this deployment is told by itself.")
        return []
    return found
