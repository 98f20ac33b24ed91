"""What a parent process (``ld-deploy run``) tells already, so that this one need not."""

from __future__ import annotations

import json
import os

from ld_deploy_hooks._log import say_once
from ld_deploy_hooks._records import Identity

__all__ = ["PARENT", "parent_identity"]

# {"id": …, "identity": [project, environment, application, version]}
PARENT = "LD_DEPLOY_PARENT"


def parent_identity() -> Identity | None:
    """Return the identity of the deployment that a parent process tells; None if there is none."""
    text = os.environ.get(PARENT)
    if not text:
        return None
    try:
        return Identity(*map(str, json.loads(text)["identity"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        say_once(f"{PARENT} does not hold what `ld-deploy run` exports; this deployment is told by itself.")
        return None
