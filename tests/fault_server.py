"""A server that speaks raw sockets and goes wrong in every way that a service, a proxy or a network does.

It answers each POST by the next step of its script, and by the last one from then on. What it has *processed* (kept as
LaunchDarkly would, whether or not the client ever learns of it) is in ``events``.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from types import MappingProxyType
from typing import Any


@dataclass
class Exchange:
    """One POST, while it is being answered.

    Attributes:
        connection: to write to.
        body: what was posted.
        keep: processes it.
        stopping: set when the server ends.
        first: whether it is the first request of its connection.
    """

    connection: socket.socket
    body: bytes
    keep: Callable[[], None]
    stopping: threading.Event
    first: bool


# Answers a request, and says whether the connection may be used again.
Step = Callable[[Exchange], bool]


def answer(
    status: int = 201,
    headers: Mapping[str, str] | Callable[[], Mapping[str, str]] = MappingProxyType({}),
    body: bytes = b"",
    *,
    delay: float = 0.0,
    clock: float = 0.0,
) -> Step:
    """Answer; ``headers`` may be made at that moment, ``clock`` is how many seconds the server's clock is off."""

    def step(exchange: Exchange) -> bool:
        if exchange.stopping.wait(delay):
            return False
        if status == 201:
            exchange.keep()
        exchange.connection.sendall(_raw(status, headers() if callable(headers) else headers, body, clock))
        return True

    return step


def _raw(status: int, headers: Mapping[str, str], body: bytes, clock: float = 0.0) -> bytes:
    lines = {"Date": formatdate(time.time() + clock, usegmt=True), "Content-Length": str(len(body)), **headers}
    head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in lines.items())]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def silent(exchange: Exchange) -> bool:
    """Never answer; the connection stays open."""
    exchange.stopping.wait()
    return False


def dripping(part: str, *, every: float = 0.2) -> Step:
    """Send an answer of ``part`` (``header`` or ``body``) byte by byte, without an end."""

    def step(exchange: Exchange) -> bool:
        head = b"HTTP/1.1 503 Busy\r\nX-Long: " if part == "header" else _raw(503, {"Content-Length": "100000"}, b"")
        exchange.connection.sendall(head)
        while not exchange.stopping.wait(every):
            exchange.connection.sendall(b"x")
        return False

    return step


def hung_up(*, processed: bool, reset: bool = False, reused: bool = False) -> Step:
    """Close the connection without an answer; with ``reused`` only one that has been used before, else answer 201."""

    def step(exchange: Exchange) -> bool:
        if reused and exchange.first:
            return answer()(exchange)
        if processed:
            exchange.keep()
        if reset:
            exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    return step


def garbage(exchange: Exchange) -> bool:
    """Answer with what is no HTTP."""
    exchange.connection.sendall(b"\x00\xff\xfenot http at all\r\n\r\n")
    return False


class FaultServer:
    """A context manager, as long as which it listens on a port of 127.0.0.1.

    Args:
        script: the steps, one for each POST; the last is for all that follow, and none at all means 201.
        away: ``refused`` or ``black hole``: what happens to who connects, until :meth:`heal`.
        tls: serve https with it.

    Attributes:
        events: what it has processed, in order.
        posts: how many requests it was sent.
        times: when each came (``time.monotonic()``).
        heads: of the requests, as they came.
    """

    def __init__(self, *script: Step, away: str = "", tls: ssl.SSLContext | None = None) -> None:
        self.events: list[dict[str, Any]] = []
        self.posts = 0
        self.times: list[float] = []
        self.heads: list[bytes] = []
        self._script = list(script) or [answer()]
        self._away = away
        self._tls = tls
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._fillers: list[socket.socket] = []
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])

    @property
    def base_uri(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> FaultServer:
        if self._away == "black hole":
            self._fill_backlog()
        elif not self._away:
            self._serve()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            still = [*self._open, *self._fillers]
        for connection in still:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            if connection in self._fillers:
                connection.close()
        for thread in self._threads:
            thread.join()

    def heal(self, *script: Step) -> None:
        """Be there, and go by another script from now on: all is well if it is empty."""
        with self._lock:
            self._script = list(script) or [answer()]
        if self._away:
            self._away = ""
            for filler in self._fillers:
                filler.close()
            self._fillers.clear()
            self._serve()

    def serve_with(self, tls: ssl.SSLContext) -> None:
        """Show another certificate from now on."""
        self._tls = tls

    def _fill_backlog(self) -> None:
        """Let the kernel drop whoever else connects: nobody accepts, and the queue is full."""
        self._listener.listen(0)
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(("127.0.0.1", self.port))
            self._fillers.append(filler)

    def _serve(self) -> None:
        self._listener.listen(128)
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, name="fault server", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._converse, connection)

    def _converse(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)
        try:
            with contextlib.suppress(OSError):
                if self._tls is not None:
                    connection = self._tls.wrap_socket(connection, server_side=True)
                with connection, connection.makefile("rb") as reader:
                    first = True
                    while self._answer(connection, reader, first):
                        first = False
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _answer(self, connection: socket.socket, reader: Any, first: bool) -> bool:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = reader.readline()
            if not line:
                return False
            head += line
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        body = reader.read(length)
        if len(body) < length:
            return False
        with self._lock:
            self.posts += 1
            self.times.append(time.monotonic())
            self.heads.append(head)
            step = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        exchange = Exchange(connection, body, lambda: self._keep(body), self._stopping, first)
        return step(exchange)

    def _keep(self, body: bytes) -> None:
        with self._lock:
            self.events.append(json.loads(body))


def told(events: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return for each version which facts arrived, in order; one that came twice (the same eventId) counts once."""
    seen: set[str] = set()
    by_version: dict[str, list[str]] = {}
    for event in events:
        event_id = event["eventMetadata"]["eventId"]
        if event_id not in seen:
            seen.add(event_id)
            by_version.setdefault(event["version"], []).append(event["eventType"])
    return by_version


def repeats(events: list[dict[str, Any]]) -> int:
    """Return how many events arrived again, and check that they were the same fact then."""
    first: dict[str, dict[str, Any]] = {}
    for event in events:
        known = first.setdefault(event["eventMetadata"]["eventId"], event)
        assert known == event
    return len(events) - len(first)
