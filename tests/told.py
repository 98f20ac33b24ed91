"""What is told: deployments in this process and in children, and a LaunchDarkly on loopback that they are told to.

A test file imports the fixture that it uses: ``from told import told_fixture  # noqa: F401``.
"""

from __future__ import annotations

import logging
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ld_deploy_hooks import flush
from ld_deploy_hooks.testing import FakeLaunchDarkly

TOKEN = "api-test-token"
IDENTITY = {"LD_PROJECT": "default", "LD_ENVIRONMENT": "production", "LD_DEPLOY_VERSION": "a90a8a2"}
# A port that nobody listens on: connections are refused at once.
REFUSED = "http://127.0.0.1:9"


def settings(base_uri: str, outbox: Path, **more: str) -> dict[str, str]:
    """Return the variables for deployments that are told to ``base_uri``; ``LD_DEPLOY_PYTEST`` lets this test."""
    return {
        "LD_DEPLOY_PYTEST": "loopback",
        "LD_BASE_URI": base_uri,
        "LD_ACCESS_TOKEN": TOKEN,
        "LD_DEPLOY_OUTBOX": str(outbox),
        "LD_DEPLOY_FLUSH_TIMEOUT": "5",
        "LD_DEPLOY_PLUGINS": "no:console,no:git",
        **IDENTITY,
        **more,
    }


def script(text: str) -> str:
    """Return a child's source: indented as the test likes it, with ``deployment`` and its relatives imported."""
    names = "current_deployment, deployment, flush"
    return f"from ld_deploy_hooks import {names}\n{textwrap.dedent(text)}"


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """Return what the events are, in their order."""
    return [event["eventType"] for event in events]


class Lines(logging.Handler):
    """What is said through the logger ``ld_deploy_hooks``."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.all.append(record.getMessage())


class Told:
    """What deployments of this process are told to, and what they say.

    Attributes:
        server: the LaunchDarkly that they are told to.
        outbox: the file of the outbox.
        lines: what was said through the logger so far.
    """

    def __init__(self, server: FakeLaunchDarkly, outbox: Path, lines: list[str]) -> None:
        self.server = server
        self.outbox = outbox
        self.lines = lines

    def events(self) -> list[dict[str, Any]]:
        """Return every event that was accepted, when all that was recorded so far has been delivered."""
        assert flush(10.0), self.lines
        return self.server.events

    def kinds(self) -> list[str]:
        """Return what the events are, in their order."""
        return kinds(self.events())

    def end(self) -> dict[str, Any]:
        """Return the only end, of the only deployment."""
        started, end = self.events()
        assert started["eventType"] == "started"
        assert end["eventType"] in ("finished", "failed")
        return end

    def failure(self) -> dict[str, Any]:
        """Return why the only deployment failed: of its eventMetadata what is there of a failure alone."""
        end = self.end()
        assert end["eventType"] == "failed"
        names = ("reason", "detail", "error", "exitCode", "host")
        return {name: end["eventMetadata"][name] for name in names if name in end["eventMetadata"]}


def forget() -> None:
    """End what deployments of this process left behind: threads, connections, what was said already."""
    from ld_deploy_hooks import _log, _reporter

    _reporter.close_all()
    _log._said.clear()
    for thread in threading.enumerate():
        if thread.name.startswith("ld-deploy"):
            thread.join(5.0)
            assert not thread.is_alive(), f"{thread.name} is left behind"


@pytest.fixture(name="told")
def told_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    """A LaunchDarkly that deployments in this process are told to."""
    folder = tmp_path / "told"
    folder.mkdir()
    lines = Lines()
    logger = logging.getLogger("ld_deploy_hooks")
    logger.addHandler(lines)
    with FakeLaunchDarkly(token=TOKEN) as server:
        for name, value in settings(server.base_uri, folder / "outbox.db").items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(folder)
        forget()
        try:
            yield Told(server, folder / "outbox.db", lines.all)
        finally:
            server.close()
            forget()
            logger.removeHandler(lines)
    from ld_deploy_hooks import _run

    assert not _run.runs.present, "a deployment is left open"
