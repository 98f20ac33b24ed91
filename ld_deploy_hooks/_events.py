"""What is sent: the events of one run, made from what the user, the plugins and the run itself have to say."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

from ld_deploy_hooks._log import say_once
from ld_deploy_hooks._metadata import fit, jsonable, redact
from ld_deploy_hooks._records import DeploymentEvent, DeploymentRecord, EventType, Identity, legal_version
from ld_deploy_hooks._settings import Settings
from ld_deploy_hooks._verdicts import Verdict
from ld_deploy_hooks._version import __version__

__all__ = ["Events", "identity_of"]


def identity_of(settings: Settings) -> Identity:
    """Return what the run is paired by; a token that was put there by mistake does not travel."""
    secret = _secret(settings)
    project, environment, application, version = (
        str(redact(value or "", secret))
        for value in (settings.project_key, settings.environment_key, settings.application_key, settings.version)
    )
    return Identity(project, environment, application, legal_version(version))


@dataclass(kw_only=True, eq=False, repr=False)
class Events:
    """Makes the events of one run.

    Attributes:
        settings: of the run.
        identity: what all its events are paired by.
        task: name of the task or function, None in a plain ``with``.
        modify: asks the plugins what they make of an event.
        added: deploymentMetadata that plugins add.
    """

    settings: Settings
    identity: Identity
    task: str | None
    modify: Callable[[DeploymentEvent], DeploymentEvent]
    added: Mapping[str, Any] = field(default_factory=dict)
    _last: DeploymentEvent | None = field(default=None, init=False)

    def make(
        self,
        kind: EventType,
        at: int,
        *,
        users: Mapping[str, Any] | None = None,
        ours: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any],
        hosts: Mapping[str, Any],
        ask: bool = True,
    ) -> DeploymentEvent:
        """Return an event as it is sent.

        Args:
            kind: what happened.
            at: when, in Unix milliseconds.
            users: the user's eventMetadata.
            ours: our own; None values are left out.
            metadata: the user's deploymentMetadata.
            hosts: how the hosts fare.
            ask: whether plugins are asked.

        Raises:
            DropEvent: a plugin will not have it told; never for an end.
        """
        of_event, of_deployment = jsonable(users or {}), jsonable(metadata)
        named = {
            "source": f"ld-deploy-hooks/{__version__}",
            "eventId": str(uuid.uuid4()),
            "task": self.task,
            **(ours or {}),
        }
        plain = DeploymentEvent(
            event_type=kind,
            event_time=at,
            application_name=self.settings.application_name,
            application_kind=self.settings.application_kind,
            version_name=self.settings.version_name,
            event_metadata={**of_event, **{key: value for key, value in named.items() if value is not None}},
            deployment_metadata={**self.added, **of_deployment, **hosts},
            **self.identity._asdict(),
        )
        event = self.modify(plain) if ask else plain
        # The detail of a failure is in the user's words.
        theirs = ({"detail", *self.clean([*of_event])}, {*self.clean([*of_deployment])})
        self._last = self._sealed(event, plain, users=theirs, ours=hosts.keys())
        return self._last

    def ending(self, verdict: Verdict, started_at: int, at: int, **more: Any) -> DeploymentEvent:
        """Return the event that ends the run; ``more`` as in :meth:`make`."""
        ours = {**_facts(verdict, started_at, at), "detail": verdict.detail}
        return self.make(_kind(verdict), at, ours=ours, **more)

    def ending_unasked(self, verdict: Verdict, started_at: int, at: int) -> DeploymentEvent:
        """Return the event that ends the run, of what the last event has made known: it runs no code of others.

        That is for signal handlers. What they interrupt may be in the middle of the user's own mapping, and hold its
        lock.
        """
        assert self._last is not None
        named = {
            "source": f"ld-deploy-hooks/{__version__}",
            "eventId": str(uuid.uuid4()),
            "task": self.clean(self.task),
            **self.clean(_facts(verdict, started_at, at)),
        }
        return replace(
            self._last,
            event_type=_kind(verdict),
            event_time=at,
            event_metadata={key: value for key, value in named.items() if value is not None},
        )

    def record(
        self, verdict: Verdict, *, metadata: Mapping[str, Any], hosts: Iterable[str] = (), **more: Any
    ) -> DeploymentRecord:
        """Return the run as hooks see it."""
        return DeploymentRecord(
            identity=self.identity,
            metadata={**self.added, **self.clean(metadata)},
            task=self.clean(self.task),
            application_name=self.clean(self.settings.application_name),
            version_name=self.clean(self.settings.version_name),
            reason=verdict.reason,
            detail=self.clean(verdict.detail),
            error_type=self.clean(verdict.error),
            hosts=tuple(self.clean(list(hosts))),
            **more,
        )

    def clean(self, value: Any) -> Any:
        """Return a JSON value of ``value`` without the token."""
        return redact(jsonable(value), _secret(self.settings))

    def _sealed(
        self, event: DeploymentEvent, plain: DeploymentEvent, *, users: tuple[Set[str], Set[str]], ours: Set[str]
    ) -> DeploymentEvent:
        """Return ``event``, which plugins made of ``plain``, without the token and within the bound of its size.

        Args:
            users: the keys of the user's eventMetadata and deploymentMetadata; the token is in none of them any more.
            ours: the keys of our own deploymentMetadata.
        """
        before, after = (
            (self.clean(one.event_metadata), self.clean(one.deployment_metadata)) for one in (plain, event)
        )
        of_event, of_deployment = (
            {key for key, value in now.items() if key not in was or was[key] != value}
            for was, now in zip(before, after, strict=True)
        )
        of_deployment |= self.added.keys() - users[1] - ours
        about_event, about_deployment, cut = fit(*after, users=users, plugins=(of_event, of_deployment))
        if cut:
            say_once(f"Metadata of more than 8 KiB was cut to fit: {', '.join(cut)}. Send less, or a link to it.")
        return replace(
            event,
            application_name=self.clean(event.application_name),
            version_name=self.clean(event.version_name),
            event_metadata=about_event,
            deployment_metadata=about_deployment,
        )


def _kind(verdict: Verdict) -> EventType:
    return EventType.FAILED if verdict.failed else EventType.FINISHED


def _facts(verdict: Verdict, started_at: int, at: int) -> dict[str, Any]:
    return {
        "durationMs": at - started_at,
        "reason": verdict.reason,
        "error": verdict.error,
        "exitCode": verdict.exit_code,
        "host": verdict.host,
    }


def _secret(settings: Settings) -> str:
    return settings.access_token.reveal() if settings.access_token is not None else ""
