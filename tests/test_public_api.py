"""The public list, what an import of it loads, and that type checkers see it."""

from __future__ import annotations

import importlib.util
import json
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ld_deploy_hooks

ROOT = Path(__file__).resolve().parent.parent

PUBLIC = [
    "DeployHooksError",
    "Deployment",
    "DeploymentEvent",
    "DeploymentRecord",
    "DropEvent",
    "EventError",
    "EventType",
    "Identity",
    "SettingsError",
    "__version__",
    "current_deployment",
    "deployment",
    "flush",
    "hookimpl",
    "hookspec",
]

# What a deploy that imports us must not pay for.
EXPENSIVE = {"fabric", "invoke", "pluggy", "pytest", "requests", "rich", "sqlite3"}


def test_the_public_list_is_pinned() -> None:
    assert ld_deploy_hooks.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_listed(name: str) -> None:
    assert getattr(ld_deploy_hooks, name) is not None
    assert name in dir(ld_deploy_hooks)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'ld_deploy_hooks' has no attribute 'deploymnet'"):
        ld_deploy_hooks.deploymnet  # noqa: B018


def test_no_public_name_is_a_module_too() -> None:
    """The import of such a module would put it in the name's place."""
    modules = {module.name for module in pkgutil.iter_modules(ld_deploy_hooks.__path__)}
    assert set(PUBLIC) & modules == set()


@pytest.fixture
def loaded_by(
    run_python: Callable[..., subprocess.CompletedProcess[str]], unmeasured_env: dict[str, str]
) -> Callable[[str], set[str]]:
    """Return a function that runs a statement in a fresh Python and gives what was loaded by it."""

    def loaded(statement: str) -> set[str]:
        source = (
            "import sys\nbefore = set(sys.modules)\n"
            f"{statement}\n"
            "loaded = sorted(set(sys.modules) - before)\nimport json\nprint(json.dumps(loaded))"
        )
        done = run_python(source, env=unmeasured_env)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return set(json.loads(done.stdout))

    return loaded


def test_the_import_of_the_package_loads_nothing_else(loaded_by: Callable[[str], set[str]]) -> None:
    ours = {"ld_deploy_hooks", "ld_deploy_hooks._version"}
    assert loaded_by("import ld_deploy_hooks") - {"__future__"} == ours


def test_the_import_of_deployment_loads_nothing_expensive(loaded_by: Callable[[str], set[str]]) -> None:
    loaded = loaded_by("from ld_deploy_hooks import deployment\n@deployment\ndef deploy(): ...\ndeployment('billing')")
    assert "ld_deploy_hooks._deployment" in loaded
    assert loaded & (EXPENSIVE | {"asyncio", "importlib.metadata", "multiprocessing", "platformdirs"}) == set()


@pytest.mark.parametrize("name", sorted({*PUBLIC, "testing"}))
def test_no_name_loads_a_host_or_the_network(loaded_by: Callable[[str], set[str]], name: str) -> None:
    assert loaded_by(f"from ld_deploy_hooks import {name}") & (EXPENSIVE - {"pluggy"}) == set()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy comes with the test extra")
def test_type_checkers_see_the_public_api() -> None:
    command = [sys.executable, "-m", "mypy", "--strict", "tests/typing_api.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Success: no issues found in 1 source file\n", "")
