"""``ld-deploy run``, as a real process around real commands, with real signals and a real terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_kit import PATIENCE, PROLOGUE, TOKEN, Deploys, Ended, Running, deploys_fixture  # noqa: F401
from fault_server import FaultServer, silent, told
from outbox_kit import held, opened

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and terminals")

FIELDS = ("--application-key", "billing", "--version", "v1")
# A command that says which signals reach it, until SIGUSR2 ends it well.
LISTENS = """
import os, signal, sys
from pathlib import Path
def heard(number, frame):
    with open(1, "w", closefd=False) as out:
        out.write(signal.Signals(number).name + "\\n")
    if number == signal.SIGUSR2:
        os._exit(0)
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, heard)
Path(os.environ["READY"]).touch()
while True:
    signal.pause()
"""
OURS = (sys.executable, "-m", "ld_deploy_hooks", "run", *FIELDS, "--")
WAITS = 'touch "$READY"; exec sleep 60'


@pytest.fixture
def server(deploys: Deploys) -> Iterator[FaultServer]:
    with FaultServer() as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        yield server


def start(deploys: Deploys, *command: str, fields: tuple[str, ...] = FIELDS, **options: object) -> Running:
    return deploys.start_command("run", *fields, "--", *command, **options)


def run(deploys: Deploys, *command: str, fields: tuple[str, ...] = FIELDS, **options: object) -> Ended:
    return start(deploys, *command, fields=fields, **options).ends()


def failure(server: FaultServer) -> tuple[Any, ...]:
    """Return why the only deployment failed: reason, error, exitCode."""
    started, failed = server.events
    assert (started["eventType"], failed["eventType"]) == ("started", "failed")
    return tuple(failed["eventMetadata"].get(name) for name in ("reason", "error", "exitCode"))


def until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# -- the exit status, and what is told --------------------------------------------------------------------------------


def test_a_command_that_succeeds(deploys: Deploys, server: FaultServer) -> None:
    words = deploys.folder / "words"
    words.write_text("from stdin\n")
    with words.open() as stdin:
        ended = run(deploys, "sh", "-c", 'cat; echo "$@" >&2; exit 0', "sh", "--version", "--", "a b", stdin=stdin)
    assert (ended.status, ended.stdout, ended.stderr) == (0, "from stdin\n", "--version -- a b\n")
    assert told(server.events) == {"v1": ["started", "finished"]}
    assert server.events[1]["eventMetadata"].keys() == {"source", "eventId", "durationMs"}


@pytest.mark.parametrize(
    ("command", "status", "why"),
    [
        ("exit 1", 1, ("error", None, 1)),
        ("exit 255", 255, ("error", None, 255)),
        ("exit 130", 130, ("error", None, 130)),
        ("kill -SEGV $$", 139, ("error", "SIGSEGV", 139)),
        ("kill -KILL $$", 137, ("killed", "SIGKILL", 137)),
        ("kill -TERM $$", 143, ("cancelled", "SIGTERM", 143)),
        ("kill -INT $$", 130, ("cancelled", "SIGINT", 130)),
        pytest.param(
            "kill -40 $$",
            168,
            ("error", "signal 40", 168),
            marks=pytest.mark.skipif(sys.platform != "linux", reason="real-time signals"),
        ),
    ],
)
def test_a_command_that_fails(
    deploys: Deploys, server: FaultServer, command: str, status: int, why: tuple[object, ...]
) -> None:
    ended = run(deploys, "sh", "-c", f"echo out; {command}")
    assert (ended.status, ended.stdout, ended.stderr) == (status, "out\n", "")
    assert failure(server) == why


NOT_RUN = {
    "not found": ("no-such-program", 127),
    "no such file": ("./no-such-file", 127),
    "empty": ("", 127),
    "not executable": ("./plain", 126),
    "not executable on PATH": ("plain", 126),
    "a folder": ("./folder", 126),
}


@pytest.mark.parametrize("case", NOT_RUN)
def test_what_cannot_be_run_is_not_told(deploys: Deploys, server: FaultServer, case: str) -> None:
    name, status = NOT_RUN[case]
    (deploys.folder / "folder").mkdir()
    (deploys.folder / "plain").write_text("#!/bin/sh\n")
    deploys.set(PATH=f"{deploys.env['PATH']}:{deploys.folder}")
    ended = run(deploys, name, "an argument")
    assert (ended.status, ended.stdout, len(ended.lines)) == (status, "", 1)
    assert "nothing was told" in ended.stderr
    assert name == "" or name not in ended.stderr
    assert server.posts == 0
    assert not deploys.outbox.exists()


@pytest.mark.parametrize(("interpreter", "status"), [("missing", 127), ("plain", 126)])
def test_a_script_whose_interpreter_cannot_be_run(
    deploys: Deploys, server: FaultServer, interpreter: str, status: int
) -> None:
    (deploys.folder / "plain").write_text("not executable")
    script = deploys.folder / "script"
    script.write_text(f"#!{deploys.folder / interpreter} -x\n")
    script.chmod(0o755)
    ended = run(deploys, "./script", "argument")
    assert (ended.status, ended.stdout, len(ended.lines)) == (status, "", 1)
    why = {127: "what it is to be run by was not found", 126: "the system would not execute it (EACCES)"}
    assert f"the command was not run: {why[status]}" in ended.stderr
    assert failure(server) == ("error", None, status)


def test_a_script_without_a_first_line_is_run_by_the_shell(deploys: Deploys, server: FaultServer) -> None:
    script = deploys.folder / "script"
    script.write_text('echo "$0" "$1"; exit 4\n')
    script.chmod(0o755)
    ended = run(deploys, "./script", "argument")
    assert (ended.status, ended.stdout) == (4, "./script argument\n")
    assert failure(server) == ("error", None, 4)


def test_a_program_that_may_be_executed_and_not_read(deploys: Deploys, server: FaultServer) -> None:
    program = shutil.copy(shutil.which("true") or "", deploys.folder / "true")
    Path(program).chmod(0o111)
    assert run(deploys, "./true").status == 0


def test_what_only_the_system_finds_out_is_told_as_failed(deploys: Deploys, server: FaultServer) -> None:
    program = deploys.folder / "program"
    program.write_bytes(b"\x7fELF, or so it says")
    program.chmod(0o755)
    # The shell tries it, as it does with any other file.
    assert run(deploys, "./program").status in (2, 126, 127)
    busy = shutil.copy(shutil.which("true") or "", deploys.folder / "busy")
    with Path(busy).open("r+b"):
        ended = run(deploys, "./busy", fields=("--application-key", "billing", "--version", "v2"))
    assert ended.status == 126
    assert ended.lines == ["ld-deploy: the command was not run: the system would not execute it (ETXTBSY)."]
    assert told(server.events) == {"v1": ["started", "failed"], "v2": ["started", "failed"]}


@pytest.mark.skipif(sys.platform != "linux", reason="patches an ELF file")
def test_a_program_whose_loader_is_missing(deploys: Deploys, server: FaultServer) -> None:
    program = deploys.folder / "program"
    program.write_bytes(Path(shutil.which("true") or "").read_bytes().replace(b"/ld-linux", b"/no-linux"))
    program.chmod(0o755)
    assert run(deploys, "./program").status == 127
    assert failure(server) == ("error", None, 127)


def test_the_command_line_is_told_nowhere(deploys: Deploys, server: FaultServer) -> None:
    secret = "hunter2-the-password"
    assert run(deploys, "sh", "-c", "exit 1", secret).status == 1
    ended = run(deploys, f"--password={secret}")
    assert ended.status == 127
    kept = b"".join(path.read_bytes() for path in deploys.outbox.parent.rglob("*") if path.is_file())
    assert secret not in ended.stderr + json.dumps(server.events) + kept.decode("latin-1")


def test_the_options_are_the_fields_of_the_deployment(deploys: Deploys, server: FaultServer) -> None:
    fields = (
        *("--application-key", "web", "--environment-key", "test", "--project-key", "p", "--version", "feature/x y"),
        *("--application-name", "The Web", "--application-kind", "browser", "--metadata", "team=a=b"),
        *("--metadata", "empty=", "--event-metadata", "step=1"),
    )
    ended = run(deploys, "true", fields=fields)
    assert ended.status == 0
    assert ["feature-x-y" in line for line in ended.lines] == [True]
    started, finished = server.events
    for event in (started, finished):
        assert (event["projectKey"], event["environmentKey"], event["applicationKey"]) == ("p", "test", "web")
        assert (event["version"], event["versionName"]) == ("feature-x-y", "feature/x y")
        assert (event["applicationName"], event["applicationKind"]) == ("The Web", "browser")
        assert event["deploymentMetadata"] == {"team": "a=b", "empty": ""}
    assert started["eventMetadata"]["step"] == "1"
    assert "step" not in finished["eventMetadata"]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--",),
        ("--application-kind", "toaster", "--", "true"),
        ("--metadata", "novalue", "--", "true"),
        ("--metadata", "=value", "--", "true"),
        ("--application", "abbreviated", "--", "true"),
        ("--access-token", TOKEN, "--", "true"),
    ],
    ids=" ".join,
)
def test_a_command_line_that_cannot_be_used(deploys: Deploys, server: FaultServer, arguments: tuple[str, ...]) -> None:
    ended = deploys.command("run", *arguments)
    assert (ended.status, ended.stdout) == (2, "")
    assert ended.stderr.startswith("usage: ld-deploy ")
    assert "novalue" not in ended.stderr
    assert TOKEN not in ended.stderr
    assert not deploys.outbox.exists()


def test_without_dashes_the_first_word_that_is_no_option_begins_the_command(
    deploys: Deploys, server: FaultServer
) -> None:
    ended = deploys.command("run", *FIELDS, "echo", "--version", "v2")
    assert (ended.status, ended.stdout) == (0, "--version v2\n")
    assert told(server.events) == {"v1": ["started", "finished"]}


# -- settings ---------------------------------------------------------------------------------------------------------

ENVIRONMENT = 'env | grep "^LD_DEPLOY_PARENT=" ; exit 3'


@pytest.mark.parametrize("switch", ["LD_DEPLOY_DISABLED", "LD_DEPLOY_DRY_RUN"])
def test_switched_off_it_only_runs_the_command(deploys: Deploys, server: FaultServer, switch: str) -> None:
    deploys.set(**{switch: "1", "LD_DEPLOY_STRICT": "1"})
    ended = run(deploys, "sh", "-c", ENVIRONMENT)
    assert (ended.status, ended.stdout, ended.stderr) == (3, "", "")
    assert not deploys.outbox.exists()


def test_without_a_required_setting_it_only_runs_the_command(deploys: Deploys, server: FaultServer) -> None:
    del deploys.env["LD_PROJECT"]
    ended = run(deploys, "sh", "-c", ENVIRONMENT)
    assert (ended.status, ended.stdout) == (3, "")
    assert ["LD_PROJECT" in line for line in ended.lines] == [True]
    assert not deploys.outbox.exists()
    deploys.set(LD_DEPLOY_STRICT="1")
    ended = run(deploys, "sh", "-c", "echo ran")
    assert (ended.status, ended.stdout) == (2, "")
    assert ["LD_PROJECT" in line for line in ended.lines] == [True]


def test_an_outbox_that_cannot_be_used_changes_nothing_for_the_command(deploys: Deploys, server: FaultServer) -> None:
    (deploys.folder / "file").touch()
    deploys.set(LD_DEPLOY_OUTBOX=str(deploys.folder / "file" / "outbox.db"))
    ended = run(deploys, "sh", "-c", "echo out; exit 3")
    assert (ended.status, ended.stdout) == (3, "out\n")
    assert told(server.events) == {"v1": ["started", "failed"]}


def test_a_service_that_does_not_answer_is_waited_for_as_at_any_exit(deploys: Deploys) -> None:
    with FaultServer(silent) as server:
        deploys.set(LD_BASE_URI=server.base_uri, LD_DEPLOY_FLUSH_TIMEOUT="0.5")
        began = time.monotonic()
        ended = run(deploys, "sh", "-c", "exit 3")
        assert 0.5 < time.monotonic() - began < 6
        assert ended.status == 3
        assert ["2 event(s) wait in" in line for line in ended.lines] == [True]


def test_ctrl_c_in_that_wait_ends_it_and_keeps_the_exit_status(deploys: Deploys) -> None:
    with FaultServer(silent) as server:
        deploys.set(LD_BASE_URI=server.base_uri, LD_DEPLOY_FLUSH_TIMEOUT="60")
        running = start(deploys, "sh", "-c", "exit 3")
        with opened(deploys.outbox) as box:
            until(lambda: any(one.ended_at for one in box.deployments(limit=1)))
        until(lambda: not catches(running, signal.SIGUSR1))
        ended = running.send(signal.SIGINT).ends()
        assert (ended.status, "Traceback" in ended.stderr) == (3, False)
        assert ended.lingered < 5


# -- one deployment over processes ------------------------------------------------------------------------------------


def test_a_deployment_of_the_same_identity_in_the_command_is_the_same(deploys: Deploys, server: FaultServer) -> None:
    script = deploys.folder / "nested.py"
    script.write_text(
        PROLOGUE
        + "with deployment('billing', version='v1') as d:\n    d.custom(step=1)\n"
        + "with deployment('web') as d:\n    print(*d.identity)\n"
    )
    ended = run(deploys, sys.executable, "-m", "ld_deploy_hooks", "run", *FIELDS, "--", sys.executable, str(script))
    assert (ended.status, ended.stdout, ended.stderr) == (0, "default production web v1\n", "")
    facts = [(event["applicationKey"], event["eventType"]) for event in server.events]
    assert [kind for key, kind in facts if key == "billing"] == ["started", "custom", "finished"]
    assert [kind for key, kind in facts if key == "web"] == ["started", "finished"]


BETWEEN = (sys.executable, "-m", "ld_deploy_hooks", "run", "--application-key", "web", "--version", "v2", "--")


@pytest.mark.parametrize("within", [BETWEEN, (*BETWEEN, *OURS)], ids=["a deployment", "a run"])
def test_what_a_run_further_out_tells_is_told_once(
    deploys: Deploys, server: FaultServer, within: tuple[str, ...]
) -> None:
    nested = "from ld_deploy_hooks import deployment\nwith deployment('billing', version='v1') as d: d.custom(a=1)"
    ended = run(deploys, *within, sys.executable, "-c", nested)
    assert (ended.status, ended.stderr) == (0, "")
    assert told(server.events) == {"v1": ["started", "custom", "finished"], "v2": ["started", "finished"]}


def test_what_a_plugin_drops_is_not_told_by_the_command_either(deploys: Deploys, server: FaultServer) -> None:
    (deploys.folder / "drops.py").write_text(
        "import os\nfrom ld_deploy_hooks import DropEvent, hookimpl\n@hookimpl\ndef ld_deploy_modify_event(event):\n"
        "    if 'LD_DEPLOY_PARENT' not in os.environ: raise DropEvent\n"
    )
    deploys.set(
        LD_DEPLOY_PLUGINS="no:console,drops",
        PYTHONPATH=os.pathsep.join([str(deploys.folder), deploys.env.get("PYTHONPATH", "")]),
    )
    nested = "from ld_deploy_hooks import deployment\nwith deployment('billing', version='v1'): pass\nexit(5)"
    assert run(deploys, sys.executable, "-c", nested).status == 5
    assert server.posts == 0


@pytest.mark.parametrize("kind", ["started", "finished", "failed"])
@pytest.mark.parametrize("status", [0, 5])
def test_what_is_sent_within_the_command_makes_no_second_deployment(
    deploys: Deploys, server: FaultServer, kind: str, status: int
) -> None:
    ended = run(deploys, "sh", "-c", f"{sys.executable} -m ld_deploy_hooks send {kind} && exit {status}")
    assert (ended.status, ended.stdout, len(ended.lines)) == (status, "", 1)
    assert "are told by the `ld-deploy run` around it. Let its command exit with a status other than 0" in ended.stderr
    assert told(server.events) == {"v1": ["started", "failed" if status else "finished"]}


# Leaves its arguments behind as a command, which begins when the test says so.
LEAVES = '(while [ ! -e go ]; do sleep 0.01; done; "$@"; touch done) </dev/null >/dev/null 2>later & echo left'


def goes_on(deploys: Deploys) -> str:
    """Let what was left behind go on; return what it has said on stderr when it is done."""
    (deploys.folder / "go").touch()
    until(lambda: (deploys.folder / "done").exists())
    return (deploys.folder / "later").read_text()


DEPLOYS = (
    sys.executable,
    "-c",
    "from ld_deploy_hooks import deployment\nwith deployment('billing', version='v1') as d: d.custom(a=1)",
)


@pytest.mark.parametrize(
    ("command", "tells"),
    [
        (DEPLOYS, ["started", "custom", "finished"]),
        ((sys.executable, "-m", "ld_deploy_hooks", "run", *FIELDS, "--", *DEPLOYS), ["started", "custom", "finished"]),
        ((sys.executable, "-m", "ld_deploy_hooks", "send", "failed", *FIELDS), ["failed"]),
    ],
    ids=["deployment", "run", "send"],
)
def test_what_the_command_leaves_behind_is_told_by_itself(
    deploys: Deploys, server: FaultServer, command: tuple[str, ...], tells: list[str]
) -> None:
    ended = run(deploys, "sh", "-c", LEAVES, "sh", *command)
    assert (ended.status, ended.stdout, ended.stderr) == (0, "left\n", "")
    assert goes_on(deploys) == ""
    assert told(server.events) == {"v1": ["started", "finished", *tells]}


@pytest.mark.parametrize("within", [(), BETWEEN], ids=["a run", "a run in a run"])
@pytest.mark.parametrize(
    "command",
    [
        (sys.executable, "-c", "from ld_deploy_hooks import deployment\nwith deployment('billing'): pass"),
        (sys.executable, "-m", "ld_deploy_hooks", "run", "--application-key", "billing", "--", "true"),
        (sys.executable, "-m", "ld_deploy_hooks", "send", "failed", "--application-key", "billing"),
    ],
    ids=["deployment", "run", "send"],
)
def test_what_a_run_that_is_over_left_behind_takes_no_field_from_it(
    deploys: Deploys, server: FaultServer, command: tuple[str, ...], within: tuple[str, ...]
) -> None:
    left = ("sh", "-c", LEAVES, "sh", "env", "LD_DEPLOY_VERSION=v9", *command)
    ended = run(deploys, *within, *(OURS if within else ()), *left)
    assert (ended.status, ended.stdout, ended.stderr) == (0, "left\n", "")
    assert goes_on(deploys) == ""
    tells = ["failed"] if "send" in command else ["started", "finished"]
    assert told(server.events)["v9"] == tells


def test_what_a_run_that_is_over_left_behind_takes_fields_from_one_further_out(
    deploys: Deploys, server: FaultServer
) -> None:
    """The inner run has ended when its command's child looks for the version; the outer one waits for that child."""
    looks = "from ld_deploy_hooks import deployment\nwith deployment('api') as d: d.custom(a=1)"
    inner = ("sh", "-c", LEAVES, "sh", sys.executable, "-c", looks)
    waits = ("sh", "-c", '"$@" >/dev/null; touch go; while [ ! -e done ]; do sleep 0.01; done', "sh")
    ended = run(deploys, *waits, *BETWEEN, *inner)
    assert (ended.status, ended.stderr) == (0, "")
    assert [e["version"] for e in server.events if e["applicationKey"] == "api"] == ["v1"] * 3


def test_what_outlives_a_killed_run_is_told_by_itself(deploys: Deploys, server: FaultServer) -> None:
    running = start(deploys, "sh", "-c", LEAVES + '; touch "$READY"; sleep 60', "sh", *DEPLOYS)
    running.until_ready().kill()
    assert goes_on(deploys) == ""
    assert told(server.events) == {"v1": ["started", "failed", "started", "custom", "finished"]}


def test_a_run_within_a_run_hands_the_outer_one_on(deploys: Deploys, server: FaultServer) -> None:
    show = ("sh", "-c", 'echo "$LD_DEPLOY_PARENT"')
    ended = run(deploys, "sh", "-c", 'echo "$LD_DEPLOY_PARENT"; "$@"', "sh", *OURS, *show)
    outer, inner = ended.stdout.splitlines()
    assert outer == inner
    with opened(deploys.outbox) as box:
        assert [one.id for one in box.deployments(limit=5)] == [json.loads(outer)["id"]]


def test_where_the_outbox_cannot_say_the_run_around_is_taken_at_its_word(deploys: Deploys, server: FaultServer) -> None:
    (deploys.folder / "file").touch()
    deploys.set(LD_DEPLOY_OUTBOX=str(deploys.folder / "file" / "outbox.db"))
    assert run(deploys, *DEPLOYS).status == 0
    kinds = [event["eventType"] for event in server.events]
    assert (kinds.count("started"), kinds.count("finished")) == (1, 1)


# -- signals ----------------------------------------------------------------------------------------------------------


def catches(running: Running, number: int) -> bool:
    """Whether the process has a handler for a signal."""
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    (mask,) = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(mask >> (number - 1) & 1)


# What differs between systems is left out where it is missing.
FORWARDED = [
    *("SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGXCPU", "SIGABRT"),
    *("SIGWINCH", "SIGURG", "SIGIO", "SIGPWR", "SIGINFO", "SIGRTMIN", "SIGRTMAX"),
]


@pytest.mark.parametrize("name", [name for name in FORWARDED if hasattr(signal, name)])
def test_signals_reach_the_command_which_decides(deploys: Deploys, server: FaultServer, name: str) -> None:
    running = start(deploys, sys.executable, "-c", LISTENS).until_ready()
    running.send(getattr(signal, name))
    until(lambda: name in running.so_far())
    ended = running.send(signal.SIGUSR2).ends()
    assert (ended.status, ended.stdout, ended.stderr) == (0, f"{name}\nSIGUSR2\n", "")
    assert told(server.events) == {"v1": ["started", "finished"]}


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_signals_that_are_about_this_very_process_are_not_forwarded(deploys: Deploys, server: FaultServer) -> None:
    running = start(deploys, "sh", "-c", WAITS).until_ready()
    about_us = [signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS]
    about_us += [signal.SIGCHLD, signal.SIGCONT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU]
    assert not [number for number in about_us if catches(running, number)]
    assert running.send(signal.SIGALRM).ends().status == 128 + signal.SIGALRM
    assert failure(server) == ("error", "SIGALRM", 142)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT"])
def test_a_signal_that_ends_the_command_is_a_cancellation(deploys: Deploys, server: FaultServer, name: str) -> None:
    number = getattr(signal, name)
    ended = start(deploys, "sh", "-c", WAITS).until_ready().send(number).ends()
    assert (ended.status, ended.stderr) == (128 + number, "")
    assert failure(server) == ("cancelled", name, 128 + number)


def test_a_command_that_gives_up_on_a_signal_was_cancelled(deploys: Deploys, server: FaultServer) -> None:
    script = 'trap "exit 5" INT; touch "$READY"; while :; do sleep 0.01; done'
    ended = start(deploys, "sh", "-c", script).until_ready().send(signal.SIGINT).ends()
    assert ended.status == 5
    assert failure(server) == ("cancelled", None, 5)


def test_a_command_that_fails_after_a_signal_of_its_own_was_not(deploys: Deploys, server: FaultServer) -> None:
    script = 'trap "exit 5" USR1; touch "$READY"; while :; do sleep 0.01; done'
    ended = start(deploys, "sh", "-c", script).until_ready().send(signal.SIGUSR1).ends()
    assert ended.status == 5
    assert failure(server) == ("error", None, 5)


def test_where_no_thread_can_be_started_a_signal_still_reaches_the_command(
    deploys: Deploys, server: FaultServer
) -> None:
    # More than there is to have.
    (deploys.folder / "full.py").write_text(
        "import threading\nfrom ld_deploy_hooks import hookimpl\n@hookimpl\ndef ld_deploy_provide_defaults(settings):\n"
        "    threading.stack_size(1 << 46)\n"
    )
    path = os.pathsep.join([str(deploys.folder), deploys.env.get("PYTHONPATH", "")])
    deploys.set(LD_DEPLOY_PLUGINS="no:console,full", PYTHONPATH=path)
    ended = start(deploys, "sh", "-c", WAITS).until_ready().send(signal.SIGINT).ends()
    assert (ended.status, "Traceback" in ended.stderr) == (130, False)


def test_nohup_is_left_alone(deploys: Deploys, server: FaultServer) -> None:
    nohup = shutil.which("nohup")
    assert nohup is not None
    command = (sys.executable, "-m", "ld_deploy_hooks", "run", *FIELDS, "--", "sh", "-c", WAITS)
    running = deploys.start_program(nohup, *command).until_ready()
    assert not catches(running, signal.SIGHUP)
    ended = running.send(signal.SIGHUP).send(signal.SIGTERM).ends()
    assert ended.status == 143
    assert failure(server) == ("cancelled", "SIGTERM", 143)


def test_what_a_plugin_drops_of_the_run_is_wholly_dropped(deploys: Deploys, server: FaultServer) -> None:
    (deploys.folder / "drops.py").write_text(
        "from ld_deploy_hooks import DropEvent, hookimpl\n@hookimpl\ndef ld_deploy_modify_event(event):\n"
        "    if event.event_type == 'started': raise DropEvent\n"
    )
    path = os.pathsep.join([str(deploys.folder), deploys.env.get("PYTHONPATH", "")])
    deploys.set(LD_DEPLOY_PLUGINS="no:console,drops", PYTHONPATH=path)
    nested = (
        "import subprocess, sys\nfrom ld_deploy_hooks import deployment\n"
        "with deployment('billing', version='v1') as d: d.custom(step=1)\n"
        "send = [sys.executable, '-m', 'ld_deploy_hooks', 'send', 'custom', *sys.argv[1:]]\n"
        "sys.exit(subprocess.run(send).returncode)"
    )
    assert run(deploys, sys.executable, "-c", nested, *FIELDS).status == 0
    assert server.posts == 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_command_that_is_cancelled_before_it_is_there_is_not_begun(
    deploys: Deploys, server: FaultServer, name: str
) -> None:
    assert run(deploys, "true", fields=("--application-key", "billing", "--version", "v0")).status == 0
    server.events.clear()
    with held(deploys.outbox):
        running = start(deploys, "sh", "-c", "trap '' INT TERM HUP; touch begun")
        until(lambda: catches(running, signal.SIGUSR1))
        running.send(getattr(signal, name))
    number = getattr(signal, name)
    assert running.ends().status == 128 + number
    assert not (deploys.folder / "begun").exists()
    assert failure(server) == ("cancelled", name, 128 + number)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_signal_before_the_command_is_there_waits_for_it(deploys: Deploys, server: FaultServer) -> None:
    assert run(deploys, "true", fields=("--application-key", "billing", "--version", "v0")).status == 0
    server.events.clear()
    with held(deploys.outbox):
        running = start(deploys, "sh", "-c", "echo survived; sleep 60")
        until(lambda: catches(running, signal.SIGUSR1))
        running.send(signal.SIGTERM)
        until(lambda: catches(running, signal.SIGTERM))
    assert running.ends().status == 143
    assert failure(server) == ("cancelled", "SIGTERM", 143)


def test_killed_it_is_told_by_the_next_run_though_its_command_lives_on(deploys: Deploys, server: FaultServer) -> None:
    script = 'echo $$; touch "$READY"; exec sleep 60'
    running = start(deploys, "sh", "-c", script).until_ready()
    running.process.kill()
    command = int(running.ends().stdout)
    os.kill(command, 0)
    deploys.next_run()
    assert failure(server) == ("killed", None, None)
    os.kill(command, signal.SIGKILL)


@pytest.mark.skipif(not shutil.which("unshare") or os.getuid() != 0, reason="needs root, for a pid namespace")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_as_process_1_of_a_container(deploys: Deploys, server: FaultServer, name: str) -> None:
    command = [sys.executable, "-m", "ld_deploy_hooks", "run", *FIELDS, "--", "sh", "-c"]
    script = f'trap "exit 6" {name[3:]}; echo $PPID; kill -{name[3:]} 1; while :; do sleep 0.01; done'
    ended = deploys.start_program("unshare", "--pid", "--fork", "--kill-child", *command, script).ends()
    assert (ended.status, ended.stdout) == (6, "1\n")
    assert failure(server) == ("cancelled", None, 6)


# -- the terminal -----------------------------------------------------------------------------------------------------

# Makes what follows on the command line the leader of a session on the terminal that is its stdin.
ON_TERMINAL = "import os, sys; os.close(os.open(os.ttyname(0), os.O_RDWR)); os.execvp(sys.argv[1], sys.argv[1:])"


class Terminal:
    """A terminal, and who sits at it."""

    def __init__(self, deploys: Deploys) -> None:
        self._deploys = deploys
        self.keyboard, self._theirs = pty.openpty()

    def start(self, *command: str, **options: object) -> Running:
        launched = (sys.executable, "-c", ON_TERMINAL, *command)
        return self._deploys.start_program(*launched, stdin=self._theirs, **options)

    def run(self, *command: str, **options: object) -> Running:
        return self.start(sys.executable, "-m", "ld_deploy_hooks", "run", *FIELDS, "--", *command, **options)

    def shell(self, *command: str) -> Running:
        return self.start(*command, stdout=self._theirs, stderr=self._theirs)

    def type(self, text: str) -> None:
        os.write(self.keyboard, text.encode())

    def shows(self, text: str) -> None:
        """Wait until the terminal shows ``text``."""
        seen = b""
        os.set_blocking(self.keyboard, False)

        def is_shown() -> bool:
            nonlocal seen
            with contextlib.suppress(BlockingIOError):
                seen += os.read(self.keyboard, 65536)
            return text.encode() in seen

        until(is_shown)

    def close(self) -> None:
        os.close(self.keyboard)
        os.close(self._theirs)


@pytest.fixture
def terminal(deploys: Deploys) -> Iterator[Terminal]:
    terminal = Terminal(deploys)
    yield terminal
    terminal.close()


@pytest.mark.parametrize(("key", "name"), [("\x03", "SIGINT"), ("\x1c", "SIGQUIT")], ids=["Ctrl-C", "Ctrl-backslash"])
def test_what_is_typed_reaches_the_command_once(
    deploys: Deploys, server: FaultServer, terminal: Terminal, key: str, name: str
) -> None:
    running = terminal.run(sys.executable, "-c", LISTENS).until_ready()
    terminal.type(key)
    until(lambda: name in running.so_far())
    # What came before this one is handled by the time that the command has ended of it.
    ended = running.send(signal.SIGUSR2).ends()
    assert (ended.status, ended.stdout) == (0, f"{name}\nSIGUSR2\n")
    assert told(server.events) == {"v1": ["started", "finished"]}


def test_ctrl_c_that_ends_the_command_ends_us_likewise(
    deploys: Deploys, server: FaultServer, terminal: Terminal
) -> None:
    running = terminal.run("sh", "-c", WAITS).until_ready()
    terminal.type("\x03")
    ended = running.ends()
    assert (ended.status, ended.stderr) == (-signal.SIGINT, "")
    assert failure(server) == ("cancelled", "SIGINT", 130)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody can tell who has sent a signal")
@pytest.mark.parametrize("name", ["SIGINT", "SIGQUIT"])
def test_from_elsewhere_they_reach_a_command_in_the_foreground(
    deploys: Deploys, server: FaultServer, terminal: Terminal, name: str
) -> None:
    number = getattr(signal, name)
    ended = terminal.run("sh", "-c", WAITS).until_ready().send(number).ends()
    assert (ended.status, ended.stderr) == (128 + number, "")
    assert failure(server) == ("cancelled", name, 128 + number)


def test_sigint_from_elsewhere_reaches_a_command_in_the_background(deploys: Deploys, server: FaultServer) -> None:
    terminal = Terminal(deploys)
    try:
        # A group of its own, which is not the terminal's foreground.
        source = "import os, sys; os.setpgid(0, 0); os.execvp(sys.argv[1], sys.argv[1:])"
        command = (sys.executable, "-m", "ld_deploy_hooks", "run", *FIELDS, "--", "sh", "-c", WAITS)
        around = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {source!r}, *sys.argv[1:]])"
        around += "; print(p.pid, flush=True); sys.exit(p.wait())"
        running = terminal.start(sys.executable, "-c", around, *command).until_ready()
        os.kill(int(running.so_far()), signal.SIGINT)
        assert running.ends().status == 130
    finally:
        terminal.close()
    assert failure(server) == ("cancelled", "SIGINT", 130)


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_a_job_of_a_shell_reads_stops_and_goes_on(deploys: Deploys, server: FaultServer, terminal: Terminal) -> None:
    deploys.set(PS1="$ ", TERM="dumb")
    shell = terminal.shell("bash", "--norc", "--noprofile", "--noediting", "-i")
    script = "'read a; echo got-$a; read b; echo got-$b'"
    command = f"{sys.executable} -m ld_deploy_hooks run {' '.join(FIELDS)} -- sh -c {script}"
    terminal.type(f"{command}\n")
    until(lambda: deploys.outbox.exists())
    terminal.type("one\n")
    terminal.shows("got-one")
    terminal.type("\x1a")
    terminal.shows("Stopped")
    terminal.type("fg\n")
    terminal.type("two\n")
    terminal.shows("got-two")
    terminal.type("exit 7\n")
    assert shell.ends().status == 7
    assert told(server.events) == {"v1": ["started", "finished"]}


# -- what the command is given ----------------------------------------------------------------------------------------

# Becomes what follows on the command line, with SIGCHLD and some others as they are named: in a list of the ignored.
IGNORING = (
    "import os, signal, sys\nfor number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:\n"
    "    name = getattr(number, 'name', '')\n"
    "    signal.signal(number, signal.SIG_IGN if name in sys.argv[1].split() else signal.SIG_DFL)\n"
    "os.execvp(sys.argv[2], sys.argv[2:])"
)


def test_the_exit_status_is_known_though_sigchld_came_ignored(deploys: Deploys, server: FaultServer) -> None:
    ended = deploys.start_program(sys.executable, "-c", IGNORING, "SIGCHLD", *OURS, "sh", "-c", "exit 3").ends()
    assert ended.status == 3
    assert failure(server) == ("error", None, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("ignored", ["", "SIGHUP SIGINT SIGTERM SIGUSR1 SIGALRM SIGTSTP"])
def test_the_command_ignores_the_signals_that_its_caller_ignores(
    deploys: Deploys, server: FaultServer, ignored: str
) -> None:
    ended = deploys.start_program(
        *(sys.executable, "-c", IGNORING, ignored), *OURS, "grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"
    ).ends()
    masks = {line.split(":")[0]: int(line.split()[1], 16) for line in ended.stdout.splitlines()}
    # Not 32 and 33, which the C library keeps for itself.
    expected = sum(1 << (getattr(signal, name) - 1) for name in ignored.split())
    assert {name: mask & (1 << 31) - 1 for name, mask in masks.items()} == {"SigIgn": expected, "SigBlk": 0}


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    "locale", [{}, {"LC_CTYPE": "C"}, {"LC_CTYPE": "C.UTF-8"}, {"LC_ALL": "C"}, {"LANG": "C"}], ids=str
)
def test_the_environment_of_the_command_is_ours(deploys: Deploys, server: FaultServer, locale: dict[str, str]) -> None:
    del deploys.env["LANG"]
    deploys.set(**locale, UNTOUCHED="ü=\nx", EMPTY="")
    given, seen = (
        set(deploys.start_program(*command, "env", "-0").ends().stdout.split("\0")) for command in ((), OURS)
    )
    (parent,) = [entry for entry in seen if entry.startswith("LD_DEPLOY_PARENT=")]
    varying = ("MARK=", "READY=")
    assert {entry for entry in seen - {parent} if not entry.startswith(varying)} == {
        entry for entry in given if not entry.startswith(varying)
    }


def test_open_files_are_handed_on_and_none_of_ours(deploys: Deploys, server: FaultServer) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    try:
        ended = run(
            deploys, "sh", "-c", f"echo through > /dev/fd/{writer}; ls -l /proc/self/fd >&2", pass_fds=(writer,)
        )
        assert os.read(reader, 100) == b"through\n"
    finally:
        os.close(reader)
        os.close(writer)
    assert ended.status == 0
    assert str(deploys.outbox) not in ended.stderr


@pytest.mark.parametrize("closed", ["<&- >&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_with_its_streams_closed(deploys: Deploys, server: FaultServer, closed: str) -> None:
    command = f"{sys.executable} -m ld_deploy_hooks run {' '.join(FIELDS)} -- sh -c 'exit 3' {closed}"
    assert deploys.start_program("sh", "-c", command).ends().status == 3
    assert told(server.events) == {"v1": ["started", "failed"]}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_what_a_plugin_prints_for_a_full_disk_changes_no_exit_status(deploys: Deploys, server: FaultServer) -> None:
    (deploys.folder / "prints.py").write_text(
        "from ld_deploy_hooks import hookimpl\n@hookimpl\ndef ld_deploy_failed(deployment, error): print('failed')\n"
    )
    path = os.pathsep.join([str(deploys.folder), deploys.env.get("PYTHONPATH", "")])
    deploys.set(LD_DEPLOY_PLUGINS="no:console,prints", PYTHONPATH=path, PYTHONUNBUFFERED="")
    command = f"{sys.executable} -m ld_deploy_hooks run {' '.join(FIELDS)} -- sh -c 'exit 3' >/dev/full"
    ended = deploys.start_program("sh", "-c", command).ends()
    assert (ended.status, "Traceback" in ended.stderr) == (3, False)


@pytest.mark.parametrize("way", ["close", "detach"])
@pytest.mark.parametrize("status", [0, 3])
def test_a_plugin_that_closes_stdout_changes_no_exit_status(
    deploys: Deploys, server: FaultServer, way: str, status: int
) -> None:
    (deploys.folder / "closes.py").write_text(
        "import sys\nfrom ld_deploy_hooks import hookimpl\n@hookimpl\n"
        f"def ld_deploy_event_delivered(event): sys.stdout.{way}()\n"
    )
    path = os.pathsep.join([str(deploys.folder), deploys.env.get("PYTHONPATH", "")])
    deploys.set(LD_DEPLOY_PLUGINS="no:console,closes", PYTHONPATH=path)
    ended = run(deploys, "sh", "-c", f"exit {status}")
    assert (ended.status, "Traceback" in ended.stderr) == (status, False)
    # The second event finds it detached already.
    assert [line for line in ended.lines if "ld_deploy_event_delivered" not in line] == []


def test_a_command_runs_whose_deployment_cannot_be_made(deploys: Deploys, server: FaultServer) -> None:
    source = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "ld_deploy_hooks._handle": raise OSError(24, "too many open files")
sys.meta_path.insert(0, Broken())
from ld_deploy_hooks.cli import main
sys.exit(main(["run", "--application-key", "billing", "--version", "v1", "--", "sh", "-c", "echo deploying; exit 3"]))
"""
    ended = deploys.start_program(sys.executable, "-c", source).ends()
    assert (ended.status, ended.stdout, len(ended.lines)) == (3, "deploying\n", 1)
    assert server.events == []
