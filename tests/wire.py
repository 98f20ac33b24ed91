"""Small real servers on loopback, which answer bytes as they go over the wire, and certificates to go with them."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import select
import socket
import socketserver
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

# Bytes, or what writes to the connection, which ends then; the event says that the server stops.
Reply = bytes | Callable[[socket.socket, threading.Event], None]


@dataclass(frozen=True)
class Request:
    """What a server was asked; names of headers in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Server(socketserver.ThreadingTCPServer):
    """Answers its requests with ``replies`` in their order; the last one is for all that follow.

    A connection is kept open after a reply of bytes, unless these say ``Connection: close``.
    """

    allow_reuse_address = True
    daemon_threads = False

    def __init__(self, *replies: Reply, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies = list(replies)
        self.tls = tls
        self.requests: list[Request] = []
        self.connections = 0
        self.hung_up = 0
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, name="wire")

    @property
    def port(self) -> int:
        """The port on 127.0.0.1."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """The base URI."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.shutdown()
        with self.lock:
            for connection in self.open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.server_close()
        self._thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: what the client does to a connection is the test's business."""


class _Handler(socketserver.BaseRequestHandler):
    server: Server

    def handle(self) -> None:
        server, connection = self.server, self.request
        if server.tls is not None:
            connection = server.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        with server.lock:
            server.connections += 1
            server.open.add(connection)
        try:
            with connection, connection.makefile("rb") as reader:
                while self._answer(connection, reader):
                    pass
        finally:
            with server.lock:
                server.open.discard(connection)

    def _answer(self, connection: socket.socket, reader: Any) -> bool:
        server = self.server
        first = reader.readline()
        if not first:
            with server.lock:
                server.hung_up += 1
            return False
        method, target, _ = first.decode("latin-1").split(" ", 2)
        headers = {}
        while line := reader.readline().decode("latin-1").strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = reader.read(int(headers.get("content-length", 0)))
        with server.lock:
            server.requests.append(Request(method, target, headers, body))
            reply = server.replies.pop(0) if len(server.replies) > 1 else server.replies[0]
        if callable(reply):
            reply(connection, server.stopping)
            return False
        connection.sendall(reply)
        return b"connection: close" not in reply.partition(b"\r\n\r\n")[0].lower()


def reply(status: int, body: bytes | str = b"", *headers: str) -> bytes:
    """Return an answer; a ``Content-Length`` is added unless the headers frame the body themselves."""
    content = body.encode() if isinstance(body, str) else body
    framed = any(header.lower().startswith(("content-length:", "transfer-encoding:")) for header in headers)
    lines = [f"HTTP/1.1 {status} Whatever", *headers, *([] if framed else [f"Content-Length: {len(content)}"]), "", ""]
    return "\r\n".join(lines).encode("latin-1") + content


def drip(beginning: bytes, drop: bytes) -> Reply:
    """Return a reply that sends ``beginning`` at once and then ``drop`` every 20 ms, for ever."""

    def write(connection: socket.socket, stopping: threading.Event) -> None:
        connection.sendall(beginning)
        while not stopping.wait(0.02):
            connection.sendall(drop)

    return write


def hang(connection: socket.socket, stopping: threading.Event) -> None:
    """Never answer."""
    stopping.wait()


def hang_up(connection: socket.socket, stopping: threading.Event) -> None:
    """Close the connection without an answer."""


def reset(connection: socket.socket, stopping: threading.Event) -> None:
    """Reset the connection instead of an answer."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def tunnel(port: int) -> Reply:
    """Return a proxy's reply to CONNECT, whatever host was asked for: everything goes to ``port`` on 127.0.0.1."""

    def pipe(connection: socket.socket, stopping: threading.Event) -> None:
        with socket.create_connection(("127.0.0.1", port)) as target:
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            ends = {connection: target, target: connection}
            while not stopping.is_set():
                for end in select.select(list(ends), [], [], 0.02)[0]:
                    if not (piece := end.recv(65536)):
                        return
                    ends[end].sendall(piece)

    return pipe


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """Yield a port on 127.0.0.1 that lets nobody in: connecting to it takes for ever."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        while True:  # what waits to be accepted fills the queue; further ones are not even refused
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
            if not select.select([], [waiting], [], 0.1)[1]:
                break
        yield listener.getsockname()[1]


class Authority:
    """A certificate authority of the test's own; ``file`` is what trusts it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("A test's own authority")
        usage = dict.fromkeys(_KEY_USAGES, False) | {"key_cert_sign": True}
        extensions = [x509.BasicConstraints(ca=True, path_length=None), x509.KeyUsage(**usage)]
        certificate = self._sign(self._name, self._key, extensions, lasts=1)
        self.file = folder / "authority.pem"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def server_side(self, name: x509.GeneralName, *, lasts: int = 1) -> ssl.SSLContext:
        """Return what a server of this name needs; its certificate is good for ``lasts`` days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(_name("A server"), key, [x509.SubjectAlternativeName([name])], lasts=lasts)
        file = self._folder / f"{certificate.serial_number}.pem"
        unlocked = serialization.NoEncryption()
        file.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, unlocked)
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def _sign(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, extensions: list[Any], *, lasts: int
    ) -> x509.Certificate:
        end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=lasts)
        builder = x509.CertificateBuilder(
            subject_name=name,
            issuer_name=self._name,
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=end - datetime.timedelta(days=3),
            not_valid_after=end,
        )
        for extension in (
            *extensions,
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
        ):
            critical = isinstance(extension, (x509.BasicConstraints, x509.KeyUsage))
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self._key, hashes.SHA256())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


_KEY_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
