"""What a block gives in the place of a deployment that could not be made: the deploy goes on without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from ld_deploy_hooks._log import internal_fault

if TYPE_CHECKING:
    from ld_deploy_hooks._handle import Deployment

__all__ = ["untold"]


class _Untold:
    """Takes every call that a :class:`Deployment` does, and tells nothing."""

    id = ""
    identity = started_at = ended_at = None
    state = "pending"

    def __init__(self) -> None:
        self.metadata: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


def untold(error: Exception) -> Deployment:
    """Say why there is no deployment, such as that no file can be opened, and return what takes its place."""
    internal_fault("Starting a deployment", error)
    return cast("Deployment", _Untold())
