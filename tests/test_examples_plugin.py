"""The example of a plugin: installed as its README says, away from its source tree, and at work in a real deploy."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from told import Told, script, settings, told_fixture  # noqa: F401
from wire import Server, hang, reply

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "plugin"
TESTING = ROOT / "docs" / "testing.md"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder that the plugin is installed into; the source tree stays as it is."""
    tree, site = tmp_path_factory.mktemp("source") / "plugin", tmp_path_factory.mktemp("site")
    shutil.copytree(EXAMPLE, tree, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *options, str(tree))
    done = subprocess.run(pip, cwd=site, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tree)
    yield site
    assert not list(EXAMPLE.glob("*.egg-info"))


@pytest.fixture
def env(told: Told, installed: Path, child_env: dict[str, str]) -> dict[str, str]:
    """The environment of a deploy where the plugin is installed and nothing names it."""
    path = os.pathsep.join(filter(None, (str(installed), child_env.get("PYTHONPATH"))))
    return child_env | settings(told.server.base_uri, told.outbox) | {"PYTHONPATH": path}


FAILING = """
with deployment("billing-service"):
    raise ValueError("sesame")
"""


def posts(chat: Server) -> list[Any]:
    """Return what the chat was sent."""
    return [json.loads(request.body) for request in chat.requests]


def test_a_deploy_that_fails_is_in_the_chat(told: Told, env: dict[str, str], run_python: Any) -> None:
    with Server(reply(200, "ok")) as chat:
        done = run_python(script(FAILING), env=env | {"DEPLOY_CHAT_WEBHOOK": chat.url})
        assert posts(chat) == [{"text": "billing-service a90a8a2 to production failed: ValueError"}]
    assert done.returncode == 1
    assert "Plugin" not in done.stderr
    assert told.kinds() == ["started", "failed"]


@pytest.mark.parametrize(
    "switch", [{"LD_DEPLOY_PLUGINS": "no:console,no:git,no:chat"}, {"LD_DEPLOY_DISABLE_PLUGIN_AUTOLOAD": "1"}]
)
def test_it_can_be_switched_off(switch: dict[str, str], told: Told, env: dict[str, str], run_python: Any) -> None:
    with Server(reply(200, "ok")) as chat:
        done = run_python(script(FAILING), env=env | switch | {"DEPLOY_CHAT_WEBHOOK": chat.url})
        assert posts(chat) == []
    assert done.returncode == 1
    assert told.kinds() == ["started", "failed"]


def test_a_chat_that_hangs_holds_the_exit_up_no_longer_than_the_flush_timeout(
    told: Told, env: dict[str, str], run_python: Any
) -> None:
    with Server(hang) as chat:
        begun = time.monotonic()
        more = {"DEPLOY_CHAT_WEBHOOK": chat.url, "LD_DEPLOY_FLUSH_TIMEOUT": "1"}
        done = run_python(script(FAILING), env=env | more)
        assert 1 <= time.monotonic() - begun < 9  # its own patience would be 10 s
    assert done.returncode == 1
    assert told.kinds() == ["started", "failed"]


TESTS = """
import pytest
from ld_deploy_hooks import deployment

def test_a_deploy_that_fails(deployment_events):
    with pytest.raises(ValueError), deployment("billing-service"):
        raise ValueError
"""


@pytest.mark.parametrize("unset", [False, True])
def test_tests_of_a_deploy_are_in_the_chat_unless_they_unset_its_variable(
    unset: bool, env: dict[str, str], run_python: Any, tmp_path: Path
) -> None:
    """As docs/testing.md says, and shows."""
    (tmp_path / "test_it.py").write_text(TESTS)
    if unset:
        (conftest,) = re.findall(r"(?ms)^```python\n(# conftest\.py\n.*?)^```", TESTING.read_text(encoding="utf-8"))
        (tmp_path / "conftest.py").write_text(conftest)
    flags = ("-m", "pytest", "-p", "no:cacheprovider", "-p", "ld_deploy_hooks.pytest_plugin")
    with Server(reply(200, "ok")) as chat:
        done = run_python(Path("test_it.py"), env=env | {"DEPLOY_CHAT_WEBHOOK": chat.url}, flags=flags, timeout=60)
        assert len(posts(chat)) == (0 if unset else 1)
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_own_tests_pass(installed: Path, env: dict[str, str], run_python: Any, tmp_path: Path) -> None:
    for name in ("pyproject.toml", "tests"):
        copy = shutil.copytree if (EXAMPLE / name).is_dir() else shutil.copy
        copy(EXAMPLE / name, tmp_path / name)
    flags = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    done = run_python(Path("tests"), env=env, cwd=tmp_path, flags=flags, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "failed" not in done.stdout
