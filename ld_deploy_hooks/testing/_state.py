"""What LaunchDarkly makes of events: deployments, paired by identity, and how they read back.

Where LaunchDarkly's document is silent, this file decides (and nothing of ours may lean on it):

- ``status`` is the event's own word: ``started`` (shown as "In progress"), ``finished``, ``failed``.
- ``kind`` is ``deployment`` for the first of an identity, ``redeployment`` for every later one.
- ``active`` is the last finished deployment of an application in an environment; ``archived`` is never set.
- An end closes the deployment of its identity that was told last and is still open. An older one that was left open
  stays so for ever, as there: the service has no timeout.
- Nothing is recognised as a repetition: the same ``started`` told twice is two deployments, one of which never ends.
- A ``custom`` adds its deploymentMetadata to the open deployment of its identity, if there is one.
- There is no repository here, so lead time and the numbers of lines, contributors and pull requests are 0.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from ld_deploy_hooks.testing._rules import Refused, Violation

__all__ = ["DEPLOYMENTS_PATH", "DeploymentBook"]

DEPLOYMENTS_PATH = "/api/v2/engineering-insights/deployments"

_STATUSES = ("started", "finished", "failed")
_WEEK_MS = 7 * 24 * 60 * 60 * 1000


@dataclass
class _Deployment:
    identity: tuple[str, str, str, str]
    kind: str
    status: str
    started_at: int
    ended_at: int | None = None
    duration_ms: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def close(self, status: str, ended_at: int) -> None:
        self.status = status
        self.ended_at = ended_at
        self.duration_ms = ended_at - self.started_at

    def reopen(self) -> None:
        self.status = "started"
        self.ended_at = self.duration_ms = None


class DeploymentBook:
    """Every deployment that the accepted events tell of. Not thread-safe: the server calls it under its own lock."""

    def __init__(self) -> None:
        self._by_id: dict[str, _Deployment] = {}
        self._by_identity: dict[tuple[str, str, str, str], list[_Deployment]] = {}

    def apply(self, event: Mapping[str, Any], now: int) -> None:
        """Open, close or annotate a deployment.

        Args:
            event: the body of an event that breaks no rule.
            now: Unix milliseconds, for an event that does not tell its own time.
        """
        identity = (event["projectKey"], event["environmentKey"], event["applicationKey"], event["version"])
        time = event.get("eventTime", now)
        same = self._by_identity.setdefault(identity, [])
        deployment = next((one for one in reversed(same) if one.status == "started"), None)
        event_type = event["eventType"]
        if event_type == "custom" and deployment is None:
            return
        if event_type == "started" or deployment is None:
            deployment = _Deployment(identity, "redeployment" if same else "deployment", event_type, time)
            if event_type != "started":
                # A lone end: it started when it ended, and has no duration.
                deployment.ended_at = time
            same.append(deployment)
            self._by_id[deployment.id] = deployment
        elif event_type != "custom":
            deployment.close(event_type, time)
        deployment.metadata.update(copy.deepcopy(event.get("deploymentMetadata", {})))

    def items(self) -> list[dict[str, Any]]:
        """Return every deployment as it reads back, in the order of arrival, with its ``projectKey`` added."""
        active = self._active()
        return [{**_item(one, active), "projectKey": one.identity[0]} for one in self._by_id.values()]

    def get(self, deployment_id: str) -> dict[str, Any] | None:
        """Return one deployment as it reads back, or None."""
        found = self._by_id.get(deployment_id)
        return None if found is None else _item(found, self._active())

    def patch(self, deployment_id: str, operations: Any, now: int) -> dict[str, Any] | None:
        """Replace the status by a JSON patch and return the deployment, or None when there is none of this id.

        Args:
            deployment_id: the ``id`` of an item.
            operations: the parsed JSON patch; only ``replace`` of ``/status`` is known here.
            now: Unix milliseconds, the end of a deployment that is closed by hand.

        Raises:
            Refused: the patch asks for anything else; nothing is changed then.
        """
        found = self._by_id.get(deployment_id)
        if found is None:
            return None
        if not isinstance(operations, list) or not operations:
            raise Refused(Violation("body", "must be a JSON patch: a list of operations"))
        for operation in operations:
            if not isinstance(operation, dict) or (operation.get("op"), operation.get("path")) != (
                "replace",
                "/status",
            ):
                raise Refused(Violation("path", "only /status can be replaced"))
            if operation.get("value") not in _STATUSES:
                raise Refused(Violation("value", f"must be one of {', '.join(_STATUSES)}"))
        status = operations[-1]["value"]
        if status == "started":
            found.reopen()
        elif found.ended_at is None:
            found.close(status, now)
        else:
            found.status = status
        return _item(found, self._active())

    def page(self, query: Mapping[str, str], now: int) -> dict[str, Any]:
        """Return one page of deployments, the last started first: ``{totalCount, items, _links}``.

        Args:
            query: the query parameters.
            now: Unix milliseconds.

        Raises:
            Refused: a required parameter is missing, or one cannot be used.
        """
        missing = [name for name in ("projectKey", "environmentKey") if not query.get(name)]
        if missing:
            raise Refused(*(Violation(name, "is required") for name in missing))
        limit = _number(query, "limit", 20)
        if not 1 <= limit <= 100:
            raise Refused(Violation("limit", "must be between 1 and 100"))
        matching = self._matching(query, now)
        ids = [deployment.id for deployment in matching]
        for name in ("after", "before"):
            if name in query and query[name] not in ids:
                raise Refused(Violation(name, "is no cursor of this list"))
        first = ids.index(query["after"]) + 1 if "after" in query else 0
        last = ids.index(query["before"]) if "before" in query else len(ids)
        # Going back, the page is the one that touches the cursor.
        shown = matching[first:last][-limit:] if "before" in query else matching[first:last][:limit]
        links = {"self": _link(query)}
        if shown and shown[-1].id != ids[-1]:
            others = {name: value for name, value in query.items() if name not in ("after", "before")}
            links["next"] = _link({**others, "after": shown[-1].id})
        active = self._active()
        return {"totalCount": len(matching), "items": [_item(one, active) for one in shown], "_links": links}

    def _matching(self, query: Mapping[str, str], now: int) -> list[_Deployment]:
        since, until = _number(query, "from", now - _WEEK_MS), _number(query, "to", now)
        applications = set(filter(None, query.get("applicationKey", "").split(",")))
        matching = [
            one
            for one in self._by_id.values()
            if one.identity[:2] == (query["projectKey"], query["environmentKey"])
            and since <= one.started_at <= until
            and (not applications or one.identity[2] in applications)
            and query.get("kind", one.kind) == one.kind
            and query.get("status", one.status) == one.status
        ]
        # By time, then turned round: of two that started in the same millisecond, the later told comes first.
        return sorted(matching, key=lambda one: one.started_at)[::-1]

    def _active(self) -> set[str]:
        last: dict[tuple[str, ...], _Deployment] = {}
        for one in self._by_id.values():
            place = one.identity[:3]
            if one.status == "finished" and (place not in last or (one.ended_at or 0) >= (last[place].ended_at or 0)):
                last[place] = one
        return {one.id for one in last.values()}


def _item(deployment: _Deployment, active: set[str]) -> dict[str, Any]:
    _, environment_key, application_key, version = deployment.identity
    item = {
        "id": deployment.id,
        "applicationKey": application_key,
        "applicationVersion": version,
        "environmentKey": environment_key,
        "startedAt": deployment.started_at,
        "endedAt": deployment.ended_at,
        "durationMs": deployment.duration_ms,
        "status": deployment.status,
        "kind": deployment.kind,
        "active": deployment.id in active,
        "archived": False,
        "metadata": copy.deepcopy(deployment.metadata) or None,
        "leadTime": 0,
        "numberOfContributors": 0,
        "numberOfPullRequests": 0,
        "linesAdded": 0,
        "linesDeleted": 0,
    }
    return {name: value for name, value in item.items() if value is not None}


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(query.get(name, default))
    except ValueError:
        raise Refused(Violation(name, "must be a whole number")) from None


def _link(query: Mapping[str, str]) -> dict[str, str]:
    return {"href": f"{DEPLOYMENTS_PATH}?{urlencode(query)}", "type": "application/json"}
