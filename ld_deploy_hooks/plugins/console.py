"""Built-in plugin ``console``: one line on stderr when a deployment starts, and one when it ends.

::

    ld-deploy: billing-service a90a8a2 to production: started
    ld-deploy: billing-service a90a8a2 to production: failed after 4 min 12 s (error: UnexpectedExit)

``LD_DEPLOY_PLUGINS=no:console`` switches it off.
"""

from __future__ import annotations

import sys

from ld_deploy_hooks.hookspecs import DeploymentRecord, hookimpl

__all__ = ["ld_deploy_failed", "ld_deploy_finished", "ld_deploy_started"]


# First, since a person watches: another plugin's slow tell must not hold the line back.
@hookimpl(tryfirst=True)
def ld_deploy_started(deployment: DeploymentRecord) -> None:
    """Write that a deployment has started."""
    _write(deployment, "started")


@hookimpl(tryfirst=True)
def ld_deploy_finished(deployment: DeploymentRecord) -> None:
    """Write that a deployment has ended well, and how long it took."""
    _write(deployment, f"finished{_duration(deployment, ' in ')}")


@hookimpl(tryfirst=True)
def ld_deploy_failed(deployment: DeploymentRecord) -> None:
    """Write that a deployment has failed, how long it took, and why."""
    why = ", ".join(filter(None, (deployment.error_type, deployment.detail)))
    why = ": ".join(filter(None, (deployment.reason, why)))
    _write(deployment, f"failed{_duration(deployment, ' after ')}{f' ({why})' if why else ''}")


def _duration(deployment: DeploymentRecord, before: str) -> str:
    if deployment.started_at is None or deployment.ended_at is None:
        return ""
    tenths = max(deployment.ended_at - deployment.started_at, 0) // 100
    if tenths < 600:
        return f"{before}{tenths / 10} s"
    minutes, seconds = divmod(tenths // 10, 60)
    if minutes < 60:
        return f"{before}{minutes} min {seconds} s"
    return f"{before}{minutes // 60} h {minutes % 60} min"


def _write(deployment: DeploymentRecord, what: str) -> None:
    identity = deployment.identity
    application = deployment.application_name or identity.application_key
    version = deployment.version_name or identity.version
    text = f"ld-deploy: {application} {version} to {identity.environment_key}: {what}"
    # Names and details may hold anything: it stays one line, and nothing in it steers a terminal.
    text = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    try:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except Exception:
        # No stderr, or one that is closed or full: the deploy has no use for a word about that.
        pass
