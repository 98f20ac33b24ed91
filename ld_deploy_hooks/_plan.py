"""What a deployment is going to be, before it starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ld_deploy_hooks._settings import Settings

__all__ = ["Plan"]


@dataclass(kw_only=True, eq=False, repr=False)
class Plan:
    """What a deployment is going to be, before it starts.

    Attributes:
        settle: asks for every field and returns the settings; called once, when the deployment starts.
        task: name of the task or function, None in a plain ``with``.
        metadata: the user's deploymentMetadata, live until the end.
        event_metadata: the user's eventMetadata of the started event.
        hosts: the hosts that it is going to, as far as they are known.
        autostart: whether it starts as soon as it is there.
    """

    settle: Callable[[], Settings]
    task: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    event_metadata: dict[str, Any] = field(default_factory=dict)
    hosts: tuple[str, ...] = ()
    autostart: bool = True
