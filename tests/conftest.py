"""What every test stands on: a clean environment, children of their own, and guards against what a test leaves behind.

Nothing of the package is imported here at the top: a test of its imports would see nothing.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

# All that a test inherits from whoever started pytest: no LD_*, no CI system's marks, no proxy, nothing of git or ssh.
_KEPT = {"COLUMNS", "LANG", "LC_ALL", "LC_CTYPE", "PATH", "PYTHONPATH", "SYSTEMROOT", "TERM", "TMPDIR", "VIRTUAL_ENV"}
_MEASURING = "COVERAGE_"
_PATIENCE = 2.0  # seconds for what is ending already


# -- signals ----------------------------------------------------------------------------------------------------------

_SIGNALS = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGCHLD")


def pytest_sessionstart() -> None:
    """Ignore no signal, and hand none on ignored, as who is started with ``nohup`` or in a shell's background does."""
    for number in (getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


# -- environment ------------------------------------------------------------------------------------------------------


def _clean_home(folder: Path) -> dict[str, str]:
    """Return the variables that put everything that a process keeps below ``folder``."""
    home, state = folder / "home", folder / "state"
    home.mkdir()
    state.mkdir()
    return {"HOME": str(home), "XDG_STATE_HOME": str(state)}


@pytest.fixture(autouse=True)
def _clean_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine reaches a test, and its outbox is its own."""
    for name in os.environ:
        if name not in _KEPT and not name.startswith((_MEASURING, "PYTEST_")):
            monkeypatch.delenv(name)
    for name, value in _clean_home(tmp_path_factory.mktemp("user")).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def child_env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return a clean environment for a child process, with a home and an outbox of its own; change it as you like.

    The child sees no ``LD_*``, no ``PYTEST_*``, no CI system and no proxy. It imports the package that this process
    would import, and finds this environment's programs (``inv``, ``fab``) first. Coverage goes on in it.
    """
    folder = tmp_path_factory.mktemp("child")
    (folder / "tmp").mkdir()
    env = _clean_home(folder) | {
        "LANG": "C.UTF-8",
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
        "TMPDIR": str(folder / "tmp"),
    }
    env |= {name: value for name, value in os.environ.items() if name.startswith(_MEASURING)}
    spec = importlib.util.find_spec("ld_deploy_hooks")
    assert spec is not None
    assert spec.origin is not None
    if Path(spec.origin).parent.parent == ROOT:  # not installed, or in editable mode: the child's own folder is another
        env["PYTHONPATH"] = str(ROOT)
    return env


@pytest.fixture
def unmeasured_env(child_env: dict[str, str]) -> dict[str, str]:
    """Return ``child_env`` without coverage, which loads modules (sqlite3 among them) and takes time of its own."""
    return {name: value for name, value in child_env.items() if not name.startswith(_MEASURING)}


RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_python(child_env: dict[str, str], tmp_path: Path) -> RunPython:
    """Return a function that runs Python in a child process and waits for it.

    ``run_python(what, *args, env=child_env, cwd=tmp_path, timeout=30.0, flags=())``: ``what`` is source text (run with
    ``-c``) or the Path of a script, ``timeout`` is in seconds, ``flags`` go before it (``-W``, ``-X``). The answer has
    ``returncode``, ``stdout`` and ``stderr`` as text. The exit status is not checked.
    """

    def run(
        what: str | Path,
        *args: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 30.0,
        flags: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        program = [str(what)] if isinstance(what, Path) else ["-c", what]
        return subprocess.run(
            [sys.executable, *flags, *program, *args],
            env=dict(child_env if env is None else env),
            cwd=tmp_path if cwd is None else cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


# -- nothing leaves this machine --------------------------------------------------------------------------------------

_CONNECTING = {"socket.connect", "socket.sendmsg", "socket.sendto"}
_RESOLVING = {"socket.getaddrinfo", "socket.gethostbyaddr", "socket.gethostbyname"}


class _OutsideAddressError(RuntimeError):
    """A test wanted to talk to something that is not loopback."""


def _is_loopback(host: object) -> bool:
    if isinstance(host, (bytes, bytearray)):
        host = host.decode("ascii", "replace")
    if host is None or host in ("", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(str(host).partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _guard_network() -> list[str]:
    """Refuse every address but loopback from now on; what was refused is kept in the answer."""
    refused: list[str] = []

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if not event.startswith("socket."):
            return
        if event in _CONNECTING:
            # A path is a Unix socket; None is a message on a socket that is connected already.
            outside = isinstance(args[1], tuple) and not _is_loopback(args[1][0])
        else:
            outside = event in _RESOLVING and not _is_loopback(args[0])
        if outside:
            what = args[1][0] if event in _CONNECTING else args[0]
            refused.append(f"{event} {what!r}")
            raise _OutsideAddressError(f"a test may talk to loopback only, not {what!r}")

    sys.addaudithook(hook)
    return refused


# An audit hook cannot be taken off again: one for the whole session.
_REFUSED = _guard_network()


# -- nothing is left behind -------------------------------------------------------------------------------------------


def _lasting_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not thread.daemon}


def _children() -> dict[int, str]:
    """Return the command line of every child process of this one, zombies too; nothing where there is no ``/proc``."""
    found: dict[int, str] = {}
    if not _has_children():
        return found
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_bytes().rpartition(b")")[2].split()[1])
            if parent == os.getpid():
                found[int(folder.name)] = (folder / "cmdline").read_text(errors="replace").replace("\0", " ")
        except OSError:  # it ended while we looked
            continue
    return {pid: command for pid, command in found.items() if "multiprocessing." not in command}  # its helpers stay


def _has_children() -> bool:
    if not hasattr(os, "waitid"):
        return False
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _once_gone(leftovers: Callable[[], list[str]]) -> list[str]:
    """Return what is still there when patience ends."""
    deadline = time.monotonic() + _PATIENCE
    while (left := leftovers()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


@pytest.fixture(autouse=True)
def _nothing_left_behind(_clean_environment: None) -> Iterator[None]:
    """Fail a test that leaves a non-daemon thread or a child process, or that wanted to leave the machine."""
    threads, children = _lasting_threads(), set(_children())
    yield
    left = _once_gone(lambda: [repr(thread) for thread in _lasting_threads() - threads])
    left += _once_gone(lambda: [f"process {pid}: {line}" for pid, line in _children().items() if pid not in children])
    if left:
        pytest.fail(f"left behind: {'; '.join(left)}", pytrace=False)
    refused = _REFUSED[:]
    _REFUSED.clear()
    if refused:
        pytest.fail(f"wanted to leave this machine: {'; '.join(refused)}", pytrace=False)
