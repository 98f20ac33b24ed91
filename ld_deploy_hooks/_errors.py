"""The exceptions of this package.

::

    DeployHooksError
    ├── SettingsError    a setting is missing or cannot be used (raised to users only with ``strict``)
    ├── EventError       an event that LaunchDarkly's document forbids (also a ValueError)
    └── OutboxError      the outbox cannot be opened, read or written
    DropEvent            raised by a plugin: do not tell this event

Deploy code never meets the first four unless it asked for ``strict``: a fault of ours is one line in the log.
"""

from __future__ import annotations

__all__ = ["DeployHooksError", "DropEvent", "EventError", "OutboxError", "SettingsError"]


class DeployHooksError(Exception):
    """Base of every error that this package raises."""


class SettingsError(DeployHooksError):
    """A setting is missing or cannot be used.

    Attributes:
        field: the setting's name as in ``docs/settings.md``, for example ``"project_key"``.
    """

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field


class EventError(DeployHooksError, ValueError):
    """An event breaks a rule of LaunchDarkly's document.

    Attributes:
        attribute: the JSON name of the field at fault, for example ``"applicationKind"``.
    """

    def __init__(self, message: str, *, attribute: str) -> None:
        super().__init__(message)
        self.attribute = attribute


class OutboxError(DeployHooksError):
    """The outbox cannot be opened, read or written.

    Attributes:
        path: the outbox file.
    """

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message)
        self.path = path


class DropEvent(Exception):
    """Raised by a plugin in ``ld_deploy_modify_event``: do not tell this event.

    On a ``started`` event the whole deployment is not told; on a ``custom`` event only that one. On an end it is
    refused: LaunchDarkly would show the deployment as "In progress" for ever.
    """
