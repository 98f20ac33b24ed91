"""The threads of this package: daemons, whose start comes back whatever becomes of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

__all__ = ["DaemonThread"]

# Seconds that a new thread may take to begin.
_TO_BEGIN = 1.0


class _Begun(threading.Event):
    """Is set by a thread that begins. Python waits for that without a bound, and one that dies before never does."""

    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(_TO_BEGIN if timeout is None else timeout)


class DaemonThread(threading.Thread):
    """A thread that ends with the process, at the latest.

    Args:
        target: what it does.
        name: how it is called where threads are listed.
        args: of ``target``.
    """

    def __init__(self, target: Callable[..., object], name: str, args: tuple[Any, ...] = ()) -> None:
        super().__init__(target=target, name=name, args=args, daemon=True)
        self._started = _Begun()
        self._given_up = False

    def start(self) -> None:
        """Start it.

        Raises:
            RuntimeError: it cannot be started, or did not begin within a second, as where memory runs out right then.
        """
        super().start()
        if not self._started.is_set():
            self._given_up = True
            raise RuntimeError("A thread was started and did not begin.")

    def run(self) -> None:
        """Do what it is for, unless nobody counts on that any more."""
        if not self._given_up:
            super().run()
