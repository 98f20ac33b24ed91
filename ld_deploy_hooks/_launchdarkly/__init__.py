"""LaunchDarkly's HTTP API: one event, one POST, one verdict; and reading back what the service made of it.

requests is imported at the first request, which takes a quarter of a second: never in the thread of a deploy.
"""

from __future__ import annotations

from ld_deploy_hooks._launchdarkly._answers import Answer, Outcome, outcome_of
from ld_deploy_hooks._launchdarkly._client import Client, LaunchDarklyError

__all__ = ["Answer", "Client", "LaunchDarklyError", "Outcome", "outcome_of"]
