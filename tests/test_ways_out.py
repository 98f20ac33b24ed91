"""Every way out of a deploy: one start, one end, and the deploy as it would be without us."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from told import Told, kinds, script, settings, told_fixture  # noqa: F401

from ld_deploy_hooks import deployment

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="the shell is a POSIX one")


class Refused(BaseException):
    """As trio's Cancelled: asks a block to stop, and is no Exception."""


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (SystemExit(), None),
        (SystemExit(0), None),
        (SystemExit(False), None),
        (SystemExit(3), {"reason": "error", "error": "SystemExit", "exitCode": 3}),
        (SystemExit("text"), {"reason": "error", "error": "SystemExit", "exitCode": 1}),
        (KeyboardInterrupt(), {"reason": "cancelled", "error": "KeyboardInterrupt", "exitCode": 130}),
        (GeneratorExit(), {"reason": "cancelled", "error": "GeneratorExit"}),
        (Refused(), {"reason": "cancelled", "error": "Refused"}),
        (ValueError("text"), {"reason": "error", "error": "ValueError", "exitCode": 1}),
    ],
)
def test_an_exception_that_leaves_is_judged(told: Told, error: BaseException, failure: dict[str, Any] | None) -> None:
    with pytest.raises(type(error)) as caught, deployment("billing"):
        raise error
    assert caught.value is error
    if failure is None:
        assert told.end()["eventType"] == "finished"
    else:
        assert told.failure() == failure


# -- how a process ends -----------------------------------------------------------------------------------------------

# (source of a deploy that prints, exit status, the end that is told). `block` stands for the deployment.
EXITS = {
    "end": ("print('migrated')", 0, "finished"),
    "exit 0": ("print('migrated'); sys.exit(0)", 0, "finished"),
    "exit 3": ("sys.stdout.write('no newline'); sys.exit(3)", 3, "failed"),
    "exit text": ("sys.exit('out of luck')", 1, "failed"),
    "raise": ("print('a'); raise ValueError('secret')", 1, "failed"),
    "interrupt": ("raise KeyboardInterrupt", -2, "failed"),
    "bytes": ("sys.stdout.buffer.write(bytes(range(256)))", 0, "finished"),
    "stderr closed": ("os.close(2); sys.stderr.close(); print('a')", 0, "finished"),
    "stdout closed": ("print('a', flush=True); sys.stdout.close()", 0, "finished"),
    "elsewhere": ("os.chdir('/'); print(os.getcwd())", 0, "finished"),
    "no environment": ("os.environ.clear(); print(len(os.environ))", 0, "finished"),
    "a thread that goes on": (
        "import threading; e = threading.Event(); threading.Timer(0.2, lambda: print('late')).start()",
        0,
        "finished",
    ),
    "a handler at exit": ("import atexit; atexit.register(print, 'bye'); print('a')", 0, "finished"),
    "recursion": ("def f(): f()\n    try: f()\n    except RecursionError: print('deep')", 0, "finished"),
    "a raising logger": (
        "import logging\n    class Bad(logging.Handler):\n        def emit(self, record): raise OSError('no')\n"
        "    logging.getLogger().addHandler(Bad()); block.custom(5); print('a')",
        0,
        "finished",
    ),
}


@posix_only
@pytest.mark.parametrize(("body", "status", "end"), EXITS.values(), ids=EXITS)
def test_the_process_ends_as_it_would_without_us(
    told: Told, child_env: dict[str, str], body: str, status: int, end: str
) -> None:
    env = child_env | settings(told.server.base_uri, told.outbox)

    def run(with_statement: str, **more: str) -> tuple[int, bytes]:
        # One line above the block whatever it is: a traceback names lines.
        source = script(f"import os, sys\nfrom unittest.mock import MagicMock\n{with_statement}:\n    {body}\n")
        done = subprocess.run(
            [sys.executable, "-c", source], env=env | more, capture_output=True, timeout=30, check=False
        )
        return done.returncode, done.stdout

    told_by_us = run("with deployment('billing') as block")
    assert told_by_us[0] == status
    assert told_by_us == run("with MagicMock(__exit__=lambda *_: False) as block")
    assert told_by_us == run("with deployment('billing') as block", LD_DEPLOY_DISABLED="1")
    assert told.end()["eventType"] == end


def test_stdout_is_the_deploys_alone(told: Told, run_python: Any, child_env: dict[str, str]) -> None:
    source = """
    with deployment("billing", metadata={"a": float("nan")}, version="feature/x") as d:
        d.custom(5)
    """
    env = child_env | settings(told.server.base_uri, told.outbox, LD_DEPLOY_PLUGINS="")
    done = run_python(script(source), env=env)
    assert done.stdout == ""
    assert "custom() takes a mapping" in done.stderr


# -- ends that nobody left --------------------------------------------------------------------------------------------

LEFT_OPEN = {
    "a daemon thread is inside": """
        import threading
        def work():
            with deployment("billing"):
                inside.set()
                threading.Event().wait()
        inside = threading.Event()
        threading.Thread(target=work, daemon=True).start()
        inside.wait()
    """,
    "a block that was entered and never left": """
        block = deployment("billing")
        block.__enter__()
    """,
    "a generator that was never closed": """
        import atexit, sys
        def steps():
            with deployment("billing"):
                yield 1
        sys.running = steps()
        next(sys.running)
    """,
    "a joiner goes on in a daemon thread": """
        import threading
        def work():
            with deployment("billing"):
                inside.set()
                threading.Event().wait()
        inside = threading.Event()
        with deployment("billing"):
            threading.Thread(target=work, daemon=True).start()
            inside.wait()
    """,
}


@pytest.mark.parametrize("source", LEFT_OPEN.values(), ids=LEFT_OPEN)
def test_what_is_open_when_the_process_ends_was_killed(
    told: Told, run_python: Any, child_env: dict[str, str], source: str
) -> None:
    import textwrap

    env = child_env | settings(told.server.base_uri, told.outbox)
    done = run_python(script(textwrap.dedent(source)), env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert told.failure() == {"reason": "killed"}


def test_a_daemon_thread_that_leaves_at_exit_is_told_as_it_left(
    told: Told, run_python: Any, child_env: dict[str, str]
) -> None:
    """The end races the exit: whichever wins, there is exactly one."""
    source = """
    import threading
    def work(number):
        with deployment("billing", version=f"v{number}"):
            inside.wait()
            go.wait()
    inside, go = threading.Barrier(21), threading.Event()
    for number in range(20):
        threading.Thread(target=work, args=(number,), daemon=True).start()
    inside.wait()
    go.set()
    """
    done = run_python(script(source), env=child_env | settings(told.server.base_uri, told.outbox))
    assert done.returncode == 0
    assert done.stderr == ""
    events = told.events()
    assert len(events) == 40
    assert sorted(kinds(events)[:1]) == ["started"]
    ends = [event["version"] for event in events if event["eventType"] != "started"]
    assert sorted(ends) == sorted(f"v{number}" for number in range(20))


def test_what_starts_while_the_process_ends_is_no_fault_of_the_deploys(
    told: Told, run_python: Any, child_env: dict[str, str]
) -> None:
    source = """
    import atexit
    def late():
        with deployment("late"):
            print("late")
    atexit.register(late)
    with deployment("billing"):
        pass
    """
    done = run_python(script(source), env=child_env | settings(told.server.base_uri, told.outbox))
    assert (done.returncode, done.stdout) == (0, "late\n")
    assert "Traceback" not in done.stderr
    sent = [event["eventType"] for event in told.events() if event["applicationKey"] == "billing"]
    assert sent == ["started", "finished"]


# -- Ctrl-C anywhere --------------------------------------------------------------------------------------------------

INTERRUPTED = """
import sys
from ld_deploy_hooks import deployment

at, where, since, count, begun = int(sys.argv[1]), sys.argv[2], sys.argv[3], 0, False

def trace(frame, event, _):
    global count, begun
    name = frame.f_code.co_filename
    if "ld_deploy_hooks" not in name or "<" in name:
        return None
    begun = begun or since in ("", frame.f_code.co_name)
    if event == "line" and where in name and begun:
        count += 1
        if count == at:
            sys.settrace(None)
            raise KeyboardInterrupt
    return trace

def main():
    sys.settrace(trace)
    try:
        with deployment("billing"):
            pass
    finally:
        sys.settrace(None)

try:
    main()
except KeyboardInterrupt:
    sys.exit(7)
print(count)
"""


def interrupted_at(
    line: int, env: dict[str, str], where: str = "", since: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a deploy that Ctrl-C hits at the ``line``-th line of ours that it executes.

    Args:
        line: counted from 1.
        env: of the deploy.
        where: only lines of files that are named so count.
        since: only lines count that are executed after a function of this name has been called.
    """
    command = [sys.executable, "-c", INTERRUPTED, str(line), where, since]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)


def test_ctrl_c_at_any_line_of_ours_leaves_as_many_ends_as_starts(told: Told, child_env: dict[str, str]) -> None:
    env = child_env | settings(told.server.base_uri, told.outbox)
    lines = int(interrupted_at(10**9, env).stdout)
    assert kinds(told.server.events) == ["started", "finished"]
    # The whole way would take minutes. The steps are dense where the start and the end are told.
    for line in [*range(3, lines, lines // 12), *range(lines - 900, lines, 53)]:
        told.server.clear()
        done = interrupted_at(line, env)
        assert (done.returncode, done.stderr) == (7, ""), line
        assert kinds(told.server.events) in ([], ["started", "failed"], ["started", "finished"]), line


def test_ctrl_c_on_the_way_of_a_start_to_the_outbox_leaves_no_end_alone(told: Told, child_env: dict[str, str]) -> None:
    env = child_env | settings(told.server.base_uri, told.outbox)
    lines = int(interrupted_at(10**9, env, "_recorder.py", "started").stdout)
    outcomes = set()
    for line in range(1, lines + 1, 3):
        told.server.clear()
        assert interrupted_at(line, env, "_recorder.py", "started").returncode == 7, line
        outcomes.add(tuple(kinds(told.server.events)))
    told_before = {(), ("started", "failed")}
    assert told_before <= outcomes <= {*told_before, ("started", "finished")}
