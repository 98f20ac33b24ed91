"""``ld-deploy send``: one event, told alone by a real process."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator

import pytest
from fault_kit import PLAIN, TOKEN, Deploys, Ended, deploys_fixture  # noqa: F401
from fault_server import FaultServer, answer, silent, told
from outbox_kit import held, opened

from ld_deploy_hooks._version import __version__

FIELDS = ("--application-key", "billing", "--version", "v1")


@pytest.fixture
def server(deploys: Deploys) -> Iterator[FaultServer]:
    with FaultServer() as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        yield server


def send(deploys: Deploys, kind: str, *more: str) -> Ended:
    return deploys.command("send", kind, *FIELDS, *more)


@pytest.mark.parametrize("kind", ["started", "finished", "failed", "custom"])
def test_one_event_is_delivered_and_stands_alone(deploys: Deploys, server: FaultServer, kind: str) -> None:
    before = time.time_ns() // 1_000_000
    ended = send(deploys, kind, "--metadata", "team=payments", "--event-metadata", "step=5")
    assert (ended.status, ended.stdout, ended.stderr) == (0, "", "")
    (event,) = server.events
    assert before <= event.pop("eventTime") <= time.time_ns() // 1_000_000
    assert event["eventMetadata"].pop("eventId")
    assert event == {
        "projectKey": "default",
        "environmentKey": "production",
        "applicationKey": "billing",
        "version": "v1",
        "eventType": kind,
        "eventMetadata": {"source": f"ld-deploy-hooks/{__version__}", "step": "5"},
        "deploymentMetadata": {"team": "payments"},
    }
    with opened(deploys.outbox) as box:
        (lone,) = box.lone_events(limit=10)
        assert (lone.event_type, lone.state) == (kind, "delivered")
        assert (box.deployments(limit=10), box.open_of()) == ([], [])


def test_the_steps_of_a_pipeline_and_an_unrelated_deploy_in_between(deploys: Deploys, server: FaultServer) -> None:
    assert send(deploys, "started").status == 0
    assert deploys.run(PLAIN, "v2").status == 3
    assert deploys.run("with deployment('web', version='v1'): pass\n").status == 0
    assert deploys.command("flush", "--recover").status == 0
    assert told(server.events) == {"v1": ["started", "started", "finished"], "v2": ["started", "finished"]}
    assert send(deploys, "finished").status == 0
    kinds = [event["eventType"] for event in server.events if event["version"] == "v1"]
    assert kinds == ["started", "started", "finished", "finished"]
    assert [event["applicationKey"] for event in server.events if event["eventType"] == "finished"] == [
        *("billing", "web"),
        "billing",
    ]


def test_nothing_is_recovered_for_it(deploys: Deploys, server: FaultServer) -> None:
    deploys.run("deployment('billing', version='v1').__enter__()\nos.kill(os.getpid(), signal.SIGKILL)\n")
    assert send(deploys, "finished").status == 0
    assert told(server.events) == {"v1": ["started", "finished"]}
    with opened(deploys.outbox) as box:
        assert len(box.open_of()) == 1


TIMES = {
    "1795421694424": 1795421694424,
    "2026-11-23T08:28:14.424Z": 1795422494424,
    "2026-11-23T09:28:14.424+01:00": 1795422494424,
    "2026-11-23 08:28:14z": 1795422494000,
}


@pytest.mark.parametrize("text", TIMES)
def test_when_it_happened(deploys: Deploys, server: FaultServer, text: str) -> None:
    assert send(deploys, "started", "--event-time", text).status == 0
    assert [event["eventTime"] for event in server.events] == [TIMES[text]]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("begun",),
        ("started", "--event-time", "1795421694"),
        ("started", "--event-time", "1795421694424000"),
        ("started", "--event-time", "yesterday"),
        ("started", "--event-time", "2026-11-23T08:28:14"),
        ("started", "--event-time", "-1"),
        ("started", "--event-time", "0001-01-01T00:00+23:00"),
        ("started", "--metadata", "novalue"),
        ("started", "--application-kind", "toaster"),
        ("started", "--access-token", TOKEN),
    ],
    ids=" ".join,
)
def test_a_command_line_that_cannot_be_used(deploys: Deploys, server: FaultServer, arguments: tuple[str, ...]) -> None:
    ended = deploys.command("send", *arguments)
    assert (ended.status, ended.stdout) == (2, "")
    assert ended.stderr.startswith("usage: ld-deploy ")
    assert "Traceback" not in ended.stderr
    assert "novalue" not in ended.stderr
    assert not deploys.outbox.exists()


def test_a_version_that_is_not_legal_is_made_so(deploys: Deploys, server: FaultServer) -> None:
    fields = ("--application-key", "billing", "--version", "feature/x y")
    ended = deploys.command("send", "started", *fields)
    assert ended.status == 0
    assert ["feature-x-y" in line for line in ended.lines] == [True]
    assert [(event["version"], event["versionName"]) for event in server.events] == [("feature-x-y", "feature/x y")]
    deploys.set(LD_DEPLOY_STRICT="1")
    ended = deploys.command("send", "finished", *fields)
    assert (ended.status, len(ended.lines)) == (2, 1)
    assert server.posts == 1


@pytest.mark.parametrize("strict", ["0", "1"])
def test_a_required_setting_is_missing(deploys: Deploys, server: FaultServer, strict: str) -> None:
    del deploys.env["LD_ENVIRONMENT"]
    deploys.set(LD_DEPLOY_STRICT=strict)
    ended = send(deploys, "started")
    assert (ended.status, ended.stdout) == (2, "")
    assert ["LD_ENVIRONMENT" in line for line in ended.lines] == [True]
    assert not deploys.outbox.exists()


@pytest.mark.parametrize("switch", ["LD_DEPLOY_DISABLED", "LD_DEPLOY_DRY_RUN"])
def test_switched_off_it_does_nothing_and_fails_no_pipeline(deploys: Deploys, server: FaultServer, switch: str) -> None:
    deploys.set(**{switch: "1"})
    ended = send(deploys, "started")
    assert (ended.status, ended.stdout) == (0, "")
    assert [switch in line for line in ended.lines] == [True]
    assert server.posts == 0
    assert not deploys.outbox.exists()


PLUGIN = """
from ld_deploy_hooks import DropEvent, hookimpl
import dataclasses, sys

@hookimpl
def ld_deploy_provide_defaults(settings):
    return {"version_name": "The First"}

@hookimpl
def ld_deploy_add_metadata(deployment):
    return {"seen": [deployment.state, deployment.started_at, deployment.ended_at], "by": "plugin"}

@hookimpl
def ld_deploy_modify_event(event):
    if event.event_metadata.get("drop"):
        raise DropEvent
    return dataclasses.replace(event, event_metadata={**event.event_metadata, "modified": True})

@hookimpl
def ld_deploy_started(deployment):
    print("told of a deployment")

@hookimpl
def ld_deploy_event_delivered(event):
    print("delivered", event.event_type)
"""


@pytest.fixture
def plugin(deploys: Deploys) -> None:
    (deploys.folder / "ours.py").write_text(PLUGIN)
    path = os.pathsep.join([str(deploys.folder), deploys.env.get("PYTHONPATH", "")])
    deploys.set(LD_DEPLOY_PLUGINS="no:console,ours", PYTHONPATH=path)


@pytest.mark.parametrize(
    ("kind", "seen"),
    [("started", ["started", 2 * 10**12, None]), ("failed", ["failed", None, 2 * 10**12]), ("custom", ["started"])],
)
@pytest.mark.usefixtures("plugin")
def test_plugins_are_asked_and_told_of_the_event_alone(
    deploys: Deploys, server: FaultServer, kind: str, seen: list[object]
) -> None:
    ended = send(deploys, kind, "--event-time", str(2 * 10**12), "--metadata", "by=user")
    assert (ended.status, ended.stdout, ended.stderr) == (0, f"delivered {kind}\n", "")
    (event,) = server.events
    assert event["versionName"] == "The First"
    assert event["deploymentMetadata"] == {"by": "user", "seen": [*seen, None, None][:3]}
    assert event["eventMetadata"]["modified"] is True


@pytest.mark.usefixtures("plugin")
def test_a_plugin_drops_it(deploys: Deploys, server: FaultServer) -> None:
    ended = send(deploys, "started", "--event-metadata", "drop=yes")
    assert (ended.status, ended.stdout, len(ended.lines)) == (0, "", 1)
    assert "a plugin dropped this event" in ended.stderr
    assert server.posts == 0


def test_inside_a_run_what_is_left_open_comes_from_there(deploys: Deploys, server: FaultServer) -> None:
    script = '"$@"'
    command = (sys.executable, "-m", "ld_deploy_hooks", "send", "custom", "--event-metadata", "step=1")
    ended = deploys.command("run", *FIELDS, "--", "sh", "-c", script, "sh", *command)
    assert (ended.status, ended.stderr) == (0, "")
    assert told(server.events) == {"v1": ["started", "custom", "finished"]}


# -- when it cannot be delivered --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["refused", "silent", "503", "401"])
def test_recorded_and_not_delivered_yet_is_well(deploys: Deploys, fault: str) -> None:
    script = {"silent": [silent], "503": [answer(503)], "401": [answer(401)]}.get(fault, [])
    with FaultServer(*script, away="refused" if fault == "refused" else "") as server:
        deploys.set(LD_BASE_URI=server.base_uri, LD_DEPLOY_FLUSH_TIMEOUT="0.5")
        began = time.monotonic()
        ended = send(deploys, "started")
        assert time.monotonic() - began < 6
        assert (ended.status, ended.stdout) == (0, "")
        assert ["1 event(s) wait in" in line for line in ended.lines].count(True) == 1
        assert TOKEN not in ended.stderr
        server.heal()
        deploys.next_run()
        assert told(server.events) == {"v1": ["started"]}


def test_without_a_token_it_waits(deploys: Deploys, server: FaultServer) -> None:
    del deploys.env["LD_ACCESS_TOKEN"]
    ended = send(deploys, "started")
    assert ended.status == 0
    assert ["no access token is set (LD_ACCESS_TOKEN)" in line for line in ended.lines] == [True]
    assert server.posts == 0


def test_rejected_it_will_never_be_told(deploys: Deploys, server: FaultServer) -> None:
    reasons = b'{"errors": [{"attribute": "version", "reason": "too odd"}]}'
    server.heal(answer(400, {"Content-Type": "application/json"}, reasons))
    ended = send(deploys, "started")
    assert (ended.status, ended.stdout, len(ended.lines)) == (1, "", 1)
    assert "version: too odd" in ended.stderr
    shown = deploys.command("status").stdout.splitlines()[1]
    assert "started rejected: " in shown


def test_an_outbox_that_another_process_holds(deploys: Deploys, server: FaultServer) -> None:
    assert send(deploys, "started").status == 0
    with held(deploys.outbox):
        ended = send(deploys, "finished")
    assert (ended.status, ended.stdout) == (0, "")
    assert ["the next deployment sends them" in line for line in ended.lines] == [True]
    deploys.next_run()
    assert told(server.events) == {"v1": ["started", "finished"]}


@pytest.mark.parametrize(("there", "status"), [(True, 0), (False, 1)], ids=["delivered from memory", "lost"])
def test_an_outbox_that_cannot_be_used(deploys: Deploys, there: bool, status: int) -> None:
    (deploys.folder / "file").touch()
    with FaultServer(away="" if there else "refused") as server:
        deploys.set(
            LD_BASE_URI=server.base_uri,
            LD_DEPLOY_OUTBOX=str(deploys.folder / "file" / "outbox.db"),
            LD_DEPLOY_FLUSH_TIMEOUT="1",
        )
        ended = send(deploys, "started")
        assert (ended.status, ended.stdout) == (status, "")
        assert told(server.events) == ({"v1": ["started"]} if there else {})
    assert ("lost:" in ended.stderr) != there


# -- status -----------------------------------------------------------------------------------------------------------


def test_status_shows_lone_events_among_the_deployments(deploys: Deploys, server: FaultServer) -> None:
    assert send(deploys, "started", "--event-time", "2026-11-23T08:28:14Z").status == 0
    assert deploys.run(PLAIN, "v2").status == 3
    deploys.set(LD_BASE_URI="http://127.0.0.1:9", LD_DEPLOY_FLUSH_TIMEOUT="0")
    assert send(deploys, "finished", "--event-time", "2100-01-01T00:00:00Z").status == 0
    deploys.set(LD_BASE_URI=server.base_uri)
    heading, *rows, _summary, _elsewhere = deploys.command("status").stdout.splitlines()
    assert heading.split()[3] == "verdict"
    shown = [(row.split()[1], "sent alone" in row, row.split()[3].strip(",")) for row in rows]
    assert sorted(shown) == [("v1", True, "finished"), ("v1", True, "started"), ("v2", False, "finished")]
    assert (shown[0], rows[0].endswith("waiting for http://127.0.0.1:9")) == (("v1", True, "finished"), True)
    status = json.loads(deploys.command("status", "--json").stdout)
    last, first = status["lone_events"]
    assert (first["event_type"], first["state"], first["event_time"]) == ("started", "delivered", 1795422494000)
    assert (last["event_type"], last["state"], last["base_uri"]) == ("finished", "pending", "http://127.0.0.1:9")
    assert (last["project_key"], last["environment_key"], last["application_key"], last["version"]) == (
        *("default", "production"),
        *("billing", "v1"),
    )
    assert [one["version"] for one in status["deployments"]] == ["v2"]
    assert len(json.loads(deploys.command("status", "--json", "--limit", "1").stdout)["lone_events"]) == 1
