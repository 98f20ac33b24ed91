"""The server that tests talk to: what it answers, what it keeps, and the faults that it was asked for."""

from __future__ import annotations

import copy
import hashlib
import hmac
import ipaddress
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any

from ld_deploy_hooks.testing._rules import Refused, event_violations, parse_json
from ld_deploy_hooks.testing._state import DEPLOYMENTS_PATH, DeploymentBook
from ld_deploy_hooks.testing._wire import Answer, RecordedRequest, WireServer, error_answer

__all__ = ["FakeLaunchDarkly"]

_EVENTS_PATH = "/api/v2/engineering-insights/deployment-events"
_IDENTITY_PATH = "/api/v2/caller-identity"

_Route = Callable[[RecordedRequest, "str | None"], Answer]


class FakeLaunchDarkly:
    """LaunchDarkly's deployment events on the loopback address: post, then read back.

    A context manager; :meth:`start` and :meth:`close` do the same by hand. After :meth:`close` it can be started again:
    on the same port, with all that it kept, like a service that was away for a while.

    Args:
        token: the access token that is asked for; None accepts any that is not empty. It is kept as a digest only.
        host: ``localhost`` or a loopback address.
        port: 0 takes a free one.
        ssl_context: serve https with it (``ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)`` with a certificate loaded).
        strict_fields: refuse fields that LaunchDarkly does not know; it would ignore them without a word.
        empty_body: a 201 has no body; otherwise ``{}``. LaunchDarkly may do either.
        delay: seconds before every answer; may be set later too.

    Attributes:
        delay: see above.

    Raises:
        ValueError: ``host`` is not loopback.
    """

    def __init__(
        self,
        token: str | None = "api-test-token",
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        ssl_context: ssl.SSLContext | None = None,
        strict_fields: bool = True,
        empty_body: bool = True,
        delay: float = 0.0,
    ) -> None:
        self.delay = delay
        self._host = host
        self._address = _loopback(host)
        self._port = port
        self._token = None if token is None else _digest(token.encode())
        self._ssl_context = ssl_context
        self._strict_fields = strict_fields
        self._empty_body = empty_body
        self._wire: WireServer | None = None
        # Guards everything below; notified when a request was recorded.
        self._changed = threading.Condition()
        self._standing: Answer | None = None
        self._queued: deque[Answer] = deque()
        self._forget()

    def __repr__(self) -> str:
        where = "closed" if self._wire is None else self.base_uri
        with self._changed:
            return f"<{type(self).__name__} {where}, {len(self._events)} events of {len(self._requests)} requests>"

    def __enter__(self) -> FakeLaunchDarkly:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Bind the port and serve, in threads of its own.

        Raises:
            RuntimeError: it is started already.
            OSError: the port cannot be bound.
        """
        if self._wire is not None:
            raise RuntimeError("the server is started already")
        self._wire = WireServer((self._address, self._port), self._respond, self._ssl_context)
        self._port = self._wire.server_address[1]

    def close(self) -> None:
        """Stop serving and cut off whoever still waits; what was kept stays. Doing it again does nothing."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.stop()

    @property
    def base_uri(self) -> str:
        """For example ``http://127.0.0.1:54321``; still there after :meth:`close`.

        Raises:
            RuntimeError: it was never started, and has no port yet.
        """
        if not self._port:
            raise RuntimeError("the server has no port before it is started")
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'http' if self._ssl_context is None else 'https'}://{host}:{self._port}"

    @property
    def events(self) -> list[dict[str, Any]]:
        """The bodies of the events that were accepted, in order of arrival (a copy)."""
        with self._changed:
            return copy.deepcopy(self._events)

    @property
    def requests(self) -> list[RecordedRequest]:
        """Every request that arrived whole, whatever it was answered by, in order of arrival (a copy)."""
        with self._changed:
            return list(self._requests)

    @property
    def deployments(self) -> list[dict[str, Any]]:
        """What the accepted events make, in order of arrival: items as they read back, with ``projectKey`` added."""
        with self._changed:
            return self._book.items()

    def wait_for(
        self, count: int | None = None, *, event_type: str | None = None, timeout: float | None = 5.0
    ) -> list[dict[str, Any]]:
        """Wait until enough events were accepted, and return all of them that match.

        An event is kept when it arrives; its sender learns of that only after the delay, if there is one.

        Args:
            count: at least so many; None for one.
            event_type: count and return only those of this eventType.
            timeout: seconds; None waits for ever.

        Raises:
            AssertionError: too few came in time. It lists what was seen.
        """
        wanted = 1 if count is None else count
        with self._changed:
            if not self._changed.wait_for(lambda: self._seen[event_type] >= wanted, timeout):
                kind = "" if event_type is None else f" of type {event_type!r}"
                raise AssertionError(
                    f"waited {timeout} s for {wanted} event(s){kind}, saw {self._seen[event_type]}.\n{self._story()}"
                )
            matching = [one for one in self._events if event_type is None or one["eventType"] == event_type]
            return copy.deepcopy(matching)

    def clear(self) -> None:
        """Forget events, requests, deployments, and the answers that were asked for."""
        with self._changed:
            self._standing = None
            self._queued.clear()
            self._forget()

    def answer_next(self, *answers: int | Answer) -> None:
        """Answer the coming POSTs of events by these, one each, before anything else does.

        Where an event would be kept (a 201, or ``accept``), it must still pass the checks of token and body; an answer
        that keeps nothing comes before any check.

        Args:
            answers: statuses, or more of an :class:`Answer`.
        """
        with self._changed:
            self._queued.extend(map(_answer, answers))

    def answer_always(self, answer: int | Answer | None) -> None:
        """Answer every POST of events for which nothing is queued by this, until told otherwise.

        Args:
            answer: a status, or more of an :class:`Answer`; None to be healthy again.
        """
        with self._changed:
            self._standing = None if answer is None else _answer(answer)

    def _forget(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._requests: list[RecordedRequest] = []
        self._book = DeploymentBook()
        # By eventType; None counts all.
        self._seen: Counter[str | None] = Counter()

    def _story(self) -> str:
        keys = ("eventType", "applicationKey", "version")
        events = [" ".join(event[key] for key in keys) for event in self._events]
        requests = [f"{one.method} {one.path} -> {one.status or 'no answer'}" for one in self._requests]
        lines = ["accepted:", *events, "requests:", *requests]
        return "\n".join(line if line.endswith(":") else f"  {line}" for line in lines)

    def _respond(self, request: RecordedRequest, authorization: str | None) -> Answer:
        with self._changed:
            answer = self._route(request, authorization)
            status = None if answer.hang or answer.reset else answer.status
            self._requests.append(replace(request, status=status))
            self._changed.notify_all()
        return replace(answer, delay=answer.delay + self.delay)

    def _route(self, request: RecordedRequest, authorization: str | None) -> Answer:
        routes: dict[str, _Route] = {}
        if request.path == _EVENTS_PATH:
            routes = {"POST": self._post_event}
        elif request.path == _IDENTITY_PATH:
            routes = {"GET": self._caller_identity}
        elif request.path == DEPLOYMENTS_PATH:
            routes = {"GET": self._list_deployments}
        elif request.path.startswith(f"{DEPLOYMENTS_PATH}/"):
            routes = {"GET": self._get_deployment, "PATCH": self._patch_deployment}
        if not routes:
            return error_answer(404, "Invalid resource identifier")
        if request.method not in routes:
            return replace(error_answer(405), headers={"Allow": ", ".join(routes)})
        try:
            return routes[request.method](request, authorization)
        except Refused as refused:
            return error_answer(400, "Invalid request", errors=[one._asdict() for one in refused.violations])

    def _post_event(self, request: RecordedRequest, authorization: str | None) -> Answer:
        answer = self._queued.popleft() if self._queued else self._standing or Answer()
        keeps = answer.accept
        if keeps is None:
            keeps = answer.status == 201 and not answer.reset and not answer.hang
        if keeps:
            refusal = self._unauthorized(authorization) or _no_json(request)
            if refusal is not None:
                return refusal
            self._keep(parse_json(request.body))
        return answer if answer.body is not None else replace(answer, body=self._usual_body(answer.status))

    def _usual_body(self, status: int) -> bytes | Mapping[str, Any] | None:
        if status >= 400:
            return error_answer(status).body
        return {} if status == 201 and not self._empty_body else b""

    def _keep(self, event: Any) -> None:
        violations = event_violations(event, strict_fields=self._strict_fields)
        if violations:
            raise Refused(*violations)
        self._events.append(event)
        self._seen.update((event["eventType"], None))
        self._book.apply(event, _now())

    def _caller_identity(self, request: RecordedRequest, authorization: str | None) -> Answer:
        identity = {
            "accountId": "fake-account",
            "tokenName": "fake-token",
            "tokenId": "fake-token-id",
            "memberId": "fake-member",
            "serviceToken": True,
        }
        return self._unauthorized(authorization) or Answer(200, body=identity)

    def _list_deployments(self, request: RecordedRequest, authorization: str | None) -> Answer:
        refusal = self._unauthorized(authorization) or _not_beta(request)
        return refusal or Answer(200, body=self._book.page(request.query, _now()))

    def _get_deployment(self, request: RecordedRequest, authorization: str | None) -> Answer:
        refusal = self._unauthorized(authorization) or _not_beta(request)
        return refusal or _item_or_404(self._book.get(_last_part(request.path)))

    def _patch_deployment(self, request: RecordedRequest, authorization: str | None) -> Answer:
        refusal = self._unauthorized(authorization) or _not_beta(request) or _no_json(request)
        if refusal is not None:
            return refusal
        return _item_or_404(self._book.patch(_last_part(request.path), parse_json(request.body), _now()))

    def _unauthorized(self, authorization: str | None) -> Answer | None:
        given = (authorization or "").encode("latin-1", "replace")
        known = bool(given) if self._token is None else hmac.compare_digest(_digest(given), self._token)
        # LaunchDarkly takes the bare token: "Bearer" is the commonest mistake.
        if known and not given.startswith(b"Bearer "):
            return None
        return error_answer(401, "Invalid access token")


def _loopback(host: str) -> str:
    if host == "localhost":
        return "127.0.0.1"
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ValueError(f"host must be localhost or a loopback address, not {host!r}: this server is for tests only")
    return host


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _answer(answer: int | Answer) -> Answer:
    return answer if isinstance(answer, Answer) else Answer(answer)


def _now() -> int:
    return time.time_ns() // 1_000_000


def _no_json(request: RecordedRequest) -> Answer | None:
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return None if kind == "application/json" else error_answer(415, "Content-Type must be application/json")


def _not_beta(request: RecordedRequest) -> Answer | None:
    if request.headers.get("LD-API-Version") == "beta":
        return None
    return error_answer(403, "This resource is in beta: the header LD-API-Version: beta is needed")


def _last_part(path: str) -> str:
    return path.rpartition("/")[2]


def _item_or_404(item: dict[str, Any] | None) -> Answer:
    return error_answer(404, "Invalid resource identifier") if item is None else Answer(200, body=item)
