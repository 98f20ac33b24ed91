"""SIGTERM and SIGHUP: told at once, wherever the deploy waits, and the process still dies of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_kit import Deploys, deploys_fixture  # noqa: F401
from fault_server import FaultServer, answer, silent, told
from outbox_kit import held, opened
from ssh import SSHHosts

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

# How long a deploy may live on after a signal beside a fast service, in seconds: 0.35 to 0.75 on a quiet machine.
SOON = 1.5
# And beside one that does not answer: 2 s are waited for it.
BOUND = 2.0 + 1.0


@pytest.fixture
def server(deploys: Deploys) -> Iterator[FaultServer]:
    with FaultServer() as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        yield server


def deploy(body: str, before: str = "") -> str:
    """Return a deploy that waits in ``body``."""
    lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
    return f"{before}\nwith deployment('billing', version=sys.argv[1]):\n{lines}\nprint('survived')\nleave()\n"


WAITS = {
    "sleep": "ready(); time.sleep(60)",
    "subprocess": "import subprocess; ready(); subprocess.run(['sleep', '60'])",
    "join": """
thread = threading.Thread(target=time.sleep, args=(60,), daemon=True)
thread.start(); ready(); thread.join()
""",
    "pool": """
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(1)
ready(); pool.submit(time.sleep, 60).result()
""",
    "lock": "lock = threading.Lock(); lock.acquire(); ready(); lock.acquire()",
    "busy loop": "ready()\nwhile True: pass",
    "user's own SQLite": """
import sqlite3
one, other = (sqlite3.connect('users.db', timeout=1.0) for _ in range(2))
one.execute('BEGIN EXCLUSIVE'); ready(); other.execute('BEGIN EXCLUSIVE')
""",
    "asyncio": "import asyncio; asyncio.run(asyncio.sleep(0)); ready(); asyncio.run(asyncio.sleep(60))",
    "Invoke run": "from invoke import Context; ready(); Context().run('sleep 60', hide=True)",
    "Invoke pty": "from invoke import Context; ready(); Context().run('sleep 60', pty=True, hide=True)",
}


@pytest.mark.parametrize("wait", WAITS)
def test_sigterm_is_told_and_kills_as_it_would_have(deploys: Deploys, server: FaultServer, wait: str) -> None:
    ended = deploys.start(deploy(WAITS[wait])).until_ready().send(signal.SIGTERM).ends()
    assert ended.status == -signal.SIGTERM
    assert "survived" not in ended.stdout
    assert ended.stderr == ""
    assert ended.lingered < SOON + (1.0 if "SQLite" in wait else 0.0)
    assert told(server.events) == {"v1": ["started", "failed"]}
    metadata = server.events[-1]["eventMetadata"]
    assert (metadata["reason"], metadata["error"], metadata["exitCode"]) == ("cancelled", "SIGTERM", 143)


@pytest.mark.parametrize("pty", [False, True], ids=["plain", "pty"])
def test_sigterm_while_fabric_waits_for_a_remote_command(
    deploys: Deploys, server: FaultServer, tmp_path: Path, pty: bool
) -> None:
    pytest.importorskip("fabric")
    folder = tmp_path / "ssh"
    folder.mkdir()
    with SSHHosts(folder, ["web1"]) as hosts:
        source = f"""
from fabric import Config, Connection
connection = Connection('127.0.0.1', user='deploy', port={hosts["web1"].port}, config=Config(lazy=True),
    connect_kwargs={{'key_filename': {str(hosts.key)!r}, 'allow_agent': False, 'look_for_keys': False}})
with deployment('billing', version='v1'):
    connection.run('true', hide=True)
    ready()
    connection.run('sleep 60', hide=True, pty={pty})
"""
        ended = deploys.start(source).until_ready().send(signal.SIGTERM).ends()
    assert ended.status == -signal.SIGTERM
    assert ended.lingered < SOON
    assert told(server.events) == {"v1": ["started", "failed"]}


def test_sighup_is_told_too(deploys: Deploys, server: FaultServer) -> None:
    ended = deploys.start(deploy(WAITS["sleep"])).until_ready().send(signal.SIGHUP).ends()
    assert ended.status == -signal.SIGHUP
    assert told(server.events) == {"v1": ["started", "failed"]}
    assert server.events[-1]["eventMetadata"]["error"] == "SIGHUP"


def test_sighup_under_nohup_changes_nothing(deploys: Deploys, server: FaultServer) -> None:
    nohup = shutil.which("nohup")
    assert nohup is not None
    source = deploy("ready()\ndeadline = time.monotonic() + 0.3\nwhile time.monotonic() < deadline: time.sleep(0.01)")
    ended = deploys.start(source, before=[nohup]).until_ready().send(signal.SIGHUP).ends()
    assert ended.status == 0
    assert ended.stdout == "survived\n"
    assert told(server.events) == {"v1": ["started", "finished"]}


def test_a_service_that_does_not_answer_holds_a_signal_up_for_two_seconds(deploys: Deploys) -> None:
    with FaultServer(silent) as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        ended = deploys.start(deploy(WAITS["sleep"])).until_ready().send(signal.SIGTERM).ends()
        assert ended.status == -signal.SIGTERM
        assert ended.lingered < BOUND
        server.heal()
        deploys.next_run()
        assert told(server.events) == {"v1": ["started", "failed"]}
        assert server.events[-1]["eventMetadata"]["reason"] == "cancelled"


@pytest.mark.parametrize("since", ["before the start", "after it"])
def test_an_outbox_that_is_held_by_another_holds_a_signal_up_for_two_seconds(
    deploys: Deploys, server: FaultServer, since: str
) -> None:
    running = deploys.start(deploy(WAITS["sleep"])).until_ready() if since == "after it" else None
    with held(deploys.outbox):
        running = running or deploys.start(deploy(WAITS["sleep"])).until_ready()
        ended = running.send(signal.SIGTERM).ends()
    assert ended.status == -signal.SIGTERM
    assert ended.lingered < BOUND
    deploys.next_run()
    assert told(server.events) == {"v1": ["started", "failed"]}
    metadata = server.events[-1]["eventMetadata"]
    assert (metadata["reason"], metadata["error"], metadata["exitCode"]) == ("cancelled", "SIGTERM", 143)


@pytest.mark.parametrize("waited", [False, True], ids=["while the block waits for its end", "after that"])
def test_an_end_that_is_not_on_disk_yet_is_none_the_less_how_it_ended(
    deploys: Deploys, server: FaultServer, waited: bool
) -> None:
    source = f"""
with deployment("billing", version="v1"):
    ready()
    while not os.path.exists("held"): time.sleep(0.01)
    {"" if waited else "threading.Timer(0.3, print, ['over'], {'flush': True}).start()"}
print('over', flush=True)
time.sleep(60)
"""
    running = deploys.start(source).until_ready()
    with held(deploys.outbox):
        (deploys.folder / "held").touch()
        while "over" not in running.so_far():
            assert running.process.poll() is None
            time.sleep(0.005)
        ended = running.send(signal.SIGTERM).ends()
    assert ended.status == -signal.SIGTERM
    assert ended.lingered < BOUND
    deploys.next_run()
    assert told(server.events) == {"v1": ["started", "finished"]}


def test_a_second_signal_kills_at_once(deploys: Deploys) -> None:
    with FaultServer(silent) as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        running = deploys.start(deploy(WAITS["sleep"])).until_ready().send(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            running.process.wait(0.3)
        ended = running.send(signal.SIGTERM).ends()
        assert ended.status == -signal.SIGTERM
        assert ended.lingered < 0.5
        server.heal()
        deploys.next_run()
        assert told(server.events) == {"v1": ["started", "failed"]}


# -- the user's own handler -------------------------------------------------------------------------------------------

OWN = {
    "raises": (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))",
        "ready(); time.sleep(60)",
        5,
        ["started", "failed"],
    ),
    "sets a flag, and the deploy gives up": (
        "flag = []\nsignal.signal(signal.SIGTERM, lambda *_: flag.append(1))",
        "ready()\nwhile not flag: time.sleep(0.01)\nleave(6)",
        6,
        ["started", "failed"],
    ),
    "sets a flag, and the deploy succeeds": (
        "flag = []\nsignal.signal(signal.SIGTERM, lambda *_: flag.append(1))",
        "ready()\nwhile not flag: time.sleep(0.01)",
        0,
        ["started", "finished"],
    ),
    "asyncio's, and the deploy gives up": (
        "import asyncio",
        """
async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with deployment('inner', version='inner'):
        ready()
        await stop.wait()
        raise SystemExit(7)
asyncio.run(main())
""",
        7,
        ["started", "failed"],
    ),
}


@pytest.mark.parametrize("own", OWN)
def test_over_a_handler_of_the_users_the_block_decides(deploys: Deploys, server: FaultServer, own: str) -> None:
    before, body, status, facts = OWN[own]
    ended = deploys.start(deploy(body, before)).until_ready().send(signal.SIGTERM).ends()
    assert ended.status == status
    assert ended.stderr == ""
    for version in told(server.events):
        assert told(server.events)[version] == facts
        end = next(event for event in reversed(server.events) if event["version"] == version)
        assert end["eventMetadata"].get("reason") == ("cancelled" if facts[-1] == "failed" else None)
    assert told(server.events)


def test_a_handler_of_the_users_is_called_at_once_beside_a_service_that_does_not_answer(deploys: Deploys) -> None:
    with FaultServer(silent) as server:
        deploys.set(LD_BASE_URI=server.base_uri, LD_DEPLOY_FLUSH_TIMEOUT="0")
        before, body, status, _ = OWN["raises"]
        ended = deploys.start(deploy(body, before)).until_ready().send(signal.SIGTERM).ends()
        assert ended.status == status
        assert ended.lingered < SOON
        server.heal()
        deploys.next_run()
        assert told(server.events) == {"v1": ["started", "failed"]}


def test_the_mark_of_a_signal_outlives_a_kill(deploys: Deploys, server: FaultServer) -> None:
    before = f"signal.signal(signal.SIGTERM, lambda *_: Path({str(deploys.folder / 'handled')!r}).touch())"
    running = deploys.start(deploy("ready()\nwhile True: time.sleep(0.01)", before)).until_ready()
    running.send(signal.SIGTERM)
    with opened(deploys.outbox) as box:
        while not any("signal" in left.details for left in box.open_of()):
            assert running.process.poll() is None
    assert (deploys.folder / "handled").exists()
    assert told(server.events) in ({}, {"v1": ["started"]})
    running.kill()
    deploys.next_run()
    assert told(server.events) == {"v1": ["started", "failed"]}
    assert server.events[-1]["eventMetadata"]["reason"] == "cancelled"


def test_a_handler_of_the_users_that_calls_the_one_before_it_may_be_set_between_two_deployments(
    deploys: Deploys, server: FaultServer
) -> None:
    source = """
with deployment("billing", version="v1"):
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *arguments: before(*arguments))
    with deployment("billing", version="v2"):
        pass
with deployment("billing", version="v3"):
    ready()
    time.sleep(60)
"""
    ended = deploys.start(source).until_ready().send(signal.SIGTERM).ends()
    assert ended.status == -signal.SIGTERM
    assert ended.stderr == ""
    assert told(server.events) == {
        "v1": ["started", "finished"],
        "v2": ["started", "finished"],
        "v3": ["started", "failed"],
    }


# -- where no handler may be ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("unshare") or os.getuid() != 0, reason="needs root, for a pid namespace")
def test_process_1_of_a_container_goes_on_as_it_would_have(deploys: Deploys, server: FaultServer) -> None:
    source = deploy(
        "assert os.getpid() == 1\nready()\nos.kill(1, signal.SIGTERM)\n"
        "deadline = time.monotonic() + 0.3\nwhile time.monotonic() < deadline: time.sleep(0.01)"
    )
    ended = deploys.run(source, before=["unshare", "--pid", "--fork", "--kill-child"])
    assert ended.status == 0
    assert ended.stdout == "survived\n"
    assert told(server.events) == {"v1": ["started", "finished"]}


HANDLERS = "[signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]"


@pytest.mark.parametrize(
    "around",
    [
        "",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "signal.signal(signal.SIGTERM, lambda *_: None)",
    ],
    ids=["default", "ignored", "the user's own"],
)
def test_all_handlers_are_back_after_the_last_end(deploys: Deploys, server: FaultServer, around: str) -> None:
    source = f"""
{around}
before = {HANDLERS}
with deployment("billing", version="v1"):
    with deployment("web", version="v2"):
        pass
    inside = {HANDLERS}
assert {HANDLERS} == before
assert inside[2] == before[2]
assert (inside[0] is before[0]) == (before[0] is signal.SIG_IGN)
print("well")
"""
    assert deploys.run(source).stdout == "well\n"


def test_what_the_user_sets_inside_stays(deploys: Deploys, server: FaultServer) -> None:
    source = """
mine = lambda *_: sys.exit(4)
with deployment("billing", version="v1"):
    signal.signal(signal.SIGTERM, mine)
assert signal.getsignal(signal.SIGTERM) is mine
ready()
time.sleep(60)
"""
    assert deploys.start(source).until_ready().send(signal.SIGTERM).ends().status == 4


def test_the_last_end_in_another_thread_leaves_a_handler_that_lets_everything_through(
    deploys: Deploys, server: FaultServer
) -> None:
    source = """
block = deployment("billing", version="v1")
block.__enter__()
thread = threading.Thread(target=block.__exit__, args=(None, None, None))
thread.start()
thread.join()
flush()
ready()
time.sleep(60)
"""
    ended = deploys.start(source).until_ready().send(signal.SIGTERM).ends()
    assert ended.status == -signal.SIGTERM
    assert ended.lingered < SOON
    assert told(server.events) == {"v1": ["started", "finished"]}


def test_a_deployment_of_another_thread_is_told_by_the_next_run(deploys: Deploys, server: FaultServer) -> None:
    source = """
def work():
    with deployment("billing", version="v1"):
        ready()
        time.sleep(60)
threading.Thread(target=work, daemon=True).start()
time.sleep(60)
"""
    ended = deploys.start(source).until_ready().send(signal.SIGTERM).ends()
    assert ended.status == -signal.SIGTERM
    assert ended.lingered < 0.5
    deploys.next_run()
    assert told(server.events) == {"v1": ["started", "failed"]}
    assert server.events[-1]["eventMetadata"]["reason"] == "killed"


def test_a_signal_to_a_forked_child_tells_nothing_of_the_parents(deploys: Deploys, server: FaultServer) -> None:
    source = """
with deployment("billing", version="v1"):
    child = os.fork()
    if not child:
        time.sleep(60)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
print("well")
"""
    assert deploys.run(source).stdout == "well\n"
    assert told(server.events) == {"v1": ["started", "finished"]}


def test_ctrl_c_at_exit_ends_the_wait_and_says_what_stays(deploys: Deploys) -> None:
    with FaultServer(silent, answer()) as server:
        deploys.set(LD_BASE_URI=server.base_uri, LD_DEPLOY_FLUSH_TIMEOUT="30")
        # Ours has begun to wait when a thread sends the signal, half a second after the first of all exits.
        interrupt = """
go = threading.Event()
def interrupt():
    go.wait()
    time.sleep(0.5)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
atexit.register(go.set)
"""
        ended = deploys.run(deploy(interrupt))
        assert ended.lingered < 2.5
        assert ended.status == 0
        assert "Traceback" not in ended.stderr
        assert ended.stderr.count("wait in") == 1
        deploys.next_run()
        assert told(server.events) == {"v1": ["started", "finished"]}


def test_the_handler_runs_no_code_of_the_users(deploys: Deploys, server: FaultServer) -> None:
    source = """
from collections.abc import Mapping
class Guarded(Mapping):
    lock = threading.Lock()
    def __getitem__(self, key):
        with self.lock:
            return {"why": "release"}[key]
    def __iter__(self):
        with self.lock:
            return iter(["why"])
    def __len__(self):
        return 1
with deployment("billing", version="v1", metadata={"notes": Guarded()}), Guarded.lock:
    ready()
    time.sleep(60)
"""
    ended = deploys.start(source).until_ready().send(signal.SIGTERM).ends()
    assert ended.status == -signal.SIGTERM
    assert ended.lingered < BOUND
    deploys.next_run()
    assert told(server.events) == {"v1": ["started", "failed"]}
    assert server.events[-1]["eventMetadata"]["reason"] == "cancelled"


def test_a_signal_while_plugins_are_asked_about_the_end_leaves_it_as_it_was(
    deploys: Deploys, server: FaultServer
) -> None:
    (deploys.folder / "deployhooks.py").write_text(
        "import os, pathlib, time\n"
        "from ld_deploy_hooks import hookimpl\n"
        "@hookimpl\n"
        "def ld_deploy_modify_event(event):\n"
        "    if event.event_type == 'finished':\n"
        "        pathlib.Path(os.environ['READY']).touch()\n"
        "        time.sleep(1.0)\n"
    )
    ended = deploys.start(deploy("pass")).until_ready().send(signal.SIGTERM).ends()
    assert ended.status == -signal.SIGTERM
    assert ended.lingered < BOUND
    deploys.next_run()
    assert told(server.events) == {"v1": ["started", "finished"]}


def test_a_command_that_has_ended_well_is_told_so_whatever_comes_then(deploys: Deploys, server: FaultServer) -> None:
    deploys.run("with deployment('billing', version='v0'): pass")
    (deploys.folder / "command.py").write_text(
        "import os, pathlib, time\nwhile not os.path.exists('held'): time.sleep(0.01)\npathlib.Path('done').touch()\n"
    )
    deploys.set(LD_DEPLOY_FLUSH_TIMEOUT="10")
    arguments = ["--application-key", "billing", "--version", "v1", "--", sys.executable, "command.py"]
    running = deploys.start_command("run", *arguments)
    deadline = time.monotonic() + 30
    while told(server.events).get("v1") != ["started"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with held(deploys.outbox):
        (deploys.folder / "held").touch()
        while "not on disk within 1 s" not in running.said_so_far():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        ended = running.send(signal.SIGTERM).ends()
    assert ended.lingered < BOUND
    deploys.next_run()
    assert told(server.events) == {"v0": ["started", "finished"], "v1": ["started", "finished"]}
