"""Built-in plugin ``opentelemetry``: one span for each deployment, and a span of no length for each custom event.

Names are those of OpenTelemetry's CI/CD, deployment, VCS and service conventions. The parent is the span that is
current where the deployment starts, else what ``TRACEPARENT`` and ``TRACESTATE`` say; of a deployment that another
process left behind it is none, since that one belonged to another trace.

It uses the tracer provider of the process and sets up none. As long as nobody has imported OpenTelemetry, it imports
none of it either and does nothing. ``LD_DEPLOY_PLUGINS=no:opentelemetry`` switches it off.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ld_deploy_hooks.hookspecs import DeploymentEvent, DeploymentRecord, hookimpl

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanContext

__all__ = ["ld_deploy_custom", "ld_deploy_failed", "ld_deploy_finished", "ld_deploy_modify_event", "ld_deploy_started"]

_SCOPE = "ld_deploy_hooks"
_PER_MILLISECOND = 1_000_000  # nanoseconds

# The conventions call it an error when the worker went, and a failure when what it ran did not succeed.
_RESULTS = {"cancelled": "cancellation", "killed": "error"}

# Spans of the deployments that this process has started, by id; None where there was no provider yet.
_open: dict[str, Span | None] = {}
# What was current in the thread that began a deployment, by identity and start: tells have a thread of their own.
_around: dict[tuple[tuple[str, ...], int | None], SpanContext] = {}


@hookimpl(trylast=True)  # a start that another plugin drops is never told
def ld_deploy_modify_event(event: DeploymentEvent) -> DeploymentEvent | None:
    """Note which span a deployment starts in, and leave the event as it is."""
    if event.event_type == "started" and _is_in_use():
        from opentelemetry import trace

        current = trace.get_current_span().get_span_context()
        if current.is_valid:
            _around[event.identity, event.event_time] = current
    return None


@hookimpl
def ld_deploy_started(deployment: DeploymentRecord) -> None:
    """Start the span of a deployment."""
    _open[deployment.id] = None
    _span_of(deployment)


@hookimpl
def ld_deploy_custom(deployment: DeploymentRecord, metadata: Mapping[str, Any]) -> None:
    """Make a span of no length, within that of the deployment, with what the deploy code told as attributes."""
    parent = _span_of(deployment)
    if parent is None:
        return
    from opentelemetry import trace

    at = _nanoseconds(deployment.custom_at)
    attributes = {f"ld_deploy.custom.{key}": _attribute(value) for key, value in metadata.items()}
    tracer = trace.get_tracer(_SCOPE)
    context = trace.set_span_in_context(parent)
    tracer.start_span("ld_deploy.custom", context, attributes=attributes, start_time=at).end(at)


@hookimpl
def ld_deploy_finished(deployment: DeploymentRecord) -> None:
    """End the span of a deployment that ended well."""
    _end(deployment, {"cicd.pipeline.result": "success", "deployment.status": "succeeded"})


@hookimpl
def ld_deploy_failed(deployment: DeploymentRecord) -> None:
    """End the span of a deployment that failed, with the name of the error's type and nothing else of it."""
    attributes = {
        "cicd.pipeline.result": _RESULTS.get(deployment.reason or "", "failure"),
        "deployment.status": "failed",
        "error.type": deployment.error_type or deployment.reason or "_OTHER",
    }
    _end(deployment, attributes)


def _is_in_use() -> bool:
    # Importing it takes as long as a small deploy; and who has set up a provider has imported it.
    return sys.modules.get("opentelemetry.trace") is not None


def _span_of(deployment: DeploymentRecord) -> Span | None:
    """Return the span of a deployment, started now if there was no provider before; None if there still is none."""
    span = _open.get(deployment.id)
    if span is not None or not _is_in_use():
        return span
    from opentelemetry import trace

    parent = _parent_of(deployment)
    span = trace.get_tracer(_SCOPE).start_span(
        f"deploy {deployment.identity.application_key}",
        parent,
        kind=trace.SpanKind.SERVER,
        attributes=_described(deployment),
        start_time=_nanoseconds(deployment.started_at),
    )
    made = span.get_span_context()
    # Without a provider it is the parent once more, or nothing.
    if not made.is_valid or made == trace.get_current_span(parent).get_span_context():
        return None
    _open[deployment.id] = span
    return span


def _parent_of(deployment: DeploymentRecord) -> Context:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    current = _around.get((deployment.identity, deployment.started_at))
    if current is not None:
        return trace.set_span_in_context(trace.NonRecordingSpan(current), Context())
    if deployment.id not in _open:
        return Context()
    carrier = {name: os.environ[name.upper()] for name in ("traceparent", "tracestate") if name.upper() in os.environ}
    return TraceContextTextMapPropagator().extract(carrier, Context())


def _end(deployment: DeploymentRecord, result: Mapping[str, str]) -> None:
    span = _span_of(deployment)
    _open.pop(deployment.id, None)
    _around.pop((deployment.identity, deployment.started_at), None)
    if span is None:
        return
    # Once more what describes it: metadata may have come since the start.
    span.set_attributes({**_described(deployment), **result})
    if "error.type" in result:
        from opentelemetry.trace import Status, StatusCode

        span.set_status(Status(StatusCode.ERROR, result["error.type"]))
    span.end(_nanoseconds(deployment.ended_at))


def _described(deployment: DeploymentRecord) -> dict[str, str]:
    """Return the attributes that say what is deployed, where, and from what."""
    identity, metadata = deployment.identity, deployment.metadata
    found = {
        "cicd.pipeline.name": identity.application_key,
        "cicd.pipeline.run.id": deployment.id,
        "cicd.pipeline.run.url.full": metadata.get("runUrl"),
        "cicd.pipeline.task.name": deployment.task,
        "deployment.environment.name": identity.environment_key,
        "deployment.id": deployment.id,
        "deployment.name": f"deploy {identity.application_key}",
        "service.name": identity.application_key,
        "service.version": identity.version,
        "vcs.ref.head.name": metadata.get("branch") or metadata.get("tag"),
        "vcs.ref.head.revision": metadata.get("commit"),
    }
    # What the user's own metadata holds under these names may be anything.
    return {name: value for name, value in found.items() if isinstance(value, str) and value}


def _attribute(value: Any) -> Any:
    """Return a JSON value as an attribute: a plain value or a list of one kind as it is, else its JSON text."""
    if isinstance(value, list):
        plain = len({type(item) for item in value}) <= 1 and all(map(_is_plain, value))
    else:
        plain = _is_plain(value)
    return value if plain else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _is_plain(value: Any) -> bool:
    # Exporters write whole numbers in 64 bits, and one that does not fit costs them the whole batch.
    return isinstance(value, (str, float)) or (isinstance(value, int) and -(2**63) <= value < 2**63)


def _nanoseconds(milliseconds: int | None) -> int | None:
    return None if milliseconds is None else milliseconds * _PER_MILLISECOND
