"""FakeLaunchDarkly: its rules, what it makes of events, its faults, and that nothing of it stays behind."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from ld_deploy_hooks._errors import EventError
from ld_deploy_hooks._records import DeploymentEvent
from ld_deploy_hooks.testing import Answer, FakeLaunchDarkly
from ld_deploy_hooks.testing._rules import event_violations
from ld_deploy_hooks.testing._wire import WireServer

TOKEN = "api-test-token"
EVENTS = "/api/v2/engineering-insights/deployment-events"
DEPLOYMENTS = "/api/v2/engineering-insights/deployments"
IDENTITY = "/api/v2/caller-identity"
NOW = time.time_ns() // 1_000_000
DAY = 24 * 60 * 60 * 1000


def event(event_type: str = "started", **changes: Any) -> dict[str, Any]:
    """Return the body of an event; a field that is changed to ``...`` is left out."""
    body = {
        "projectKey": "default",
        "environmentKey": "production",
        "applicationKey": "billing-service",
        "version": "a90a8a2",
        "eventType": event_type,
        "eventTime": NOW,
    }
    return {name: value for name, value in (body | changes).items() if value is not ...}


@dataclasses.dataclass
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection, kept alive; what is sent is right unless a test says otherwise."""

    def __init__(self, server: FakeLaunchDarkly, timeout: float = 10.0, context: ssl.SSLContext | None = None) -> None:
        url = urlsplit(server.base_uri)
        assert url.hostname is not None
        if url.scheme == "https":
            self.connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                url.hostname, url.port, timeout=timeout, context=context
            )
        else:
            self.connection = http.client.HTTPConnection(url.hostname, url.port, timeout=timeout)

    def call(self, method: str, path: str, body: Any = None, **headers: str | None) -> Reply:
        sent = {"Authorization": TOKEN, "Content_Type": "application/json", "LD_API_Version": "beta"} | headers
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        fields = {name.replace("_", "-"): value for name, value in sent.items() if value is not None}
        self.connection.request(method, path, raw, fields)
        answer = self.connection.getresponse()
        return Reply(answer.status, answer.headers, answer.read())

    def post(self, body: Any, **headers: str | None) -> Reply:
        return self.call("POST", EVENTS, body, **headers)

    def deployments(self, **query: Any) -> Any:
        named = {"projectKey": "default", "environmentKey": "production"} | query
        return self.call("GET", f"{DEPLOYMENTS}?{'&'.join(f'{name}={value}' for name, value in named.items())}").json


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in 10 s"
        time.sleep(0.005)


@pytest.fixture
def server() -> Iterator[FakeLaunchDarkly]:
    with FakeLaunchDarkly() as server:
        yield server


@pytest.fixture
def client(server: FakeLaunchDarkly) -> Iterator[Client]:
    client = Client(server)
    yield client
    client.connection.close()


@pytest.fixture
def connect() -> Iterator[Callable[..., Client]]:
    """Return what makes a client of any server."""
    with contextlib.ExitStack() as stack:

        def connect(server: FakeLaunchDarkly, **options: Any) -> Client:
            client = Client(server, **options)
            stack.callback(client.connection.close)
            return client

        yield connect


# -- the rules --------------------------------------------------------------------------------------------------------


def test_an_event_is_accepted_and_kept(server: FakeLaunchDarkly, client: Client) -> None:
    full = event(
        applicationName="Billing",
        applicationKind="browser",
        versionName="v1",
        eventMetadata={"a": [1]},
        deploymentMetadata={},
    )
    answers = [client.post(full), client.post(event("finished", eventTime=...))]
    assert [(answer.status, answer.body) for answer in answers] == [(201, b""), (201, b"")]
    assert server.events == [full, event("finished", eventTime=...)]


BROKEN: list[tuple[dict[str, Any], str]] = [
    *(
        ({name: value}, name)
        for name in ("projectKey", "environmentKey", "applicationKey", "version", "eventType")
        for value in (..., "", 1)
    ),
    *(({"version": value}, "version") for value in ("a b", "a/b", "v1\n", "ü1", "\u0661")),
    ({"eventType": "Started"}, "eventType"),
    ({"applicationKind": "mobil"}, "applicationKind"),
    ({"applicationKind": ["server"]}, "applicationKind"),
    ({"applicationName": 1}, "applicationName"),
    ({"versionName": {}}, "versionName"),
    *(({"eventTime": value}, "eventTime") for value in ("1", 1.0, True, 2**63)),
    ({"eventMetadata": []}, "eventMetadata"),
    ({"deploymentMetadata": "{}"}, "deploymentMetadata"),
]


@pytest.mark.parametrize(("changes", "attribute"), BROKEN)
def test_an_event_that_breaks_a_rule_is_refused(
    server: FakeLaunchDarkly, client: Client, changes: dict[str, Any], attribute: str
) -> None:
    answer = client.post(event(**changes))
    assert answer.status == 400
    assert answer.headers["Content-Type"] == "application/json"
    assert (answer.json["code"], [error["attribute"] for error in answer.json["errors"]]) == (
        "invalid_request",
        [attribute],
    )
    assert server.events == server.deployments == []
    assert server.requests[0].status == 400


def test_every_broken_rule_is_told(client: Client) -> None:
    errors = client.post(event(version="a b", projectKey=..., eventTime="now", kind="x")).json["errors"]
    assert {error["attribute"]: error["reason"] for error in errors} == {
        "projectKey": "is required",
        "version": "may hold only letters, digits, '.', '-' and '_'",
        "eventTime": "must be Unix milliseconds, a whole number of 64 bits",
        "kind": "is not a field of a deployment event",
    }


@pytest.mark.parametrize("name", ["applicationName", "applicationKind", "versionName", "eventTime", "eventMetadata"])
def test_null_is_no_value(client: Client, name: str) -> None:
    assert client.post(event(**{name: None})).json["errors"][0]["attribute"] == name


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"started"',
        json.dumps(event()).encode("utf-16"),
        json.dumps(event(eventMetadata={"x": float("nan")})).encode(),
        json.dumps(event(eventMetadata={"x": -float("inf")})).encode(),
        b"[" * 100_000 + b"]" * 100_000,
    ],
    ids=["empty", "cut off", "list", "string", "UTF-16", "NaN", "-Infinity", "deep"],
)
def test_what_is_no_json_object_is_refused(server: FakeLaunchDarkly, client: Client, body: bytes) -> None:
    answer = client.post(body)
    assert (answer.status, answer.json["errors"][0]["attribute"]) == (400, "body")
    assert server.events == []


def test_unknown_fields_are_ignored_only_when_asked(connect: Callable[..., Client]) -> None:
    with FakeLaunchDarkly(strict_fields=False) as lenient:
        assert connect(lenient).post(event(kind="x")).status == 201
        assert connect(lenient).post(event(version="a b")).status == 400


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json; charset=utf-8", 201),
        ("APPLICATION/JSON", 201),
        ("text/plain", 415),
        ("application/jsonx", 415),
        (None, 415),
    ],
)
def test_the_content_type_must_be_json(client: Client, content_type: str | None, status: int) -> None:
    assert client.post(event(), Content_Type=content_type).status == status


def test_an_event_needs_no_beta_header(client: Client) -> None:
    assert client.post(event(), LD_API_Version=None).status == 201


VALUES = [
    *("started", "Started", "custom", "server", "mobile", "v1.0_x-y", "", " ", "a b", "a\n", "\u00fc"),
    *(0, NOW, 2**63 - 1, 2**63, 1.0, True, [], ["server"], {}, {"a": [None]}),
]


@pytest.mark.parametrize(
    "name", [*event(), "applicationName", "applicationKind", "versionName", "eventMetadata", "deploymentMetadata"]
)
def test_our_own_records_obey_the_same_rules(name: str) -> None:
    told: dict[bool, list[Any]] = {True: [], False: []}
    for value in VALUES:
        body = event(**{name: value})
        legal = event_violations(body, strict_fields=True) == []
        told[legal].append(value)
        if legal:
            sent = json.loads(DeploymentEvent.from_json(json.dumps(body)).to_json())
            assert event_violations(sent, strict_fields=True) == []
            assert sent == {key: what for key, what in body.items() if what != {}}
        else:
            with pytest.raises(EventError):
                DeploymentEvent.from_json(json.dumps(body))
    assert told[True]
    assert told[False]


# -- tokens, paths, HTTP ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"), [("POST", EVENTS), ("GET", DEPLOYMENTS), ("GET", IDENTITY), ("PATCH", f"{DEPLOYMENTS}/x")]
)
@pytest.mark.parametrize(
    ("token", "given"),
    [
        (TOKEN, None),
        (TOKEN, ""),
        (TOKEN, "api-wrong"),
        (TOKEN, f"Bearer {TOKEN}"),
        (None, None),
        (None, ""),
        (None, "Bearer api-any"),
    ],
)
def test_a_wrong_token_is_401(
    connect: Callable[..., Client], method: str, path: str, token: str | None, given: str | None
) -> None:
    with FakeLaunchDarkly(token) as server:
        answer = connect(server).call(method, path, event() if method == "POST" else None, Authorization=given)
        assert (answer.status, answer.json) == (401, {"code": "unauthorized", "message": "Invalid access token"})
        assert server.events == []


def test_without_a_token_any_will_do(connect: Callable[..., Client]) -> None:
    with FakeLaunchDarkly(None) as server:
        assert connect(server).post(event(), Authorization="api-any").status == 201


def texts_within(root: object) -> set[str]:
    """Return every text that can be reached from an object, private or not."""
    texts, seen, waiting = set(), set(), [root]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, (type, types.ModuleType, types.FunctionType)):
            continue
        seen.add(id(one))
        if isinstance(one, (str, bytes)):
            texts.add(one if isinstance(one, str) else one.decode("latin-1"))
        else:
            waiting += gc.get_referents(one)
    return texts


def test_a_token_is_kept_nowhere(connect: Callable[..., Client]) -> None:
    with FakeLaunchDarkly("api-right") as server:
        client = connect(server)
        client.post(event(), Authorization="api-right")
        client.post(event(), Authorization="api-wrong")
        client.call("GET", DEPLOYMENTS, Authorization="api-right")
        with pytest.raises(AssertionError) as raised:
            server.wait_for(9, timeout=0)
        texts = texts_within(server) | {str(raised.value), repr(server), repr(server.requests), repr(server.events)}
    assert any("billing-service" in text for text in texts)
    assert not [text for text in texts if "api-right" in text or "api-wrong" in text]
    assert [request.headers["authorization"] for request in server.requests] == ["[redacted]"] * 3


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/", 404, None),
        ("POST", f"{EVENTS}/", 404, None),
        ("POST", "/api/v2/engineering-insights", 404, None),
        ("POST", "http://elsewhere.example" + EVENTS, 404, None),
        ("GET", EVENTS, 405, "POST"),
        ("PUT", EVENTS, 405, "POST"),
        ("DELETE", f"{DEPLOYMENTS}/x", 405, "GET, PATCH"),
        ("POST", DEPLOYMENTS, 405, "GET"),
        ("OPTIONS", IDENTITY, 405, "GET"),
        ("BREW", IDENTITY, 501, None),
    ],
)
def test_other_paths_and_methods_are_refused(
    server: FakeLaunchDarkly, client: Client, method: str, path: str, status: int, allow: str | None
) -> None:
    answer = client.call(method, path, event())
    assert (answer.status, answer.headers["Allow"], answer.json.keys()) == (status, allow, {"code", "message"})
    assert server.events == []


def raw(server: FakeLaunchDarkly, request: bytes) -> bytes:
    """Send bytes as they are, and return all that comes back until the server closes."""
    url = urlsplit(server.base_uri)
    with socket.create_connection((url.hostname, url.port), timeout=10) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_the_answer_to_a_head_has_no_body(server: FakeLaunchDarkly) -> None:
    answer = raw(server, f"HEAD {EVENTS} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"POST %s HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST %s HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST %s HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"POST %s HTTP/1.1\r\nContent-Length: 999999999\r\n\r\n", 413),
        (b"POST /%s" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
    ],
)
def test_what_is_no_proper_http_is_refused_and_the_connection_closed(
    server: FakeLaunchDarkly, request_: bytes, status: int
) -> None:
    head, _, body = raw(server, request_.replace(b"%s", EVENTS.encode())).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nConnection: close" in head
    assert json.loads(body).keys() == {"code", "message"}
    assert server.requests == []


def test_a_request_that_is_cut_off_leaves_no_trace(server: FakeLaunchDarkly, client: Client) -> None:
    url = urlsplit(server.base_uri)
    with socket.create_connection((url.hostname, url.port), timeout=10) as connection:
        connection.sendall(f"POST {EVENTS} HTTP/1.1\r\nContent-Length: 9\r\n\r\n{{".encode())
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    client.post(event())
    assert len(server.requests) == 1


def test_a_request_is_recorded_as_it_came(server: FakeLaunchDarkly, client: Client) -> None:
    before = time.monotonic()
    client.call("GET", f"{DEPLOYMENTS}?projectKey=a%20b&projectKey=c&limit=", User_Agent="ua/1")
    client.post(b"\xff", Authorization=None)
    after = time.monotonic()
    first, second = server.requests
    assert (first.method, first.path, first.query) == ("GET", DEPLOYMENTS, {"projectKey": "c", "limit": ""})
    assert (first.headers["User-Agent"], first.headers["user-agent"]) == ("ua/1", "ua/1")
    assert (second.method, second.body, second.status) == ("POST", b"\xff", 401)
    assert "Authorization" not in second.headers
    assert before <= first.arrived <= second.arrived <= after
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.status = 200  # type: ignore[misc]
    with pytest.raises(TypeError):
        first.headers["a"] = "b"  # type: ignore[index]


def test_a_repeated_header_is_one_list(server: FakeLaunchDarkly) -> None:
    raw(server, b"GET / HTTP/1.1\r\nVia: a\r\nvia: b\r\nConnection: close\r\n\r\n")
    assert server.requests[0].headers["Via"] == "a, b"
    assert dict(server.requests[0].headers) == {"via": "a, b", "Connection": "close"}
    assert len(server.requests[0].headers) == 2


def test_a_connection_is_kept_and_can_be_told_from_another(
    server: FakeLaunchDarkly, client: Client, connect: Callable[..., Client]
) -> None:
    client.post(b"no json")
    client.post(event())
    connect(server).post(event())
    first, second, other = (request.peer_port for request in server.requests)
    assert first == second != other


def test_many_at_once_lose_nothing(server: FakeLaunchDarkly, connect: Callable[..., Client]) -> None:
    clients = [connect(server) for _ in range(20)]

    def post(number: int) -> None:
        for step in range(5):
            clients[number].post(event("custom", version=f"{number}.{step}"))

    threads = [threading.Thread(target=post, args=(number,)) for number in range(len(clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one["version"] for one in server.events}) == len(server.requests) == 100
    assert len({request.peer_port for request in server.requests}) == 20


# -- what was seen ----------------------------------------------------------------------------------------------------


def test_what_is_handed_out_is_a_copy(server: FakeLaunchDarkly, client: Client) -> None:
    client.post(event(deploymentMetadata={"a": {"b": 1}}))
    server.events[0]["deploymentMetadata"]["a"]["b"] = 2
    server.deployments[0]["metadata"]["a"]["b"] = 2
    server.wait_for()[0]["deploymentMetadata"].clear()
    server.requests.clear()
    assert server.events == [event(deploymentMetadata={"a": {"b": 1}})]
    assert server.deployments[0]["metadata"] == {"a": {"b": 1}}
    assert len(server.requests) == 1


def test_waiting_ends_with_the_event_that_was_waited_for(server: FakeLaunchDarkly, client: Client) -> None:
    def post() -> None:
        for event_type in ("started", "custom", "finished", "custom"):
            client.post(event(event_type))

    thread = threading.Thread(target=post)
    thread.start()
    waited = server.wait_for(2, event_type="custom", timeout=None)
    thread.join()
    assert waited == [event("custom")] * 2
    assert [one["eventType"] for one in server.wait_for(3)] == ["started", "custom", "finished", "custom"]
    assert server.wait_for(event_type="finished", timeout=0) == [event("finished")]
    assert server.wait_for(0, event_type="failed", timeout=0) == []


def test_waiting_in_vain_tells_what_was_seen(server: FakeLaunchDarkly, client: Client) -> None:
    client.post(event(version="v1"))
    client.post(event(), Authorization=None)
    server.answer_next(Answer(reset=True))
    with contextlib.suppress(ConnectionError):
        client.post(event())
    began = time.monotonic()
    with pytest.raises(AssertionError) as raised:
        server.wait_for(event_type="finished", timeout=0.1)
    assert 0.1 <= time.monotonic() - began < 5
    assert str(raised.value).splitlines() == [
        "waited 0.1 s for 1 event(s) of type 'finished', saw 0.",
        "accepted:",
        "  started billing-service v1",
        "requests:",
        f"  POST {EVENTS} -> 201",
        f"  POST {EVENTS} -> 401",
        f"  POST {EVENTS} -> no answer",
    ]
    with pytest.raises(AssertionError, match=r"^waited 0 s for 2 event\(s\), saw 1\.\n"):
        server.wait_for(2, timeout=0)


def test_a_cleared_server_is_as_new(server: FakeLaunchDarkly, client: Client) -> None:
    client.post(event())
    server.answer_always(500)
    server.answer_next(503, 503)
    server.clear()
    assert server.events == server.requests == server.deployments == []  # type: ignore[comparison-overlap]
    with pytest.raises(AssertionError):
        server.wait_for(timeout=0)
    assert client.post(event()).status == 201
    assert server.deployments[0]["kind"] == "deployment"


# -- deployments ------------------------------------------------------------------------------------------------------

OPEN = {"status": "started", "startedAt": NOW}


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([event()], [OPEN]),
        (
            [event(), event("finished", eventTime=NOW + 5)],
            [{"status": "finished", "startedAt": NOW, "endedAt": NOW + 5, "durationMs": 5, "kind": "deployment"}],
        ),
        ([event(), event("failed", eventTime=NOW + 5)], [{"status": "failed", "endedAt": NOW + 5, "durationMs": 5}]),
        ([event("finished")], [{"status": "finished", "startedAt": NOW, "endedAt": NOW, "durationMs": None}]),
        ([event("failed")], [{"status": "failed", "startedAt": NOW, "endedAt": NOW, "durationMs": None}]),
        ([event("custom")], []),
        ([event(), event("custom", eventTime=NOW + 5)], [OPEN | {"endedAt": None, "durationMs": None}]),
        (
            [event(), event("finished"), event(eventTime=NOW + 9)],
            [{"status": "finished", "kind": "deployment"}, {"status": "started", "kind": "redeployment"}],
        ),
        (
            [event(), event(eventTime=NOW + 2), event("finished", eventTime=NOW + 3)],
            [OPEN, {"status": "finished", "kind": "redeployment", "startedAt": NOW + 2, "durationMs": 1}],
        ),
        (
            [event(), event("finished"), event("finished", eventTime=NOW + 2)],
            [{"startedAt": NOW}, {"startedAt": NOW + 2, "endedAt": NOW + 2, "kind": "redeployment"}],
        ),
        *(
            ([event(), event("finished", **{name: "other"})], [OPEN, {"status": "finished", "kind": "deployment"}])
            for name in ("projectKey", "environmentKey", "applicationKey", "version")
        ),
    ],
)
def test_events_are_paired_by_identity(
    server: FakeLaunchDarkly, client: Client, events: list[dict[str, Any]], expected: list[dict[str, Any]]
) -> None:
    assert [client.post(one).status for one in events] == [201] * len(events)
    assert len(server.deployments) == len(expected)
    for deployment, wanted in zip(server.deployments, expected, strict=True):
        assert {name: deployment.get(name) for name in wanted} == wanted


def test_metadata_of_a_deployment_is_merged(server: FakeLaunchDarkly, client: Client) -> None:
    client.post(event("custom", deploymentMetadata={"lost": 1}))
    client.post(event(deploymentMetadata={"a": 1, "b": 1}, eventMetadata={"never": "read back"}))
    client.post(event("custom", deploymentMetadata={"b": 2}))
    client.post(event("finished", deploymentMetadata={"c": 3}))
    client.post(event("custom", deploymentMetadata={"late": 1}))
    assert [one["metadata"] for one in server.deployments] == [{"a": 1, "b": 2, "c": 3}]


def test_an_event_without_a_time_happened_when_it_was_processed(server: FakeLaunchDarkly, client: Client) -> None:
    before = time.time_ns() // 1_000_000
    client.post(event(eventTime=...))
    assert before <= server.deployments[0]["startedAt"] <= time.time_ns() // 1_000_000


def test_the_last_finished_deployment_is_active(server: FakeLaunchDarkly, client: Client) -> None:
    client.post(event("finished", version="v2", eventTime=NOW + 2))
    client.post(event("finished", version="v1", eventTime=NOW + 1))
    client.post(event("failed", version="v3", eventTime=NOW + 3))
    client.post(event("finished", applicationKey="web"))
    assert [one["active"] for one in server.deployments] == [True, False, False, True]


def test_a_deployment_reads_back(server: FakeLaunchDarkly, client: Client) -> None:
    client.post(event(deploymentMetadata={"commit": "a90a8a2"}))
    client.post(event("finished", eventTime=NOW + 7))
    page = client.deployments(to=NOW + DAY)
    assert page["totalCount"] == 1
    (item,) = page["items"]
    assert item == {
        "id": item["id"],
        "applicationKey": "billing-service",
        "applicationVersion": "a90a8a2",
        "environmentKey": "production",
        "startedAt": NOW,
        "endedAt": NOW + 7,
        "durationMs": 7,
        "status": "finished",
        "kind": "deployment",
        "active": True,
        "archived": False,
        "metadata": {"commit": "a90a8a2"},
        "leadTime": 0,
        "numberOfContributors": 0,
        "numberOfPullRequests": 0,
        "linesAdded": 0,
        "linesDeleted": 0,
    }
    assert server.deployments == [item | {"projectKey": "default"}]
    assert client.call("GET", f"{DEPLOYMENTS}/{item['id']}").json == item


@pytest.fixture
def seeded(client: Client) -> Client:
    """Return the client of a server with deployments v0 (eight days ago), v1 to v4, one of web, and one of staging."""
    client.post(event("finished", version="v0", eventTime=NOW - 8 * DAY))
    for number in range(1, 5):
        client.post(event("failed" if number == 2 else "finished", version=f"v{number}", eventTime=NOW - 1000 + number))
    client.post(event("finished", version="v4", eventTime=NOW - 900))
    client.post(event("started", version="w1", eventTime=NOW - 2000, applicationKey="web"))
    client.post(event("finished", version="s1", environmentKey="staging"))
    client.post(event("finished", version="p1", projectKey="other"))
    return client


def versions(page: Any) -> list[str]:
    return [item["applicationVersion"] for item in page["items"]]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, ["v4", "v4", "v3", "v2", "v1", "w1"]),
        ({"environmentKey": "staging"}, ["s1"]),
        ({"projectKey": "other"}, ["p1"]),
        ({"projectKey": "unseen"}, []),
        ({"applicationKey": "web"}, ["w1"]),
        ({"applicationKey": "web,billing-service", "limit": 3}, ["v4", "v4", "v3"]),
        ({"status": "failed"}, ["v2"]),
        ({"status": "started"}, ["w1"]),
        ({"kind": "redeployment"}, ["v4"]),
        ({"from": NOW - 9 * DAY, "to": NOW - 7 * DAY}, ["v0"]),
        ({"from": NOW - 998, "to": NOW - 997}, ["v3", "v2"]),
    ],
)
def test_deployments_are_filtered(seeded: Client, query: dict[str, Any], found: list[str]) -> None:
    assert versions(seeded.deployments(**query)) == found


def test_deployments_of_one_millisecond_come_last_told_first(client: Client) -> None:
    for version in ("a", "b", "c"):
        client.post(event(version=version))
    assert versions(client.deployments(limit=2)) == ["c", "b"]


def test_no_more_than_the_default_limit(client: Client) -> None:
    for number in range(21):
        client.post(event(version=str(number)))
    page = client.deployments()
    assert (len(page["items"]), page["totalCount"]) == (20, 21)
    assert len(client.deployments(limit=100)["items"]) == 21


def test_pages_follow_one_another(seeded: Client) -> None:
    page, pages = seeded.deployments(limit=2, applicationKey="billing-service"), []
    while True:
        pages.append(page)
        assert page["totalCount"] == 5
        assert page["_links"]["self"]["type"] == "application/json"
        if "next" not in page["_links"]:
            break
        page = seeded.call("GET", page["_links"]["next"]["href"]).json
    assert [versions(page) for page in pages] == [["v4", "v4"], ["v3", "v2"], ["v1"]]
    cursor = pages[2]["items"][0]["id"]
    back = seeded.deployments(limit=2, applicationKey="billing-service", before=cursor)
    assert back["items"] == pages[1]["items"]
    again = seeded.call("GET", back["_links"]["next"]["href"]).json
    assert versions(again) == ["v1"]
    between = seeded.deployments(after=pages[0]["items"][1]["id"], before=cursor)
    assert versions(between) == ["v3", "v2"]


@pytest.mark.parametrize(
    ("query", "attributes"),
    [
        ("", ["projectKey", "environmentKey"]),
        ("projectKey=default&environmentKey=", ["environmentKey"]),
        *((f"projectKey=p&environmentKey=e&limit={limit}", ["limit"]) for limit in ("0", "101", "x", "")),
        ("projectKey=p&environmentKey=e&from=today", ["from"]),
        ("projectKey=p&environmentKey=e&after=x", ["after"]),
        ("projectKey=p&environmentKey=e&before=x", ["before"]),
    ],
)
def test_a_query_that_cannot_be_used_is_400(client: Client, query: str, attributes: list[str]) -> None:
    answer = client.call("GET", f"{DEPLOYMENTS}?{query}")
    assert (answer.status, [error["attribute"] for error in answer.json["errors"]]) == (400, attributes)


@pytest.mark.parametrize(
    ("method", "path"), [("GET", DEPLOYMENTS), ("GET", f"{DEPLOYMENTS}/x"), ("PATCH", f"{DEPLOYMENTS}/x")]
)
@pytest.mark.parametrize("version", [None, "20240415"])
def test_reading_back_needs_the_beta_header(client: Client, method: str, path: str, version: str | None) -> None:
    answer = client.call(method, path, LD_API_Version=version)
    assert (answer.status, answer.json["code"]) == (403, "forbidden")


def test_a_status_can_be_mended_by_hand(server: FakeLaunchDarkly, client: Client) -> None:
    client.post(event())
    path = f"{DEPLOYMENTS}/{server.deployments[0]['id']}"

    def patch(status: str) -> Any:
        answer = client.call("PATCH", path, [{"op": "replace", "path": "/status", "value": status}])
        assert answer.status == 200
        assert server.deployments == [answer.json | {"projectKey": "default"}]
        return answer.json

    closed = patch("failed")
    assert closed["status"] == "failed"
    assert closed["durationMs"] == closed["endedAt"] - NOW >= 0
    assert patch("finished") == closed | {"status": "finished", "active": True}
    opened = patch("started")
    assert opened["status"] == "started"
    assert not {"endedAt", "durationMs"} & opened.keys()
    client.post(event("finished", eventTime=NOW + 4))
    assert [one["durationMs"] for one in server.deployments] == [4]


@pytest.mark.parametrize(
    ("patch", "attribute"),
    [
        (b"{", "body"),
        ({"op": "replace"}, "body"),
        ([], "body"),
        (["replace"], "path"),
        ([{"op": "remove", "path": "/status"}], "path"),
        ([{"op": "replace", "path": "/version", "value": "x"}], "path"),
        ([{"op": "replace", "path": "/status", "value": "done"}], "value"),
        ([{"op": "replace", "path": "/status", "value": "failed"}, {"op": "test"}], "path"),
    ],
)
def test_a_patch_that_cannot_be_used_changes_nothing(
    server: FakeLaunchDarkly, client: Client, patch: Any, attribute: str
) -> None:
    client.post(event())
    before = server.deployments
    answer = client.call("PATCH", f"{DEPLOYMENTS}/{before[0]['id']}", patch)
    assert (answer.status, answer.json["errors"][0]["attribute"]) == (400, attribute)
    assert server.deployments == before


def test_a_deployment_that_is_not_there_is_404(client: Client) -> None:
    assert client.call("GET", f"{DEPLOYMENTS}/nowhere").status == 404
    assert client.call("PATCH", f"{DEPLOYMENTS}/nowhere", []).status == 404
    assert client.call("PATCH", f"{DEPLOYMENTS}/nowhere", [], Content_Type="text/plain").status == 415


def test_the_caller_is_identified_without_the_beta_header(client: Client) -> None:
    answer = client.call("GET", IDENTITY, LD_API_Version=None)
    assert answer.status == 200
    assert answer.json.keys() == {"accountId", "tokenName", "tokenId", "memberId", "serviceToken"}


# -- faults -----------------------------------------------------------------------------------------------------------


def test_faults_come_in_the_order_in_which_they_were_asked_for(server: FakeLaunchDarkly, client: Client) -> None:
    server.answer_next(503, Answer(429, headers={"Retry-After": "3"}))
    server.answer_next(201)
    server.answer_always(500)
    answers = [client.post(event(version=str(number))) for number in range(5)]
    assert [answer.status for answer in answers] == [503, 429, 201, 500, 500]
    assert [answer.json["code"] for answer in (answers[0], answers[1], answers[3])] == [
        "service_unavailable",
        "rate_limited",
        "internal_service_error",
    ]
    assert answers[1].headers["Retry-After"] == "3"
    server.answer_always(None)
    assert client.post(event(version="5")).status == 201
    assert [one["version"] for one in server.events] == ["2", "5"]
    assert [request.status for request in server.requests] == [503, 429, 201, 500, 500, 201]


def test_faults_are_of_events_alone(server: FakeLaunchDarkly, client: Client) -> None:
    server.answer_always(503)
    assert client.call("GET", IDENTITY).status == 200


@pytest.mark.parametrize(
    ("answer", "body", "content_type"),
    [
        (Answer(201, body={"id": 1}), b'{"id": 1}', "application/json"),
        (Answer(200, {"Content-Type": "text/html"}, b"<html>"), b"<html>", "text/html"),
        (Answer(200, body={"id": 1}, headers={"content-type": "x/y"}), b'{"id": 1}', "x/y"),
        (Answer(302, {"Location": "/elsewhere"}), b"", None),
        (Answer(502, body=b""), b"", None),
        (Answer(204), b"", None),
        (Answer(599), b'{"code": "unknown", "message": "Unknown"}', "application/json"),
    ],
)
def test_an_answer_has_the_body_that_was_asked_for(
    server: FakeLaunchDarkly, client: Client, answer: Answer, body: bytes, content_type: str | None
) -> None:
    server.answer_next(answer)
    came = client.post(event())
    assert (came.status, came.body, came.headers.get_all("Content-Type")) == (
        answer.status,
        body,
        content_type and [content_type],
    )
    assert {name: came.headers[name] for name in answer.headers} == answer.headers
    assert ("Content-Length" in came.headers) is (answer.status != 204)
    assert client.post(event()).status == 201
    assert len({request.peer_port for request in server.requests}) == 1, "the connection is still in step"


def test_a_201_may_have_an_empty_object(connect: Callable[..., Client]) -> None:
    with FakeLaunchDarkly(empty_body=False) as server:
        server.answer_next(Answer(), Answer(headers={"X": "y"}), Answer(body=b""), 200)
        bodies = [connect(server).post(event()).body for _ in range(5)]
    assert bodies == [b"{}", b"{}", b"", b"", b"{}"]


def test_the_date_is_told_and_can_be_wrong(server: FakeLaunchDarkly, client: Client) -> None:
    true = datetime.strptime(client.post(event()).headers["Date"], "%a, %d %b %Y %H:%M:%S GMT")
    assert abs(true.replace(tzinfo=timezone.utc) - datetime.now(timezone.utc)) < timedelta(seconds=10)
    server.answer_next(Answer(429, headers={"date": "Thu, 01 Jan 1970 00:00:00 GMT"}))
    assert client.post(event()).headers.get_all("Date") == ["Thu, 01 Jan 1970 00:00:00 GMT"]


def test_a_server_can_close_the_connection_after_its_answer(server: FakeLaunchDarkly, client: Client) -> None:
    server.answer_next(Answer(503, headers={"Connection": "close"}))
    client.post(event())
    client.post(event())
    first, second = server.requests
    assert first.peer_port != second.peer_port


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (Answer(201), True),
        (Answer(200), False),
        (Answer(503), False),
        (Answer(503, accept=True), True),
        (Answer(201, accept=False), False),
        (Answer(reset=True), False),
        (Answer(reset=True, accept=True), True),
        (Answer(hang=True), False),
        (Answer(hang=True, accept=True), True),
    ],
)
def test_an_event_is_kept_when_it_is_accepted_whatever_its_sender_learns(
    server: FakeLaunchDarkly, connect: Callable[..., Client], answer: Answer, kept: bool
) -> None:
    server.answer_next(answer)
    client = connect(server, timeout=0.2 if answer.hang else 10)
    lost = answer.reset or answer.hang
    with pytest.raises((ConnectionResetError, TimeoutError)) if lost else contextlib.nullcontext() as raised:
        assert client.post(event()).status == answer.status
    # Exactly: http.client's own error for a connection that was merely closed is a ConnectionResetError too.
    assert raised is None or raised.type is (ConnectionResetError if answer.reset else TimeoutError)
    until(lambda: bool(server.requests))
    assert len(server.events) == len(server.deployments) == kept
    assert [request.status for request in server.requests] == [None if lost else answer.status]


def test_a_reset_on_a_reused_connection_is_a_reset(server: FakeLaunchDarkly, client: Client) -> None:
    client.post(event())
    server.answer_next(Answer(reset=True, accept=True))
    with pytest.raises(ConnectionResetError) as raised:
        client.post(event("finished"))
    assert raised.type is ConnectionResetError, "closed, but not reset"
    assert server.deployments[0]["status"] == "finished"
    assert len({request.peer_port for request in server.requests}) == 1


def test_a_fault_comes_before_any_check_and_acceptance_after(server: FakeLaunchDarkly, client: Client) -> None:
    server.answer_next(503, Answer(503, accept=True), Answer(503, accept=True), 201, Answer(accept=False))
    statuses = [
        client.post(event(), Authorization="api-wrong").status,
        client.post(event(version="a b")).status,
        client.post(event(), Authorization="api-wrong").status,
        client.post(event(), Content_Type="text/plain").status,
        client.post(event(version="a b")).status,
    ]
    assert statuses == [503, 400, 401, 415, 201]
    assert server.events == []


def test_every_answer_waits_for_its_delay(server: FakeLaunchDarkly, client: Client) -> None:
    def seconds(call: Callable[[], Reply]) -> float:
        began = time.monotonic()
        assert call().status in (200, 201)
        return time.monotonic() - began

    server.answer_next(Answer(delay=0.2))
    assert seconds(lambda: client.post(event())) >= 0.2
    server.delay = 0.1
    server.answer_next(Answer(delay=0.1))
    assert seconds(lambda: client.post(event())) >= 0.2
    assert seconds(lambda: client.call("GET", IDENTITY)) >= 0.1


def test_a_delay_can_be_given_at_once(connect: Callable[..., Client]) -> None:
    with FakeLaunchDarkly(delay=0.1) as server:
        began = time.monotonic()
        connect(server).post(event())
        assert time.monotonic() - began >= 0.1


def test_an_answer_can_drip(server: FakeLaunchDarkly, client: Client) -> None:
    server.answer_next(Answer(503, body=b"x" * 20, drip=0.001))
    began = time.monotonic()
    answer = client.post(event())
    # The status line and three headers are more than eighty bytes.
    assert (answer.status, answer.body) == (503, b"x" * 20)
    assert time.monotonic() - began > 0.1


@pytest.mark.parametrize("wrong", [{"status": 100}, {"status": 600}, {"reset": True, "hang": True}])
def test_an_answer_that_cannot_be_is_a_mistake(server: FakeLaunchDarkly, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"status must be|either resets or hangs"):
        Answer(**wrong)
    with pytest.raises(ValueError, match="status must be"):
        server.answer_next(99)


def test_an_answer_is_frozen() -> None:
    headers = {"a": "b"}
    answer = Answer(headers=headers)
    headers["a"] = "c"
    assert answer.headers == {"a": "b"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        answer.status = 200  # type: ignore[misc]


# -- its life ---------------------------------------------------------------------------------------------------------


def threads_of_servers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "FakeLaunchDarkly"]


@pytest.mark.parametrize(
    "answer",
    [None, Answer(hang=True), Answer(delay=60), Answer(drip=60), Answer(body=b"x" * 50_000_000)],
    ids=["idle", "hang", "delay", "drip", "unread"],
)
def test_closing_cuts_everybody_off(connect: Callable[..., Client], answer: Answer | None) -> None:
    server = FakeLaunchDarkly()
    server.start()
    idle, waiting = connect(server), connect(server)
    idle.post(event())
    if answer is not None:
        server.answer_next(answer)
        waiting.connection.request(
            "POST", EVENTS, json.dumps(event()), {"Authorization": TOKEN, "Content-Type": "application/json"}
        )
        until(lambda: len(server.requests) == 2)
    url = urlsplit(server.base_uri)
    with socket.create_connection((url.hostname, url.port)) as half:
        half.sendall(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf")
        assert threads_of_servers()
        began = time.monotonic()
        server.close()
        assert time.monotonic() - began < 5
        assert threads_of_servers() == []
    server.close()
    gc.collect()
    with pytest.raises(ConnectionRefusedError):
        connect(server).post(event())
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        idle.post(event())


def test_a_closed_server_can_be_started_again_with_all_that_it_kept(connect: Callable[..., Client]) -> None:
    server = FakeLaunchDarkly()
    with server:
        where = server.base_uri
        connect(server).post(event())
        with pytest.raises(RuntimeError, match="started already"):
            server.start()
    assert server.base_uri == where
    with server:
        assert server.base_uri == where
        connect(server).post(event("finished"))
    assert [one["status"] for one in server.deployments] == ["finished"]


def test_a_server_tells_what_it_is(server: FakeLaunchDarkly, client: Client) -> None:
    client.post(event())
    client.post(b"")
    assert repr(server) == f"<FakeLaunchDarkly {server.base_uri}, 1 events of 2 requests>"
    assert repr(FakeLaunchDarkly()) == "<FakeLaunchDarkly closed, 0 events of 0 requests>"
    assert "'Authorization': '[redacted]'" in repr(server.requests)


def test_a_server_that_never_started_has_no_address() -> None:
    server = FakeLaunchDarkly()
    with pytest.raises(RuntimeError, match="before it is started"):
        print(server.base_uri)
    server.close()


def test_a_port_that_is_taken_is_an_error(server: FakeLaunchDarkly) -> None:
    other = FakeLaunchDarkly(port=urlsplit(server.base_uri).port or 0)
    with pytest.raises(OSError, match=r"."):
        other.start()
    other.close()
    gc.collect()


@pytest.mark.parametrize(
    "host",
    ["", "0.0.0.0", "::", "192.0.2.1", "127.0.0.1.example.com", "example.com", "localhost.example", "127.1", "[::1]"],
)
def test_only_loopback_will_do(host: str) -> None:
    with pytest.raises(ValueError, match="loopback"):
        FakeLaunchDarkly(host=host)


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "127.0.0.1"), ("127.0.0.2", "127.0.0.2"), ("localhost", "localhost"), ("::1", "[::1]")],
)
def test_every_loopback_address_will_do(connect: Callable[..., Client], host: str, shown: str) -> None:
    server = FakeLaunchDarkly(host=host)
    try:
        server.start()
    except OSError as error:
        if host in ("127.0.0.1", "localhost"):
            raise
        pytest.skip(f"this machine has no {host}: {error}")
    with contextlib.closing(server):
        assert server.base_uri.startswith(f"http://{shown}:")
        assert connect(server).post(event()).status == 201


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a key and its own certificate for 127.0.0.1 and localhost."""
    x509 = pytest.importorskip("cryptography.x509")
    import ipaddress

    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "FakeLaunchDarkly")])
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    today = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + certificate.public_bytes(pem))
    return path


def test_https(connect: Callable[..., Client], certificate: Path, capfd: pytest.CaptureFixture[str]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=str(certificate))
    server = FakeLaunchDarkly(ssl_context=context)
    with server:
        assert server.base_uri.startswith("https://127.0.0.1:")
        good = connect(server, context=trusting)
        assert [good.post(event()).status for _ in range(2)] == [201, 201]
        with pytest.raises(ssl.SSLCertVerificationError):
            connect(server, context=ssl.create_default_context()).post(event())
        server.answer_next(Answer(reset=True), Answer(hang=True))
        with pytest.raises(ConnectionResetError):
            good.post(event())
        with pytest.raises(TimeoutError):
            connect(server, timeout=0.2, context=trusting).post(event())
        url = urlsplit(server.base_uri)
        with socket.create_connection((url.hostname, url.port)):  # never says a word: nobody else may wait for it
            assert connect(server, context=trusting).post(event()).status == 201
            began = time.monotonic()
            server.close()
            assert time.monotonic() - began < 5
    assert threads_of_servers() == []
    assert capfd.readouterr() == ("", "")


def test_a_client_that_goes_away_is_no_noise_but_a_fault_of_the_server_is(capfd: pytest.CaptureFixture[str]) -> None:
    def respond(request: Any, authorization: str | None) -> Answer:
        raise {"/bug": ZeroDivisionError, "/gone": BrokenPipeError}[request.path]

    server = WireServer(("127.0.0.1", 0), respond, None)
    for path, noise in (("/gone", False), ("/bug", True)):
        with socket.create_connection(server.server_address[:2], timeout=10) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
            assert connection.recv(1) == b""
        assert ("ZeroDivisionError" in capfd.readouterr().err) is noise
    server.stop()


# -- by itself --------------------------------------------------------------------------------------------------------

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]
MODULE = "ld_deploy_hooks.testing"


@contextlib.contextmanager
def alone(env: dict[str, str], *args: str) -> Iterator[tuple[subprocess.Popen[str], FakeLaunchDarkly]]:
    """Run it as a program; the second of the pair is not started and only tells a client the address."""
    command = [sys.executable, "-m", MODULE, *args]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            words = process.stdout.readline().rpartition(" ")
            assert words[0] == "FakeLaunchDarkly listens on"
            port = urlsplit(words[2].strip()).port
            assert words[2] == f"http://127.0.0.1:{port}\n"
            yield process, FakeLaunchDarkly(port=port or 0)
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_runs_by_itself_until_a_signal(
    child_env: dict[str, str], connect: Callable[..., Client], number: signal.Signals
) -> None:
    with alone(child_env) as (process, where):
        client = connect(where)
        client.post(event(applicationKey="a\x1b[2Jü\n", version="v1"), Authorization="api-secret-1")
        client.post(event("finished"), Authorization="api-secret-2")
        client.post(event(version="no way"), Authorization="api-secret-3")
        assert process.stdout is not None
        assert process.stdout.readline() == "started a\\x1b[2J\\xfc\\n v1\n"
        assert process.stdout.readline() == "finished billing-service a90a8a2\n"
        process.send_signal(number)
        assert process.communicate(timeout=10) == ("", "")
        assert process.returncode == 0


def test_by_itself_it_ends_well_however_often_it_is_told_to(child_env: dict[str, str]) -> None:
    with alone(child_env) as (process, _):
        deadline = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < deadline:
            process.terminate()
            time.sleep(0.001)
        assert process.returncode == 0


def test_by_itself_it_takes_token_port_and_delay(child_env: dict[str, str], connect: Callable[..., Client]) -> None:
    with FakeLaunchDarkly() as other:
        port = urlsplit(other.base_uri).port
    with alone(child_env | {"LD_ACCESS_TOKEN": "api-mine"}, "--port", str(port), "--delay", "0.2") as (process, where):
        assert where.base_uri == other.base_uri
        began = time.monotonic()
        assert connect(where).post(event()).status == 401
        assert time.monotonic() - began >= 0.2
        assert connect(where).post(event(), Authorization="api-mine").status == 201
        process.terminate()
        assert process.communicate(timeout=10) == ("started billing-service a90a8a2\n", "")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="looks at the child through /proc")
def test_by_itself_it_goes_on_when_nobody_reads(child_env: dict[str, str], connect: Callable[..., Client]) -> None:
    with alone(child_env) as (process, where):
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        client = connect(where)
        for number in range(3):
            assert client.post(event(version=str(number))).status == 201
        # It has seen that nobody reads when its output goes nowhere.
        until(lambda: os.path.samestat(Path(f"/proc/{process.pid}/fd/1").stat(), Path(os.devnull).stat()))
        assert client.post(event(version="3")).status == 201
        process.terminate()
        assert process.stderr.read() == ""
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    "args", [["--port", "x"], ["--port", "65536"], ["--delay", "-1"], ["--delay", "nan"], ["--token", "x"]]
)
def test_by_itself_it_refuses_what_it_cannot_use(run_python: RunPython, args: list[str]) -> None:
    ended = run_python(f"from {MODULE}.__main__ import main; main({args!r})")
    assert ended.returncode == 2
    assert args[0] in ended.stderr
    assert "Traceback" not in ended.stderr


def test_by_itself_it_says_that_the_port_is_taken(run_python: RunPython, server: FakeLaunchDarkly) -> None:
    port = urlsplit(server.base_uri).port
    ended = run_python(f"from {MODULE}.__main__ import main; raise SystemExit(main(['--port', '{port}']))")
    assert ended.returncode == 1
    assert ended.stderr == f"cannot listen on port {port}: Address already in use\n"


def test_its_help_tells_how_to_use_it(run_python: RunPython) -> None:
    ended = run_python(f"from {MODULE}.__main__ import main; main(['-h'])")
    assert ended.returncode == 0
    assert ended.stdout.startswith("usage: python -m ld_deploy_hooks.testing [-h] [--port N] [--delay S]\n")
    assert "LD_ACCESS_TOKEN" in ended.stdout
    assert max(map(len, ended.stdout.splitlines())) <= 85


def test_it_needs_the_standard_library_alone(run_python: RunPython) -> None:
    ended = run_python(
        "import sys\n"
        "before = set(sys.modules)\n"
        f"import {MODULE}\n"
        "print({name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))\n"
    )
    assert ended.stdout == "{'ld_deploy_hooks'}\n", ended.stderr
