"""What the examples deploy to when there is nothing else: web servers and SSH servers on the loopback address."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socketserver
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import asyncssh

__all__ = ["Host", "SSHHosts", "WebServer"]

ADDRESS = "127.0.0.1"


class WebServer:
    """Serves a folder, in a thread of its own; a context manager.

    Attributes:
        folder: what is served; may be changed to another one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._server = _HTTPServer((ADDRESS, 0), self._handle)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="web server")

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._server.server_port

    @property
    def url(self) -> str:
        """For example ``http://127.0.0.1:54321``."""
        return f"http://{ADDRESS}:{self.port}"

    def __enter__(self) -> WebServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handle(self, *request: Any) -> SimpleHTTPRequestHandler:
        return _Handler(*request, directory=str(self.folder))


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *message: object) -> None:
        """Say nothing: the terminal belongs to the examples."""


class _HTTPServer(ThreadingHTTPServer):
    def server_bind(self) -> None:
        # HTTPServer's own looks up the machine's name, which takes seconds on some.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = ADDRESS, self.server_address[1]


@dataclass
class Host:
    """One SSH server.

    Attributes:
        name: how the SSH configuration calls it.
        home: the folder in which its commands run, and all that its SFTP sees.
        environment: what its commands see; may be changed.
        port: the port that it listens on.
    """

    name: str
    home: Path
    environment: dict[str, str]
    port: int = 0


class SSHHosts:
    """Real SSH servers that run real commands, in a thread of their own; a context manager, and a mapping by name.

    Nothing in the user's ``~/.ssh`` is read or written: all keys are made here.

    Args:
        folder: where the keys, the configuration and the hosts' own folders go.
        names: of the hosts.

    Attributes:
        config: an SSH configuration that knows every host by its name, for ``fab --ssh-config``.
        key: the only private key that the hosts let in, for ``fab --identity``.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self.config = folder / "ssh_config"
        self.key = folder / "id_ed25519"
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
        self._hosts = {name: Host(name, folder / name, {"HOME": str(folder / name), "PATH": path}) for name in names}
        self._listening: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="SSH servers")
        self._connections: set[asyncssh.SSHServerConnection] = set()

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __enter__(self) -> SSHHosts:
        self._thread.start()
        self._listening.result()
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:
            try:
                await self._listen(stack)
            except BaseException as error:
                self._listening.set_exception(error)
                return
            self._listening.set_result(None)
            await self._stop.wait()
        for connection in list(self._connections):
            connection.abort()
            await connection.wait_closed()

    async def _listen(self, stack: contextlib.AsyncExitStack) -> None:
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(self.key)
        self.key.chmod(0o600)
        public = asyncssh.import_authorized_keys(key.export_public_key().decode())
        for host in self._hosts.values():
            host.home.mkdir()
            server = await asyncssh.listen(
                ADDRESS,
                0,
                server_factory=lambda: _Login(self._connections),
                server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
                authorized_client_keys=public,
                process_factory=_shell(host),
                sftp_factory=_files(host),
                # Else asyncssh looks the machine's name up, for a kind of login that nobody asks for.
                gss_host=None,
                encoding=None,
            )
            await stack.enter_async_context(server)
            host.port = server.get_port()
        self.config.write_text("".join(map(self._alias, self._hosts.values())))

    def _alias(self, host: Host) -> str:
        return f"Host {host.name}\n  HostName {ADDRESS}\n  Port {host.port}\n  User deploy\n  IdentityFile {self.key}\n"


class _Login(asyncssh.SSHServer):
    def __init__(self, connections: set[asyncssh.SSHServerConnection]) -> None:
        self._connections = connections

    def connection_made(self, connection: asyncssh.SSHServerConnection) -> None:
        self._connection = connection
        self._connections.add(connection)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self._connection)


def _files(host: Host) -> Any:
    return lambda channel: asyncssh.SFTPServer(channel, chroot=os.fsencode(host.home))


def _shell(host: Host) -> Any:
    async def run(session: asyncssh.SSHServerProcess[bytes]) -> None:
        child = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            session.command or "",
            cwd=host.home,
            env=host.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        answering = asyncio.ensure_future(_answer(child, session))
        hung_up = asyncio.ensure_future(session.wait_closed())
        try:
            await asyncio.wait({answering, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if child.returncode is None:
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
            answering.cancel()
            hung_up.cancel()
            await asyncio.gather(answering, hung_up, return_exceptions=True)

    return run


async def _answer(child: asyncio.subprocess.Process, session: asyncssh.SSHServerProcess[bytes]) -> None:
    await asyncio.gather(_forward(child.stdout, session.stdout), _forward(child.stderr, session.stderr))
    status = await child.wait()
    session.exit(status if status >= 0 else 128 - status)


async def _forward(source: Any, target: Any) -> None:
    while data := await source.read(65536):
        target.write(data)
        await target.drain()
