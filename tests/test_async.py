"""Coroutines: nothing blocks the event loop, and a cancellation changes nothing about what is told."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from told import Told, told_fixture  # noqa: F401

from ld_deploy_hooks import current_deployment, deployment


def test_async_with_tells_a_start_and_an_end(told: Told) -> None:
    async def main() -> None:
        async with deployment("billing") as d:
            assert d.state == "started"
            await asyncio.sleep(0)
            assert current_deployment() is d

    asyncio.run(main())
    assert told.kinds() == ["started", "finished"]


def test_a_coroutine_function_is_one_when_decorated(told: Told) -> None:
    @deployment("billing", version=lambda tag: tag)
    async def deploy(tag: str) -> str:
        await asyncio.sleep(0)
        return tag

    assert inspect.iscoroutinefunction(deploy)
    assert asyncio.run(deploy("v1")) == "v1"
    started, finished = told.events()
    assert (started["version"], started["eventMetadata"]["task"]) == ("v1", "deploy")
    assert finished["eventType"] == "finished"


def test_a_coroutine_function_below_a_plain_decorator_ends_when_it_was_awaited(told: Told) -> None:
    def logged(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            return function(*args)

        return wrapper

    error = ValueError()

    @deployment("billing")
    @logged
    async def deploy(fails: bool) -> str:
        d = current_deployment()
        assert d is not None
        await asyncio.sleep(0.01)
        assert d.state == "started"
        if fails:
            raise error
        return "done"

    assert asyncio.run(deploy(False)) == "done"
    assert told.kinds() == ["started", "finished"]
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        asyncio.run(deploy(True))
    assert caught.value is error
    assert told.kinds() == ["started", "finished", "started", "failed"]


def test_one_block_in_two_fixtures_is_two_deployments_that_end_as_they_do(told: Told) -> None:
    block = deployment(application_key=lambda: next(keys))
    keys = iter(["a", "b"])

    async def fixture() -> AsyncIterator[None]:
        async with block:
            yield

    async def main() -> None:
        first, second = fixture(), fixture()
        # Each step in a task of its own, as pytest's plugins for asyncio do it.
        for one in (first, second):
            await asyncio.create_task(one.__anext__())
        with pytest.raises(ValueError):  # noqa: PT011
            await asyncio.create_task(first.athrow(ValueError()))
        with pytest.raises(StopAsyncIteration):
            await asyncio.create_task(second.__anext__())

    asyncio.run(main())
    # Only events of one identity have an order.
    kinds = sorted((event["applicationKey"], event["eventType"]) for event in told.events())
    assert kinds == [("a", "failed"), ("a", "started"), ("b", "finished"), ("b", "started")]


def test_a_coroutine_that_raises_failed(told: Told) -> None:
    error = ValueError()

    @deployment("billing")
    async def deploy() -> None:
        raise error

    with pytest.raises(ValueError) as caught:  # noqa: PT011
        asyncio.run(deploy())
    assert caught.value is error
    assert told.failure()["error"] == "ValueError"


def test_a_task_that_is_cancelled_inside_was_cancelled(told: Told) -> None:
    @deployment("billing")
    async def deploy() -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        task = asyncio.create_task(deploy())
        while current_deployment() is None:
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert told.failure() == {"reason": "cancelled", "error": "CancelledError"}


def test_one_block_in_many_coroutines(told: Told) -> None:
    versions = iter(range(20))
    block = deployment("billing", version=lambda: f"v{next(versions)}")

    async def deploy() -> bool:
        async with block as d:
            await asyncio.sleep(0.01)
            return current_deployment() is d

    async def main() -> list[bool]:
        return await asyncio.gather(*(deploy() for _ in range(20)))

    assert asyncio.run(main()) == [True] * 20
    assert sorted(told.kinds()) == ["finished"] * 20 + ["started"] * 20


def test_a_joiner_in_another_task_that_fails_makes_it_fail(told: Told) -> None:
    async def fail() -> None:
        async with deployment("billing"):
            raise ValueError

    async def main() -> None:
        async with deployment("billing"):
            await asyncio.gather(asyncio.create_task(fail()), return_exceptions=True)

    asyncio.run(main())
    assert told.failure()["error"] == "ValueError"


def test_a_failure_in_the_openers_own_task_that_was_caught_is_none(told: Told) -> None:
    async def fail() -> None:
        async with deployment("billing"):
            raise ValueError

    async def main() -> None:
        async with deployment("billing"):
            with pytest.raises(ValueError):  # noqa: PT011
                await fail()

    asyncio.run(main())
    assert told.end()["eventType"] == "finished"


def test_a_thread_of_the_loop_joins(told: Told) -> None:
    def work() -> None:
        with deployment("billing"):
            raise KeyError

    async def main() -> None:
        async with deployment("billing"):
            with pytest.raises(KeyError):
                await asyncio.to_thread(work)

    asyncio.run(main())
    assert told.failure()["error"] == "KeyError"


def test_a_task_that_outlives_the_block_is_in_no_deployment(told: Told) -> None:
    seen = []

    async def outlive(left: asyncio.Event) -> None:
        await left.wait()
        seen.append(current_deployment())

    async def main() -> None:
        left = asyncio.Event()
        async with deployment("billing"):
            task = asyncio.create_task(outlive(left))
        left.set()
        await task

    asyncio.run(main())
    assert seen == [None]
    assert told.kinds() == ["started", "finished"]


def test_an_async_generator_may_be_left_by_the_loop(told: Told) -> None:
    @asynccontextmanager
    async def deploying() -> AsyncIterator[None]:
        async with deployment("billing"):
            yield

    async def main() -> None:
        async with deploying():
            pass

    asyncio.run(main())
    assert told.kinds() == ["started", "finished"]


# -- while another process holds the outbox ---------------------------------------------------------------------------


def hold(told: Told) -> sqlite3.Connection:
    """Hold the outbox as another process would; committing lets go of it."""
    with deployment("first"):
        pass
    told.events()
    connection = sqlite3.connect(told.outbox, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    return connection


def test_the_loop_goes_on_while_the_disk_is_slow(told: Told) -> None:
    async def main() -> int:
        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.005)

        ticks = 0
        ticking = asyncio.create_task(tick())
        release = asyncio.get_running_loop().call_later(0.3, held.execute, "COMMIT")
        async with deployment("billing"):
            entered_after = ticks
        release.cancel()
        ticking.cancel()
        return entered_after

    held = hold(told)
    assert asyncio.run(main()) > 10
    held.close()
    assert told.kinds()[2:] == ["started", "finished"]


def test_a_wait_is_no_longer_than_a_second_and_said(told: Told) -> None:
    held = hold(told)
    begun = time.monotonic()

    async def main() -> None:
        async with deployment("billing"):
            assert 0.9 < time.monotonic() - begun < 1.5
            held.execute("COMMIT")

    asyncio.run(main())
    held.close()
    assert "was not on disk within 1 s" in told.lines[0]
    assert told.kinds()[2:] == ["started", "finished"]


def test_in_plain_code_too(told: Told) -> None:
    held = hold(told)
    begun = time.monotonic()
    with deployment("billing"):
        assert 0.9 < time.monotonic() - begun < 1.5
        held.execute("COMMIT")
    held.close()
    assert "was not on disk within 1 s" in told.lines[0]
    assert told.kinds()[2:] == ["started", "finished"]


def test_a_cancellation_on_the_way_in_ends_what_has_started(told: Told) -> None:
    held = hold(told)

    async def main() -> None:
        task = asyncio.create_task(deploy())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert current_deployment() is None

    async def deploy() -> None:
        async with deployment("billing"):
            pytest.fail("entered")

    asyncio.run(main())
    held.execute("COMMIT")
    held.close()
    events = told.events()[2:]
    assert [event["eventType"] for event in events] == ["started", "failed"]
    assert events[1]["eventMetadata"]["reason"] == "cancelled"


def test_a_cancellation_on_the_way_out_changes_nothing(told: Told) -> None:
    held = None

    async def main() -> None:
        task = asyncio.create_task(deploy())
        while held is None:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def deploy() -> None:
        nonlocal held
        async with deployment("billing"):
            held = hold(told)

    asyncio.run(main())
    assert held is not None
    held.execute("COMMIT")
    held.close()
    ends = [event["eventType"] for event in told.events() if event["applicationKey"] == "billing"]
    assert ends == ["started", "finished"]
