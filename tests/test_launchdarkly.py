"""The client, against servers that speak bytes: what it sends, and what it makes of every answer."""

from __future__ import annotations

import gc
import http.client
import inspect
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wire import LOOPBACK, Authority, Reply, Server, black_hole, drip, hang, hang_up, reply, reset, tunnel

from ld_deploy_hooks._errors import DeployHooksError
from ld_deploy_hooks._launchdarkly import Answer, Client, LaunchDarklyError, Outcome

TOKEN = "api-5ecret-t0ken"
PATH = "/api/v2/engineering-insights/deployment-events"
ENDLESS = 2**40
NOW = 1_700_000_000  # whatever the server says is its time


def client_of(base_uri: str, **options: Any) -> Client:
    defaults: dict[str, Any] = {
        "token": TOKEN,
        "loopback": True,
        "user_agent": "ld-deploy-hooks/1",
        "read_timeout": 5.0,
    }
    return Client(base_uri=base_uri, **{**defaults, **options})


@pytest.fixture
def connect() -> Iterator[Callable[..., Client]]:
    """Return a function that makes a client, for a server or a base URI; all are closed at the end."""
    clients = []

    def connect(to: Server | str, **options: Any) -> Client:
        clients.append(client_of(to.url if isinstance(to, Server) else to, **options))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


def post(*replies: Reply, **options: Any) -> Answer:
    """Return the client's answer to one event that a server of these replies has got."""
    with Server(*replies) as server:
        client = client_of(server.url, **options)
        try:
            return client.post("{}")
        finally:
            client.close()


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


# -- what is sent -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", ['{"version":"1"}', '{"a":"\\u00fc"}', '{ "ü" : 1 }\n', ""])
def test_the_payload_is_sent_exactly_as_it_is(connect: Callable[..., Client], payload: str) -> None:
    with Server(reply(201)) as server:
        assert connect(server).post(payload) == Answer(
            Outcome.ACCEPTED, 201, f"127.0.0.1:{server.port} accepted the event (201)."
        )
        (request,) = server.requests
    assert (request.method, request.target, request.body) == ("POST", PATH, payload.encode())
    wanted = {
        "authorization": TOKEN,
        "content-type": "application/json",
        "ld-api-version": "beta",
        "user-agent": "ld-deploy-hooks/1",
        "accept-encoding": "identity",
        "content-length": str(len(payload.encode())),
    }
    assert wanted.items() <= request.headers.items()


def test_a_payload_that_is_no_text_is_left_to_the_service(connect: Callable[..., Client]) -> None:
    with Server(reply(400)) as server:
        assert connect(server).post('"\ud800"').outcome == "rejected"
        assert server.requests[0].body == b'"\xed\xa0\x80"'


@pytest.mark.parametrize(("api_version", "sent"), [("beta", "beta"), ("20240415", "20240415"), ("", None)])
def test_the_api_version_is_a_setting(connect: Callable[..., Client], api_version: str, sent: str | None) -> None:
    with Server(reply(201)) as server:
        connect(server, api_version=api_version).post("{}")
        assert server.requests[0].headers.get("ld-api-version") == sent


@pytest.mark.parametrize("end", ["", "/", "?x=1", "#x", "/gateway", "/gateway/?x=hidden"])
def test_the_base_uri_may_have_a_path_and_nothing_more(connect: Callable[..., Client], end: str) -> None:
    with Server(reply(201)) as server:
        client = connect(server.url + end)
        client.post("{}")
        assert server.requests[0].target == ("/gateway" if "gateway" in end else "") + PATH
        assert "hidden" not in repr(client)


@pytest.mark.parametrize("entry", ["default", "machine 127.0.0.1"])
def test_netrc_never_replaces_the_token(connect: Callable[..., Client], entry: str) -> None:
    netrc = Path.home() / ".netrc"
    netrc.write_text(f"{entry} login somebody password else\n")
    netrc.chmod(0o600)
    with Server(reply(201)) as server:
        connect(server).post("{}")
        assert server.requests[0].headers["authorization"] == TOKEN


def test_a_user_in_the_base_uri_neither_replaces_the_token_nor_is_told(connect: Callable[..., Client]) -> None:
    with Server(reply(401)) as server:
        client = connect(f"http://somebody:hidden@127.0.0.1:{server.port}")
        answer = client.post("{}")
        assert server.requests[0].headers["authorization"] == TOKEN
    assert "hidden" not in f"{answer!r}{client!r}"


def test_cookies_are_not_kept(connect: Callable[..., Client]) -> None:
    with Server(reply(201, "", "Set-Cookie: session=1; Path=/")) as server:
        client = connect(server)
        client.post("{}")
        client.post("{}")
        assert ["cookie" in request.headers for request in server.requests] == [False, False]


# -- verdicts ---------------------------------------------------------------------------------------------------------

OUTCOMES = {
    Outcome.ACCEPTED: [201],
    Outcome.REJECTED: [400, 405, 413, 414, 415, 422],
    Outcome.RETRY: [408, 409, 425, 429, 500, 501, 502, 503, 504, 520, 599],
    Outcome.STOP: [
        *(101, 200, 202, 204, 206, 300, 301, 302, 303, 304, 307, 308),
        *(401, 402, 403, 404, 406, 407, 410, 418, 499, 600, 999),
    ],
}


@pytest.mark.parametrize(("outcome", "status"), [(key, status) for key, many in OUTCOMES.items() for status in many])
def test_the_status_alone_decides(outcome: Outcome, status: int) -> None:
    bodyless = status in (101, 204, 304)
    answer = post(reply(status, "" if bodyless else "<html><b>Sign in</b>"))
    assert (answer.outcome, answer.status) == (outcome, status)
    assert str(status) in answer.line
    assert TOKEN not in answer.line


@pytest.mark.parametrize("body", ["", "{}", "null", "\0", "{" * 70_000])
def test_an_acceptance_is_never_parsed(body: str) -> None:
    assert post(reply(201, body)).outcome == "accepted"


@pytest.mark.parametrize(
    ("status", "named"),
    [
        (200, ("LD_BASE_URI (base_uri)", "not what LaunchDarkly answers", "next run tries again")),
        (302, ("LD_BASE_URI (base_uri)", "redirect", "next run tries again")),
        (400, ("no reason", "kept as rejected")),
        (401, ("LD_ACCESS_TOKEN (access_token)", "Writer role", "next run tries again")),
        (403, ("LD_ACCESS_TOKEN (access_token)", "LD_DEPLOY_API_VERSION (api_version)", "next run tries again")),
        (404, ("LD_PROJECT (project_key)", "LD_ENVIRONMENT (environment_key)", "LD_BASE_URI (base_uri)")),
        (405, ("LD_BASE_URI (base_uri)", "kept as rejected")),
        (407, ("HTTPS_PROXY", "NO_PROXY", "next run tries again")),
        (413, ("too large", "less metadata", "kept as rejected")),
        (429, ("too many requests", "sent again later")),
        (503, ("LD_BASE_URI (base_uri)", "HTTPS_PROXY", "sent again later")),
    ],
)
def test_a_refusal_says_what_to_do(status: int, named: tuple[str, ...]) -> None:
    line = post(reply(status)).line
    assert line.startswith("127.0.0.1:")
    assert f" answered {status}: " in line
    for words in named:
        assert words in line


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            {
                "errors": [
                    {"attribute": "version", "reason": "too short"},
                    {"attribute": "eventTime", "reason": "is wrong"},
                ]
            },
            ": version: too short; eventTime: is wrong. ",
        ),
        ({"errors": [{"reason": "too short"}, {"attribute": "version"}, {}]}, ": too short; version. "),
        ({"message": "Invalid request body", "errors": []}, ": Invalid request body. "),
        ({"message": "Invalid request body"}, ": Invalid request body. "),
        ({"errors": [{"attribute": "a\r\nb\x1b[31m\u202e\u2028c\0", "reason": "d\ud800"}]}, ": a b[31m c: d. "),
        ({"errors": [{"attribute": "a", "reason": f"not {TOKEN}"}]}, ": a: not [redacted]. "),
        ({"errors": [{"attribute": "a", "reason": "api-5ecret\0-t0ken"}]}, ": a: [redacted]. "),
        ({"errors": [{"attribute": "a", "reason": "x" * 114 + TOKEN}]}, f": a: {'x' * 114}[reda…. "),
        ({"errors": [{"attribute": "x" * 1000, "reason": "y" * 121}]}, f": {'x' * 119}…: {'y' * 119}…. "),
        ({"errors": [{"attribute": "x" * 120}]}, f": {'x' * 120}. "),
        ({"errors": [{"attribute": str(number)} for number in range(9)]}, ": 0; 1; 2; 3; 4. "),
        ({"errors": {"attribute": "version"}, "message": "no list"}, ": no list. "),
        ({"errors": ["version", None, {"attribute": 1, "reason": ["x"]}]}, "no reason"),
        ({"errors": None, "message": None}, "no reason"),
        (["version"], "no reason"),
    ],
)
def test_the_reasons_of_a_refusal_are_told(status: int, body: Any, told: str) -> None:
    answer = post(reply(status, json.dumps(body)))
    assert answer.outcome == "rejected"
    assert told in answer.line


@pytest.mark.parametrize(
    "body",
    [b"\xff\xfe{", b"{", b"[" * 60_000, b'{"message":' + b"9" * 5000 + b"}", b'{"message": "' + b"x" * 70_000 + b'"}'],
)
def test_a_refusal_whose_body_says_nothing_is_one_all_the_same(body: bytes) -> None:
    answer = post(reply(400, body))
    assert answer.outcome == "rejected"
    assert "no reason that can be read" in answer.line


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    with Server(reply(200, "<html>")) as other:
        answer = post(reply(status, "", f"Location: {other.url}{PATH}"))
        assert (answer.outcome, answer.status) == ("stop", status)
        assert other.connections == 0


@pytest.mark.parametrize("location", ["/", "http://[", "\xff\xfe", "http://elsewhere.test:99999999/"])
def test_a_redirect_may_lead_anywhere_and_never_end(location: str) -> None:
    head = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: {ENDLESS}\r\n\r\n".encode("latin-1")
    answer = post(drip(head, b"x"), read_timeout=0.3)
    assert (answer.outcome, answer.status) == ("stop", 302)


# -- rate limits ------------------------------------------------------------------------------------------------------

AT = f"Date: {formatdate(NOW, usegmt=True)}"
SPENT = "X-Ratelimit-Auth-Token-Remaining: 0"


def reset_in(seconds: float, name: str = "X-Ratelimit-Reset") -> str:
    return f"{name}: {int((NOW + seconds) * 1000)}"


def token_reset_in(seconds: float) -> str:
    return reset_in(seconds, "X-Ratelimit-Auth-Token-Reset")


@pytest.mark.parametrize(
    ("status", "headers", "hold_back"),
    [
        (429, [], None),
        # measured against the server's own time, an hour or years off from ours
        (429, [AT, reset_in(6)], 6.0),
        (429, [AT, token_reset_in(7.25)], 7.25),
        (429, [AT, reset_in(6), token_reset_in(9)], 9.0),
        (429, [AT, reset_in(9), token_reset_in(6)], 9.0),
        (429, [AT, reset_in(9), "Retry-After: 3"], 9.0),
        (429, [AT, reset_in(9), "Retry-After: 20"], 20.0),
        # clamped
        (429, [AT, reset_in(0.1)], 0.5),
        (429, [AT, reset_in(-3600)], 0.5),
        (429, [AT, reset_in(16)], 15.0),
        (429, [AT, reset_in(3606)], 15.0),
        (429, [AT, "X-Ratelimit-Reset: " + "9" * 400], 15.0),
        (429, ["Retry-After: 299.5"], 299.5),
        (429, ["Retry-After: 301"], 300.0),
        (429, ["Retry-After: " + "9" * 400], 300.0),
        (429, ["Retry-After: 0"], 0.0),
        (429, [AT, f"Retry-After: {formatdate(NOW + 42, usegmt=True)}"], 42.0),
        (429, [AT, f"Retry-After: {formatdate(NOW + 4200, usegmt=True)}"], 300.0),
        (429, [AT, f"Retry-After: {formatdate(NOW - 42, usegmt=True)}"], 0.0),
        (429, [AT, f"Retry-After: {formatdate(NOW + 42)}"], 42.0),  # -0000: no time zone is known
        # garbage
        (429, ["Retry-After: -5"], None),
        (429, ["Retry-After: soon"], None),
        (429, ["Retry-After: nan"], None),
        (429, ["Retry-After: inf"], None),
        (429, ["Retry-After: 1e3"], None),
        (429, ["Retry-After: \u00b2"], None),
        (429, ["Retry-After: tWed, 2 Oct 2015 222222222222222222227:28:00 GMT"], None),
        (429, ["Retry-After:", "X-Ratelimit-Reset:"], None),
        (429, [AT, "X-Ratelimit-Reset: -1", "X-Ratelimit-Auth-Token-Reset: x"], None),
        (429, [AT, "X-Ratelimit-Reset: x", token_reset_in(6)], 6.0),
        # before the limit is reached, and without one
        (201, [AT, reset_in(6)], None),
        (201, ["Retry-After: 6"], None),
        (201, [AT, reset_in(6), "X-Ratelimit-Global-Remaining: 1"], None),
        (201, [AT, reset_in(6), SPENT], 6.0),
        (201, [AT, reset_in(6), "X-Ratelimit-Global-Remaining: 0"], 6.0),
        (201, [AT, reset_in(6), "X-Ratelimit-Route-Remaining: 0"], 6.0),
        (201, [AT, "Retry-After: 6", SPENT], 6.0),
        (201, [SPENT], None),
        (400, [AT, reset_in(6), SPENT], 6.0),
        (503, [AT, reset_in(6), "Retry-After: 8"], 8.0),
        (503, [AT, reset_in(6)], None),
        (404, ["Retry-After: 8"], None),
    ],
)
def test_hints_hold_everything_back(status: int, headers: list[str], hold_back: float | None) -> None:
    answer = post(reply(status, "", *headers))
    assert answer.status == status
    assert answer.hold_back == (None if hold_back is None else pytest.approx(hold_back))


def test_a_date_without_a_time_zone_is_universal_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "EST5")
        time.tzset()
        answer = post(reply(429, "", AT, f"Retry-After: {formatdate(NOW + 42)}"))
    time.tzset()
    assert answer.hold_back == 42.0


@pytest.mark.parametrize("date", [[], ["Date: yesterday"]])
def test_without_the_servers_time_ours_must_do(date: list[str]) -> None:
    answer = post(reply(429, "", *date, f"X-Ratelimit-Reset: {int((time.time() + 8) * 1000)}"))
    assert answer.hold_back is not None
    assert 6 < answer.hold_back <= 8


# -- no answer --------------------------------------------------------------------------------------------------------


def refused() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_refused_connection_is_tried_again(connect: Callable[..., Client]) -> None:
    answer = connect(refused()).post("{}")
    assert (answer.outcome, answer.status, answer.hold_back) == ("retry", None, None)
    assert "(NewConnectionError)" in answer.line
    for words in ("No answer from 127.0.0.1:", "LD_BASE_URI (base_uri)", "HTTPS_PROXY", "sent again later"):
        assert words in answer.line


def test_a_connection_that_is_never_made_is_given_up(connect: Callable[..., Client]) -> None:
    with black_hole() as port:
        started = time.monotonic()
        answer = connect(f"http://127.0.0.1:{port}", connect_timeout=0.2).post("{}")
    assert answer.outcome == "retry"
    assert "(ConnectTimeoutError)" in answer.line
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(hang_up, id="closed"),
        pytest.param(reset, id="reset"),
        pytest.param(b"garbage\r\n\r\n", id="no HTTP"),
        pytest.param(b"\0" * 100_000, id="one endless line"),
        pytest.param(b"HTTP/1.1 2x1 OK\r\n\r\n", id="no status"),
        pytest.param(reply(201, "", *[f"X-{number}: {number}" for number in range(300)]), id="hundreds of headers"),
        pytest.param(reply(201, "", "X: " + "x" * 70_000), id="an endless header"),
        pytest.param(b"HTTP/1.1 201 Created\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", id="two lengths"),
    ],
)
def test_what_is_no_answer_is_tried_again(broken: Reply) -> None:
    answer = post(broken)
    assert (answer.outcome, answer.status) == ("retry", None)
    assert "Error" in answer.line or "Invalid" in answer.line
    assert TOKEN not in answer.line


def test_a_server_that_never_answers_is_given_up() -> None:
    started = time.monotonic()
    answer = post(hang, read_timeout=0.2)
    assert (answer.outcome, answer.status) == ("retry", None)
    assert "(ReadTimeout)" in answer.line
    assert time.monotonic() - started < 2


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    status=st.sampled_from([b"", b"HTTP/1.1 ", b"HTTP/1.1 201 ", b"HTTP/1.1 201 Created\r\n", b"HTTP/1.1 400 Bad\r\n"]),
    headers=st.lists(
        st.sampled_from(
            [
                b"Content-Encoding: gzip",
                b"Transfer-Encoding: chunked",
                b"Content-Length: 7",
                b"Connection: close",
                b"Content-Type: text/x; charset=\xff",
                b"Set-Cookie: \xff=;;=",
                b"no colon",
                b"Location: http://[",
                b": x",
            ]
        )
    ),
    rest=st.binary(max_size=60),
)
def test_no_answer_whatever_raises(status: bytes, headers: list[bytes], rest: bytes) -> None:
    raw = status + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + rest

    def write(connection: socket.socket, _: threading.Event) -> None:
        connection.sendall(raw)

    answer = post(write)
    assert answer.outcome in set(Outcome)
    assert TOKEN not in answer.line


INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"


@pytest.mark.parametrize(
    "interim",
    [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 102 Processing\r\n\r\n", INTERIM, INTERIM * 3],
    ids=["100", "102", "103", "several"],
)
def test_an_interim_answer_is_passed_over(connect: Callable[..., Client], interim: bytes) -> None:
    with Server(interim + reply(400, '{"message": "no"}'), interim + reply(201), reply(503)) as server:
        client = connect(server)
        assert [client.post("{}").status for _ in range(3)] == [400, 201, 503]
        assert server.connections == 1


def test_interim_answers_without_an_end_are_given_up_in_time() -> None:
    started = time.monotonic()
    assert post(drip(b"", INTERIM), read_timeout=0.3).outcome == "retry"
    assert time.monotonic() - started < 1.5


def test_interim_answers_in_a_flood_are_given_up_before_the_one_that_follows() -> None:
    assert post(INTERIM * 16 + reply(201)).outcome == "accepted"
    assert post(INTERIM * 17 + reply(201)).outcome == "retry"


# -- bodies -----------------------------------------------------------------------------------------------------------

BROKEN_BODIES = {
    "packed wrongly": ["Content-Encoding: gzip", "Content-Length: 5"],
    "packed in an unknown way": ["Content-Encoding: secret, br", "Content-Length: 5"],
    "chunked wrongly": ["Transfer-Encoding: chunked", "Connection: close"],
    "too short": ["Content-Length: 50", "Connection: close"],
    "of a garbled length": ["Content-Length: x", "Connection: close"],
    "of an unknown alphabet": ["Content-Type: application/json; charset=klingon", "Content-Length: 5"],
}


@pytest.mark.parametrize(("status", "outcome"), [(201, "accepted"), (400, "rejected"), (503, "retry"), (404, "stop")])
@pytest.mark.parametrize("headers", BROKEN_BODIES.values(), ids=BROKEN_BODIES)
def test_a_broken_body_changes_no_verdict(headers: list[str], status: int, outcome: str) -> None:
    answer = post(reply(status, b"\xff\x00{}z", *headers))
    assert (answer.outcome, answer.status) == (outcome, status)


@pytest.mark.parametrize(
    ("framing", "drop"),
    [
        (f"Content-Length: {ENDLESS}", b"x" * 65536),
        ("Connection: close", b"x" * 65536),
        ("Transfer-Encoding: chunked", b"10000\r\n" + b"x" * 65536 + b"\r\n"),
    ],
)
def test_an_endless_body_is_cut(connect: Callable[..., Client], framing: str, drop: bytes) -> None:
    sent = []

    def pour(connection: socket.socket, stopping: threading.Event) -> None:
        connection.sendall(f"HTTP/1.1 201 Created\r\n{framing}\r\n\r\n".encode())
        while not stopping.is_set():
            connection.sendall(drop)
            sent.append(len(drop))

    with Server(pour, reply(201)) as server:
        client = connect(server)
        assert client.post("{}").outcome == "accepted"
        assert client.post("{}").outcome == "accepted"
        assert server.connections == 2
    assert sum(sent) < 30_000_000  # what lies in the system's own buffers


CHUNKED = b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("beginning", "drop", "outcome"),
    [
        pytest.param(b"", b"H", "retry", id="status"),
        pytest.param(b"HTTP/1.1 201 Created\r\nX: ", b"x", "retry", id="header"),
        pytest.param(b"HTTP/1.1 201 Created\r\n\r\n", b"x", "accepted", id="body until the connection closes"),
        pytest.param(b"HTTP/1.1 201 Created\r\nContent-Length: 9999\r\n\r\n", b"x", "accepted", id="body"),
        pytest.param(b"HTTP/1.0 201 Created\r\nContent-Length: 9999\r\n\r\n", b"x", "accepted", id="HTTP/1.0"),
        pytest.param(CHUNKED, b"1\r\nx\r\n", "accepted", id="chunks"),
        pytest.param(CHUNKED, b"0", "accepted", id="the length of a chunk"),
        pytest.param(CHUNKED + b"0\r\n", b"X: x\r\n", "accepted", id="trailers"),
    ],
)
def test_a_dripping_answer_is_given_up_in_time(beginning: bytes, drop: bytes, outcome: str) -> None:
    started = time.monotonic()
    # An acceptance counts, whatever follows it: nobody waits for that.
    answer = post(drip(beginning, drop), read_timeout=0.3 if outcome == "retry" else 5.0)
    assert answer.outcome == outcome
    assert time.monotonic() - started < 1.5
    assert outcome == "accepted" or time.monotonic() - started >= 0.3


def test_an_answer_that_never_pauses_is_given_up_in_time() -> None:
    def write(connection: socket.socket, stopping: threading.Event) -> None:
        connection.sendall(CHUNKED + b"0\r\n")
        while not stopping.is_set():
            connection.sendall(b"X: x\r\n" * 100)

    started = time.monotonic()
    assert post(write, read_timeout=0.3).outcome == "accepted"
    assert time.monotonic() - started < 1.5


def test_an_answer_that_drips_and_then_stops_is_given_up_in_time() -> None:
    def write(connection: socket.socket, stopping: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 400 Bad\r\nContent-Length: 9999\r\n\r\n")
        stopping.wait(0.7)
        connection.sendall(b"{")
        stopping.wait()

    started = time.monotonic()
    assert post(write, read_timeout=0.8).outcome == "rejected"
    assert time.monotonic() - started < 1.4


def test_odd_headers_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    answer = post(b"HTTP/1.1 201 Created\r\nno colon\r\nContent-Length: 0\r\n\r\n", read_timeout=0.2)
    assert answer.outcome == "accepted"
    assert caplog.records == []


# -- connections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [reply(201), reply(201, "{}"), reply(401, '{"code":"x"}'), reply(503, "x" * 65535), CHUNKED + b"0\r\n\r\n"],
)
def test_one_connection_is_kept_alive(connect: Callable[..., Client], answer: bytes) -> None:
    with Server(answer) as server:
        client = connect(server)
        for _ in range(3):
            client.post("{}")
        assert (len(server.requests), server.connections) == (3, 1)


def test_an_idle_connection_is_not_used_again(connect: Callable[..., Client]) -> None:
    with Server(reply(201)) as server:
        client = connect(server, keep_alive=0.0)
        client.post("{}")
        client.post("{}")
        assert server.connections == 2
        assert eventually(lambda: server.hung_up == 1)


def test_a_connection_is_idle_after_half_a_minute() -> None:
    parameters = inspect.signature(Client).parameters
    assert parameters["keep_alive"].default == 30.0
    assert (parameters["connect_timeout"].default, parameters["read_timeout"].default) == (3.0, 10.0)


def test_a_connection_that_the_server_has_closed_is_not_used_again(connect: Callable[..., Client]) -> None:
    with Server(reply(201, "", "Connection: close"), reply(201)) as server:
        client = connect(server)
        assert [client.post("{}").outcome for _ in range(2)] == ["accepted", "accepted"]


def test_a_close_in_the_middle_of_a_request_is_ambiguous_and_tried_again(connect: Callable[..., Client]) -> None:
    with Server(reply(201), hang_up, reply(201)) as server:
        client = connect(server)
        assert [client.post("{}").outcome for _ in range(3)] == ["accepted", "retry", "accepted"]
        assert len(server.requests) == 3


def test_threads_share_a_client_without_waiting_for_each_other(connect: Callable[..., Client]) -> None:
    together = threading.Barrier(8, timeout=5)

    def answer(connection: socket.socket, _: threading.Event) -> None:
        together.wait()
        connection.sendall(reply(201, "", "Connection: close"))

    with Server(answer) as server, ThreadPoolExecutor(8) as threads:
        client = connect(server)
        outcomes = list(threads.map(lambda number: client.post(str(number)).outcome, range(16)))
        assert outcomes == ["accepted"] * 16
        assert sorted(request.body for request in server.requests) == sorted(str(n).encode() for n in range(16))


def test_threads_keep_their_connections(connect: Callable[..., Client]) -> None:
    with Server(reply(201)) as server, ThreadPoolExecutor(8) as threads:
        client = connect(server)
        assert set(threads.map(lambda _: client.post("{}").outcome, range(200))) == {"accepted"}
        assert server.connections <= 8


def test_idle_connections_are_closed_by_close(connect: Callable[..., Client]) -> None:
    with Server(reply(201)) as server:
        client = connect(server)
        client.post("{}")
        client.close()
        assert eventually(lambda: server.hung_up == 1)
        assert client.post("{}").outcome == "accepted"  # whoever is late gets an answer, and leaves nothing behind
        assert eventually(lambda: server.hung_up == 2)


# -- TLS and proxies --------------------------------------------------------------------------------------------------

FAR = "launchdarkly.test"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def test_an_unknown_authority_is_not_trusted(connect: Callable[..., Client], authority: Authority) -> None:
    with Server(reply(201), tls=authority.server_side(LOOPBACK)) as server:
        answer = connect(server).post("{}")
        assert (answer.outcome, answer.status) == ("retry", None)
        assert "(SSLError)" in answer.line
        assert "REQUESTS_CA_BUNDLE" in answer.line
        assert server.requests == []


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_the_environment_says_who_is_trusted(
    connect: Callable[..., Client], authority: Authority, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(authority.file))
    with Server(reply(201), tls=authority.server_side(LOOPBACK)) as server:
        client = connect(server)
        assert [client.post("{}").outcome for _ in range(2)] == ["accepted", "accepted"]
        assert server.connections == 1


@pytest.mark.parametrize(
    ("name", "lasts"), [(LOOPBACK, -1), (x509.DNSName("elsewhere.test"), 1)], ids=["expired", "of another host"]
)
def test_a_certificate_is_verified(
    connect: Callable[..., Client],
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    name: x509.GeneralName,
    lasts: int,
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.file))
    with Server(reply(201), tls=authority.server_side(name, lasts=lasts)) as server:
        assert connect(server).post("{}").outcome == "retry"
        assert server.requests == []


@pytest.mark.parametrize(
    ("variable", "content", "error"),
    [
        ("REQUESTS_CA_BUNDLE", None, "OSError"),
        ("REQUESTS_CA_BUNDLE", "garbage", "SSLError"),
        # what some systems set for good; the usual authorities are trusted then
        ("SSL_CERT_FILE", None, "SSLError"),
    ],
)
def test_a_bundle_that_cannot_be_used_trusts_nobody_else(
    connect: Callable[..., Client],
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variable: str,
    content: str | None,
    error: str,
) -> None:
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_text(content)
    monkeypatch.setenv(variable, str(bundle))
    with Server(reply(201), tls=authority.server_side(LOOPBACK)) as server:
        answer = connect(server).post("{}")
        assert answer.outcome == "retry"
        assert f"({error})" in answer.line
        assert "REQUESTS_CA_BUNDLE" in answer.line
        assert str(bundle) not in answer.line
        assert server.requests == []


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize("secure", [False, True])
def test_loopback_is_reached_past_any_proxy(
    connect: Callable[..., Client], authority: Authority, monkeypatch: pytest.MonkeyPatch, variable: str, secure: bool
) -> None:
    monkeypatch.setenv(variable, refused())
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.file))
    with Server(reply(201), tls=authority.server_side(LOOPBACK) if secure else None) as server:
        assert connect(server).post("{}").outcome == "accepted"


def test_a_proxy_of_the_environment_sees_neither_token_nor_event(
    connect: Callable[..., Client], authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.file))
    with (
        Server(reply(201), tls=authority.server_side(x509.DNSName(FAR))) as server,
        Server(tunnel(server.port)) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://somebody:hidden@127.0.0.1:{proxy.port}")
        client = connect(f"https://{FAR}", loopback=False)
        assert [client.post("{}").outcome for _ in range(2)] == ["accepted", "accepted"]
        (asked,) = proxy.requests
        assert (asked.method, asked.target) == ("CONNECT", f"{FAR}:443")
        assert "proxy-authorization" in asked.headers
        assert TOKEN not in repr(asked)
        assert server.requests[0].headers["authorization"] == TOKEN
        assert "proxy-authorization" not in server.requests[0].headers
        assert server.connections == 1
        client.close()


def test_a_proxy_makes_no_class_for_every_request(
    connect: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    def classes() -> int:
        # Not isinstance: other tests leave objects behind that lie about their class.
        found = [thing for thing in gc.get_objects() if issubclass(type(thing), type)]
        return sum(issubclass(thing, http.client.HTTPConnection) for thing in found)

    with Server(reply(407)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        client = connect(f"https://{FAR}", loopback=False)
        client.post("{}")
        before = classes()
        client.post("{}")
        assert classes() == before


@pytest.mark.parametrize("exempt", [FAR, f".{FAR.partition('.')[2]}", "*"])
def test_no_proxy_of_the_environment_is_honoured(
    connect: Callable[..., Client], authority: Authority, monkeypatch: pytest.MonkeyPatch, exempt: str
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.file))
    monkeypatch.setenv("HTTPS_PROXY", refused())
    monkeypatch.setenv("NO_PROXY", exempt.replace(FAR, "127.0.0.1").replace(".test", "127.0.0.1"))
    with Server(reply(201), tls=authority.server_side(LOOPBACK)) as server:
        assert connect(server, loopback=False).post("{}").outcome == "accepted"


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [(reply(407), 3.0), (reply(502), 3.0), (hang_up, 3.0), (drip(b"HTTP/1.1 200 OK\r\nX: ", b"x"), 0.3)],
)
def test_a_proxy_that_refuses_is_no_answer(
    connect: Callable[..., Client], monkeypatch: pytest.MonkeyPatch, answer: Reply, seconds: float
) -> None:
    with Server(answer) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://somebody:hidden@127.0.0.1:{proxy.port}")
        started = time.monotonic()
        told = connect(f"https://{FAR}", loopback=False, connect_timeout=seconds).post("{}")
        assert (told.outcome, told.status) == ("retry", None)
        assert "HTTPS_PROXY" in told.line
        assert "hidden" not in told.line
        assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "proxy", ["http://", "nonsense://127.0.0.1", "http://[", "http://somebody:hidden@", "socks5://127.0.0.1:1"]
)
def test_a_proxy_that_is_none_is_no_answer(
    connect: Callable[..., Client], monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    answer = connect(f"https://{FAR}", loopback=False).post("{}")
    assert answer.outcome == "retry"
    assert "hidden" not in answer.line


@pytest.mark.parametrize("base_uri", [f"http://{FAR}", f"HTTP://{FAR}", f"ftp://{FAR}", FAR])
def test_the_token_is_not_sent_in_the_open(base_uri: str) -> None:
    with pytest.raises(ValueError, match="loopback only"):
        client_of(base_uri, loopback=False)


# -- reading back -----------------------------------------------------------------------------------------------------


def page(*items: Any, following: Any = None, **more: Any) -> bytes:
    links = {} if following is None else {"_links": {"next": {"href": following}}}
    return reply(200, json.dumps({"totalCount": 2, "items": items, **links, **more}), "Content-Type: application/json")


def read(client: Client, **more: Any) -> list[dict[str, Any]]:
    return list(client.deployments(project_key="p", environment_key="e", **more))


@pytest.mark.parametrize(
    ("asked", "query"),
    [
        ({}, "projectKey=p&environmentKey=e&limit=100"),
        (
            {"application_key": "a b&c", "since": 0, "until": 1_700_000_000_000, "limit": 5},
            "projectKey=p&environmentKey=e&applicationKey=a+b%26c&from=0&to=1700000000000&limit=5",
        ),
    ],
)
def test_deployments_are_asked_for(connect: Callable[..., Client], asked: dict[str, Any], query: str) -> None:
    with Server(page({"id": "1"}, {"id": "2"})) as server:
        assert read(connect(server), **asked) == [{"id": "1"}, {"id": "2"}]
        (request,) = server.requests
    assert request.method == "GET"
    assert request.target == f"/api/v2/engineering-insights/deployments?{query}"
    assert request.headers["authorization"] == TOKEN
    assert request.headers["ld-api-version"] == "beta"
    assert "content-type" not in request.headers


@pytest.mark.parametrize("path", ["", "/gateway"])
def test_deployments_are_read_page_by_page(connect: Callable[..., Client], path: str) -> None:
    with Server() as server:
        server.replies = [
            page(
                {"id": "1"}, "no deployment", following="/api/v2/engineering-insights/deployments?after=x%3D1&limit=1"
            ),
            page({"id": "2"}, following=f"{server.url}/api/v2/engineering-insights/deployments?after=2"),
            page({"id": "3"}),
        ]
        assert [item["id"] for item in read(connect(server.url + path))] == ["1", "2", "3"]
        assert [request.target.partition("?")[::2] for request in server.requests[1:]] == [
            (f"{path}/api/v2/engineering-insights/deployments", "after=x%3D1&limit=1"),
            (f"{path}/api/v2/engineering-insights/deployments", "after=2"),
        ]


def test_pages_are_read_as_they_are_needed(connect: Callable[..., Client]) -> None:
    with Server(page({"id": "1"}, following="?after=1")) as server:
        deployments = connect(server).deployments(project_key="p", environment_key="e")
        assert server.requests == []
        next(deployments)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "last", [page(following="?after=1"), page({"id": "1"}, following=7), page({"id": "1"}, _links=[])]
)
def test_the_last_page_is_seen(connect: Callable[..., Client], last: bytes) -> None:
    with Server(last) as server:
        read(connect(server))
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "cursor", ["{other}?after=1", "//elsewhere.test/?after=1", "https://127.0.0.1:{port}/?x", "http://["]
)
def test_a_page_elsewhere_is_not_asked_for(connect: Callable[..., Client], cursor: str) -> None:
    with Server(page({"id": "2"})) as other, Server() as server:
        server.replies = [page({"id": "1"}, following=cursor.format(other=other.url, port=server.port))]
        with pytest.raises(LaunchDarklyError, match="did not answer as LaunchDarkly does"):
            read(connect(server))
        assert len(server.requests) == 1
        assert other.connections == 0


def test_pages_that_go_in_a_circle_are_left(connect: Callable[..., Client]) -> None:
    with Server(page({"id": "1"}, following="?after=1")) as server:
        with pytest.raises(LaunchDarklyError, match="did not answer as LaunchDarkly does"):
            read(connect(server))
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (reply(401), 401, "LD_ACCESS_TOKEN (access_token)"),
        (reply(403), 403, "LD_DEPLOY_API_VERSION (api_version)"),
        (reply(404), 404, "LD_PROJECT (project_key)"),
        (reply(400, '{"message":"no such kind"}'), 400, "no such kind"),
        (reply(429), 429, "too many requests"),
        (reply(500), 500, "cannot take the request now"),
        (reply(302, "", "Location: /"), 302, "redirect"),
        (reply(201, "{}"), 201, "not what LaunchDarkly answers"),
        (hang_up, None, "No answer"),
        (reply(200, "9\r\n{}", "Transfer-Encoding: chunked", "Connection: close"), 200, "No answer"),
        (
            reply(200, '{"items":', "Content-Length: 99", "Connection: close"),
            200,
            "did not answer as LaunchDarkly does",
        ),
        (reply(200, "<html>"), 200, "did not answer as LaunchDarkly does"),
        (reply(200, "[]"), 200, "did not answer as LaunchDarkly does"),
        (reply(200, '{"items":{}}'), 200, "did not answer as LaunchDarkly does"),
        (reply(200, "{}"), 200, "did not answer as LaunchDarkly does"),
    ],
)
def test_what_cannot_be_read_is_an_error_of_ours(
    connect: Callable[..., Client], answer: Reply, status: int | None, words: str
) -> None:
    with Server(answer) as server, pytest.raises(LaunchDarklyError) as caught:
        read(connect(server))
    assert caught.value.status == status
    assert words in str(caught.value)
    assert isinstance(caught.value, DeployHooksError)
    # requests' own exceptions carry the request, and with it the token
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    assert TOKEN not in repr(caught.value)


def test_a_large_page_is_read_whole(connect: Callable[..., Client]) -> None:
    items = [{"id": str(number), "metadata": {"notes": "x" * 8000}} for number in range(100)]
    with Server(page(*items)) as server:
        assert read(connect(server)) == items


def test_the_token_can_be_checked(connect: Callable[..., Client]) -> None:
    with Server(reply(200, '{"tokenName":"ci","serviceToken":true}'), reply(401)) as server:
        client = connect(server)
        assert client.caller_identity() == {"tokenName": "ci", "serviceToken": True}
        with pytest.raises(LaunchDarklyError, match="answered 401"):
            client.caller_identity()
        assert {(request.method, request.target) for request in server.requests} == {("GET", "/api/v2/caller-identity")}


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_the_token_is_in_no_repr() -> None:
    client = client_of("https://app.launchdarkly.com/", loopback=False)
    assert repr(client) == "Client('https://app.launchdarkly.com')"


def test_an_outcome_is_a_plain_string() -> None:
    assert f"{Outcome.RETRY}" == "retry"
    assert {"retry": 1}[Outcome.RETRY] == 1


def test_requests_waits_for_the_first_request(run_python: Callable[..., Any]) -> None:
    done = run_python(
        "import sys\n"
        "from ld_deploy_hooks._launchdarkly import Client\n"
        "client = Client(base_uri='http://127.0.0.1:1', token='x', loopback=True, user_agent='x')\n"
        "client.close()\n"
        "sys.exit('requests' in sys.modules or 'urllib3' in sys.modules)"
    )
    assert done.returncode == 0, done.stderr


def test_nothing_is_said_on_the_way(
    connect: Callable[..., Client], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    with Server(reply(201), reply(503), hang_up) as server:
        client = connect(server)
        for _ in range(3):
            client.post("{}")
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
