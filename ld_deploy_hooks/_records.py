"""The frozen records: the event as it goes over the wire, the deployment as hooks see it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, NamedTuple

from ld_deploy_hooks._errors import EventError

__all__ = [
    "APPLICATION_KINDS",
    "DeploymentEvent",
    "DeploymentRecord",
    "EventType",
    "Identity",
    "legal_version",
]

APPLICATION_KINDS = ("server", "browser", "mobile")

_ILLEGAL_IN_VERSION = re.compile(r"[^A-Za-z0-9._-]+")


class EventType(str, Enum):
    """What an event says of its deployment; compares equal to its plain string."""

    STARTED = "started"
    FINISHED = "finished"
    FAILED = "failed"
    CUSTOM = "custom"

    @property
    def is_end(self) -> bool:
        """Whether a deployment has ended with it."""
        return self in (EventType.FINISHED, EventType.FAILED)

    def __str__(self) -> str:
        return self.value


class Identity(NamedTuple):
    """What LaunchDarkly pairs a ``started`` event with its end by."""

    project_key: str
    environment_key: str
    application_key: str
    version: str


def legal_version(version: str) -> str:
    """Return ``version`` with what LaunchDarkly would refuse replaced by ``-``.

    LaunchDarkly's document allows letters, digits, ``.``, ``-`` and ``_``. The answer is empty when nothing legal is
    left.
    """
    return _ILLEGAL_IN_VERSION.sub("-", version).strip("-") if _ILLEGAL_IN_VERSION.search(version) else version


def _frozen(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(mapping))


# (attribute, name on the wire), in the order of LaunchDarkly's document.
_WIRE = (
    ("project_key", "projectKey"),
    ("environment_key", "environmentKey"),
    ("application_key", "applicationKey"),
    ("application_name", "applicationName"),
    ("application_kind", "applicationKind"),
    ("version", "version"),
    ("version_name", "versionName"),
    ("event_type", "eventType"),
    ("event_time", "eventTime"),
    ("event_metadata", "eventMetadata"),
    ("deployment_metadata", "deploymentMetadata"),
)


@dataclass(frozen=True, kw_only=True)
class DeploymentEvent:
    """One event, as LaunchDarkly's ``POST /api/v2/engineering-insights/deployment-events`` takes it.

    Attributes:
        event_type: what happened; an :class:`EventType`, equal to its plain string.
        project_key: LaunchDarkly project.
        environment_key: LaunchDarkly environment.
        application_key: the application; LaunchDarkly creates an unseen one for good.
        version: letters, digits, ``.``, ``-``, ``_`` only.
        event_time: when it happened, in Unix milliseconds.
        application_name: how the application is displayed.
        application_kind: ``server``, ``browser`` or ``mobile``.
        version_name: how the version is displayed.
        event_metadata: JSON values about this event; ``eventId`` is the same over every attempt to send it.
        deployment_metadata: JSON values about the deployment; the only metadata that LaunchDarkly reads back.

    Raises:
        EventError: a field breaks a rule of LaunchDarkly's document, which the service itself does not always check.
    """

    event_type: EventType
    project_key: str
    environment_key: str
    application_key: str
    version: str
    event_time: int
    application_name: str | None = None
    application_kind: str | None = None
    version_name: str | None = None
    event_metadata: Mapping[str, Any] = field(default_factory=dict)
    deployment_metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "event_type", EventType(self.event_type))
        except ValueError:
            kinds = ", ".join(kind.value for kind in EventType)
            raise EventError(f"eventType must be one of {kinds}", attribute="eventType") from None
        for name, wire in (*_WIRE[:3], ("version", "version")):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise EventError(f"{wire} must be a string that is not empty", attribute=wire)
        if _ILLEGAL_IN_VERSION.search(self.version):
            raise EventError("version may hold only letters, digits, '.', '-' and '_'", attribute="version")
        for name, wire in (("application_name", "applicationName"), ("version_name", "versionName")):
            if not isinstance(getattr(self, name), (str, type(None))):
                raise EventError(f"{wire} must be a string", attribute=wire)
        if self.application_kind is not None and self.application_kind not in APPLICATION_KINDS:
            raise EventError(
                f"applicationKind must be one of {', '.join(APPLICATION_KINDS)}", attribute="applicationKind"
            )
        if (
            not isinstance(self.event_time, int)
            or isinstance(self.event_time, bool)
            or not 0 <= self.event_time < 2**63
        ):
            raise EventError("eventTime must be Unix milliseconds, a whole number of 64 bits", attribute="eventTime")
        for name, wire in (("event_metadata", "eventMetadata"), ("deployment_metadata", "deploymentMetadata")):
            value = getattr(self, name)
            if not isinstance(value, Mapping):
                raise EventError(f"{wire} must be a mapping", attribute=wire)
            object.__setattr__(self, name, _frozen(value))

    @property
    def identity(self) -> Identity:
        """What LaunchDarkly pairs this event by."""
        return Identity(self.project_key, self.environment_key, self.application_key, self.version)

    @property
    def event_id(self) -> str | None:
        """The UUID of this event, or None for one that was made elsewhere without."""
        value = self.event_metadata.get("eventId")
        return value if isinstance(value, str) else None

    def to_json(self) -> str:
        """Return the body of the POST: compact JSON, fields in the document's order, what is not set left out.

        Raises:
            EventError: the metadata holds a value that is no JSON.
        """
        body: dict[str, Any] = {}
        for name, wire in _WIRE:
            value = getattr(self, name)
            if isinstance(value, Mapping):
                value = dict(value)
            if value is not None and value != {}:
                body[wire] = value.value if isinstance(value, EventType) else value
        try:
            return json.dumps(body, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise EventError("metadata must hold JSON values only", attribute="eventMetadata") from None

    @classmethod
    def from_json(cls, text: str) -> DeploymentEvent:
        """Return the event that :meth:`to_json` wrote."""
        body = json.loads(text)
        return cls(**{name: body[wire] for name, wire in _WIRE if wire in body})


@dataclass(frozen=True, kw_only=True)
class DeploymentRecord:
    """A deployment at one moment, as hooks see it. New attributes may come; none goes.

    Attributes:
        id: UUID of this run of the deployment.
        identity: what LaunchDarkly pairs its events by.
        state: ``pending``, ``started``, ``finished`` or ``failed``.
        started_at: Unix milliseconds, None while pending.
        ended_at: Unix milliseconds, None while open.
        custom_at: Unix milliseconds: when the custom event happened that a plugin is told of; None elsewhere.
        metadata: deploymentMetadata as far as it is known.
        task: name of the Invoke or Fabric task or of the decorated function, None in a plain ``with``.
        hosts: every host that the deployment goes to, in the order in which they were planned.
        application_name: how the application is displayed.
        version_name: how the version is displayed.
        reason: of a failure: ``error``, ``cancelled``, ``killed`` or ``incomplete``.
        detail: of a failure: the user's own words (``mark_failed("…")``).
        error_type: of a failure: the name of the exception's type; never its text, which may hold secrets.
    """

    id: str
    identity: Identity
    state: str
    started_at: int | None = None
    ended_at: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    task: str | None = None
    hosts: tuple[str, ...] = ()
    application_name: str | None = None
    version_name: str | None = None
    reason: str | None = None
    detail: str | None = None
    error_type: str | None = None
    custom_at: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "metadata", _frozen(self.metadata))
