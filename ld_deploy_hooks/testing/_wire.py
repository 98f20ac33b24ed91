"""HTTP as it goes over the socket: requests in, answers out, and every way in which an answer can go wrong."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import socketserver
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl

__all__ = ["Answer", "RecordedRequest", "WireServer", "error_answer"]

# The codes of LaunchDarkly's OpenAPI document, where it names one.
_CODES = {400: "invalid_request", 429: "rate_limited", 500: "internal_service_error"}

# struct linger {on, seconds}: its two numbers are shorter on Windows.
_LINGER_NOT = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)


@dataclass(frozen=True)
class Answer:
    """What the server answers one request with, or how it fails to.

    Attributes:
        status: HTTP status, 200 to 599.
        headers: added to the server's own; one of the same name replaces it.
        body: bytes as they are, or a dict for JSON. None: what LaunchDarkly sends with this status.
        delay: seconds before the answer.
        reset: close the connection with a RST instead of answering.
        hang: never answer; the connection stays open until the server is closed.
        accept: whether an event is kept all the same. None: only when it is answered by a 201. True together with
            ``reset``, ``hang`` or another status is the answer that was lost.
        drip: seconds before every single byte of the answer, headers included. None: all at once.

    Raises:
        ValueError: the status is not one of a final answer, or both ``reset`` and ``hang`` are asked for.
    """

    status: int = 201
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Mapping[str, Any] | None = None
    delay: float = 0.0
    reset: bool = False
    hang: bool = False
    accept: bool | None = None
    drip: float | None = None

    def __post_init__(self) -> None:
        if not 200 <= self.status <= 599:
            raise ValueError("status must be between 200 and 599")
        if self.reset and self.hang:
            raise ValueError("an answer either resets or hangs")
        object.__setattr__(self, "headers", MappingProxyType(dict(self.headers)))


class _Headers(Mapping[str, str]):
    """Header fields as they were sent, found by a name in any case."""

    def __init__(self, fields: list[tuple[str, str]]) -> None:
        self._fields: dict[str, tuple[str, str]] = {}
        for name, value in fields:
            if name.lower() in self._fields:
                value = f"{self._fields[name.lower()][1]}, {value}"
            self._fields[name.lower()] = (name, value)

    def __getitem__(self, name: str) -> str:
        return self._fields[name.lower()][1]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._fields.values())

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return repr(dict(self))


@dataclass(frozen=True, kw_only=True)
class RecordedRequest:
    """One request as it arrived.

    Attributes:
        method: for example ``POST``.
        path: without the query.
        query: the query's parameters; of a repeated one, the last.
        headers: found by a name in any case. The value of Authorization is replaced by ``[redacted]``.
        body: the bytes, as they are.
        status: the status that it is answered by (after the delay, if there is one). None: reset, or left to hang.
        arrived: ``time.monotonic()`` in seconds, when its headers had been read.
        peer_port: the client's port: the same for all requests of one connection.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    status: int | None
    arrived: float
    peer_port: int


def error_answer(status: int, message: str = "", **more: Any) -> Answer:
    """Return an answer in LaunchDarkly's form of an error: ``{code, message}`` and ``more``."""
    phrase = _phrase(status)
    code = _CODES.get(status, phrase.lower().replace(" ", "_"))
    return Answer(status, body={"code": code, "message": message or phrase, **more})


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: WireServer

    def _serve(self) -> None:
        arrived = time.monotonic()
        body = self._read_body()
        if body is None:
            return
        path, _, query = self.path.partition("?")
        authorization = self.headers.get("Authorization")
        request = RecordedRequest(
            method=self.command,
            path=path,
            query=MappingProxyType(dict(parse_qsl(query, keep_blank_values=True))),
            headers=_Headers(
                [(k, "[redacted]" if k.lower() == "authorization" else v) for k, v in self.headers.items()]
            ),
            body=body,
            status=None,
            arrived=arrived,
            peer_port=self.client_address[1],
        )
        self._write(self.server.respond(request, authorization))

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _serve

    def _read_body(self) -> bytes | None:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers:
            self.send_error(411)
        elif not (length.isascii() and length.isdigit()):
            self.send_error(400)
        elif len(length) > 8:
            self.send_error(413)
        else:
            body = self.rfile.read(int(length))
            if len(body) == int(length):
                return body
            self.close_connection = True
        return None

    def _write(self, answer: Answer) -> None:
        closing = self.server.closing
        if closing.wait(None if answer.hang else answer.delay):
            self.close_connection = True
            return
        if answer.reset:
            self._reset()
            return
        raw = self._raw(answer)
        if answer.drip is None:
            self.wfile.write(raw)
            return
        for index in range(len(raw)):
            if closing.wait(answer.drip):
                self.close_connection = True
                return
            self.wfile.write(raw[index : index + 1])

    def _raw(self, answer: Answer) -> bytes:
        body = b"" if answer.body is None else answer.body
        headers = {"Date": self.date_time_string()}
        if not isinstance(body, bytes):
            body = json.dumps(dict(body)).encode()
            headers["Content-Type"] = "application/json"
        if answer.status not in (204, 304):
            headers["Content-Length"] = str(len(body))
        given = {name.lower() for name in answer.headers}
        headers = {name: value for name, value in headers.items() if name.lower() not in given} | dict(answer.headers)
        if any(name.lower() == "connection" and value.lower() == "close" for name, value in headers.items()):
            self.close_connection = True
        status_line = f"HTTP/1.1 {answer.status} {_phrase(answer.status)}"
        lines = [status_line, *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        return "\r\n".join(lines).encode("latin-1") + (b"" if self.command == "HEAD" else body)

    def _reset(self) -> None:
        self.close_connection = True
        # Lingering for no time makes close() send a RST; rfile holds the socket open, so it goes first.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        self.rfile.close()
        self.connection.close()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is no proper HTTP in LaunchDarkly's form, and close: where the next request begins is unknown."""
        answer = error_answer(code)
        self._write(Answer(code, headers={"Connection": "close"}, body=answer.body))

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the requests are recorded."""


class WireServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Listens, reads requests, asks ``respond`` and writes what it says, with one thread for each connection.

    Args:
        address: host and port to bind; port 0 takes a free one.
        respond: called in the connection's thread with the request and the value of Authorization, kept nowhere.
        ssl_context: for https.

    Raises:
        OSError: the address cannot be bound.
    """

    # On Windows the option lets two servers share a port.
    allow_reuse_address = os.name == "posix"
    request_queue_size = 128

    def __init__(
        self,
        address: tuple[str, int],
        respond: Callable[[RecordedRequest, str | None], Answer],
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.respond = respond
        self.closing = threading.Event()
        self._ssl_context = ssl_context
        self._connections: list[tuple[socket.socket, threading.Thread]] = []
        super().__init__(address, _Handler)
        self._acceptor = threading.Thread(target=self.serve_forever, args=(0.05,), name="FakeLaunchDarkly", daemon=True)
        self._acceptor.start()

    def stop(self) -> None:
        """Stop listening, cut every connection off, and wait until all threads have ended."""
        self.closing.set()
        with contextlib.suppress(OSError):
            # Wakes the loop on Linux; elsewhere it sees within its interval that it should end.
            self.socket.shutdown(socket.SHUT_RDWR)
        self.shutdown()
        self._acceptor.join()
        self.server_close()
        for connection, thread in self._connections:
            with contextlib.suppress(OSError):
                # Not SSLSocket's own: it takes the TLS state away under the thread that reads.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
            thread.join()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; the handshake of https happens in the connection's own thread, at the first read."""
        connection, peer = super().get_request()
        if self._ssl_context is not None:
            connection = self._ssl_context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, peer

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve the connection in a thread that :meth:`stop` waits for, which socketserver's daemon threads are not."""
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), name="FakeLaunchDarkly", daemon=True
        )
        thread.start()
        self._connections = [pair for pair in self._connections if pair[1].is_alive()]
        self._connections.append((request, thread))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away; a fault of this server is printed, as socketserver does."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)
