"""The client of a command that asks LaunchDarkly something."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ld_deploy_hooks._version import __version__

if TYPE_CHECKING:
    from ld_deploy_hooks._launchdarkly import Client
    from ld_deploy_hooks._settings import Settings

__all__ = ["client_for"]


def client_for(settings: Settings, *, read_timeout: float = 10.0) -> Client:
    """Return a client with the token, base URI and API version of ``settings``, which can be sent with.

    Args:
        settings: ``sendable``.
        read_timeout: seconds for each answer.
    """
    from ld_deploy_hooks._launchdarkly import Client
    from ld_deploy_hooks._settings import is_loopback

    assert settings.access_token is not None
    return Client(
        base_uri=settings.base_uri,
        token=settings.access_token.reveal(),
        api_version=settings.api_version,
        loopback=is_loopback(settings.base_uri),
        user_agent=f"ld-deploy-hooks/{__version__}",
        read_timeout=read_timeout,
    )
