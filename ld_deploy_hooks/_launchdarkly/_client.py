"""The client: sends one event, reads deployments back, checks the token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

from ld_deploy_hooks._errors import DeployHooksError
from ld_deploy_hooks._launchdarkly._answers import (
    Answer,
    Outcome,
    hold_back,
    json_object,
    no_answer,
    outcome_of,
    refusal,
)
from ld_deploy_hooks._launchdarkly._transport import Transport

__all__ = ["Client", "LaunchDarklyError"]

_EVENTS = "/api/v2/engineering-insights/deployment-events"
_DEPLOYMENTS = "/api/v2/engineering-insights/deployments"
_CALLER_IDENTITY = "/api/v2/caller-identity"

# Bytes of an answer that are read: to a POST, where only a refusal says anything; to a GET.
_MOST_OF_AN_ANSWER = 64 * 1024
_MOST_OF_A_PAGE = 16 * 1024 * 1024

_THEN = {
    Outcome.RETRY: "The event is kept and sent again later.",
    Outcome.STOP: "The event is kept; the next run tries again.",
    Outcome.REJECTED: "The event is kept as rejected and not sent again.",
}


class LaunchDarklyError(DeployHooksError):
    """LaunchDarkly cannot be read.

    Attributes:
        status: HTTP status; None when there was no answer.
    """

    def __init__(self, message: str, *, status: int | None) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """Speaks to LaunchDarkly with one access token. Threads may share it.

    Args:
        base_uri: as the settings checked it; a user, a query or a fragment in it is left out.
        token: the access token.
        api_version: the value of ``LD-API-Version``; empty leaves the header out.
        loopback: the base URI's host is this machine: it is reached past any proxy, and by plain http if it says so.
        user_agent: the value of ``User-Agent``.
        connect_timeout: seconds, for every address of the host.
        read_timeout: seconds from the end of the request to the end of the answer, however slowly it drips.
        keep_alive: seconds after which an idle connection is not used again: the service may be about to close it, and
            whether an event that meets the close was accepted cannot be known.

    Raises:
        ValueError: plain http to another host than loopback, where anybody could read the token.
    """

    def __init__(
        self,
        *,
        base_uri: str,
        token: str,
        api_version: str = "beta",
        loopback: bool,
        user_agent: str,
        connect_timeout: float = 3.0,
        read_timeout: float = 10.0,
        keep_alive: float = 30.0,
    ) -> None:
        parts = urlsplit(base_uri)
        if parts.scheme != "https" and not loopback:
            raise ValueError("a base URI that is not https is for loopback only")
        self._host = parts.netloc.rpartition("@")[2]
        self._root = f"{parts.scheme}://{self._host}{parts.path.rstrip('/')}"
        self._token = token
        # No compression: an answer is read to a bound, and what is not packed cannot be packed wrongly.
        self._headers = {"User-Agent": user_agent, "Accept": "application/json", "Accept-Encoding": "identity"}
        if api_version:
            self._headers["LD-API-Version"] = api_version
        self._transport = Transport(
            token=token,
            past_proxies=loopback,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            keep_alive=keep_alive,
        )

    def __repr__(self) -> str:
        return f"Client({self._root!r})"

    def load(self) -> None:
        """Import requests now, which takes a quarter of a second, not with the first request."""
        self._transport.load()

    def post(self, payload: str) -> Answer:
        """Send one event, exactly as it is, and return what becomes of it.

        Raises nothing that the network or the service does.
        """
        headers = {**self._headers, "Content-Type": "application/json"}
        # What is no legal text is no legal event either: the service says so, of this event alone.
        body = payload.encode("utf-8", "surrogatepass")
        reply = self._transport.exchange("POST", self._root + _EVENTS, headers, body, most=_MOST_OF_AN_ANSWER)
        if reply.status is None:
            return Answer(Outcome.RETRY, None, f"{no_answer(self._host, reply.error)} {_THEN[Outcome.RETRY]}")
        outcome = outcome_of(reply.status)
        if outcome is Outcome.ACCEPTED:
            line = f"{self._host} accepted the event (201)."
        else:
            line = f"{refusal(self._host, reply.status, reply.body, self._token)} {_THEN[outcome]}"
        return Answer(outcome, reply.status, line, hold_back(reply.status, reply.headers))

    def deployments(
        self,
        *,
        project_key: str,
        environment_key: str,
        application_key: str | None = None,
        since: int | None = None,
        until: int | None = None,
        limit: int = 100,
    ) -> Iterator[dict[str, Any]]:
        """Yield the deployments that LaunchDarkly knows, page by page. It has no filter by version.

        Args:
            project_key: LaunchDarkly project.
            environment_key: LaunchDarkly environment.
            application_key: of this application only.
            since: Unix milliseconds; LaunchDarkly goes back seven days if this is None.
            until: Unix milliseconds.
            limit: how many are asked for at a time, at most 100.

        Raises:
            LaunchDarklyError: no answer, a refusal, or an answer that is not LaunchDarkly's (while iterating).
        """
        asked = {
            "projectKey": project_key,
            "environmentKey": environment_key,
            "applicationKey": application_key,
            "from": since,
            "to": until,
            "limit": limit,
        }
        query = urlencode({name: value for name, value in asked.items() if value is not None})
        seen: set[str] = set()
        while query not in seen:
            seen.add(query)
            page = self._get(_DEPLOYMENTS, query)
            items = page.get("items")
            if not isinstance(items, list):
                raise self._foreign()
            yield from (item for item in items if isinstance(item, dict))
            following = _next_of(page)
            if not items or following is None:
                return
            if not _same_origin(self._root, following):
                raise self._foreign()
            query = urlsplit(following).query
        # A page that leads back to an earlier one would be read for ever.
        raise self._foreign()

    def caller_identity(self) -> dict[str, Any]:
        """Return what LaunchDarkly knows of the token: a check of it that changes nothing.

        Raises:
            LaunchDarklyError: no answer, a refusal, or an answer that is not LaunchDarkly's.
        """
        return self._get(_CALLER_IDENTITY)

    def close(self) -> None:
        """Close every connection; one that is in use closes when its request ends."""
        self._transport.close()

    def _get(self, path: str, query: str = "") -> dict[str, Any]:
        url = self._root + path + (f"?{query}" if query else "")
        reply = self._transport.exchange("GET", url, self._headers, None, most=_MOST_OF_A_PAGE)
        if reply.status is None or (reply.status == 200 and reply.error):
            raise LaunchDarklyError(no_answer(self._host, reply.error), status=reply.status)
        if reply.status != 200:
            raise LaunchDarklyError(refusal(self._host, reply.status, reply.body, self._token), status=reply.status)
        answer = json_object(reply.body)
        if answer is None:
            raise self._foreign()
        return answer

    def _foreign(self) -> LaunchDarklyError:
        return LaunchDarklyError(
            f"{self._host} did not answer as LaunchDarkly does. Check LD_BASE_URI (base_uri) and HTTPS_PROXY.",
            status=200,
        )


def _next_of(page: dict[str, Any]) -> str | None:
    links = page.get("_links")
    following = links.get("next") if isinstance(links, dict) else None
    href = following.get("href") if isinstance(following, dict) else None
    return href if isinstance(href, str) else None


def _same_origin(root: str, link: str) -> bool:
    """Return whether ``link``, as it stands in an answer from ``root``, leads back to the same server."""
    try:
        origins = [
            (parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme))
            for parts in (urlsplit(root), urlsplit(urljoin(root, link)))
        ]
    except ValueError:  # no URL at all
        return False
    return origins[0] == origins[1]
