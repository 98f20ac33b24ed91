"""Processes that fork, while threads of ours are at work: each deployment is told by the process that opened it."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from fault_kit import PLAIN, Deploys, deploys_fixture  # noqa: F401
from fault_server import FaultServer, answer, repeats, told
from outbox_kit import held


@pytest.fixture
def server(deploys: Deploys) -> Iterator[FaultServer]:
    # From 3.12 on Python warns of every fork beside a thread.
    deploys.set(PYTHONWARNINGS="ignore:This process:DeprecationWarning")
    with FaultServer() as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        yield server


FORKS = {
    "a child that leaves the block": """
with deployment("billing", version="v1"):
    if not os.fork():
        sys.exit(0)
    assert os.wait()[1] == 0
""",
    "a child that runs into an error": """
with deployment("billing", version="v1"):
    child = os.fork()
    if not child:
        sys.stderr = open(os.devnull, "w")
        raise ValueError
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
""",
    "a child that deploys the same": """
with deployment("billing", version="v1"):
    if not os.fork():
        with deployment("billing", version="v1"):
            os._exit(0)
    assert os.wait()[1] == 0
""",
    "a child that imports requests right after the entry": """
with deployment("billing", version="v1"):
    if not os.fork():
        import requests
        os._exit(0)
    assert os.wait()[1] == 0
""",
    "300 children while it sends": """
with deployment("billing", version="v1") as d:
    for number in range(300):
        if number % 50 == 0:
            d.custom(number=number)
        child = os.fork()
        if not child:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
""",
    "multiprocessing": """
import multiprocessing
with deployment("billing", version="v1"):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]
""",
}


@pytest.mark.parametrize("fork", FORKS)
def test_a_forked_child_tells_nothing_of_its_parents(deploys: Deploys, server: FaultServer, fork: str) -> None:
    # Slow enough that the thread of the parent is in the middle of it.
    server.heal(answer(delay=0.02))
    ended = deploys.run(FORKS[fork] + "leave(3)")
    assert ended.status == 3, ended
    assert ended.stderr == ""
    facts = told(server.events)["v1"]
    assert [fact for fact in facts if fact != "custom"] == ["started", "finished"]
    assert repeats(server.events) == 0


def test_a_forked_child_has_the_signal_handlers_of_before(deploys: Deploys, server: FaultServer) -> None:
    source = """
with deployment("billing", version="v1"):
    assert callable(signal.getsignal(signal.SIGTERM))
    child = os.fork()
    if not child:
        os._exit(signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)
    assert os.waitpid(child, 0)[1] == 0
    assert callable(signal.getsignal(signal.SIGTERM))
leave(3)
"""
    assert deploys.run(source).status == 3


def test_a_forked_child_tells_its_own(deploys: Deploys, server: FaultServer) -> None:
    source = """
with deployment("billing", version="v1"):
    if not os.fork():
        with deployment("web", version="v2"):
            pass
        flush()
        os._exit(0)
    assert os.wait()[1] == 0
leave(3)
"""
    ended = deploys.run(source)
    assert (ended.status, ended.stderr) == (3, "")
    assert told(server.events) == {"v1": ["started", "finished"], "v2": ["started", "finished"]}


def test_children_that_deploy_while_their_parent_writes_lose_nothing(deploys: Deploys, server: FaultServer) -> None:
    source = """
for number in range(30):
    with deployment("billing", version=f"v{number}") as d:
        d.custom(number=number)
        if not os.fork():
            with deployment("billing", version=f"child{number}"):
                pass
            os._exit(0)
    os.wait()
leave(3)
"""
    deploys.set(LD_DEPLOY_FLUSH_TIMEOUT="20")
    ended = deploys.run(source)
    # No child has waited in vain, and none has lost anything.
    assert (ended.status, ended.stderr) == (3, "")
    deploys.next_run()
    facts = {version: [kind for kind in kinds if kind != "custom"] for version, kinds in told(server.events).items()}
    assert facts == {f"{who}{number}": ["started", "finished"] for who in ("v", "child") for number in range(30)}
    # A child that leaves like this may have sent its start and not noted that.
    assert repeats([event for event in server.events if event["version"].startswith("v")]) == 0


def test_a_child_that_lives_on_does_not_keep_its_dead_parent_alive(deploys: Deploys, server: FaultServer) -> None:
    source = """
with deployment("billing", version="v1"):
    if not os.fork():
        time.sleep(60)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert deploys.run(source).status == -signal.SIGKILL
    deploys.next_run()
    assert told(server.events) == {"v1": ["started", "failed"]}


def test_a_worker_tells_what_its_parent_has_ended_long_ago(deploys: Deploys, server: FaultServer) -> None:
    ended = deploys.run(
        """
        import multiprocessing

        def again(_):
            with deployment("billing", version="v1"):
                return "again"

        with deployment("billing", version="v1"):
            pool = multiprocessing.get_context("fork").Pool(1)
        print(pool.map(again, [1]))
        pool.close()
        pool.join()
        leave(3)
        """
    )
    assert (ended.status, ended.stdout) == (3, "['again']\n")
    deploys.next_run()
    # A worker ends by os._exit(): what it had sent it may not have noted.
    assert told(server.events) == {"v1": ["started", "finished"] * 2}


CHILD = """
import multiprocessing
from concurrent.futures import ThreadPoolExecutor

def deploys(kind):
    with deployment("billing", version=kind) as d:
        d.custom(step=1)

def is_in_the_middle(kind):
    global d
    d = deployment("billing", version=kind).__enter__()

def works(kind):
    with deployment("billing", version=kind) as d:
        time.sleep(0.5)
        d.custom(step=1)

def leaves_to_a_thread(kind):
    threading.Thread(target=works, args=(kind,)).start()
    time.sleep(0.1)

def leaves_to_a_pool(kind):
    ThreadPoolExecutor(2).submit(works, kind)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    child = context.Process(target=globals()[sys.argv[2]], args=("v1",))
    child.start()
    child.join()
    print(child.exitcode)
    leave(3)
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("target", ["deploys", "is_in_the_middle", "leaves_to_a_thread", "leaves_to_a_pool"])
def test_a_child_of_multiprocessing_ends_as_any_process(
    deploys: Deploys, server: FaultServer, method: str, target: str
) -> None:
    server.heal(answer(delay=0.1))
    ended = deploys.run(CHILD, method, target)
    assert (ended.status, ended.stdout, ended.stderr) == (3, "0\n", "")
    # Nobody else has sent anything: the parent tells no deployment.
    assert told(server.events) == {
        "v1": ["started", "failed"] if target == "is_in_the_middle" else ["started", "custom", "finished"]
    }
    deploys.next_run()
    assert repeats(server.events) == 0


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_child_of_multiprocessing_says_what_waits(deploys: Deploys, server: FaultServer, method: str) -> None:
    server.heal(answer(503))
    ended = deploys.run(CHILD, method, "deploys")
    assert (ended.status, ended.stdout) == (3, "0\n")
    assert len(ended.lines) == 1
    assert "3 event(s) wait in" in ended.stderr


IN_ANOTHER = """
import sys

try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

run = getattr(interpreters, "exec", None) or interpreters.run_string
first = interpreters.create()
failed = run(first, '''
import threading
from ld_deploy_hooks import deployment, flush
for _ in range(2):
    with deployment("billing", version="v1") as d:
        d.custom(step=1)
        print(d.state, flush=True)
print(flush(), threading.active_count(), flush=True)
''')
assert not failed, failed
interpreters.destroy(first)
leave(3)
"""


def test_a_subinterpreter_tells_nothing_and_says_so(deploys: Deploys, server: FaultServer) -> None:
    # Coverage, which would start there as well, cannot.
    deploys.env.pop("COVERAGE_PROCESS_START", None)
    ended = deploys.run(IN_ANOTHER)
    assert (ended.status, ended.stdout) == (3, "started\nstarted\nTrue 1\n")
    assert len(ended.lines) == 1
    assert ended.stderr.startswith("This is not the main interpreter of its process: this deployment is not told")
    assert server.posts == 0
    assert not deploys.outbox.exists()


def test_forks_beside_an_outbox_that_is_held_wait_once(deploys: Deploys, server: FaultServer) -> None:
    deploys.set(LD_DEPLOY_FLUSH_TIMEOUT="0.2")
    running = deploys.start(
        """
with deployment("billing", version="v1") as d:
    flush(5)
    ready()
    while not os.path.exists("held"): time.sleep(0.01)
    d.custom(step=1)
    began = time.monotonic()
    for _ in range(6):
        if not os.fork():
            os._exit(0)
        os.wait()
    print(time.monotonic() - began)
leave(3)
"""
    ).until_ready()
    with held(deploys.outbox):
        (deploys.folder / "held").touch()
        ended = running.ends()
    assert ended.status == 3
    # Seconds: the first waits for what is being done, for one at most.
    assert float(ended.stdout) < 2
