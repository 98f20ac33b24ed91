"""For tests of deploy code: what was told, recorded in memory, and a stand-in for LaunchDarkly.

::

    from ld_deploy_hooks.testing import record_deployments

    with record_deployments() as events:
        deploy()
    assert events.one("finished").application_key == "billing-service"

The stand-in needs no account, no token of worth, no network::

    from ld_deploy_hooks.testing import FakeLaunchDarkly

    with FakeLaunchDarkly() as server:
        deploy(base_uri=server.base_uri, access_token="api-test-token")
        server.wait_for(event_type="finished")
        assert server.deployments[0]["status"] == "finished"

It is a real HTTP server on the loopback address, needs nothing but the standard library, and also runs by itself:
``python -m ld_deploy_hooks.testing``.
"""

from __future__ import annotations

from ld_deploy_hooks.testing._recorder import RecordedEvents, record_deployments
from ld_deploy_hooks.testing._server import FakeLaunchDarkly
from ld_deploy_hooks.testing._wire import Answer, RecordedRequest

__all__ = ["Answer", "FakeLaunchDarkly", "RecordedEvents", "RecordedRequest", "record_deployments"]
