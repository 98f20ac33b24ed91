"""Requests over the wire: each on a connection of its own, kept alive for a while, bounded in bytes and in time."""

from __future__ import annotations

import functools
import importlib
import io
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket

    from requests import PreparedRequest
    from requests.adapters import HTTPAdapter

__all__ = ["Reply", "Transport"]

# Seconds that the body of an acceptance may take.
_REST = 0.25
# Interim answers to one request: who sends more takes the processor from the deploy.
_INTERIM = 16


@dataclass
class Reply:
    """What came back.

    Attributes:
        status: HTTP status; None when there was no answer.
        headers: whose names may be written in any case.
        body: as it came, up to what was asked for; empty if it broke off.
        error: name of the type of what went wrong, before the answer or in its body; empty if nothing did.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    error: str = ""


class Transport:
    """Sends requests with one token. Threads may share it.

    Args:
        token: goes out as ``Authorization``.
        past_proxies: no proxy of the environment is used.
        connect_timeout: seconds, for every address of the host.
        read_timeout: seconds from the end of the request to the end of the answer, however slowly it drips.
        keep_alive: seconds after which an idle connection is not used again.
    """

    def __init__(
        self, *, token: str, past_proxies: bool, connect_timeout: float, read_timeout: float, keep_alive: float
    ) -> None:
        self._token = token
        self._past_proxies = past_proxies
        self._timeouts = (connect_timeout, read_timeout)
        self._keep_alive = keep_alive
        self._lock = threading.Lock()
        # With the monotonic time of the last use; the last one was used last.
        self._idle: list[tuple[HTTPAdapter, float]] = []
        self._closed = False

    def load(self) -> None:
        """Import requests now, not with the first request: for one who cares when."""
        _adapter_class()

    def exchange(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, *, most: int) -> Reply:
        """Send one request and return what came back, with at most ``most`` bytes of its body.

        Raises nothing that the network or the server does.
        """
        import requests

        adapter = self._take()
        reply = Reply()
        try:
            request = requests.Request(method, url, headers=dict(headers), data=body, auth=self._authorize).prepare()
            # By an adapter, not a session: that keeps cookies, and reads a redirect's body however long it is.
            response = adapter.send(
                request,
                stream=True,
                timeout=self._timeouts,
                verify=_trusted(),
                proxies={} if self._past_proxies else requests.utils.get_environ_proxies(url, no_proxy=None),
            )
            try:
                reply.status, reply.headers = response.status_code, response.headers
                reply.body = response.raw.read(most, decode_content=False)
            finally:
                # Kept alive if it was read to its end, else closed.
                response.close()
        except Exception as error:
            reply.error = _kind_of(error)
        finally:
            self._give_back(adapter)
        return reply

    def _authorize(self, request: PreparedRequest) -> PreparedRequest:
        # As requests' auth, not among the headers: neither ~/.netrc nor a user in the URI takes its place.
        request.headers["Authorization"] = self._token
        return request

    def _take(self) -> HTTPAdapter:
        oldest = time.monotonic() - self._keep_alive
        with self._lock:
            while self._idle and self._idle[0][1] <= oldest:
                self._idle.pop(0)[0].close()
            if self._idle:
                return self._idle.pop()[0]
        return _adapter_class()(pool_connections=1, pool_maxsize=1, max_retries=0)

    def _give_back(self, adapter: HTTPAdapter) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append((adapter, time.monotonic()))
                return
        adapter.close()

    def close(self) -> None:
        """Close every connection; one that is in use closes when its request ends."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for adapter, _ in idle:
            adapter.close()


def _kind_of(error: Exception) -> str:
    """Return the type's name of what went wrong: of the cause, where requests only wraps it."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return type(reason if isinstance(reason, Exception) else error).__name__


def _trusted() -> str | bool:
    """Return what certificates are verified against: what the environment names, else what requests brings."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if path := os.environ.get(name):
            return path
    # OpenSSL's own, which requests leaves out. Some systems set it to a file that does not exist.
    path = os.environ.get("SSL_CERT_FILE")
    return path if path and Path(path).is_file() else True


class _UntilDeadline(io.RawIOBase):
    """A connection's bytes, until the socket's own timeout has passed since this was made: for all of them together.

    A socket's timeout is for each single read; a server that drips bytes is never done.
    """

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        super().__init__()
        self._raw = raw
        self._sock = sock
        self._deadline = time.monotonic() + (sock.gettimeout() or 0.0)

    def hurry(self, seconds: float) -> None:
        """Give what is still to be read so long at most."""
        self._deadline = min(self._deadline, time.monotonic() + seconds)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _import_requests() -> None:
    # Once a package is loaded, Python takes it out of sys.modules and puts it back. Another thread that imports a part
    # of it right in between fails with a KeyError: the deploy may be importing, too (importlib._bootstrap).
    for _ in range(3):
        with suppress(KeyError):
            # First of all: others import `email`, too, which it needs, and two who come to that from two sides may wait
            # for each other.
            importlib.import_module("http.client")
            importlib.import_module("requests.adapters")
            return


@functools.cache
def _adapter_class() -> type[HTTPAdapter]:
    """Return requests' adapter, whose answers have to be there, whole, within the read timeout."""
    _import_requests()
    import http.client

    import requests.adapters

    class Response(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
            super().__init__(sock, *args, **options)
            self._bytes = _UntilDeadline(self.fp.detach(), sock)
            self.fp = io.BufferedReader(self._bytes)

        def begin(self) -> None:
            super().begin()
            for _ in range(_INTERIM + 1):
                if not 102 <= self.status <= 199:
                    break
                # An interim answer. http.client knows 100 alone, and takes the one that follows for the next request's.
                self.headers = self.msg = None  # type: ignore[assignment]  # as before the first
                super().begin()
            else:
                raise http.client.HTTPException("interim answers without an end")
            if self.status == 201:
                # All is said. The rest is read only so that the connection can be used again.
                self._bytes.hurry(_REST)
            # urllib3 logs a traceback for headers that it finds odd: our line is enough.
            self.msg.defects = []
            self.msg.set_payload("")

    @functools.cache
    def bounded(pool: Any) -> Any:
        connection = pool.ConnectionCls
        if connection.response_class is Response:
            return pool
        # Without http.client's own prints, which a deploy may have switched on: they show the token.
        connection = type(connection.__name__, (connection,), {"response_class": Response, "debuglevel": 0})
        return type(pool.__name__, (pool,), {"ConnectionCls": connection})

    def bound(manager: Any) -> Any:
        pools = manager.pool_classes_by_scheme
        manager.pool_classes_by_scheme = {scheme: bounded(pool) for scheme, pool in pools.items()}
        return manager

    class Adapter(requests.adapters.HTTPAdapter):
        def init_poolmanager(self, *args: Any, **options: Any) -> None:
            super().init_poolmanager(*args, **options)
            bound(self.poolmanager)

        def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
            return bound(super().proxy_manager_for(*args, **options))

    return Adapter
