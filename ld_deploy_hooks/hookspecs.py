"""The hooks: what a plugin may implement, when it is called, and what it gets.

An ask is imperative (``provide_defaults``): it runs in the thread that deploys, and its answer counts. A tell is in the
past tense (``started``): it runs later, in a thread of its plugin's, in the order in which things happened. In order::

    ld_deploy_provide_defaults                  ask
    ld_deploy_add_metadata                      ask
    ld_deploy_modify_event  (started)           ask, then the event is committed to the outbox
    ld_deploy_started                           tell
        ld_deploy_modify_event  (custom)        ask, then the event is committed
        ld_deploy_custom                        tell
    ld_deploy_modify_event  (finished, failed)  ask, then the event is committed
    ld_deploy_finished, ld_deploy_failed        tell
    ld_deploy_event_delivered, _rejected        tell, once for each event, whenever LaunchDarkly has answered

Of several plugins, ``deployhooks.py`` is called first, then the modules of the setting ``plugins``, the entry points,
and the built-in ones last; ``@hookimpl(tryfirst=True)`` and ``trylast=True`` change that. Each is called alone: one
that raises, exits or returns nonsense stops neither another plugin, nor the event, nor the deploy; a line in the log
names it. At the end of the process, tells are waited for no longer than ``flush_timeout``; a line names what hangs.

An implementation names the arguments that it wants, all of them or some, none with a default. Wrappers and
``async def`` are refused. Records are frozen, their metadata and exceptions are copies: what a plugin does to them
reaches nobody. New attributes may come, none goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pluggy import HookimplMarker, HookspecMarker

from ld_deploy_hooks._records import DeploymentEvent, DeploymentRecord

__all__ = [
    "PROJECT_NAME",
    "DeploymentEvent",
    "DeploymentRecord",
    "SettingsView",
    "hookimpl",
    "hookspec",
    "ld_deploy_add_metadata",
    "ld_deploy_custom",
    "ld_deploy_event_delivered",
    "ld_deploy_event_rejected",
    "ld_deploy_failed",
    "ld_deploy_finished",
    "ld_deploy_modify_event",
    "ld_deploy_provide_defaults",
    "ld_deploy_started",
]

# Pluggy's project name, and the group of the entry points.
PROJECT_NAME = "ld_deploy_hooks"

hookspec = HookspecMarker(PROJECT_NAME)
hookimpl = HookimplMarker(PROJECT_NAME)


@dataclass(frozen=True, kw_only=True)
class SettingsView:
    """The settings as far as they are known before a plugin is asked; None is what nobody has set.

    Attributes:
        project_key: LaunchDarkly project.
        environment_key: LaunchDarkly environment.
        application_key: the application that is deployed.
        version: the version that is deployed.
        application_name: how the application is displayed.
        application_kind: ``server``, ``browser`` or ``mobile``.
        version_name: how the version is displayed.
    """

    project_key: str | None = None
    environment_key: str | None = None
    application_key: str | None = None
    version: str | None = None
    application_name: str | None = None
    application_kind: str | None = None
    version_name: str | None = None


@hookspec
def ld_deploy_provide_defaults(settings: SettingsView) -> Mapping[str, Any] | None:
    """Give values for settings that nobody has set.

    When: once for each deployment, as it starts: the first of all hooks, before anything is recorded.

    Args:
        settings: what arguments, environment variables, files and the plugins that were asked before have set.

    Returns:
        Names of settings as in ``docs/settings.md`` and their values, or None. A value counts only where nobody has set
        one; of two plugins the one that is called first wins.

    An exception in it: a line, and this plugin provides nothing. Slower than 200 ms: a line, for the deploy waits::

        @hookimpl
        def ld_deploy_provide_defaults(settings):
            if settings.version is None:
                return {"version": Path("VERSION").read_text().strip()}
    """


@hookspec
def ld_deploy_add_metadata(deployment: DeploymentRecord) -> Mapping[str, Any] | None:
    """Add to the deploymentMetadata, the only metadata that LaunchDarkly shows again.

    When: once for each deployment, after ``ld_deploy_provide_defaults`` and before its started event is made. The
    answer goes into all events of the deployment.

    Args:
        deployment: the deployment as it starts; ``started_at`` in Unix milliseconds.

    Returns:
        Names (strings) and JSON values, or None. The user's own keys win; of two plugins the one that is called first.

    An exception in it: a line, and this plugin adds nothing. Slower than 200 ms: a line, for the deploy waits::

        @hookimpl
        def ld_deploy_add_metadata(deployment):
            return {"team": "payments", "ticket": os.environ.get("TICKET")}
    """


@hookspec
def ld_deploy_modify_event(event: DeploymentEvent) -> DeploymentEvent | None:
    """Change an event before it is recorded, or have it dropped.

    When: once for each event (started, custom, finished, failed), right before its commit; not again when it is sent.

    Args:
        event: the event as the plugin before left it; ``event_time`` in Unix milliseconds.

    Returns:
        Another event (``dataclasses.replace``), or None to leave it. Type, time, identity and ``eventId`` stay: an
        answer that changes one of them is ignored, with a line.

    Raises:
        DropEvent: do not tell it, and ask no further plugin. On a started event the whole deployment is not told: no
            event, no tell. On an end it is refused with a line, or LaunchDarkly would show the deployment as in
            progress for ever.

    Any other exception in it: a line, and the event stays as it was. Slower than 200 ms: a line, for the deploy waits::

        @hookimpl
        def ld_deploy_modify_event(event):
            if event.environment_key == "sandbox":
                raise DropEvent
            return replace(event, event_metadata={**event.event_metadata, "region": "eu"})
    """


@hookspec
def ld_deploy_started(deployment: DeploymentRecord) -> None:
    """A deployment has started.

    When: after the commit of its started event, the first tell of a deployment. The deploy goes on meanwhile.

    Args:
        deployment: as it was at its start; ``started_at`` in Unix milliseconds, ``ended_at`` None.

    Returns:
        Nothing. An exception in it: a line. A slow one delays nothing but later tells of its plugin::

            @hookimpl
            def ld_deploy_started(deployment):
                post_to_chat(f"{deployment.identity.application_key} {deployment.identity.version} is on its way")
    """


@hookspec
def ld_deploy_finished(deployment: DeploymentRecord) -> None:
    """A deployment has ended well.

    When: after the commit of its finished event, after ``ld_deploy_started`` and every ``ld_deploy_custom`` of it.
    Exactly one of ``ld_deploy_finished`` and ``ld_deploy_failed`` is told.

    Args:
        deployment: as it was at its end; ``started_at`` and ``ended_at`` in Unix milliseconds.

    Returns:
        Nothing. An exception in it: a line. A slow one delays nothing but later tells of its plugin::

            @hookimpl
            def ld_deploy_finished(deployment):
                metrics.timing("deploy", deployment.ended_at - deployment.started_at)
    """


@hookspec
def ld_deploy_failed(deployment: DeploymentRecord, error: BaseException | None) -> None:
    """A deployment has failed, or was cancelled or killed.

    When: after the commit of its failed event, after ``ld_deploy_started`` and every ``ld_deploy_custom`` of it. A
    killed deployment is told by the run that recovers it: another process, with no ``ld_deploy_started`` before.

    Args:
        deployment: as it was at its end, with ``reason``, ``detail`` and ``error_type``. ``ended_at`` in Unix
            milliseconds; for a killed one the time at which it was last known alive.
        error: a copy of what left the deployment, or None: killed, marked as failed, hosts pending. Its text, arguments
            and attributes may hold commands, output and the whole environment: tell nobody more than its type.

    Returns:
        Nothing. An exception in it: a line. A slow one delays nothing but later tells of its plugin::

            @hookimpl
            def ld_deploy_failed(deployment, error):
                if deployment.reason != "cancelled":
                    page_on_call(deployment.identity.application_key, deployment.error_type)
    """


@hookspec
def ld_deploy_custom(deployment: DeploymentRecord, metadata: Mapping[str, Any]) -> None:
    """The deploy code has told an event of its own (``d.custom(step="migrated")``).

    When: after the commit of that custom event, between ``ld_deploy_started`` and the end.

    Args:
        deployment: as it was at that moment, which is ``custom_at`` in Unix milliseconds; ``ended_at`` None.
        metadata: what the deploy code gave, read-only; values as in JSON.

    Returns:
        Nothing. An exception in it: a line. A slow one delays nothing but later tells of its plugin::

            @hookimpl
            def ld_deploy_custom(deployment, metadata):
                post_to_chat(f"{deployment.identity.application_key}: {metadata.get('step')}")
    """


@hookspec
def ld_deploy_event_delivered(event: DeploymentEvent) -> None:
    """LaunchDarkly has accepted an event.

    When: after the 201 and after the outbox has noted it. It may be an event of an earlier run, or of another process.

    Args:
        event: what was sent; ``event_time`` in Unix milliseconds is when it happened, which may be days ago.

    Returns:
        Nothing. An exception in it: a line; the event stays delivered. A slow one delays nothing but later tells of its
        plugin::

            @hookimpl
            def ld_deploy_event_delivered(event):
                metrics.increment("launchdarkly.delivered", tags=[event.event_type.value])
    """


@hookspec
def ld_deploy_event_rejected(event: DeploymentEvent, error: str) -> None:
    """LaunchDarkly has refused an event for good, or it was given up; the outbox keeps it.

    When: after the final refusal (a status that no retry can change, an event too old), not after what is retried.

    Args:
        event: what was refused; ``event_time`` in Unix milliseconds.
        error: one line that says why, as the log has it; it holds no secret.

    Returns:
        Nothing. An exception in it: a line; the event stays rejected. A slow one delays nothing but later tells of its
        plugin::

            @hookimpl
            def ld_deploy_event_rejected(event, error):
                post_to_chat(f"LaunchDarkly refused {event.event_type} of {event.application_key}: {error}")
    """
