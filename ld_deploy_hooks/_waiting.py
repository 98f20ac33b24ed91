"""The deploy's only wait: for its event to be on disk, and never for long."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ld_deploy_hooks._log import say_once
from ld_deploy_hooks._outside import is_from_outside

if TYPE_CHECKING:
    from ld_deploy_hooks._future import Future

__all__ = ["asyncio_task", "wait", "wait_async"]

# Seconds: DESIGN.md, promise 4.
_DURABLE = 1.0


def wait(future: Future[Any] | None) -> None:
    """Block until ``future`` is done, one second at most, and say so if it is not or has failed."""
    if future is not None:
        try:
            future.exception(_DURABLE)
        except Exception as error:
            if is_from_outside(error):
                raise
        _say_how(future)


async def wait_async(future: Future[Any] | None) -> None:
    """As :func:`wait`, without blocking the event loop; a cancellation changes nothing about the event."""
    if future is None or future.done():
        return
    asyncio = _asyncio_that_runs()
    if asyncio is None:
        wait(future)
        return
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()

    def wake(_: object) -> None:
        with suppress(RuntimeError):  # the loop is closed, so nobody waits any more
            loop.call_soon_threadsafe(lambda: waiter.done() or waiter.set_result(None))

    future.add_done_callback(wake)
    await asyncio.wait([waiter], timeout=_DURABLE)
    _say_how(future)


def _say_how(future: Future[Any]) -> None:
    if not future.done():
        say_once(
            "An event of this deployment was not on disk within 1 s, perhaps because the disk is slow or another "
            "process holds the outbox; the deploy goes on, and the event is written as soon as it can be."
        )
    elif future.exception() is not None:
        say_once(
            f"An event of this deployment could not be recorded ({type(future.exception()).__name__}); the deploy goes "
            "on and LaunchDarkly is not told. The lines before this one say why."
        )


def _asyncio_that_runs() -> Any:
    # Whoever runs an asyncio loop has loaded asyncio; nobody else pays for that import.
    asyncio = sys.modules.get("asyncio")
    return asyncio if asyncio is not None and asyncio._get_running_loop() is not None else None


def asyncio_task() -> Any:
    """Return the asyncio task that runs here; None outside one."""
    asyncio = _asyncio_that_runs()
    return asyncio.current_task() if asyncio is not None else None
