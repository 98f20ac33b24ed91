"""What is recorded is delivered, by this run or a later one, and the deploy never waits for the network."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from told import REFUSED, Told, kinds, script, settings, told_fixture  # noqa: F401

from ld_deploy_hooks import deployment, flush
from ld_deploy_hooks.testing import Answer, FakeLaunchDarkly

# Seconds that an exit may take beyond flush_timeout: what DESIGN promises is the sum.
GRACE = 1.5

DEPLOY = script("""
    import sys
    with deployment("billing"):
        print("deployed")
        sys.exit(3)
    """)


def deploy(env: dict[str, str]) -> tuple[subprocess.CompletedProcess[str], float]:
    """Deploy in a child process; return how it ended, and the seconds from the end of the deploy to the process's."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", DEPLOY], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    deployed = time.monotonic()
    rest, stderr = process.communicate(timeout=30)
    took = time.monotonic() - deployed
    return subprocess.CompletedProcess([], process.returncode, first + rest, stderr), took


@pytest.fixture
def black_hole() -> Iterator[str]:
    """The address of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_delivered_means_silent(told: Told, child_env: dict[str, str]) -> None:
    done, took = deploy(child_env | settings(told.server.base_uri, told.outbox))
    assert (done.returncode, done.stdout, done.stderr) == (3, "deployed\n", "")
    assert took < 5 + GRACE
    assert kinds(told.server.events) == ["started", "failed"]


def test_refused_connections_are_waited_for_no_longer_than_allowed(told: Told, child_env: dict[str, str]) -> None:
    done, took = deploy(child_env | settings(REFUSED, told.outbox, LD_DEPLOY_FLUSH_TIMEOUT="1"))
    assert (done.returncode, done.stdout) == (3, "deployed\n")
    assert took < 1 + GRACE
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("2 event(s) wait in ")


@pytest.mark.parametrize("timeout", [0, 1])
def test_a_server_that_hangs_is_waited_for_no_longer_than_allowed(
    told: Told, child_env: dict[str, str], black_hole: str, timeout: int
) -> None:
    done, took = deploy(child_env | settings(black_hole, told.outbox, LD_DEPLOY_FLUSH_TIMEOUT=str(timeout)))
    assert (done.returncode, done.stdout) == (3, "deployed\n")
    assert took < timeout + GRACE
    assert done.stderr.count("\n") == 1
    assert "`ld-deploy flush` does it now" in done.stderr


@pytest.mark.parametrize("answer", [503, 500, 408, 425, Answer(reset=True)])
def test_a_service_that_is_ill_is_asked_again(told: Told, child_env: dict[str, str], answer: int | Answer) -> None:
    told.server.answer_next(answer, answer)
    done, _ = deploy(child_env | settings(told.server.base_uri, told.outbox, LD_DEPLOY_FLUSH_TIMEOUT="10"))
    assert (done.returncode, done.stderr) == (3, "")
    assert kinds(told.server.events) == ["started", "failed"]
    assert len(told.server.requests) == 4


def test_the_next_run_delivers_what_is_left_with_its_own_time(told: Told, child_env: dict[str, str]) -> None:
    told.server.answer_always(503)
    env = child_env | settings(told.server.base_uri, told.outbox, LD_DEPLOY_FLUSH_TIMEOUT="0.5")
    before = time.time_ns() // 1_000_000
    deploy(env)
    after = time.time_ns() // 1_000_000
    assert kinds(told.server.events) == []
    told.server.answer_always(None)
    done, _ = deploy(env | {"LD_DEPLOY_VERSION": "next", "LD_DEPLOY_FLUSH_TIMEOUT": "5"})
    assert done.stderr == ""
    left = [event for event in told.server.events if event["version"] == "a90a8a2"]
    assert kinds(left) == ["started", "failed"]
    assert all(before <= event["eventTime"] <= after for event in left)
    assert kinds([event for event in told.server.events if event["version"] == "next"]) == ["started", "failed"]


def test_the_same_event_is_the_same_over_retries(told: Told) -> None:
    told.server.answer_next(Answer(503, accept=True), Answer(reset=True, accept=True))
    with deployment("billing"):
        pass
    assert flush(10)
    bodies = [request.body for request in told.server.requests]
    assert bodies[0] == bodies[1] == bodies[2]
    assert len(set(bodies)) == 2


def test_what_was_recorded_for_one_service_never_goes_to_another(told: Told, child_env: dict[str, str]) -> None:
    deploy(child_env | settings(REFUSED, told.outbox, LD_DEPLOY_FLUSH_TIMEOUT="0"))
    done, _ = deploy(child_env | settings(told.server.base_uri, told.outbox, LD_DEPLOY_VERSION="other"))
    assert done.stderr == ""
    assert {event["version"] for event in told.server.events} == {"other"}
    with FakeLaunchDarkly(port=0) as back:
        pass
    assert back.events == []


def test_without_a_token_events_wait_for_one(told: Told, child_env: dict[str, str]) -> None:
    env = child_env | settings(told.server.base_uri, told.outbox)
    done, took = deploy({name: value for name, value in env.items() if name != "LD_ACCESS_TOKEN"})
    assert (done.returncode, done.stdout) == (3, "deployed\n")
    assert "2 event(s) wait" in done.stderr
    assert "LD_ACCESS_TOKEN" in done.stderr
    assert took < GRACE
    assert told.server.requests == []
    done, _ = deploy(env | {"LD_DEPLOY_VERSION": "next"})
    assert done.stderr == ""
    assert len(told.server.events) == 4


@pytest.mark.parametrize("status", [401, 403, 404, 302])
def test_a_refusal_that_somebody_can_mend_is_kept_and_tried_by_the_next_run(
    told: Told, child_env: dict[str, str], status: int
) -> None:
    told.server.answer_always(status)
    env = child_env | settings(told.server.base_uri, told.outbox)
    done, took = deploy(env)
    assert done.returncode == 3
    assert str(status) in done.stderr
    assert took < GRACE
    assert len(told.server.requests) == 1
    told.server.answer_always(None)
    done, _ = deploy(env | {"LD_DEPLOY_VERSION": "next"})
    assert done.stderr == ""
    assert len(told.server.events) == 4


@pytest.mark.parametrize("status", [400, 405, 413, 422])
def test_what_can_never_be_accepted_blocks_nothing(told: Told, child_env: dict[str, str], status: int) -> None:
    told.server.answer_next(status)
    done, _ = deploy(child_env | settings(told.server.base_uri, told.outbox))
    assert done.returncode == 3
    assert str(status) in done.stderr
    assert kinds(told.server.events) == ["failed"]


@pytest.mark.parametrize("broken", ["a folder", "a folder that is a file"])
def test_without_an_outbox_events_are_sent_from_memory(told: Told, child_env: dict[str, str], broken: str) -> None:
    outbox = told.outbox / "outbox.db"
    if broken == "a folder":
        outbox.mkdir(parents=True)
    else:
        told.outbox.write_text("")
    done, _ = deploy(child_env | settings(told.server.base_uri, outbox))
    assert (done.returncode, done.stdout) == (3, "deployed\n")
    assert done.stderr.count("\n") == 1
    assert "sent straight from memory" in done.stderr
    assert kinds(told.server.events) == ["started", "failed"]


def test_without_an_outbox_and_a_service_events_are_left_to_a_run_that_has_both(
    told: Told, child_env: dict[str, str]
) -> None:
    told.outbox.mkdir()
    told.server.answer_always(503)
    env = child_env | settings(told.server.base_uri, told.outbox, LD_DEPLOY_FLUSH_TIMEOUT="0.5")
    done, took = deploy(env)
    assert (done.returncode, done.stdout) == (3, "deployed\n")
    assert took < 0.5 + GRACE
    assert "2 event(s) of this run could not be delivered: " in done.stderr
    assert f"They are in {told.outbox}.left" in done.stderr
    assert done.stderr.count("\n") == 2
    told.outbox.rmdir()
    told.server.answer_always(201)
    done, _ = deploy(env)
    assert done.stderr == ""
    assert kinds(told.server.events) == ["started", "failed"] * 2


def test_with_nowhere_to_write_and_no_service_what_is_lost_is_said(told: Told, child_env: dict[str, str]) -> None:
    nowhere = Path("/proc/nowhere/outbox.db") if sys.platform == "linux" else told.outbox / "outbox.db"
    told.outbox.touch()
    done, took = deploy(child_env | settings(REFUSED, nowhere, LD_DEPLOY_FLUSH_TIMEOUT="0.5"))
    assert (done.returncode, done.stdout) == (3, "deployed\n")
    assert took < 0.5 + GRACE
    assert "2 event(s) of this run could not be delivered: " in done.stderr
    assert "They are lost" in done.stderr
    assert done.stderr.count("\n") == 2


def test_an_outbox_that_another_process_holds_costs_a_second_each_and_is_said(
    told: Told, child_env: dict[str, str]
) -> None:
    import sqlite3

    env = child_env | settings(told.server.base_uri, told.outbox, LD_DEPLOY_FLUSH_TIMEOUT="0.5")
    deploy(env)
    holder = sqlite3.connect(told.outbox, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    done, took = deploy(env)
    holder.close()
    assert (done.returncode, done.stdout) == (3, "deployed\n")
    assert took < 1 + 0.5 + GRACE
    assert "was not on disk within 1 s" in done.stderr
    assert "did not answer in time" in done.stderr


def test_several_processes_at_once_leave_nothing_behind(told: Told, child_env: dict[str, str]) -> None:
    env = child_env | settings(told.server.base_uri, told.outbox, LD_DEPLOY_FLUSH_TIMEOUT="10")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DEPLOY],
            env=env | {"LD_DEPLOY_VERSION": f"v{number}"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(6)
    ]
    assert [process.communicate(timeout=60)[1] for process in processes] == [""] * 6
    for number in range(6):
        mine = [event for event in told.server.events if event["version"] == f"v{number}"]
        assert kinds(mine) == ["started", "failed"]


def test_entry_and_exit_do_not_wait_for_the_network(told: Told) -> None:
    told.server.delay = 0.5
    with deployment("warm"):
        pass
    begun = time.monotonic()
    with deployment("billing"):
        pass
    assert time.monotonic() - begun < 0.4
    told.server.delay = 0
    told.events()


def test_a_run_with_another_token_sends_with_it(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_ACCESS_TOKEN", "api-wrong-token")
    with deployment("billing"):
        pass
    assert flush(5) is False
    monkeypatch.setenv("LD_ACCESS_TOKEN", "api-test-token")
    with deployment("billing", version="v2"):
        pass
    flush(5)
    assert len(told.server.events) == 4


def test_an_outbox_has_one_connection_in_a_process(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    for number in range(3):
        with FakeLaunchDarkly(token=None) as server:
            monkeypatch.setenv("LD_BASE_URI", server.base_uri)
            monkeypatch.setenv("LD_ACCESS_TOKEN", f"api-token-{number}")
            with deployment("billing"):
                pass
            assert flush(10)
    writers = [thread for thread in threading.enumerate() if thread.name == "ld-deploy-writer"]
    assert len(writers) == 1


def test_what_another_version_wrote_stops_nothing(told: Told, child_env: dict[str, str]) -> None:
    """A payload that breaks today's rules is refused as any other, and plugins are simply not told of it."""
    import sqlite3

    env = child_env | settings(REFUSED, told.outbox, LD_DEPLOY_FLUSH_TIMEOUT="0")
    deploy(env)
    box = sqlite3.connect(told.outbox)
    with box:
        box.execute("UPDATE events SET base_uri = ?, payload = '{}'", (told.server.base_uri,))
        box.execute("UPDATE events SET stream = ? || substr(stream, instr(stream, ' '))", (told.server.base_uri,))
    box.close()
    with deployment("web"):
        pass
    flush(10)
    assert kinds(told.server.events) == ["started", "finished"]
