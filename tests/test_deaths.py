"""Processes that die without a word, fork, or live in odd circumstances: the next run tells what they left, once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator

import pytest
from fault_kit import MARGIN, PATIENCE, PLAIN, Deploys, Ended, Running, deploys_fixture  # noqa: F401
from fault_server import FaultServer, answer, repeats, silent, told
from outbox_kit import end, lone, opened, start


@pytest.fixture
def server(deploys: Deploys) -> Iterator[FaultServer]:
    with FaultServer() as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        yield server


# -- SIGKILL at every step --------------------------------------------------------------------------------------------

# Wraps one method of the child's own package so that it is killed there.
CRASH = """
def crash(method, when, nth):
    import ld_deploy_hooks._launchdarkly as service, ld_deploy_hooks._outbox as outbox
    room = service.Client if method == "post" else outbox.Outbox
    real = getattr(room, method)
    calls = []
    def wrapper(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == nth and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        answer = real(self, *args, **kwargs)
        if len(calls) == nth and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return answer
    setattr(room, method, wrapper)

def crash_committed(nth):
    # The nth commit that has recorded anything.
    import contextlib, ld_deploy_hooks._outbox as outbox
    real, records, commits = outbox.Outbox.transaction, [], []
    for name in ("open_deployment", "end_deployment"):
        def wrapper(self, *args, real=getattr(outbox.Outbox, name), **kwargs):
            records.append(1)
            return real(self, *args, **kwargs)
        setattr(outbox.Outbox, name, wrapper)
    @contextlib.contextmanager
    def transaction(self):
        known = len(records)
        inner = self._database._depth
        with real(self):
            yield
        if not inner and len(records) > known:
            commits.append(1)
            if len(commits) == nth:
                os.kill(os.getpid(), signal.SIGKILL)
    outbox.Outbox.transaction = transaction
"""
POINTS = [
    ("open_deployment", "before", 1),
    ("open_deployment", "after", 1),
    ("committed", "", 1),
    ("claim", "before", 1),
    ("claim", "after", 1),
    ("post", "before", 1),
    ("post", "after", 1),
    ("ack", "before", 1),
    ("ack", "after", 1),
    ("end_deployment", "before", 1),
    ("end_deployment", "after", 1),
    ("committed", "", 2),
    ("post", "before", 2),
    ("post", "after", 2),
    ("ack", "before", 2),
    ("ack", "after", 2),
]


@pytest.mark.parametrize(("method", "when", "nth"), POINTS, ids=lambda value: str(value))
def test_killed_at_any_step_and_run_again_at_once_with_the_same_version(
    deploys: Deploys, server: FaultServer, method: str, when: str, nth: int
) -> None:
    call = f"crash_committed({nth})" if method == "committed" else f"crash({method!r}, {when!r}, {nth})"
    killed = deploys.run(CRASH + call + PLAIN.replace("print", "flush(); print"))
    assert killed.status == -signal.SIGKILL
    again = deploys.run(PLAIN)
    assert again.status == 3
    deploys.next_run()
    facts = told(server.events)["v1"]
    assert facts[-2:] == ["started", "finished"]
    assert facts[:-2] in ([], ["started", "failed"], ["started", "finished"])
    assert bool(facts[:-2]) == ((method, when) not in [("open_deployment", "before"), ("open_deployment", "after")])
    # Twice only when it was killed between the send and the ack.
    assert repeats(server.events) <= ((method, when) in [("post", "after"), ("ack", "before"), ("ack", "after")])
    if facts[:-2] == ["started", "failed"]:
        failed = next(event for event in server.events if event["eventType"] == "failed")
        starts = [event["eventTime"] for event in server.events if event["eventType"] == "started"]
        assert failed["eventMetadata"]["reason"] == "killed"
        assert starts[0] <= failed["eventTime"] <= starts[-1]


# -- ways to die ------------------------------------------------------------------------------------------------------

DEATHS = {
    "_exit": ("os._exit(4)", 4),
    "exec": (f"os.execv({sys.executable!r}, [{sys.executable!r}, '-c', 'raise SystemExit(4)'])", 4),
    "abort": ("os.abort()", -signal.SIGABRT),
    "crash in C": ("import ctypes; ctypes.string_at(0)", -signal.SIGSEGV),
    "SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_deploy_that_died_without_a_word_is_told_by_the_next_run_once(
    deploys: Deploys, server: FaultServer, death: str
) -> None:
    how, status = DEATHS[death]
    ended = deploys.run(f"with deployment('billing', version='v1'):\n    {how}\n")
    assert ended.status == status
    told_by = deploys.run(PLAIN, "v2")
    assert told_by.status == 3
    assert told_by.stderr == ""
    assert told(server.events) == {"v1": ["started", "failed"], "v2": ["started", "finished"]}
    deploys.next_run()
    assert told(server.events)["v1"] == ["started", "failed"]
    (failed,) = (event for event in server.events if event["eventType"] == "failed")
    assert failed["eventMetadata"]["reason"] == "killed"


def test_what_is_known_of_a_death_is_kept_until_an_outbox_has_it(deploys: Deploys, server: FaultServer) -> None:
    deploys.run("with deployment('billing', version='v1'):\n    os._exit(4)")
    (owner,) = deploys.outbox.with_name("outbox.db.owners").iterdir()
    with contextlib.closing(sqlite3.connect(deploys.outbox)) as newer:
        ((version,),) = newer.execute("PRAGMA user_version")
        newer.execute("PRAGMA user_version = 99")
    # From memory: it cannot see what is open in the file.
    assert "straight from memory" in deploys.run(PLAIN, "v2").stderr
    assert owner.exists()
    with contextlib.closing(sqlite3.connect(deploys.outbox)) as newer:
        newer.execute(f"PRAGMA user_version = {version}")
    deploys.next_run()
    assert told(server.events) == {"v1": ["started", "failed"], "v2": ["started", "finished"]}
    assert not owner.exists()


ENDS = {
    "sys.exit(0)": ("sys.exit(0)", 0, "finished", {}),
    "sys.exit(3)": ("sys.exit(3)", 3, "failed", {"reason": "error", "exitCode": 3}),
    "an error": ("raise ValueError('secret')", 1, "failed", {"reason": "error", "error": "ValueError"}),
    "Ctrl-C": ("raise KeyboardInterrupt", -signal.SIGINT, "failed", {"reason": "cancelled"}),
    "GeneratorExit": ("raise GeneratorExit", 1, "failed", {"reason": "cancelled"}),
}


@pytest.mark.parametrize("way", ENDS)
def test_the_ways_out_of_a_deploy(deploys: Deploys, server: FaultServer, way: str) -> None:
    how, status, kind, metadata = ENDS[way]
    ended = deploys.run(f"with deployment('billing', version='v1'):\n    {how}\n")
    assert ended.status == status
    assert told(server.events) == {"v1": ["started", kind]}
    assert metadata.items() <= server.events[-1]["eventMetadata"].items()
    assert "secret" not in str(server.events)


def test_a_system_exit_in_a_worker_fails_its_own_deployment(deploys: Deploys, server: FaultServer) -> None:
    source = """
def work():
    with deployment("billing", version="v1"):
        sys.exit(3)
thread = threading.Thread(target=work)
thread.start()
thread.join()
leave()
"""
    assert deploys.run(source).status == 0
    assert told(server.events) == {"v1": ["started", "failed"]}


def test_fifty_threads_that_deploy_at_once(deploys: Deploys, server: FaultServer) -> None:
    source = """
gate = threading.Barrier(50)
def work(number):
    gate.wait()
    with deployment("billing", version=f"v{number}"):
        pass
threads = [threading.Thread(target=work, args=(number,)) for number in range(50)]
for thread in threads: thread.start()
for thread in threads: thread.join()
leave()
"""
    deploys.set(LD_DEPLOY_FLUSH_TIMEOUT="10")
    ended = deploys.run(source)
    assert (ended.status, ended.stderr) == (0, "")
    assert told(server.events) == {f"v{number}": ["started", "finished"] for number in range(50)}
    assert repeats(server.events) == 0


# -- many at once -----------------------------------------------------------------------------------------------------


def test_eight_recoverers_at_once_tell_each_killed_deploy_once(deploys: Deploys, server: FaultServer) -> None:
    source = """
for number in range(5):
    deployment("billing", version=f"v{number}").__enter__()
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert deploys.run(source).status == -signal.SIGKILL
    recoverers = [deploys.start_command("flush", "--recover") for _ in range(8)]
    ended = [recoverer.ends() for recoverer in recoverers]
    assert {one.status for one in ended} == {0}
    deploys.next_run()
    assert told(server.events) == {f"v{number}": ["started", "failed"] for number in range(5)}
    assert sum(one.stdout.count("told as failed") for one in ended) == 5


def test_eight_processes_of_twenty_five_deploys_each(deploys: Deploys, server: FaultServer) -> None:
    source = """
for number in range(25):
    with deployment("billing", version=f"{sys.argv[1]}-{number}"):
        pass
leave()
"""
    running = [deploys.start(source, f"p{number}") for number in range(8)]
    for one in running:
        ended = one.ends()
        assert ended.status == 0
        assert "Traceback" not in ended.stderr
    deploys.next_run()
    assert len(server.events) == 400
    assert repeats(server.events) == 0
    facts = told(server.events)
    assert len(facts) == 200
    assert set(map(tuple, facts.values())) == {("started", "finished")}


def test_what_is_on_its_way_at_the_exit_is_nobody_elses_until_the_process_is_gone(deploys: Deploys) -> None:
    # Registered before ours, and so called after it: the exit's wait is over then, the process is not.
    source = """
import subprocess
def another():
    command = [sys.executable, "-m", "ld_deploy_hooks", "flush", "--timeout", "1"]
    print(subprocess.run(command, capture_output=True).returncode)
atexit.register(another)
"""
    with FaultServer(silent) as server:
        deploys.set(LD_BASE_URI=server.base_uri, LD_DEPLOY_FLUSH_TIMEOUT="1")
        ended = deploys.run(source + PLAIN)
        assert (ended.status, ended.stdout) == (3, "deploying\n1\n")
        assert server.posts == 1
        server.heal()
        # Void is its lease as soon as the process is gone, and not when its 60 seconds are over.
        begun = time.monotonic()
        assert deploys.command("flush", "--timeout", "100").status == 0
        assert time.monotonic() - begun < 30
        assert told(server.events) == {"v1": ["started", "finished"]}


def test_eight_that_send_and_are_killed_at_random_lose_nothing(deploys: Deploys, server: FaultServer) -> None:
    now = int(time.time() * 1000)
    with opened(deploys.outbox) as box, box.transaction():
        for number in range(150):
            start(box, f"d{number}", of=f"v{number}", base_uri=server.base_uri, now=now)
            end(box, f"d{number}", of=f"v{number}", now=now)
    server.heal(answer(delay=0.005))
    drainers = [deploys.start_command("flush") for _ in range(8)]
    victims = random.Random(4).sample(drainers, 5)
    deadline = time.monotonic() + 60
    for count, victim in enumerate(victims, 1):
        while len(server.events) < count * 20 and time.monotonic() < deadline:
            time.sleep(0.002)
        victim.kill()
    for drainer in drainers:
        if drainer not in victims:
            drainer.ends()
    deploys.next_run()
    facts = told(server.events)
    assert len(facts) == 150
    assert set(map(tuple, facts.values())) == {("started", "finished")}
    # Each had at most so many in its hands: sixteen side by side, and one whose answer was on its way to the outbox.
    assert repeats(server.events) <= 5 * 17


# -- odd circumstances ------------------------------------------------------------------------------------------------

NO_THREAD = "threading.stack_size(1 << 46)\n"


def test_no_thread_can_be_started(deploys: Deploys, server: FaultServer) -> None:
    ended = deploys.run(NO_THREAD + PLAIN)
    assert (ended.status, ended.stdout) == (3, "deploying\n")
    assert "Traceback" not in ended.stderr
    assert 1 <= len(ended.lines) <= 3
    deploys.next_run()
    assert told(server.events) == {"v1": ["started", "finished"]}


NOT_TO_BE_MADE = {
    "no file can be opened": """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
files = []
try:
    while True: files.append(open(os.devnull))
except OSError:
    pass
""",
    "the package is gone": """
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("ld_deploy_hooks."): raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Gone())
""",
}
BLOCKS = {
    "with": """
with deployment("billing", version="v1") as d:
    print("deploying", d.state)
    d.custom(step=1)
    d.metadata["ticket"] = 7
    d.mark_failed("no")
""",
    "async with": """
async def deploy():
    async with deployment("billing", version="v1") as d:
        print("deploying", d.state)
        d.custom(step=1)
coroutine = deploy()
try:
    coroutine.send(None)
except StopIteration:
    pass
""",
    "decorated": """
@deployment("billing", version="v1", success=bool)
def deploy():
    print("deploying", "pending")
deploy()
""",
}


@pytest.mark.skipif(sys.platform == "win32", reason="needs the module resource")
@pytest.mark.parametrize("why", NOT_TO_BE_MADE)
@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_runs_whose_deployment_cannot_be_made(
    deploys: Deploys, server: FaultServer, why: str, block: str
) -> None:
    # Coverage, too, would write a file.
    deploys.env.pop("COVERAGE_PROCESS_START", None)
    ended = deploys.run(f"{NOT_TO_BE_MADE[why]}{BLOCKS[block]}sys.exit(3)\n")
    assert (ended.status, ended.stdout) == (3, "deploying pending\n"), ended.stderr
    assert len(ended.lines) == 1
    assert ended.stderr.startswith("Starting a deployment failed with ")
    assert server.events == []


def test_no_home(deploys: Deploys, server: FaultServer) -> None:
    for name in ("HOME", "XDG_STATE_HOME", "LD_DEPLOY_OUTBOX"):
        del deploys.env[name]
    deploys.set(HOME="/proc/nowhere")
    ended = deploys.run(PLAIN)
    assert (ended.status, ended.stdout) == (3, "deploying\n")
    assert len(ended.lines) == 1
    assert told(server.events) == {"v1": ["started", "finished"]}


ODD = {
    "stderr is closed": "os.close(2)\n",
    "stderr is a pipe without a reader": "end = os.pipe()\nos.close(end[0])\nos.dup2(end[1], 2)\n",
    "stderr is a full pipe": """
reader, writer = os.pipe()
os.set_blocking(writer, False)
try:
    while True: os.write(writer, b"x" * 4096)
except BlockingIOError:
    os.set_blocking(writer, True)
os.dup2(writer, 2)
""",
    "an import is slow": """
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "requests": time.sleep(30)
sys.meta_path.insert(0, Slow())
""",
    # Python lets nobody else look for a module meanwhile: what is not loaded yet, the exit can do without.
    "the first import of who sends is slow": """
class Slow:
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread().name == "ld-deploy-post": time.sleep(30)
sys.meta_path.insert(0, Slow())
""",
    "a log line is slow": """
import logging
class Slow(logging.Handler):
    def emit(self, record): time.sleep(1)
logging.getLogger("ld_deploy_hooks").addHandler(Slow())
""",
}


@pytest.mark.parametrize("how", ODD)
def test_an_exit_while_something_is_odd(deploys: Deploys, server: FaultServer, how: str) -> None:
    server.heal(answer(401))
    ended = deploys.run(ODD[how] + PLAIN)
    assert (ended.status, ended.stdout) == (3, "deploying\n")
    assert ended.lingered < 2 + MARGIN
    server.heal()
    deploys.next_run()
    assert told(server.events) == {"v1": ["started", "finished"]}


def test_an_exit_in_the_middle_of_a_post(deploys: Deploys) -> None:
    with FaultServer(silent) as server:
        deploys.set(LD_BASE_URI=server.base_uri, LD_DEPLOY_FLUSH_TIMEOUT="0")
        ended = deploys.run(PLAIN)
        assert ended.status == 3
        assert ended.lingered < MARGIN
        assert len(ended.lines) == 1


def test_a_wall_clock_that_is_set_back_an_hour(deploys: Deploys, server: FaultServer) -> None:
    source = """
import time as clock
back = 0
real = clock.time_ns
import ld_deploy_hooks._clock
ld_deploy_hooks._clock.time_ns = lambda: real() - back
with deployment("billing", version="v1"):
    back = 3600 * 10**9
leave(3)
"""
    assert deploys.run(source).status == 3
    assert told(server.events) == {"v1": ["started", "finished"]}
    begun, ended = server.events
    assert begun["eventTime"] <= ended["eventTime"] < begun["eventTime"] + 60_000


METADATA = {
    "no JSON": "{'a': object(), 'b': {1, 2}, 3: b'x'}",
    "NaN": "{'a': float('nan'), 'b': float('inf')}",
    "cyclic": "(lambda d: d.update(d=d) or d)({})",
    "1 MB": "{'a': 'x' * 1_000_000}",
}


@pytest.mark.parametrize("metadata", METADATA)
def test_metadata_that_cannot_be_sent_as_it_is(deploys: Deploys, server: FaultServer, metadata: str) -> None:
    source = f"with deployment('billing', version='v1', metadata={METADATA[metadata]}):\n    pass\nleave(3)"
    assert deploys.run(source).status == 3
    assert told(server.events) == {"v1": ["started", "finished"]}
    assert all(len(str(event)) < 20_000 for event in server.events)


HOOKS = {
    "raises": "raise ValueError('secret')",
    "sleeps a minute": "import time; time.sleep(60)",
    "calls sys.exit": "import sys; sys.exit(9)",
}


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_goes_wrong(deploys: Deploys, server: FaultServer, hook: str) -> None:
    (deploys.folder / "deployhooks.py").write_text(
        f"from ld_deploy_hooks import hookimpl\n@hookimpl\ndef ld_deploy_started(deployment):\n    {HOOKS[hook]}\n"
    )
    ended = deploys.run(PLAIN)
    assert (ended.status, ended.stdout) == (3, "deploying\n")
    assert ended.lingered < 2 + MARGIN
    assert "secret" not in ended.stderr
    assert told(server.events) == {"v1": ["started", "finished"]}


@pytest.mark.parametrize(("later", "recovered"), [(0, False), (3600, True)])
def test_a_process_that_goes_on_recovers_once_an_hour_what_has_died_since(
    deploys: Deploys, server: FaultServer, later: int, recovered: bool
) -> None:
    long = deploys.start(
        """
import ld_deploy_hooks._recorder as recorder
with deployment("web", version="v1"):
    pass
ready()
while not os.path.exists("go"): time.sleep(0.01)
real = recorder.monotonic
recorder.monotonic = lambda: real() + int(sys.argv[1])
with deployment("web", version="v2"):
    pass
leave()
""",
        str(later),
    ).until_ready()
    deploys.run("with deployment('billing', version='v1'):\n    os.kill(os.getpid(), signal.SIGKILL)")
    (deploys.folder / "go").touch()
    assert long.ends().status == 0
    assert ("failed" in [event["eventType"] for event in server.events]) is recovered


def test_all_that_is_too_old_is_given_up_at_once(deploys: Deploys, server: FaultServer) -> None:
    """More than is given up in one transaction."""
    then = time.time_ns() // 1_000_000 - 8 * 24 * 3600 * 1000
    deploys.run(PLAIN, "v0")
    with opened(deploys.outbox) as box, box.transaction():
        for number in range(2500):
            lone(box, f"old-{number}", of=f"app{number}", base_uri=server.base_uri, now=then)
    flushed = deploys.command("flush", "--recover")
    assert (flushed.status, flushed.stderr.count("2500 event(s) in")) == (1, 1)
    assert told(server.events) == {"v0": ["started", "finished"]}


def test_a_clock_that_is_set_while_an_event_is_sent_sends_none_twice(deploys: Deploys) -> None:
    with FaultServer(answer(), answer(), answer(delay=1.0)) as server:
        deploys.set(LD_BASE_URI=server.base_uri, LD_DEPLOY_FLUSH_TIMEOUT="8")
        ended = deploys.run(
            """
import ld_deploy_hooks._clock as clock
real, ahead = clock.time_ns, [0]
clock.time_ns = lambda: real() + ahead[0]
with deployment("warm", version="v0"):
    pass
assert flush(5)
with deployment("billing", version="v1") as d:
    time.sleep(0.5)
    ahead[0] = 120 * 10**9
    d.custom(step=1)
leave()
"""
        )
        assert ended.status == 0
        assert told(server.events)["v1"] == ["started", "custom", "finished"]
        assert repeats(server.events) == 0


def test_a_retry_is_made_in_time_though_the_clock_was_set_back_meanwhile(deploys: Deploys) -> None:
    with FaultServer(answer(503)) as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        running = deploys.start(
            """
import ld_deploy_hooks._clock as clock
real, back = clock.time_ns, [0]
clock.time_ns = lambda: real() - back[0]
with deployment("billing", version="v1"):
    flush(1)
    back[0] = 3600 * 10**9
    ready()
    while not os.path.exists("healed"): time.sleep(0.01)
    time.sleep(3)
    os.kill(os.getpid(), signal.SIGKILL)
"""
        ).until_ready()
        server.heal()
        (deploys.folder / "healed").touch()
        assert running.ends().status == -signal.SIGKILL
        assert told(server.events) == {"v1": ["started"]}


def rolls_back(deploys: Deploys, *, seconds: float) -> Running:
    """Start a deploy that fails, with a plugin that deploys the version before it, which takes so long."""
    (deploys.folder / "rollback.py").write_text(
        "import os, time\nfrom ld_deploy_hooks import deployment as deploying, hookimpl\n\n"
        "@hookimpl\ndef ld_deploy_failed(deployment):\n"
        "    if deployment.identity.version == 'v2':\n"
        "        with deploying('billing', version='v1'):\n"
        f"            open(os.environ['READY'], 'w').close(); time.sleep({seconds})\n"
    )
    deploys.set(LD_DEPLOY_PLUGINS="rollback,no:console,no:git")
    return deploys.start("with deployment('billing', version='v2'):\n    leave(1)")


def test_what_a_plugin_deploys_when_it_is_told_of_an_end_is_waited_for(deploys: Deploys, server: FaultServer) -> None:
    ended = rolls_back(deploys, seconds=0.5).ends()
    assert (ended.status, ended.lines) == (1, [])
    assert told(server.events) == {"v2": ["started", "failed"], "v1": ["started", "finished"]}


def test_a_plugin_that_deploys_without_an_end_holds_no_exit_up(deploys: Deploys, server: FaultServer) -> None:
    ended = rolls_back(deploys, seconds=60).ends()
    assert (ended.status, "rollback" in ended.stderr) == (1, True)
    assert ended.lingered < 2 + MARGIN
    deploys.next_run()
    assert told(server.events) == {"v2": ["started", "failed"], "v1": ["started", "failed"]}


def test_ctrl_c_in_the_wait_for_such_a_plugin_ends_that_alone(deploys: Deploys, server: FaultServer) -> None:
    deploys.set(LD_DEPLOY_FLUSH_TIMEOUT="30")
    running = rolls_back(deploys, seconds=60).until_ready()
    # The exit has begun before: the plugin is told of a deployment that failed with it.
    time.sleep(0.5)
    ended = running.send(signal.SIGINT).ends()
    assert ended.status == 1
    assert "Traceback" not in ended.stderr
    assert ended.lingered < 5
    deploys.next_run()
    assert told(server.events) == {"v2": ["started", "failed"], "v1": ["started", "failed"]}


LATE = {
    "with": "    with deployment('billing', version='late'): pass\n",
    "async with": """
    async def deploy():
        async with deployment('billing', version='late'): pass

    asyncio.run(deploy())
""",
}


@pytest.mark.parametrize("block", LATE.values(), ids=LATE)
def test_a_deployment_in_an_atexit_callback_that_comes_after_ours(
    deploys: Deploys, server: FaultServer, block: str
) -> None:
    server.heal(answer(delay=0.1))
    path = deploys.folder / "late.py"
    path.write_text(
        f"import asyncio, atexit\n\n@atexit.register\ndef late():\n{block}\n"
        "from ld_deploy_hooks import deployment\n\nwith deployment('billing', version='v1'):\n    pass\n"
    )
    running = deploys.start_program(sys.executable, str(path))
    assert running.process.wait(PATIENCE) == 0
    both = {version: ["started", "finished"] for version in ("v1", "late")}
    # Python 3.12 starts no thread at this point any more.
    assert told(server.events) == both or "wait in" in running.said_so_far()
    deploys.next_run()
    assert told(server.events) == both
    assert not repeats(server.events)


@pytest.mark.skipif(not hasattr(os, "chroot") or os.geteuid() != 0, reason="needs root, for a root folder of its own")
def test_a_deploy_that_changes_its_root_folder_ends_once(deploys: Deploys, server: FaultServer) -> None:
    ended = deploys.run(
        """
        with deployment("billing", version="v1") as d:
            flush()
            Path("empty").mkdir()
            os.chroot("empty")
            os.chdir("/")
            d.custom(step="inside")
        os._exit(3 if flush() else 4)
        """
    )
    assert (ended.status, "Traceback" in ended.stderr) == (3, False)
    deploys.next_run()
    assert told(server.events) == {"v1": ["started", "custom", "finished"]}


# As where memory runs out right between the start of a thread by the system and its first line in Python.
DIES_EARLY = """
import threading
bootstrap = threading.Thread._bootstrap

def dies(self):
    if not self.name.startswith(sys.argv[2]):
        bootstrap(self)

threading.Thread._bootstrap = dies
with deployment("billing", version="v1"):
    print("deploying")
leave(3)
"""


@pytest.mark.parametrize("name", ["ld-deploy-writer", "ld-deploy-sender", "ld-deploy-post", "ld-deploy-tells", "ld-"])
def test_a_thread_that_dies_before_it_has_begun_holds_nothing_up(
    deploys: Deploys, server: FaultServer, name: str
) -> None:
    # A plugin that is told, and git, which is asked in a thread of its own.
    deploys.set(LD_DEPLOY_PLUGINS="")
    ended = deploys.run(DIES_EARLY, "v1", name)
    assert (ended.status, ended.stdout) == (3, "deploying\n")
    assert ended.lingered < 2 + MARGIN
    deploys.next_run()
    assert told(server.events) == {"v1": ["started", "finished"]}
