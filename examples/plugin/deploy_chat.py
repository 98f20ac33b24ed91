"""Posts a message to a chat's webhook when a deployment fails.

``DEPLOY_CHAT_WEBHOOK`` is the address, which takes ``{"text": "…"}`` as JSON, as those of Slack, Mattermost and others
do. Without it nothing is posted.
"""

from __future__ import annotations

import json
import os
import urllib.request

from ld_deploy_hooks import hookimpl
from ld_deploy_hooks.hookspecs import DeploymentRecord

__all__ = ["ld_deploy_failed"]

# Seconds. It delays no deploy: this is a tell, which runs beside it, and the exit waits no longer than flush_timeout.
_TIMEOUT = 10.0


@hookimpl
def ld_deploy_failed(deployment: DeploymentRecord) -> None:
    """Post what failed, and why.

    Raises:
        OSError: the chat cannot be reached, or refuses the message. ld-deploy-hooks makes that one line in the log,
            which names this plugin and not the address, for whoever has that may post.
    """
    webhook = os.environ.get("DEPLOY_CHAT_WEBHOOK")
    if not webhook:
        return
    request = urllib.request.Request(
        webhook,
        data=json.dumps({"text": _text(deployment)}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=_TIMEOUT):
        pass


def _text(deployment: DeploymentRecord) -> str:
    identity = deployment.identity
    why = deployment.detail or deployment.error_type or deployment.reason
    who = deployment.metadata.get("actor")
    text = f"{identity.application_key} {identity.version} to {identity.environment_key} failed: {why}"
    return f"{text} (started by {who})" if who else text
