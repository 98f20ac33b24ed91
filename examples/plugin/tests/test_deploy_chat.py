"""The plugin by itself, and in a real deployment; the chat is a server on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import deploy_chat
import pytest

from ld_deploy_hooks import Identity
from ld_deploy_hooks.hookspecs import DeploymentRecord
from ld_deploy_hooks.testing import FakeLaunchDarkly

IDENTITY = Identity("default", "production", "billing-service", "a90a8a2")


class Chat(ThreadingHTTPServer):
    """Keeps the messages that are posted to it, and answers ``status``."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.messages: list[Any] = []
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook"


class _Handler(BaseHTTPRequestHandler):
    server: Chat

    def do_POST(self) -> None:
        self.server.messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[Chat]:
    with Chat() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("DEPLOY_CHAT_WEBHOOK", server.url)
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"reason": "error", "error_type": "UnexpectedExit"}, "UnexpectedExit"),
        ({"reason": "error", "detail": "health check"}, "health check"),
        ({"reason": "killed"}, "killed"),
        ({"reason": "killed", "metadata": {"actor": "mona"}}, "killed (started by mona)"),
    ],
)
def test_it_says_what_failed_and_why(more: dict[str, Any], why: str, chat: Chat) -> None:
    deploy_chat.ld_deploy_failed(DeploymentRecord(id="1", identity=IDENTITY, state="failed", **more))
    assert chat.messages == [{"text": f"billing-service a90a8a2 to production failed: {why}"}]


def test_without_an_address_nothing_is_posted(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEPLOY_CHAT_WEBHOOK")
    deploy_chat.ld_deploy_failed(DeploymentRecord(id="1", identity=IDENTITY, state="failed"))
    assert chat.messages == []


DEPLOY = """
import sys
from ld_deploy_hooks import deployment

with deployment("billing-service", version="a90a8a2") as d:
    if sys.argv[1] == "failing":
        d.mark_failed("health check")
"""


def deploy(how: str, chat: Chat, launchdarkly: FakeLaunchDarkly, folder: Path) -> str:
    """Run a deploy in a process of its own, where pytest does not switch telling off; return its stderr."""
    script = folder / "deploy.py"
    script.write_text(DEPLOY)
    done = subprocess.run(
        [sys.executable, str(script), how],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith(("LD_DEPLOY_", "PYTEST_"))},
            "PYTHONPATH": os.pathsep.join((str(Path(deploy_chat.__file__).parent), os.environ.get("PYTHONPATH", ""))),
            # By its module, whether it is installed here or not.
            "LD_DEPLOY_PLUGINS": "deploy_chat,no:console",
            "LD_DEPLOY_DISABLE_PLUGIN_AUTOLOAD": "1",
            "LD_DEPLOY_OUTBOX": str(folder / "outbox.db"),
            "LD_BASE_URI": launchdarkly.base_uri,
            "LD_ACCESS_TOKEN": "api-test-token",
            "LD_PROJECT": "default",
            "LD_ENVIRONMENT": "production",
            "LD_DEPLOY_FLUSH_TIMEOUT": "20",
            "DEPLOY_CHAT_WEBHOOK": chat.url,
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr


def test_a_deployment_that_fails_is_posted_once_and_one_that_does_not_is_not(chat: Chat, tmp_path: Path) -> None:
    with FakeLaunchDarkly() as launchdarkly:
        assert deploy("well", chat, launchdarkly, tmp_path) == ""
        assert deploy("failing", chat, launchdarkly, tmp_path) == ""
    assert chat.messages == [{"text": "billing-service a90a8a2 to production failed: health check"}]


def test_a_chat_that_refuses_is_one_line_that_does_not_hold_the_address(chat: Chat, tmp_path: Path) -> None:
    chat.status = 500
    with FakeLaunchDarkly() as launchdarkly:
        (line,) = deploy("failing", chat, launchdarkly, tmp_path).splitlines()
        assert [event["eventType"] for event in launchdarkly.events] == ["started", "failed"]
    assert line.startswith("Plugin deploy_chat: ld_deploy_failed raised HTTPError")
    assert chat.url not in line
