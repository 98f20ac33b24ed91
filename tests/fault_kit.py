"""Deploys as real child processes, timed from the moment at which they want to exit.

A test file imports the fixture that it uses: ``from fault_kit import Deploys, deploys_fixture  # noqa: F401``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

TOKEN = "api-0c4f-token-of-the-tests"
# Seconds by which a process may outlive its flush_timeout, whatever the server does.
MARGIN = 1.5
PATIENCE = 60.0

# Comes before every deploy: leaves a mark at the moment at which the process begins to exit.
PROLOGUE = """
import atexit, os, signal, sys, threading, time
from pathlib import Path
from ld_deploy_hooks import current_deployment, deployment, flush

def mark():
    Path(os.environ["MARK"]).write_text(str(time.monotonic()))

def ready():
    Path(os.environ["READY"]).touch()

def leave(status=0):
    # Registered last, called first.
    atexit.register(mark)
    sys.exit(status)
"""
# A deploy that is done at once; its exit status and its output must stay what they are.
PLAIN = """
with deployment("billing", version=sys.argv[1]):
    print("deploying")
leave(3)
"""


@dataclass
class Ended:
    """A process that has ended.

    Attributes:
        lingered: seconds from its wish to exit (or from the signal that it was sent) until it was gone.
    """

    status: int
    stdout: str
    stderr: str
    lingered: float

    @property
    def lines(self) -> list[str]:
        return self.stderr.splitlines()


class Running:
    """A process that runs."""

    def __init__(self, command: Sequence[str], env: dict[str, str], folder: Path, **options: object) -> None:
        number = len(list(folder.glob("mark*")))
        self._mark = folder / f"mark{number}"
        self._ready = folder / f"ready{number}"
        self._mark.touch()
        self._signalled = 0.0
        # Files, not pipes: the process's own children keep those open.
        self._stdout, self._stderr = folder / f"stdout{number}", folder / f"stderr{number}"
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            arguments: dict[str, object] = {
                "stdin": subprocess.DEVNULL,
                "stdout": stdout,
                "stderr": stderr,
                "cwd": folder,
                **options,
            }
            self._open(command, env, arguments)

    def _open(self, command: Sequence[str], env: dict[str, str], arguments: dict[str, object]) -> None:
        self.process: subprocess.Popen[bytes] = subprocess.Popen(  # type: ignore[call-overload]
            list(command),
            env={**env, "MARK": str(self._mark), "READY": str(self._ready)},
            start_new_session=True,
            **arguments,
        )

    def until_ready(self) -> Running:
        deadline = time.monotonic() + PATIENCE
        while not self._ready.exists():
            assert self.process.poll() is None, self.ends()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return self

    def so_far(self) -> str:
        """Return what is on its stdout by now."""
        return self._stdout.read_text()

    def said_so_far(self) -> str:
        """Return what is on its stderr by now."""
        return self._stderr.read_text()

    def send(self, number: int) -> Running:
        self._signalled = time.monotonic()
        os.kill(self.process.pid, number)
        return self

    def ends(self, timeout: float = PATIENCE) -> Ended:
        status = self.process.wait(timeout)
        gone = time.monotonic()
        began = self._signalled or float(self._mark.read_text() or "nan")
        return Ended(status, self._stdout.read_text(), self._stderr.read_text(), gone - began)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Leave nothing of it: neither itself nor what it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Deploys:
    """Starts deploys, and what looks after them, on one outbox."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        self.folder = folder
        self.env = env | {
            "LD_ACCESS_TOKEN": TOKEN,
            "LD_PROJECT": "default",
            "LD_ENVIRONMENT": "production",
            "LD_DEPLOY_OUTBOX": str(folder / "state" / "outbox.db"),
            "LD_DEPLOY_PLUGINS": "no:console,no:git",
            "LD_DEPLOY_FLUSH_TIMEOUT": "2",
        }
        self._running: list[Running] = []

    @property
    def outbox(self) -> Path:
        return Path(self.env["LD_DEPLOY_OUTBOX"])

    def set(self, **variables: str) -> None:
        self.env |= variables

    def start(self, source: str, *arguments: str, before: Sequence[str] = (), **options: object) -> Running:
        """Start a Python process; ``before`` goes before it on the command line."""
        path = self.folder / f"deploy{len(self._running)}.py"
        path.write_text(PROLOGUE + textwrap.dedent(source))
        return self._start([*before, sys.executable, str(path), *(arguments or ("v1",))], **options)

    def run(self, source: str, *arguments: str, **options: object) -> Ended:
        return self.start(source, *arguments, **options).ends()  # type: ignore[arg-type]

    def start_command(self, *arguments: str, **options: object) -> Running:
        """Start ``ld-deploy`` with these arguments."""
        return self._start([sys.executable, "-m", "ld_deploy_hooks", *arguments], **options)

    def command(self, *arguments: str, **options: object) -> Ended:
        return self.start_command(*arguments, **options).ends()

    def start_program(self, *command: str, **options: object) -> Running:
        """Start any program."""
        return self._start(command, **options)

    def _start(self, command: Sequence[str], **options: object) -> Running:
        running = Running(command, self.env, self.folder, **options)
        self._running.append(running)
        return running

    def next_run(self) -> None:
        """Send all that waits, as the next run would."""
        ended = self.command("flush", "--recover", "--timeout", "30")
        assert ended.status == 0, ended

    def close(self) -> None:
        for running in self._running:
            running.close()


@pytest.fixture(name="deploys")
def deploys_fixture(child_env: dict[str, str], tmp_path: Path) -> Iterator[Deploys]:
    """Return deploys on an outbox of their own; nothing of them outlives the test."""
    deploys = Deploys(child_env, tmp_path)
    yield deploys
    deploys.close()
