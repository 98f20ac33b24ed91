"""``ld-deploy flush``, ``status`` and ``retry``, as real processes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_kit import PLAIN, TOKEN, Deploys, deploys_fixture  # noqa: F401
from fault_server import FaultServer, answer, silent, told

KILLED = "deployment('billing', version=sys.argv[1]).__enter__()\nos.kill(os.getpid(), signal.SIGKILL)\n"

needs_full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")


@pytest.fixture(autouse=True)
def _waits_for_nothing(deploys: Deploys) -> None:
    deploys.set(LD_DEPLOY_FLUSH_TIMEOUT="0.3")


@pytest.fixture
def server(deploys: Deploys) -> Iterator[FaultServer]:
    with FaultServer(away="refused") as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        yield server


def test_flush_sends_what_waits_and_says_how_much(deploys: Deploys, server: FaultServer) -> None:
    deploys.run(PLAIN)
    server.heal()
    ended = deploys.command("flush")
    assert (ended.status, ended.stderr) == (0, "")
    assert ended.stdout == f"2 event(s) delivered to {server.base_uri}\n"
    assert told(server.events) == {"v1": ["started", "finished"]}
    again = deploys.command("flush")
    assert (again.status, again.stdout) == (0, f"0 event(s) delivered to {server.base_uri}\n")


@pytest.mark.parametrize(
    ("step", "line"),
    [(answer(503), "answered 503"), (answer(401), "answered 401"), (silent, "not enough time")],
    ids=["503", "401", "silent"],
)
def test_flush_says_what_is_left_and_why_within_its_timeout(
    deploys: Deploys, server: FaultServer, step: object, line: str
) -> None:
    deploys.run(PLAIN)
    server.heal(step)  # type: ignore[arg-type]
    began = time.monotonic()
    ended = deploys.command("flush", "--timeout", "1")
    assert time.monotonic() - began < 4
    assert ended.status == 1
    assert ended.stdout == f"0 event(s) delivered to {server.base_uri}\n"
    (last,) = ended.lines[-1:]
    assert last.startswith(f"2 event(s) wait in {deploys.outbox}")
    assert ended.stderr.count(line) == 1, "said once, and with what it was"
    assert TOKEN not in ended.stderr


def test_flush_says_that_events_were_rejected_and_retry_puts_them_back(deploys: Deploys, server: FaultServer) -> None:
    deploys.run(PLAIN)
    reasons = b'{"errors": [{"attribute": "version", "reason": "too odd"}]}'
    server.heal(answer(400, {"Content-Type": "application/json"}, reasons))
    ended = deploys.command("flush")
    assert ended.status == 1
    assert "2 event(s) were rejected" in ended.stderr
    assert "version: too odd" in deploys.command("status").stdout
    assert deploys.command("flush").status == 0
    server.heal()
    assert deploys.command("retry").stdout == f"2 rejected event(s) put back in line for {server.base_uri}\n"
    assert deploys.command("flush").status == 0
    assert told(server.events) == {"v1": ["started", "finished"]}


def test_retry_of_a_start_sends_its_end_behind_it_once_more(deploys: Deploys, server: FaultServer) -> None:
    server.heal(answer(400), answer())
    deploys.set(LD_DEPLOY_FLUSH_TIMEOUT="20")
    deploys.run(PLAIN)
    assert told(server.events) == {"v1": ["finished"]}
    assert deploys.command("retry").stdout == (
        f"1 rejected event(s) put back in line for {server.base_uri}, and behind their starts 1 end(s) that were "
        "delivered already\n"
    )
    ended = deploys.command("flush")
    assert (ended.status, ended.stdout) == (0, f"2 event(s) delivered to {server.base_uri}\n")
    first, started, last = server.events
    assert [event["eventType"] for event in server.events] == ["finished", "started", "finished"]
    assert (last, started["eventTime"] <= last["eventTime"]) == (first, True)


def test_recover_tells_killed_deployments_and_leaves_living_ones_alone(deploys: Deploys, server: FaultServer) -> None:
    server.heal()
    source = "with deployment('billing', version='alive'):\n    ready()\n    time.sleep(60)"
    living = deploys.start(source).until_ready()
    deploys.run(KILLED, "dead")
    without = deploys.command("status", "--json")
    assert json.loads(without.stdout)["open"] == 2
    ended = deploys.command("flush", "--recover")
    assert ended.status == 0
    assert "billing dead to production: its process was killed; told as failed (killed)\n" in ended.stdout
    assert "alive" not in ended.stdout
    living.send(signal.SIGTERM).ends()
    assert told(server.events) == {"dead": ["started", "failed"], "alive": ["started", "failed"]}


def test_old_history_that_recovery_deletes_is_not_counted(deploys: Deploys, server: FaultServer) -> None:
    server.heal()
    deploys.set(LD_DEPLOY_FLUSH_TIMEOUT="20")
    deploys.run(PLAIN, "v1")
    deploys.set(LD_ACCESS_TOKEN="")
    deploys.run(PLAIN, "v2")
    with contextlib.closing(sqlite3.connect(deploys.outbox)) as connection, connection:
        assert connection.execute("UPDATE events SET since = 1 WHERE state = 'delivered'").rowcount == 2
    deploys.set(LD_ACCESS_TOKEN=TOKEN)
    ended = deploys.command("flush", "--recover")
    assert (ended.status, ended.stdout) == (0, f"2 event(s) delivered to {server.base_uri}\n")
    assert told(server.events) == {"v1": ["started", "finished"], "v2": ["started", "finished"]}


def test_status_as_json(deploys: Deploys, server: FaultServer) -> None:
    deploys.run(PLAIN, "v1")
    deploys.run(KILLED, "v2")
    shown = deploys.command("status", "--json")
    assert (shown.status, shown.stderr) == (0, "")
    status = json.loads(shown.stdout)
    assert {name: status[name] for name in ("pending", "delivered", "rejected", "open")} == {
        "pending": 3,
        "delivered": 0,
        "rejected": 0,
        "open": 1,
    }
    second, first = status["deployments"]
    assert (first["version"], first["state"]) == ("v1", "finished")
    assert (second["version"], second["state"], second["ended_at"]) == ("v2", "started", None)
    assert first["project_key"] == "default"
    assert first["started_at"] <= first["ended_at"]
    assert [event["event_type"] for event in first["events"]] == ["started", "finished"]
    assert {event["state"] for event in first["events"]} == {"pending"}
    server.heal()
    deploys.command("flush", "--recover")
    status = json.loads(deploys.command("status", "--json").stdout)
    assert (status["pending"], status["delivered"], status["open"]) == (0, 4, 0)
    assert status["deployments"][0]["state"] == "failed"
    assert TOKEN not in str(status)


def test_status_as_a_table_says_why_something_waits(deploys: Deploys, server: FaultServer) -> None:
    deploys.run(PLAIN)
    shown = deploys.command("status")
    heading, row, summary = shown.stdout.splitlines()
    assert heading.split()[:4] == ["application", "version", "environment", "verdict"]
    assert row.split()[:4] == ["billing", "v1", "production", "finished"]
    assert "2 waiting" in row
    assert summary.startswith("2 event(s) waiting, 0 delivered, 0 rejected; 0 deployment(s) open")
    server.heal()
    deploys.command("flush")
    assert deploys.command("status").stdout.splitlines()[1].endswith("delivered")
    deploys.set(LD_BASE_URI="http://127.0.0.1:9")
    deploys.run(PLAIN, "v2")
    deploys.set(LD_BASE_URI=server.base_uri)
    shown = deploys.command("status")
    assert "2 of them wait for http://127.0.0.1:9" in shown.stdout
    assert "2 waiting for http://127.0.0.1:9" in shown.stdout


def test_status_shows_the_last_ones_only(deploys: Deploys, server: FaultServer) -> None:
    deploys.run("for n in range(3):\n    with deployment('billing', version=f'v{n}'): pass\n")
    shown = json.loads(deploys.command("status", "--json", "--limit", "2").stdout)
    assert [one["version"] for one in shown["deployments"]] == ["v2", "v1"]


@pytest.mark.parametrize("command", ["flush", "status"])
def test_no_token(deploys: Deploys, server: FaultServer, command: str) -> None:
    del deploys.env["LD_ACCESS_TOKEN"]
    ended = deploys.run(PLAIN)
    assert ended.status == 3
    assert ["LD_ACCESS_TOKEN" in line for line in ended.lines] == [True]
    server.heal()
    ended = deploys.command(command)
    if command == "flush":
        assert ended.status == 1
        assert "no access token is set (LD_ACCESS_TOKEN)" in ended.stderr
    else:
        assert ended.status == 0
        assert "2 waiting for a usable access token" in ended.stdout
    assert server.posts == 0


@pytest.mark.parametrize("switch", ["LD_DEPLOY_DISABLED", "LD_DEPLOY_DRY_RUN"])
def test_switched_off(deploys: Deploys, server: FaultServer, switch: str) -> None:
    deploys.run(PLAIN)
    server.heal()
    deploys.set(**{switch: "1"})
    ended = deploys.command("flush")
    assert ended.status == 2
    assert len(ended.lines) == 1
    assert switch in ended.stderr
    assert server.posts == 0


@pytest.mark.parametrize("command", ["flush", "status", "retry"])
@pytest.mark.parametrize("trouble", ["newer", "no folder"])
def test_an_outbox_that_cannot_be_used(deploys: Deploys, server: FaultServer, command: str, trouble: str) -> None:
    if trouble == "newer":
        deploys.run(PLAIN)
        with contextlib.closing(sqlite3.connect(deploys.outbox)) as connection:
            connection.execute("PRAGMA user_version = 99")
    else:
        (deploys.folder / "file").touch()
        deploys.set(LD_DEPLOY_OUTBOX=str(deploys.folder / "file" / "outbox.db"))
    ended = deploys.command(command)
    assert ended.status == 2
    assert ended.stdout == ""
    assert ended.lines == [ended.stderr.strip()]
    assert ended.stderr.startswith(f"ld-deploy: The outbox {deploys.env['LD_DEPLOY_OUTBOX']}")


def test_a_damaged_outbox_is_put_aside(deploys: Deploys, server: FaultServer) -> None:
    deploys.outbox.parent.mkdir()
    deploys.outbox.write_bytes(b"garbage" * 1000)
    assert deploys.command("flush").status == 0
    assert [path.read_bytes() for path in deploys.outbox.parent.glob("*.damaged-*-1")] == [b"garbage" * 1000]


@pytest.mark.parametrize(
    ("command", "most"),
    [
        (("flush", "--timeout", "1"), 4),
        (("status",), 8),
        (("retry",), 8),
        (("retry", "--base-uri", "http://[::1]:9"), 8),
    ],
    ids=["flush", "status", "retry", "retry --base-uri"],
)
def test_an_outbox_that_another_process_holds(
    deploys: Deploys, server: FaultServer, command: tuple[str, ...], most: float
) -> None:
    deploys.run(PLAIN)
    with contextlib.closing(sqlite3.connect(deploys.outbox, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        ended = deploys.command(*command)
        assert time.monotonic() - began < most
        assert ended.status == 2
        assert "did not answer in time" in ended.stderr


@pytest.mark.parametrize(
    "arguments",
    [(), ("nonsense",), ("flush", "--timeout", "soon"), ("flush", "--timeout", "-1"), ("flush", "--timeout", "nan")],
    ids=" ".join,
)
def test_a_command_line_that_cannot_be_used(deploys: Deploys, arguments: tuple[str, ...]) -> None:
    ended = deploys.command(*arguments)
    assert (ended.status, ended.stdout) == (2, "")
    assert ended.stderr.startswith("usage: ld-deploy")


def test_ctrl_c_ends_a_flush_at_once(deploys: Deploys, server: FaultServer) -> None:
    deploys.run(PLAIN)
    server.heal(silent)
    deploys.set(LD_DEPLOY_FLUSH_TIMEOUT="20")
    flushing = deploys.start_command("flush")
    deadline = time.monotonic() + 20
    while not server.posts and time.monotonic() < deadline:
        time.sleep(0.005)
    ended = flushing.send(signal.SIGINT).ends()
    assert ended.status == 130
    assert ended.lingered < 1.5
    assert "Traceback" not in ended.stderr


def on_a_terminal(deploys: Deploys, *arguments: str) -> tuple[int, str]:
    """Run ``ld-deploy`` with a terminal for its output; return the exit status and what the terminal shows."""
    ours, theirs = pty.openpty()
    try:
        running = deploys.start_command(*arguments, stdout=theirs, stderr=theirs)
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the last process has closed it
            while piece := os.read(ours, 65536):
                shown += piece
        return running.ends().status, shown.decode()
    finally:
        os.close(ours)


@pytest.mark.parametrize("rich", [True, False], ids=["rich", "no rich"])
def test_a_bar_only_on_a_terminal_and_with_rich(deploys: Deploys, server: FaultServer, rich: bool) -> None:
    deploys.run(PLAIN)
    server.heal(answer(delay=0.3))
    deploys.set(TERM="xterm", COLUMNS="100")
    if not rich:
        blocker = deploys.folder / "blocker"
        blocker.mkdir()
        (blocker / "rich.py").write_text("raise ImportError\n")
        deploys.set(PYTHONPATH=os.pathsep.join([str(blocker), deploys.env.get("PYTHONPATH", "")]))
    status, shown = on_a_terminal(deploys, "flush")
    assert status == 0
    assert ("Sending events" in shown) == rich
    assert ("\x1b" in shown) == rich
    assert f"2 event(s) delivered to {server.base_uri}" in shown
    status, shown = on_a_terminal(deploys, "status")
    assert status == 0
    assert "billing" in shown
    assert "delivered" in shown


# Whether Python buffers what it prints makes it notice sooner or later.
@pytest.mark.parametrize(
    ("stdout", "why", "buffered"),
    [
        pytest.param(">/dev/full", "ENOSPC", True, marks=needs_full_device),
        pytest.param(">/dev/full", "ENOSPC", False, marks=needs_full_device),
        (">&-", "EBADF", True),
    ],
)
@pytest.mark.parametrize("command", ["status", "flush --recover", "doctor --json"])
def test_a_stdout_that_takes_nothing(
    deploys: Deploys, server: FaultServer, command: str, stdout: str, why: str, buffered: bool
) -> None:
    deploys.run(PLAIN)
    server.heal()
    deploys.set(PYTHONUNBUFFERED="" if buffered else "1")
    ended = deploys.start_program("sh", "-c", f"{sys.executable} -m ld_deploy_hooks {command} {stdout}").ends()
    assert (ended.status, ended.stdout) == (1, "")
    assert ended.lines == [
        f"ld-deploy: stdout could not be written ({why}), so what was to be shown is missing or cut off."
    ]
    if command.startswith("flush"):
        assert told(server.events) == {"v1": ["started", "finished"]}, "the work is done all the same"


@needs_full_device
def test_help_for_a_full_disk(deploys: Deploys) -> None:
    ended = deploys.start_program("sh", "-c", f"{sys.executable} -m ld_deploy_hooks --help >/dev/full").ends()
    assert (ended.status, len(ended.lines)) == (1, 1)
    assert "ENOSPC" in ended.stderr


def test_a_closed_stderr_does_not_put_its_lines_on_stdout(deploys: Deploys, server: FaultServer) -> None:
    deploys.set(LD_DEPLOY_DISABLED="1")
    ended = deploys.start_program("sh", "-c", f"{sys.executable} -m ld_deploy_hooks status 2>&-").ends()
    assert (ended.status, ended.stdout) == (2, "")


def test_a_reader_that_has_seen_enough(deploys: Deploys, server: FaultServer) -> None:
    deploys.run(PLAIN)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = deploys.command("status", "--json", stdout=writer)
    finally:
        os.close(writer)
    assert (ended.status, ended.stderr) == (1, "")


def test_the_console_script_is_the_module(deploys: Deploys) -> None:
    ended = deploys.command("--version")
    assert ended.status == 0
    assert ended.stdout.startswith("ld-deploy-hooks ")


def test_who_is_told_of_what_a_flush_recovers_has_as_long_as_at_an_exit(deploys: Deploys, server: FaultServer) -> None:
    server.heal()
    (deploys.folder / "slow.py").write_text(
        "import time\nfrom ld_deploy_hooks import hookimpl\n@hookimpl\ndef ld_deploy_failed(deployment):\n"
        "    time.sleep(0.6)\n    print('told', deployment.reason, flush=True)\n"
    )
    path = os.pathsep.join([str(deploys.folder), deploys.env.get("PYTHONPATH", "")])
    deploys.set(LD_DEPLOY_PLUGINS="no:console,slow", PYTHONPATH=path, LD_DEPLOY_FLUSH_TIMEOUT="10")
    deploys.run(KILLED)
    ended = deploys.command("flush", "--recover")
    assert (ended.status, ended.stderr) == (0, "")
    assert "told killed" in ended.stdout


def test_status_shows_what_its_stdout_cannot_encode(deploys: Deploys, server: FaultServer) -> None:
    deploys.run("with deployment('zürich', version='v1'): pass")
    deploys.set(PYTHONIOENCODING="ascii")
    ended = deploys.command("status")
    assert (ended.status, ended.stderr) == (0, "")
    assert "z\\xfcrich" in ended.stdout


def test_a_flush_for_ever_waits_until_all_is_sent(deploys: Deploys, server: FaultServer) -> None:
    server.heal()
    ended = deploys.run("with deployment('billing', version='v1'): pass\nprint(flush(float('inf')))")
    assert (ended.stdout, ended.stderr) == ("True\n", "")
