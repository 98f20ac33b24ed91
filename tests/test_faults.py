"""Everything that can go wrong between a deploy and LaunchDarkly: the deploy stays as it is, no event is lost.

Each fault meets a real child process, whose exit is timed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from fault_kit import MARGIN, PLAIN, TOKEN, Deploys, Ended, deploys_fixture  # noqa: F401
from fault_server import Exchange, FaultServer, Step, answer, dripping, garbage, hung_up, repeats, silent, told
from outbox_kit import end, held, opened, start
from wire import LOOPBACK, Authority, Server, tunnel


def reset_in(seconds: float, name: str = "X-Ratelimit-Reset", *, clock: float = 0.0) -> Mapping[str, str]:
    """Return the header that names a point of the server's time, in milliseconds."""
    return {name: str(int((time.time() + clock + seconds) * 1000))}


def all_hints() -> Mapping[str, str]:
    return {
        **reset_in(0.2),
        **reset_in(0.4, "X-Ratelimit-Auth-Token-Reset"),
        "Retry-After": "1",
        "X-Ratelimit-Global-Remaining": "0",
        "X-Ratelimit-Route-Remaining": "0",
        "X-Ratelimit-Auth-Token-Remaining": "0",
    }


@dataclass
class Fault:
    """What the server does, and what comes of it.

    Attributes:
        script: of the server.
        away: of the server.
        now: whether the deploy itself still delivers its events.
        says: a part of the only line that the deploy says; nothing at all is said if it is empty.
        flush_timeout: seconds.
        longest: seconds that the exit may take; None: what is promised.
        repeats: whether an event may come twice, since an answer was lost.
    """

    script: list[Step] = field(default_factory=list)
    away: str = ""
    now: bool = False
    says: str = "wait in"
    flush_timeout: float = 1.0
    longest: float | None = None
    repeats: bool = False


def delivered(*script: Step, flush_timeout: float = 6.0, **more: object) -> Fault:
    """Return a fault that the deploy itself gets over, silently."""
    return Fault(list(script), now=True, says="", flush_timeout=flush_timeout, **more)  # type: ignore[arg-type]


def kept(*script: Step, **more: object) -> Fault:
    """Return a fault that only a later run gets over."""
    return Fault(list(script), **more)  # type: ignore[arg-type]


HOUR = 3600.0
FAULTS = {
    "healthy, 100 ms": delivered(answer(delay=0.1), longest=0.2 + 1.0),
    "refused": kept(away="refused"),
    "black hole": kept(away="black hole"),
    "never answered": kept(silent),
    "header drips": kept(dripping("header")),
    "body drips": kept(dripping("body")),
    "no HTTP": kept(garbage, says="wait in"),
    "503 once": delivered(answer(503), answer()),
    "503 three times": delivered(answer(503), answer(503), answer(503), answer()),
    "503 always": kept(answer(503), says="answered 503"),
    "500 always": kept(answer(500), says="answered 500"),
    "408, 409, 425": delivered(answer(408), answer(409), answer(425), answer()),
    "429 without a hint": delivered(answer(429), answer()),
    "429 with a reset": delivered(answer(429, lambda: reset_in(1)), answer()),
    "429 with the token's reset": delivered(answer(429, lambda: reset_in(1, "X-Ratelimit-Auth-Token-Reset")), answer()),
    "429 with seconds": delivered(answer(429, {"Retry-After": "1"}), answer()),
    "429 with a date": delivered(
        answer(429, lambda: {"Retry-After": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 1))}),
        answer(),
    ),
    "429 with all hints": delivered(answer(429, all_hints), answer()),
    "429 with garbage": delivered(
        answer(429, {"Retry-After": "soon", "X-Ratelimit-Reset": "?", "X-Ratelimit-Auth-Token-Reset": "NaN"}), answer()
    ),
    "429 with negative hints": delivered(answer(429, {"Retry-After": "-5", "X-Ratelimit-Reset": "-1"}), answer()),
    "429 with a reset long ago": delivered(answer(429, lambda: reset_in(-HOUR)), answer()),
    "429 by a clock an hour ahead": delivered(answer(429, lambda: reset_in(1, clock=HOUR), clock=HOUR), answer()),
    "429 by a clock an hour behind": delivered(answer(429, lambda: reset_in(1, clock=-HOUR), clock=-HOUR), answer()),
    "401, then mended": kept(answer(401), says="answered 401"),
    "403, then mended": kept(answer(403), says="answered 403"),
    "404, then mended": kept(answer(404), says="answered 404"),
    "302 to a page that answers 200": kept(answer(302, {"Location": "/elsewhere"}), answer(200), says="answered 302"),
    "200 with HTML": kept(answer(200, {"Content-Type": "text/html"}, b"<html>ok</html>"), says="answered 200"),
    "processed, no answer": delivered(hung_up(processed=True), answer(), repeats=True),
    "processed, reset": delivered(hung_up(processed=True, reset=True), answer(), repeats=True),
    "closed": delivered(hung_up(processed=False), answer()),
    "reset": delivered(hung_up(processed=False, reset=True), answer()),
    "processed, no answer on a reused connection": delivered(
        hung_up(processed=True, reused=True), hung_up(processed=True, reused=True), answer(), repeats=True
    ),
    "closed on a reused connection": delivered(
        hung_up(processed=False, reused=True), hung_up(processed=False, reused=True), answer()
    ),
}


def assert_untouched(ended: Ended) -> None:
    """Assert that the deploy is what it would be without us."""
    assert ended.status == 3, ended
    assert ended.stdout == "deploying\n"
    assert "Traceback" not in ended.stderr
    assert TOKEN not in ended.stderr


@pytest.mark.parametrize("name", FAULTS)
def test_a_deploy_gets_over_a_fault_of_the_service(deploys: Deploys, name: str) -> None:
    fault = FAULTS[name]
    deploys.set(LD_DEPLOY_FLUSH_TIMEOUT=str(fault.flush_timeout))
    with FaultServer(*fault.script, away=fault.away) as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        ended = deploys.run(PLAIN)
        assert_untouched(ended)
        assert ended.lingered < (fault.longest or fault.flush_timeout + MARGIN), ended
        if fault.now:
            assert ended.stderr == ""
        else:
            assert any(fault.says in line for line in ended.lines), ended
            assert len(ended.lines) <= 2
            server.heal()
            deploys.next_run()
        assert told(server.events) == {"v1": ["started", "finished"]}
        if not fault.repeats:
            assert repeats(server.events) == 0


# -- what the service will never take ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 405, 413, 422])
def test_what_can_never_be_accepted_is_kept_as_rejected_said_once_and_sent_again_after_retry(
    deploys: Deploys, status: int
) -> None:
    with FaultServer(answer(status)) as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        ended = deploys.run(PLAIN)
        assert_untouched(ended)
        assert ended.lingered < 2 + MARGIN
        assert [f"answered {status}" in line for line in ended.lines] == [True]
        assert server.posts == 2
        server.heal()
        deploys.next_run()
        assert server.posts == 2
        assert "2 rejected event(s) put back in line" in deploys.command("retry").stdout
        deploys.next_run()
        assert told(server.events) == {"v1": ["started", "finished"]}


def test_a_rate_limit_holds_back_every_send_of_the_token_and_of_the_next_run(deploys: Deploys) -> None:
    deploys.set(LD_DEPLOY_FLUSH_TIMEOUT="0.5")
    with FaultServer(answer(429, {"Retry-After": "4"}), answer()) as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        ended = deploys.run(
            """
            with deployment("billing", version="v1"), deployment("web", version="v2"):
                pass
            leave()
            """
        )
        assert ended.status == 0
        assert server.posts == 1
        assert len(ended.lines) == 1
        at_once = deploys.command("flush", "--timeout", "1")
        assert at_once.status == 1
        assert server.posts == 1
        deploys.next_run()
        assert server.times[1] - server.times[0] > 4
        assert told(server.events) == {"v1": ["started", "finished"], "v2": ["started", "finished"]}


def test_a_reset_in_the_far_future_counts_as_fifteen_seconds(deploys: Deploys) -> None:
    with FaultServer(answer(429, lambda: reset_in(365 * 24 * HOUR)), answer()) as server:
        deploys.set(LD_BASE_URI=server.base_uri, LD_DEPLOY_FLUSH_TIMEOUT="30")
        ended = deploys.run(PLAIN)
        assert_untouched(ended)
        assert 15 <= server.times[1] - server.times[0] < 16.5
        assert told(server.events) == {"v1": ["started", "finished"]}


def test_a_hold_that_a_wrong_clock_has_stored_holds_nobody_back(deploys: Deploys) -> None:
    with FaultServer() as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        deploys.run(PLAIN, "v0")
        with opened(deploys.outbox) as box:
            box.hold(server.base_uri, until=int((time.time() + HOUR) * 1000))
        assert_untouched(deploys.run(PLAIN))
        assert told(server.events) == {"v0": ["started", "finished"], "v1": ["started", "finished"]}


# -- the way there ----------------------------------------------------------------------------------------------------

HANGING_DNS = """
import socket
resolve = socket.getaddrinfo
def hang(host, *args, **kwargs):
    time.sleep(60)
    return resolve(host, *args, **kwargs)
socket.getaddrinfo = hang
"""


def test_a_name_that_is_never_resolved(deploys: Deploys) -> None:
    with FaultServer() as server:
        deploys.set(LD_BASE_URI=f"http://localhost:{server.port}", LD_DEPLOY_FLUSH_TIMEOUT="1")
        ended = deploys.run(HANGING_DNS + PLAIN)
        assert_untouched(ended)
        assert ended.lingered < 1 + MARGIN
        assert len(ended.lines) == 1
        deploys.next_run()
        assert told(server.events) == {"v1": ["started", "finished"]}


@pytest.mark.parametrize("trouble", ["unknown authority", "expired"])
def test_a_certificate_that_is_not_trusted_then_one_that_is(deploys: Deploys, tmp_path: Path, trouble: str) -> None:
    authority = Authority(tmp_path)
    bad = authority.server_side(LOOPBACK, lasts=-1 if trouble == "expired" else 1)
    bundle = {"REQUESTS_CA_BUNDLE": str(authority.file)}
    deploys.set(LD_DEPLOY_FLUSH_TIMEOUT="1", **(bundle if trouble == "expired" else {}))
    with FaultServer(tls=bad) as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        ended = deploys.run(PLAIN)
        assert_untouched(ended)
        assert len(ended.lines) == 1
        assert "SSL" in ended.stderr
        assert server.events == []
        server.serve_with(authority.server_side(LOOPBACK))
        deploys.set(**bundle)
        deploys.next_run()
        assert told(server.events) == {"v1": ["started", "finished"]}


def test_neither_netrc_nor_a_dead_proxy_stands_between_the_deploy_and_a_loopback_service(deploys: Deploys) -> None:
    netrc = Path(deploys.env["HOME"]) / ".netrc"
    netrc.write_text("default login somebody password else\n")
    netrc.chmod(0o600)
    with FaultServer() as server:
        deploys.set(LD_BASE_URI=server.base_uri, HTTP_PROXY="http://127.0.0.1:9", HTTPS_PROXY="http://127.0.0.1:9")
        ended = deploys.run(PLAIN)
        assert_untouched(ended)
        assert ended.stderr == ""
        assert told(server.events) == {"v1": ["started", "finished"]}
        assert all(f"authorization: {TOKEN}".encode() in head.lower() for head in server.heads)


def test_a_proxy_of_the_environment_is_gone_through(deploys: Deploys, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    service = authority.server_side(x509.DNSName("launchdarkly.test"))
    with FaultServer(tls=service) as server, Server(tunnel(server.port)) as proxy:
        deploys.set(
            LD_BASE_URI="https://launchdarkly.test",
            HTTPS_PROXY=f"http://somebody:hidden@127.0.0.1:{proxy.port}",
            REQUESTS_CA_BUNDLE=str(authority.file),
        )
        ended = deploys.run(PLAIN)
        assert_untouched(ended)
        assert ended.stderr == ""
        assert told(server.events) == {"v1": ["started", "finished"]}
        assert all(b"proxy-authorization" not in head.lower() for head in server.heads)
        assert {request.target for request in proxy.requests} == {"launchdarkly.test:443"}


def test_old_events_of_another_base_uri_never_reach_this_service(deploys: Deploys) -> None:
    with FaultServer(away="refused") as other, FaultServer() as server:
        deploys.set(LD_BASE_URI=other.base_uri, LD_DEPLOY_FLUSH_TIMEOUT="0.5")
        deploys.run(PLAIN, "old")
        deploys.set(LD_BASE_URI=server.base_uri)
        assert deploys.run(PLAIN, "new").stderr == ""
        flushed = deploys.command("flush")
        assert flushed.status == 0
        assert f"2 event(s) wait for {other.base_uri}" in flushed.stdout
        assert told(server.events) == {"new": ["started", "finished"]}
        assert "2 event(s) re-addressed" in deploys.command("retry", "--base-uri", other.base_uri).stdout
        deploys.next_run()
        assert told(server.events) == {"new": ["started", "finished"], "old": ["started", "finished"]}


def test_the_events_of_the_deploy_that_runs_go_before_five_thousand_old_ones(deploys: Deploys) -> None:
    now = int(time.time() * 1000)
    with opened(deploys.outbox) as box, box.transaction():
        for number in range(2500):
            start(box, f"d{number}", of=f"old{number}", base_uri="@", now=now)
            end(box, f"d{number}", of=f"old{number}", now=now)
    # The first old ones are accepted, and from then on none is even answered.
    old = [answer()] * 3

    def only_ours(exchange: Exchange) -> bool:
        return (answer() if b'"v1"' in exchange.body else old.pop() if old else silent)(exchange)

    with FaultServer(only_ours) as server:
        with opened(deploys.outbox) as box:
            assert box.readdress(from_base_uri=None, to_base_uri=server.base_uri, now=now) == 5000
        deploys.set(LD_BASE_URI=server.base_uri, LD_DEPLOY_FLUSH_TIMEOUT="1.5")
        ended = deploys.run(PLAIN)
        assert_untouched(ended)
        assert ended.lingered < 1.5 + MARGIN
        assert server.events[0]["version"] == "v1"
        assert told(server.events)["v1"] == ["started", "finished"]
        server.heal()
        flushed = deploys.command("flush", "--timeout", "60")
        assert flushed.status == 0, flushed
        facts = told(server.events)
        assert facts.pop("v1") == ["started", "finished"]
        assert len(facts) == 2500
        assert set(map(tuple, facts.values())) == {("started", "finished")}


def test_an_import_that_meets_with_one_of_the_deploy_is_tried_again(deploys: Deploys) -> None:
    with FaultServer() as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        # As Python itself fails where two threads import parts of one package at once.
        ended = deploys.run(
            f"""
            class Meeting:
                met = 0

                def find_spec(self, name, *more):
                    if name in ("requests.sessions", "urllib3.poolmanager") and self.met < 2:
                        self.met += 1
                        raise KeyError(name.partition(".")[0])

            sys.meta_path.insert(0, meeting := Meeting())
            {PLAIN.replace(chr(10), chr(10) + " " * 12)}
            """.replace("leave(3)", "flush(); assert meeting.met == 2; leave(3)")
        )
        assert (ended.status, ended.stdout, ended.stderr) == (3, "deploying\n", "")
        assert told(server.events) == {"v1": ["started", "finished"]}


def test_many_events_that_are_refused_alike_are_one_line(deploys: Deploys) -> None:
    with FaultServer(answer(400)) as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        ended = deploys.run(
            "with deployment('billing', version='v1') as d:\n    for n in range(5): d.custom(n=n)\nleave()"
        )
        assert (ended.status, len(ended.lines)) == (0, 1)
        assert "400" in ended.stderr


def test_what_shows_requests_on_stdout_does_not_show_the_token(deploys: Deploys) -> None:
    with FaultServer() as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        ended = deploys.run("import http.client; http.client.HTTPConnection.debuglevel = 1\n" + PLAIN)
        assert_untouched(ended)
        assert told(server.events) == {"v1": ["started", "finished"]}


def test_an_event_of_another_project_that_is_refused_stands_in_nobody_s_way(deploys: Deploys) -> None:
    def knows_one_project(exchange: Exchange) -> bool:
        known = json.loads(exchange.body)["projectKey"] == "default"
        return (answer() if known else answer(404))(exchange)

    with FaultServer(knows_one_project) as server:
        deploys.set(LD_BASE_URI=server.base_uri, LD_PROJECT="typo")
        deploys.run(PLAIN, "v0")
        deploys.set(LD_PROJECT="default", LD_ACCESS_TOKEN="")
        deploys.run(PLAIN, "v1")
        deploys.set(LD_ACCESS_TOKEN=TOKEN)
        assert deploys.command("flush", "--timeout", "1").status == 1
        assert told(server.events) == {"v1": ["started", "finished"]}
        ended = deploys.run("with deployment('billing', version='v2'):\n    flush(0.5)\nleave()")
        assert "answered 404" in ended.stderr
        assert told(server.events)["v2"] == ["started", "finished"]


def test_what_another_process_was_told_to_wait_for_is_waited_for(deploys: Deploys) -> None:
    def holds_v1(exchange: Exchange) -> bool:
        held = json.loads(exchange.body)["version"] == "v1"
        return (answer(429, {"Retry-After": "30"}) if held else answer())(exchange)

    with FaultServer(holds_v1) as server:
        deploys.set(LD_BASE_URI=server.base_uri, LD_DEPLOY_FLUSH_TIMEOUT="1")
        running = deploys.start(
            """
            with deployment("web", version="v2"):
                flush()
                ready()
                while not Path("go on").exists():
                    time.sleep(0.01)
            leave()
            """
        ).until_ready()
        deploys.run(PLAIN, "v1")
        (deploys.folder / "go on").touch()
        assert running.ends().lingered < 1 + MARGIN
        assert (told(server.events), server.posts) == ({"v2": ["started"]}, 2)


def test_many_tokens_beside_an_outbox_that_is_held_hold_no_exit_up(deploys: Deploys) -> None:
    with FaultServer() as server:
        deploys.set(LD_BASE_URI=server.base_uri, LD_DEPLOY_FLUSH_TIMEOUT="0.2")
        running = deploys.start(
            """
for number in range(80):
    os.environ["LD_ACCESS_TOKEN"] = f"api-{number}"
    with deployment(f"app{number}", version="v1"):
        pass
ready()
while not os.path.exists("held"): time.sleep(0.01)
leave()
"""
        ).until_ready()
        with held(deploys.outbox):
            (deploys.folder / "held").touch()
            ended = running.ends()
        assert ended.status == 0
        assert ended.lingered < 0.2 + MARGIN
        deploys.next_run()
        assert repeats(server.events) == 0
        assert len(server.events) == 160


def test_many_tokens_beside_a_service_that_is_silent_hold_no_exit_up(deploys: Deploys) -> None:
    with FaultServer(silent) as server:
        deploys.set(LD_BASE_URI=server.base_uri, LD_DEPLOY_FLUSH_TIMEOUT="0.2")
        ended = deploys.run(
            """
for number in range(150):
    os.environ["LD_ACCESS_TOKEN"] = f"api-{number}"
    with deployment(f"app{number}", version="v1"):
        pass
leave()
"""
        )
        assert ended.status == 0
        assert ended.lingered < 0.2 + MARGIN
        # All of them say the same.
        assert len(ended.lines) == 1
        assert ended.stderr.startswith("300 event(s) wait in ")
