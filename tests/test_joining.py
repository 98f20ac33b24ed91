"""One deployment, however many blocks, threads, tasks and processes take part in it."""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from told import Told, script, settings, told_fixture  # noqa: F401

from ld_deploy_hooks import Deployment, current_deployment, deployment


class DeployError(Exception):
    """What goes wrong in these tests."""


def fail(key: str = "billing") -> None:
    """Join, and fail."""
    with deployment(key):
        raise DeployError


def in_thread(function: Callable[[], Any]) -> Any:
    """Call ``function`` in a thread of its own, which sees no context of ours; return what it returned or raised."""
    answer: list[Any] = []

    def call() -> None:
        try:
            answer.append(function())
        except BaseException as error:
            answer.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return answer[0]


def test_nested_blocks_of_one_identity_are_one(told: Told) -> None:
    with deployment("billing") as outer:
        with deployment("billing", version="a90a8a2") as inner:
            assert inner is outer
            assert current_deployment() is outer
        assert outer.state == "started"
    assert outer.state == "finished"
    assert told.kinds() == ["started", "finished"]


@pytest.mark.parametrize("fields", [{}, {"application_key": "billing"}, {"application_key": "billing", "version": "b"}])
def test_threads_that_join_at_once_see_the_one_that_is_open(told: Told, fields: dict[str, str]) -> None:
    def join(_: int) -> set[bool]:
        seen = {current_deployment() is outer}
        with deployment(**fields) as d:
            seen.add(d is outer)
        return seen | {current_deployment() is outer}

    with deployment("billing", version="b") as outer, ThreadPoolExecutor(8) as pool:
        seen = set().union(*pool.map(join, range(40)))
    assert seen == {True}
    assert told.kinds() == ["started", "finished"]


@pytest.mark.parametrize(
    "other", [{"version": "b"}, {"application_key": "web"}, {"environment_key": "test"}, {"project_key": "p"}]
)
def test_another_identity_is_a_deployment_of_its_own(told: Told, other: dict[str, str]) -> None:
    with deployment("billing") as outer, deployment(**{"application_key": "billing", **other}) as inner:
        assert inner is not outer
        assert current_deployment() is inner
    assert sorted(told.kinds()) == ["finished", "finished", "started", "started"]


def test_an_inner_failure_that_was_caught_is_none(told: Told) -> None:
    with deployment("billing"), pytest.raises(DeployError):
        fail()
    assert told.end()["eventType"] == "finished"


def test_the_openers_failure_is_the_verdict(told: Told) -> None:
    with pytest.raises(DeployError), deployment("billing"):
        fail()
    assert told.failure()["error"] == "DeployError"


def test_a_failure_that_leaves_a_joiner_in_another_thread_makes_it_fail(told: Told) -> None:
    with deployment("billing"):
        assert isinstance(in_thread(fail), DeployError)
    assert told.failure() == {"reason": "error", "error": "DeployError", "exitCode": 1}


def test_the_openers_own_failure_goes_before_a_joiners(told: Told) -> None:
    with pytest.raises(KeyError), deployment("billing"):  # noqa: PT012
        in_thread(fail)
        raise KeyError
    assert told.failure()["error"] == "KeyError"


def test_a_thread_with_a_copy_of_the_context_is_another_thread(told: Told) -> None:
    with deployment("billing"):
        context = contextvars.copy_context()
        assert isinstance(in_thread(lambda: context.run(fail)), DeployError)
    assert told.failure()["error"] == "DeployError"


def test_a_joiner_that_outlives_the_opener_keeps_it_open(told: Told) -> None:
    entered, opener_left = threading.Event(), threading.Event()
    states: list[str] = []

    def outlive() -> None:
        with deployment("billing") as d:
            entered.set()
            opener_left.wait(5)
            states.append(d.state)
            d.custom(by="joiner")

    thread = threading.Thread(target=outlive)
    with deployment("billing") as d:
        thread.start()
        entered.wait(5)
    states.append(d.state)
    opener_left.set()
    thread.join()
    assert states == ["started", "started"]
    assert d.state == "finished"
    assert told.kinds() == ["started", "custom", "finished"]


def test_a_joiner_that_outlives_the_opener_and_fails_makes_it_fail(told: Told) -> None:
    inner = deployment("billing")
    with deployment("billing"):
        inner.__enter__()
    # In the opener's own thread, but with no opener left who could have caught it.
    inner.__exit__(DeployError, DeployError(), None)
    assert told.failure()["error"] == "DeployError"


def test_fifty_threads_are_one_deployment(told: Told) -> None:
    barrier = threading.Barrier(50)

    def join(_: int) -> str:
        barrier.wait(10)
        with deployment("billing") as d:
            barrier.wait(10)
            return d.id

    with ThreadPoolExecutor(50) as pool:
        assert len(set(pool.map(join, range(50)))) == 1
    assert told.kinds() == ["started", "finished"]


def test_one_block_in_fifty_threads_at_once_with_a_version_each(told: Told) -> None:
    versions = iter(range(50))
    lock = threading.Lock()

    def version() -> str:
        with lock:
            return f"v{next(versions)}"

    block = deployment("billing", version=version)
    barrier = threading.Barrier(50)

    def enter(number: int) -> tuple[bool, str]:
        with block as d:
            assert d.identity is not None
            barrier.wait(20)
            mine = current_deployment() is d
            if number % 2:
                d.mark_failed("odd")
            return mine, d.identity.version

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(enter, range(50)))
    assert all(mine for mine, _ in answers)
    failed = {version for number, (_, version) in enumerate(answers) if number % 2}
    events = told.events()
    assert len(events) == 100
    assert {event["version"] for event in events if event["eventType"] == "failed"} == failed


def test_two_hundred_deployments_at_once(told: Told) -> None:
    blocks = [deployment("billing", version=f"v{number}") for number in range(200)]
    for block in blocks:
        block.__enter__()
    for block in blocks:
        block.__exit__(None, None, None)
    ended = [event["version"] for event in told.events() if event["eventType"] == "finished"]
    assert sorted(ended) == sorted(f"v{number}" for number in range(200))


def test_a_block_left_out_of_order_ends_its_own(told: Told) -> None:
    a, b = deployment("a"), deployment("b")
    first, second = a.__enter__(), b.__enter__()
    a.__exit__(None, None, None)
    assert (first.state, second.state) == ("finished", "started")
    assert current_deployment() is second
    b.__exit__(None, None, None)
    assert second.state == "finished"


def test_a_start_right_behind_an_end_is_told_behind_it(told: Told) -> None:
    """Threads that come and go at random: what LaunchDarkly pairs is never out of order."""

    def come_and_go(_: int) -> None:
        with deployment("billing"):
            pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(come_and_go, range(100)))
    sent = told.kinds()
    assert sent == ["started", "finished"] * (len(sent) // 2)


def test_a_start_waits_for_an_end_that_a_plugin_holds_up(told: Told) -> None:
    from ld_deploy_hooks import DeploymentEvent, hookimpl
    from ld_deploy_hooks._reporter import plugins_for
    from ld_deploy_hooks._settings import resolve

    ending, go = threading.Event(), threading.Event()

    class Slow:
        @hookimpl
        def ld_deploy_modify_event(self, event: DeploymentEvent) -> None:
            if event.event_type == "finished" and not ending.is_set():
                ending.set()
                go.wait(0.5)

    plugins_for(resolve()).register(Slow(), "slow", "a test")

    def first() -> None:
        with deployment("billing"):
            pass

    thread = threading.Thread(target=first)
    thread.start()
    assert ending.wait(5)
    with deployment("billing"):
        go.set()
    thread.join()
    assert told.kinds() == ["started", "finished"] * 2


def test_recursion_asks_once(told: Told) -> None:
    asked = []

    def version(host: str) -> str:
        asked.append(host)
        return "a90a8a2"

    @deployment("billing", version=version)
    def deploy(host: str) -> str:
        # As a task does that calls itself on every node: the same arguments, but for the context.
        return deploy(host) if len(asked) < 1 else host

    assert deploy("web1") == "web1"
    assert asked == ["web1"]

    @deployment("deep")
    def dig(depth: int) -> int:
        return depth and dig(depth - 1)

    assert dig(30) == 0
    assert sorted(told.kinds()) == ["finished", "finished", "started", "started"]


def test_what_an_inner_one_leaves_open_comes_from_the_outer(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_DEPLOY_APPLICATION_KEY", "from-the-environment")
    outer = {"application_key": "billing", "application_name": "Billing", "application_kind": "browser"}
    with deployment(**outer, version="v1", version_name="One", environment_key="test", project_key="p") as d:
        with deployment() as inner:
            assert inner is d
        with deployment("web") as web:
            assert web.identity == ("p", "test", "web", "v1")
        with deployment(version="v2") as two:
            assert two.identity == ("p", "test", "billing", "v2")
        # A thread has no context: the only one that is open.
        assert in_thread(lambda: _identity(deployment("api"))) == ("p", "test", "api", "v1")
    names = {
        (event["applicationKey"], event["version"]): (event.get("applicationName"), event.get("versionName"))
        for event in told.events()
    }
    assert names == {
        ("billing", "v1"): ("Billing", "One"),
        ("web", "v1"): (None, "One"),
        ("billing", "v2"): ("Billing", None),
        ("api", "v1"): (None, "One"),
    }


def _identity(block: Any) -> Any:
    with block as d:
        return d.identity


def test_which_deployment_code_runs_in(told: Told) -> None:
    assert current_deployment() is None
    with deployment("a") as a:
        assert in_thread(current_deployment) is a
        with deployment("b") as b:
            assert current_deployment() is b
            # Two are open, and the thread is in neither.
            assert in_thread(current_deployment) is None
        assert current_deployment() is a
    assert current_deployment() is None


def test_a_context_that_outlives_the_block_is_in_no_deployment(told: Told) -> None:
    with deployment("billing"):
        context = contextvars.copy_context()
    assert context.run(current_deployment) is None
    with deployment("web") as web:
        assert context.run(current_deployment) is web
    assert sorted(told.kinds()) == ["finished", "finished", "started", "started"]


def test_a_generator_that_is_closed_was_cancelled(told: Told) -> None:
    def steps() -> Iterator[int]:
        with deployment("billing"):
            yield 1
            yield 2

    running = steps()
    next(running)
    running.close()
    assert told.failure() == {"reason": "cancelled", "error": "GeneratorExit"}


def test_an_async_fixture_leaves_in_another_context(told: Told) -> None:
    block = deployment("billing")

    async def enter() -> Deployment:
        return await block.__aenter__()

    async def leave() -> None:
        await block.__aexit__(None, None, None)

    async def main() -> None:
        d = await asyncio.create_task(enter())
        assert d.state == "started"
        await asyncio.create_task(leave())
        assert d.state == "finished"

    asyncio.run(main())
    assert told.kinds() == ["started", "finished"]


# -- across processes -------------------------------------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

FORKS = {
    "left by an exit": "os._exit(0)",
    "left by an exception": "raise SystemExit(0)",
    "joined by the same identity": """
        with deployment("billing") as mine:
            assert mine.state == "started"
        raise SystemExit(0)
    """,
    "marked, annotated, started": """
        d.mark_failed("child")
        d.custom(by="child")
        d.start()
        assert current_deployment() is d
        raise SystemExit(0)
    """,
}


@needs_fork
@pytest.mark.parametrize("child", FORKS.values(), ids=FORKS)
def test_a_forked_child_owns_nothing_of_its_parents(
    told: Told, run_python: Any, child_env: dict[str, str], child: str
) -> None:
    import textwrap

    body = textwrap.indent(textwrap.dedent(child).strip(), " " * 8)
    source = f"import os\nwith deployment('billing') as d:\n    pid = os.fork()\n    if not pid:\n{body}\n"
    source += "    status = os.waitpid(pid, 0)[1]\n    assert status == 0, status\n    assert d.state == 'started'\n"
    done = run_python(script(source), env=child_env | settings(told.server.base_uri, told.outbox))
    assert done.returncode == 0, done.stderr
    assert told.end()["eventType"] == "finished"


@needs_fork
def test_a_forked_child_tells_its_own(told: Told, run_python: Any, child_env: dict[str, str]) -> None:
    source = """
    import os, sys
    with deployment("billing") as d:
        pid = os.fork()
        if not pid:
            import requests  # hangs where the parent's thread is importing it, and the fork did not wait
            with deployment("child") as mine:
                assert mine.identity.environment_key == "production"
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    """
    # From 3.12 on Python warns of every fork beside a thread.
    child_env["PYTHONWARNINGS"] = "ignore:This process:DeprecationWarning"
    done = run_python(script(source), env=child_env | settings(told.server.base_uri, told.outbox))
    assert (done.returncode, done.stderr) == (0, "")
    events = [(event["applicationKey"], event["eventType"]) for event in told.events()]
    assert sorted(events) == [
        ("billing", "finished"),
        ("billing", "started"),
        ("child", "finished"),
        ("child", "started"),
    ]


@needs_fork
@pytest.mark.parametrize(("seconds", "finished"), [(0.3, True), (30, False)])
def test_a_fork_waits_for_an_import_in_a_thread_but_not_for_ever(
    run_python: Any, seconds: float, finished: bool
) -> None:
    source = f"""
import os, threading, time
from ld_deploy_hooks._forking import unforkable

def work():
    global finished
    with unforkable():
        begun.set()
        time.sleep({seconds})
        finished = True

begun, finished, start = threading.Event(), False, time.monotonic()
threading.Thread(target=work, daemon=True).start()
begun.wait()
pid = os.fork()
if not pid:
    with unforkable():
        os._exit(finished)
assert time.monotonic() - start < 10
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert run_python(source, flags=["-W", "ignore::DeprecationWarning"]).stdout == f"{int(finished)}\n"


@needs_fork
def test_a_pool_of_forked_workers_is_the_parents_deployment(
    told: Told, run_python: Any, child_env: dict[str, str]
) -> None:
    source = """
    import multiprocessing

    def work(number):
        with deployment("billing") as d:
            return d.state, number

    if __name__ == "__main__":
        with deployment("billing"):
            with multiprocessing.get_context("fork").Pool(4) as pool:
                assert pool.map(work, range(8)) == [("started", number) for number in range(8)]
    """
    flags = ["-W", "ignore::DeprecationWarning"]
    env = child_env | settings(told.server.base_uri, told.outbox)
    done = run_python(script(source), env=env, flags=flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert told.kinds() == ["started", "finished"]


def test_what_a_parent_process_tells_is_not_told_again(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = {"id": "1", "identity": ["default", "production", "billing", "a90a8a2"]}
    monkeypatch.setenv("LD_DEPLOY_PARENT", json.dumps(parent))
    with deployment("billing") as d:
        d.custom(step=1)
    assert d.state == "finished"
    assert told.kinds() == ["custom"]
    monkeypatch.delenv("LD_DEPLOY_VERSION")
    with deployment("web") as web:  # what it leaves open comes from there
        assert web.identity == ("default", "production", "web", "a90a8a2")
    assert told.kinds() == ["custom", "started", "finished"]


def test_what_a_process_around_the_parent_tells_is_not_told_again(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    around = {"id": "1", "identity": ["default", "production", "billing", "a90a8a2"], "outer": None}
    parent = {"id": "2", "identity": ["default", "production", "web", "b81b7b1"], "outer": around}
    monkeypatch.setenv("LD_DEPLOY_PARENT", json.dumps(parent))
    for application in ("web", "billing"):
        with deployment(application, version={"web": "b81b7b1", "billing": "a90a8a2"}[application]):
            pass
    assert told.kinds() == []
    monkeypatch.delenv("LD_DEPLOY_VERSION")
    with deployment("api") as api:  # what it leaves open comes from the nearest
        assert api.identity == ("default", "production", "api", "b81b7b1")
    assert told.kinds() == ["started", "finished"]


CHAIN = '{"id": "1", "identity": ["default", "production", "billing", "a90a8a2"], "outer": %s}'
NONSENSE = [
    *("{", "[]", "{}", "null", '{"identity": 5}', '{"identity": ["a"]}', "[" * 100_000),
    *(CHAIN % outer for outer in ("5", "[]", "{}", '"1"', "false", CHAIN % "{}")),
]


@pytest.mark.parametrize("text", NONSENSE, ids=lambda text: text[-40:])
def test_a_parent_that_cannot_be_read_is_passed_over(told: Told, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("LD_DEPLOY_PARENT", text)
    with deployment("billing"):
        pass
    assert told.kinds() == ["started", "finished"]
    assert "LD_DEPLOY_PARENT does not hold" in told.lines[0]
