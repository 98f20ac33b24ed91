"""``ld-deploy verify``, as real processes, against LaunchDarklys on loopback that show things rightly and wrongly."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from fault_kit import PLAIN, TOKEN, Deploys, Ended, deploys_fixture  # noqa: F401
from fault_server import Exchange, FaultServer, Step, answer, garbage, silent

from ld_deploy_hooks.testing import FakeLaunchDarkly

FAILED = "with deployment('billing', version=sys.argv[1]) as d:\n    d.mark_failed('no')\n"
OPEN = "with deployment('billing', version=sys.argv[1]):\n    flush()\n    ready()\n    time.sleep(60)\n"


def verify(deploys: Deploys, *arguments: str) -> Ended:
    """Run it; whatever it is asked, no token is in what it prints."""
    ended = deploys.command("verify", *arguments)
    assert TOKEN not in ended.stdout + ended.stderr
    return ended


def report(deploys: Deploys, *arguments: str) -> tuple[int, dict[str, Any]]:
    ended = verify(deploys, "--json", *arguments)
    assert ended.stderr == ""
    return ended.status, json.loads(ended.stdout)


def rows(found: dict[str, Any]) -> dict[str, tuple[str | None, bool]]:
    return {each["version"]: (each["shown"], each["right"]) for each in found["deployments"]}


@pytest.fixture(autouse=True)
def _all_is_delivered(deploys: Deploys) -> None:
    deploys.set(LD_DEPLOY_FLUSH_TIMEOUT="20")


@pytest.fixture
def fake(deploys: Deploys) -> Iterator[FakeLaunchDarkly]:
    with FakeLaunchDarkly(token=TOKEN) as fake:
        deploys.set(LD_BASE_URI=fake.base_uri)
        yield fake


def item_of(fake: FakeLaunchDarkly, version: str) -> dict[str, Any]:
    (item,) = [one for one in fake.deployments if one["applicationVersion"] == version]
    return item


class Reader(FaultServer):
    """A LaunchDarkly that takes events, after those that it answers by ``first``, and shows what ``shows`` returns.

    Attributes:
        asked: the questions.
    """

    def __init__(self, shows: Callable[[Reader], Any], *first: Step) -> None:
        super().__init__(*first, self._take_or_show)
        self._shows = shows
        self.asked: list[dict[str, list[str]]] = []

    def _take_or_show(self, exchange: Exchange) -> bool:
        if exchange.body:
            return answer()(exchange)
        target = self.heads[-1].split(b" ")[1].decode()
        self.asked.append(parse_qs(urlsplit(target).query))
        shown = self._shows(self)
        if callable(shown):
            return bool(shown(exchange))
        body = json.dumps({"totalCount": len(shown), "items": shown, "_links": {}}).encode()
        return answer(200, {}, body)(exchange)


def items(server: FaultServer) -> list[dict[str, Any]]:
    """Return what LaunchDarkly should show of the events that the server has."""
    ends = {event["version"]: event["eventType"] for event in server.events if event["eventType"] != "started"}
    return [
        {
            "applicationKey": event["applicationKey"],
            "applicationVersion": event["version"],
            "startedAt": event["eventTime"],
            "status": ends.get(event["version"], "started"),
        }
        for event in server.events
        if event["eventType"] == "started"
    ]


def test_all_is_there(deploys: Deploys, fake: FakeLaunchDarkly) -> None:
    deploys.run(PLAIN, "v1")
    deploys.run(FAILED, "v2")
    ended = verify(deploys)
    assert (ended.status, ended.stderr) == (0, "")
    heading, second, first, summary = ended.stdout.splitlines()
    assert heading.split()[-4:] == ["delivered", "LaunchDarkly", "shows", "right"]
    assert first.split()[:3] == ["billing", "v1", "production"]
    assert first.split()[-4:] == ["started,", "finished", "finished", "yes"]
    assert second.split()[-4:] == ["started,", "failed", "failed", "yes"]
    assert summary == f"2 deployment(s) are shown by {fake.base_uri} as they were told, 0 not"
    status, found = report(deploys)
    assert status == 0
    assert rows(found) == {"v1": ("finished", True), "v2": ("failed", True)}
    assert (found["right"], found["wrong"], found["not_delivered"]) == (2, 0, 0)
    assert [each["delivered"] for each in found["deployments"]] == [["started", "failed"], ["started", "finished"]]


def test_another_status_is_not_all_right(deploys: Deploys, fake: FakeLaunchDarkly) -> None:
    deploys.run(PLAIN, "v1")
    deploys.run(PLAIN, "v2")
    identity = item_of(fake, "v2")["id"]
    body = json.dumps([{"op": "replace", "path": "/status", "value": "failed"}]).encode()
    _patch(fake, identity, body)
    began = time.monotonic()
    status, found = report(deploys, "--timeout", "1.2")
    assert 0.4 < time.monotonic() - began < 5
    assert status == 1
    assert rows(found) == {"v2": ("failed", False), "v1": ("finished", True)}
    ended = verify(deploys, "--timeout", "0")
    assert ended.status == 1
    assert [line.split()[-1] for line in ended.stdout.splitlines()[1:3]] == ["NO", "yes"]
    assert ended.stdout.splitlines()[3].endswith(", 1 not")


def _patch(fake: FakeLaunchDarkly, identity: str, body: bytes) -> None:
    request = urllib.request.Request(
        f"{fake.base_uri}/api/v2/engineering-insights/deployments/{identity}",
        body,
        {"Authorization": TOKEN, "LD-API-Version": "beta", "Content-Type": "application/json"},
        method="PATCH",
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10):
        pass


def test_what_was_delivered_and_is_not_shown_is_missing(deploys: Deploys, fake: FakeLaunchDarkly) -> None:
    deploys.run(PLAIN, "v1")
    fake.clear()
    deploys.run(PLAIN, "v2")
    status, found = report(deploys, "--timeout", "0")
    assert status == 1
    assert rows(found) == {"v2": ("finished", True), "v1": (None, False)}
    assert "nothing  NO" in " ".join(verify(deploys, "--timeout", "0").stdout.split(" " * 12))


def test_what_is_processed_late_is_waited_for(deploys: Deploys) -> None:
    def late(server: Reader) -> list[dict[str, Any]]:
        asked = [question["applicationKey"] for question in server.asked]
        shown = [one for one in items(server) if [one["applicationKey"]] == asked[-1]]
        if asked[-1] == ["web"] or asked.count(["billing"]) > 2:
            return shown
        return [{**one, "status": "started"} for one in shown] if asked.count(["billing"]) == 2 else []

    with Reader(late) as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        deploys.run(PLAIN, "v1")
        deploys.run("with deployment('web', version='v2'): pass\n")
        status, found = report(deploys)
        assert (status, rows(found)) == (0, {"v1": ("finished", True), "v2": ("finished", True)})
        assert [question["applicationKey"] for question in server.asked] == [
            ["billing"],
            ["web"],
            ["billing"],
            ["billing"],
        ]


def test_redeployments_are_told_apart_by_their_times(deploys: Deploys, fake: FakeLaunchDarkly) -> None:
    deploys.run(PLAIN, "v1")
    deploys.run(FAILED, "v1")
    assert [each["shown"] for each in report(deploys)[1]["deployments"]] == ["failed", "finished"]
    fake.clear()
    deploys.run(PLAIN, "v1")
    status, found = report(deploys, "--timeout", "0")
    assert status == 1
    assert [each["shown"] for each in found["deployments"]] == ["finished", None, None], "one is not shown for another"


def test_a_start_that_arrived_twice_hides_nothing(deploys: Deploys) -> None:
    def twice(server: Reader) -> list[dict[str, Any]]:
        return [copy for one in items(server) for copy in ({**one, "status": "started"}, one)]

    with Reader(twice) as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        deploys.run(PLAIN, "v1")
        assert report(deploys, "--timeout", "0")[0] == 0


def test_items_of_other_versions_and_without_a_start_are_passed_over(deploys: Deploys) -> None:
    def odd(server: Reader) -> list[Any]:
        return [
            {**one, **change}
            for one in items(server)
            for change in ({"startedAt": "soon"}, {"applicationVersion": "v0"}, {"startedAt": one["startedAt"] - 2000})
        ] + ["nonsense"]

    with Reader(odd) as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        deploys.run(PLAIN, "v1")
        status, found = report(deploys, "--timeout", "0")
        assert (status, rows(found)) == (1, {"v1": (None, False)})


def test_whole_seconds_and_capitals_will_do(deploys: Deploys) -> None:
    def coarse(server: Reader) -> list[dict[str, Any]]:
        return [
            {**one, "startedAt": one["startedAt"] // 1000 * 1000, "status": one["status"].upper()}
            for one in items(server)
        ]

    with Reader(coarse) as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        deploys.run(PLAIN, "v1")
        assert report(deploys, "--timeout", "0")[0] == 0


def test_a_deployment_under_way_is_shown_as_started(deploys: Deploys, fake: FakeLaunchDarkly) -> None:
    running = deploys.start(OPEN).until_ready()
    status, found = report(deploys)
    assert (status, rows(found)) == (0, {"v1": ("started", True)})
    assert found["deployments"][0]["delivered"] == ["started"]
    running.kill()


def test_what_is_asked_for(deploys: Deploys) -> None:
    with Reader(items) as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        deploys.run(PLAIN, "v1")
        deploys.run(PLAIN, "v2")
        deploys.run("with deployment('web', version='v3', environment_key='staging'): pass\n")
        assert verify(deploys).status == 0
        first, second = server.asked
        assert (first["applicationKey"], first["environmentKey"]) == (["billing"], ["production"])
        assert (second["applicationKey"], second["environmentKey"]) == (["web"], ["staging"])
        times = [event["eventTime"] for event in server.events if event["applicationKey"] == "billing"]
        assert int(first["from"][0]) < min(times), "or LaunchDarkly would answer for seven days only"
        assert int(first["to"][0]) > max(times)
        gets = [head for head in server.heads if head.startswith(b"GET")]
        assert len(gets) == 2
        assert all(b"LD-API-Version: beta" in head for head in gets)


def test_every_page_is_read(deploys: Deploys, fake: FakeLaunchDarkly) -> None:
    deploys.run("for n in range(120):\n    with deployment('billing', version=f'v{n}'): pass\nassert flush(30)\n")
    status, found = report(deploys, "--limit", "200", "--timeout", "0")
    assert (status, found["right"]) == (0, 120)
    assert report(deploys, "--limit", "3")[1]["right"] == 3


def test_what_was_not_delivered_or_to_another_service_is_not_looked_for(
    deploys: Deploys, fake: FakeLaunchDarkly
) -> None:
    assert verify(deploys).stdout.startswith("There is nothing to look for: ")
    assert not deploys.outbox.parent.exists()
    deploys.run(PLAIN, "v1")
    deploys.set(LD_BASE_URI="http://127.0.0.1:9", LD_DEPLOY_FLUSH_TIMEOUT="0.2")
    deploys.run(PLAIN, "v2")
    ended = verify(deploys)
    assert ended.status == 0, "nobody is asked for what nobody was told"
    assert "2 deployment(s) are not looked for" in ended.stdout
    deploys.set(LD_BASE_URI=fake.base_uri)
    status, found = report(deploys)
    assert (status, rows(found), found["not_delivered"]) == (0, {"v1": ("finished", True)}, 1)


def send(deploys: Deploys, kind: str, version: str, *more: str) -> None:
    ended = deploys.command("send", kind, "--application-key", "billing", "--version", version, *more)
    assert ended.status == 0, ended


def test_what_was_sent_alone_is_looked_for_too(deploys: Deploys, fake: FakeLaunchDarkly) -> None:
    for kind, version in [("started", "v1"), ("custom", "v1"), ("finished", "v1"), ("started", "v2"), ("failed", "v3")]:
        send(deploys, kind, version)
    deploys.run(PLAIN, "v4")
    status, found = report(deploys)
    assert (status, found["right"], found["not_delivered"]) == (0, 4, 0)
    assert rows(found) == {
        "v1": ("finished", True),
        "v2": ("started", True),
        "v3": ("failed", True),
        "v4": ("finished", True),
    }
    assert [each["version"] for each in found["deployments"]] == ["v4", "v3", "v2", "v1"]
    assert found["deployments"][-1]["delivered"] == ["started", "finished"]
    assert [each["version"] for each in report(deploys, "--limit", "1")[1]["deployments"]] == ["v4", "v3"]
    fake.clear()
    status, found = report(deploys, "--timeout", "0")
    assert (status, found["wrong"]) == (1, 4)


def test_a_lone_event_that_waits_is_counted(deploys: Deploys, fake: FakeLaunchDarkly) -> None:
    send(deploys, "started", "v1")
    deploys.set(LD_ACCESS_TOKEN="")
    send(deploys, "finished", "v1")
    send(deploys, "started", "v2")
    deploys.set(LD_ACCESS_TOKEN=TOKEN)
    status, found = report(deploys)
    assert (status, rows(found), found["not_delivered"]) == (0, {"v1": ("started", True)}, 1)


def test_a_lone_end_may_be_that_of_a_run_that_has_none(deploys: Deploys, fake: FakeLaunchDarkly) -> None:
    for _ in range(2):
        deploys.run(OPEN.replace("time.sleep(60)", "os.kill(os.getpid(), signal.SIGKILL)"), "v1")
    send(deploys, "finished", "v1")
    status, found = report(deploys)
    assert status == 0
    assert [(each["delivered"], each["shown"]) for each in found["deployments"]] == [
        (["started", "finished"], "finished"),
        (["started", "failed"], "failed"),
    ]
    send(deploys, "failed", "v1")
    status, found = report(deploys)
    assert (status, found["deployments"][0]["delivered"]) == (0, ["failed"])


def test_a_lone_end_counts_from_its_own_time(deploys: Deploys) -> None:
    def lone(server: Reader) -> list[dict[str, Any]]:
        return [
            {"applicationVersion": event["version"], "startedAt": event["eventTime"], "status": event["eventType"]}
            for event in server.events
        ]

    with Reader(lone, answer(400)) as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        deploys.run("with deployment('billing', version=sys.argv[1]):\n    time.sleep(1.5)\n", "v1")
        status, found = report(deploys, "--timeout", "0")
        assert (status, rows(found)) == (0, {"v1": ("finished", True)})
        assert found["deployments"][0]["delivered"] == ["finished"]


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (answer(401), "answered 401"),
        (answer(403), "LD_DEPLOY_API_VERSION"),
        (answer(404), "Check LD_PROJECT"),
        (answer(200, {}, b"{}"), "did not answer as LaunchDarkly does"),
        (answer(503), "answered 503"),
        (answer(429), "answered 429"),
        (garbage, "No answer from 127.0.0.1"),
        (silent, "No answer from 127.0.0.1"),
    ],
    ids=["401", "403", "404", "no items", "503", "429", "garbage", "silent"],
)
def test_it_cannot_be_asked(deploys: Deploys, step: Any, says: str) -> None:
    with Reader(lambda server: step) as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        deploys.run(PLAIN, "v1")
        began = time.monotonic()
        ended = verify(deploys, "--timeout", "1")
        assert time.monotonic() - began < 5
    assert (ended.status, ended.stdout) == (2, "")
    (line,) = ended.lines
    assert line.startswith("ld-deploy: ")
    assert says in line


@pytest.mark.parametrize("times", [1, 2])
def test_what_passes_is_asked_again(deploys: Deploys, times: int) -> None:
    def busy(server: Reader) -> Any:
        return answer(503) if len(server.asked) <= times else items(server)

    with Reader(busy) as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        deploys.run(PLAIN, "v1")
        assert report(deploys)[0] == 0
        assert len(server.asked) == times + 1


def test_an_answer_that_comes_too_late_for_the_rest(deploys: Deploys) -> None:
    with Reader(lambda server: answer(200, {}, b'{"items": []}', delay=0.6)) as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        deploys.run(PLAIN, "v1")
        deploys.run("with deployment('web', version='v2'): pass\n")
        ended = verify(deploys, "--timeout", "0.1")
        assert len(server.asked) == 1
    assert (ended.status, ended.stdout) == (2, "")
    assert ended.stderr.startswith("ld-deploy: The time was over before all was asked for")


def test_no_token(deploys: Deploys, fake: FakeLaunchDarkly) -> None:
    deploys.run(PLAIN)
    del deploys.env["LD_ACCESS_TOKEN"]
    asked = len(fake.requests)
    ended = verify(deploys)
    assert (ended.status, ended.stdout) == (2, "")
    assert "Set LD_ACCESS_TOKEN" in ended.stderr
    deploys.set(LD_ACCESS_TOKEN="sdk-123456")
    ended = verify(deploys)
    assert ended.status == 2
    assert "SDK key" in ended.stderr
    assert len(fake.requests) == asked


def test_an_outbox_that_cannot_be_read_and_a_switch(deploys: Deploys) -> None:
    deploys.outbox.parent.mkdir()
    deploys.outbox.write_bytes(b"garbage" * 1000)
    ended = verify(deploys)
    assert (ended.status, ended.stdout) == (2, "")
    assert "is damaged" in ended.stderr
    assert deploys.outbox.read_bytes() == b"garbage" * 1000
    deploys.set(LD_DEPLOY_OUTBOX=str(deploys.outbox / "outbox.db"))
    ended = verify(deploys)
    assert (ended.status, ended.stdout) == (2, "")
    assert "cannot be used" in ended.stderr
    deploys.set(LD_DEPLOY_DISABLED="1")
    ended = verify(deploys)
    assert ended.status == 2
    assert "disabled is on" in ended.stderr


@pytest.mark.parametrize("arguments", [("--limit", "0"), ("--limit", "many"), ("--timeout", "-1")], ids=" ".join)
def test_a_command_line_that_cannot_be_used(deploys: Deploys, arguments: tuple[str, ...]) -> None:
    ended = deploys.command("verify", *arguments)
    assert (ended.status, ended.stdout) == (2, "")
    assert ended.stderr.startswith("usage: ld-deploy")
