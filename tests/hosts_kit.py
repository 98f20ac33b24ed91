"""What the tests of Invoke and Fabric share: a folder of tasks, run by a real ``inv`` or ``fab``."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ld_deploy_hooks.testing import FakeLaunchDarkly

__all__ = ["TOKEN", "Project", "Ran", "told"]

TOKEN = "api-test-token"

# The package as it would be if it did nothing at all.
_STAND_IN = {
    "__init__.py": """
        class deployment:
            def __new__(cls, *args, **fields):
                return args[0] if args and callable(args[0]) else super().__new__(cls)
            def __call__(self, thing):
                return thing
            def __enter__(self):
                return self
            def __exit__(self, *error):
                return False
            def start(self, *args, **kwargs):
                pass
            custom = host_failed = host_succeeded = mark_failed = record_group = start
            identity = ("default", "test", "app", "1")
        current_deployment = deployment
        """,
    "invoke.py": """
        from invoke import Executor
        class Deploying:
            pass
        def install(program=None):
            pass
        """,
    "fabric.py": """
        from fabric import Executor
        from ld_deploy_hooks.invoke import Deploying, install
        """,
}


@dataclass(frozen=True)
class Ran:
    """How a command line ended.

    Attributes:
        status: the exit status.
        out: stdout.
        err: stderr.
        told: the events, by application, each as :func:`told` puts it.
    """

    status: int
    out: str
    err: str
    told: list[str]


class Project:
    """A folder from which tasks are run, and the server that hears of it; a context manager."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder = folder / "project"
        self.folder.mkdir()
        self.outbox = folder / "outbox.db"
        self.server = FakeLaunchDarkly(TOKEN)
        self._stand_in = folder / "stand-in"
        self.write_all(self._stand_in / "ld_deploy_hooks", _STAND_IN)
        self._env = dict(env)

    def __enter__(self) -> Project:
        self.server.start()
        self._env |= {
            "LD_BASE_URI": self.server.base_uri,
            "LD_ACCESS_TOKEN": TOKEN,
            "LD_PROJECT": "default",
            "LD_ENVIRONMENT": "test",
            "LD_DEPLOY_OUTBOX": str(self.outbox),
            "LD_DEPLOY_FLUSH_TIMEOUT": "20",
            "LD_DEPLOY_PLUGINS": "no:console,no:git",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return self

    def __exit__(self, *error: object) -> None:
        self.server.close()

    @staticmethod
    def write_all(folder: Path, files: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(_dedent(text))

    def write(self, **files: str) -> None:
        """Write files into the folder, ``tasks_py=`` for ``tasks.py``; text is dedented."""
        self.write_all(self.folder, {name.replace("_", ".", 1): text for name, text in files.items()})

    def env(self, more: Mapping[str, str]) -> dict[str, str]:
        return self._env | dict(more)

    def program(self, name: str) -> str:
        found = shutil.which(name, path=self._env["PATH"])
        assert found is not None, f"{name} is not on PATH"
        return found

    def run(self, *command: str, typed: str = "", **env: str) -> Ran:
        """Run a command line, type into it and wait for it; events of earlier ones are not told again."""
        before = len(self.server.events)
        done = self._run(command, self.env(env), typed)
        # Only events of one identity have an order.
        events = sorted(self.server.events[before:], key=lambda event: (event["applicationKey"], event["version"]))
        return Ran(done.returncode, done.stdout, done.stderr, [told(one) for one in events])

    def without_us(self, *command: str, typed: str = "", **env: str) -> Ran:
        """Run the same with a package in our place that does nothing."""
        path = os.pathsep.join(filter(None, (str(self._stand_in), self._env.get("PYTHONPATH"))))
        # Nor is the stand-in what coverage is about.
        env = {name: value for name, value in self.env(env).items() if not name.startswith("COVERAGE_")}
        done = self._run(command, env | {"PYTHONPATH": path}, typed)
        return Ran(done.returncode, done.stdout, done.stderr, [])

    def _run(
        self, command: tuple[str, ...], env: Mapping[str, str], typed: str = ""
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.program(command[0]), *command[1:]],
            cwd=self.folder,
            env=env,
            input=typed,
            # Without a terminal, where getpass would ask its questions.
            start_new_session=True,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def kept(self) -> bytes:
        """Return every byte that we left on the disk."""
        return b"".join(path.read_bytes() for path in sorted(self.outbox.parent.glob("outbox.db*")) if path.is_file())


def _dedent(text: str) -> str:
    import textwrap

    return textwrap.dedent(text).strip() + "\n"


def told(event: Mapping[str, Any]) -> str:
    """Return a whole event in one line: nothing is left out but what differs from run to run, which is checked.

    ``failed web 1 task=deploy reason=error error=UnexpectedExit exitCode=3 host=b hosts=a,b ok=a failed=b pending=``
    """
    event = json.loads(json.dumps(event))
    words = [event.pop("eventType"), event.pop("applicationKey"), event.pop("version")]
    assert (event.pop("projectKey"), event.pop("environmentKey")) == ("default", "test")
    assert event.pop("eventTime") > 1.6e12
    about = event.pop("eventMetadata")
    assert re.fullmatch(r"ld-deploy-hooks/\S+", about.pop("source"))
    assert uuid.UUID(about.pop("eventId"))
    if words[0] in ("finished", "failed"):
        assert about.pop("durationMs") >= 0
    metadata = event.pop("deploymentMetadata", {})
    if "hosts" in metadata:
        assert metadata.pop("hostCount") == len(metadata["hosts"])
    return " ".join([*words, *_pairs(about), *_pairs(metadata), *_pairs(event)])


_ORDER = ["task", "reason", "detail", "error", "exitCode", "host", "hosts"]
_SHORT = {"hostsSucceeded": "ok", "hostsFailed": "failed", "hostsPending": "pending"}


def _pairs(values: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(values, key=lambda key: _ORDER.index(key) if key in _ORDER else 99):
        value = ",".join(values[key]) if isinstance(values[key], list) else values[key]
        yield f"{_SHORT.get(key, key)}={value}"
