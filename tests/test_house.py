"""The house: one way in, one way down, no way up. Every import of the package is walked, the lazy ones too."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import ld_deploy_hooks

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "ld_deploy_hooks"
HOUSE = ROOT / PACKAGE
LONGEST_FILE = 400

# A room may import only rooms of a lower floor, never one of its own. The numbers are DESIGN's; what stands between two
# of its floors has a half one. A folder is one room, but each built-in plugin is a room of its own.
FLOORS = {
    "_errors": 0,
    "_clock": 0,
    "_log": 0.25,
    "_future": 0.3,
    "_outside": 0,
    "_testrun": 0,
    "_version": 0,
    "_deployhooks": 0.5,
    "_entry_points": 0.5,
    "_hosts": 0.5,
    "_backoff": 0.5,
    "_exit": 0.5,
    "_forking": 0.5,
    "_mapping": 0.5,
    "_private": 0.5,
    "_threads": 0.5,
    "_metadata": 0.5,
    "_pyproject": 0.5,
    "_records": 0.5,
    "_verdicts": 0.5,
    "_waiting": 0.5,
    "_flights": 1,
    "_outcome": 1,
    "_own": 1,
    "_settings": 1,
    "_tells": 1,
    "hookspecs": 1,
    "_plan": 1.5,
    "_plugin_faults": 1.5,
    "_launchdarkly": 2,
    "_outbox": 2,
    "_owner": 2,
    "_plugins": 2,
    "_sender": 2,
    "_signals": 2,
    "_writer": 2,
    "plugins": 2,
    "plugins._address": 1.9,
    "plugins.ci": 2,
    "plugins.console": 2,
    "plugins.git": 2,
    "plugins.opentelemetry": 2,
    "_recovery": 2.5,
    "_events": 2.5,
    "_left": 2.6,
    "_journal": 2.78,
    "_store": 2.75,
    "_spare": 2.8,
    "_rest": 2.85,
    "_recorder": 2.9,
    "_door": 2.95,
    "_reporter": 3,
    "_parent": 3.25,
    "_registry": 3.25,
    "_fields": 3.5,
    "_run": 3.5,
    "_handle": 3.75,
    "_untold": 3.76,
    "_entries": 3.8,
    "_decorator": 3.9,
    "_deployment": 4,
    "_steps": 4.5,
    "cli": 5,
    "invoke": 5,
    "testing": 5,
    "__main__": 6,
    "fabric": 6,
    "pytest_plugin": 6,
    "__init__": 7,
}

# The ways up, by function: a task that is decorated inside a running host needs that host's room, and only Invoke can
# read a configuration file of Invoke's or Fabric's.
DOORS_UP = {("_door", "host_room"): {"invoke", "fabric"}, ("_door", "configuration_file"): {"invoke"}}

# What comes from outside lives in one room each.
LIBRARIES = {
    # Python's own: under the one name up to 3.12, under the other since.
    "_interpreters": {"_settings"},
    "_xxsubinterpreters": {"_settings"},
    "fabric": {"fabric"},
    "invoke": {"invoke", "fabric"},
    "opentelemetry": {"plugins.opentelemetry"},
    "platformdirs": {"_settings"},
    "pluggy": {"_plugins", "hookspecs"},
    "pytest": {"pytest_plugin"},
    "requests": {"_launchdarkly"},
    "rich": {"cli"},
    "sqlite3": {"_outbox"},
    "tomli": {"_pyproject"},
    "tomllib": {"_pyproject"},
}

# Who imports what only the user, or a table of its own, can name.
BY_NAME = {"__init__", "_plugins"}
UNKNOWN = "?"


class Import(NamedTuple):
    """An import: of which module (UNKNOWN if only the run knows), in which function if in one, on which line."""

    module: str
    function: str | None
    line: int


def room_of(module: str) -> str:
    """Return the room of a module of ours, given by its dotted name."""
    parts = module.split(".")[1:]
    if len(parts) > 1 and parts[0] == "plugins":
        return ".".join(parts[:2])
    return parts[0] if parts else "__init__"


def module_of(path: Path) -> str:
    """Return the dotted name of the module in a file of ours."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}
FRONT_DOOR = {name: room for room, names in vars(ld_deploy_hooks)["_ROOMS"].items() for name in names}


def _modules(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (name.name for name in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.module is not None, "imports are absolute in this house"
        for name in node.names:
            deeper = f"{node.module}.{name.name}"
            if node.module == PACKAGE and name.name in FRONT_DOOR:
                yield f"{PACKAGE}.{FRONT_DOOR[name.name]}"
            else:
                yield deeper if deeper in FILES else node.module
    elif isinstance(node, ast.Call):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
        if called in ("import_module", "__import__"):
            named = node.args[0] if node.args else None
            yield named.value if isinstance(named, ast.Constant) and isinstance(named.value, str) else UNKNOWN


def imports_of(source: str) -> list[Import]:
    """Return every import of a module: at its top, in functions, for type checkers, by ``import_module("…")``."""

    def walk(node: ast.AST, function: str | None) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            for module in _modules(child):
                yield Import(module, function, getattr(child, "lineno", 0))
            is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            yield from walk(child, function or (child.name if is_function else None))

    return list(walk(ast.parse(source), None))


def fault_of(room: str, found: Import) -> str | None:
    """Return what is wrong with an import in ``room``, or None."""
    if found.module == UNKNOWN:
        return None if room in BY_NAME else "imports by a name that only the run knows: BY_NAME says who may"
    library = found.module.partition(".")[0]
    if library == PACKAGE:
        return _fault_within(room, room_of(found.module), found.function)
    if library in LIBRARIES:
        return None if room in LIBRARIES[library] else f"imports {library}, which lives in {sorted(LIBRARIES[library])}"
    if library in sys.stdlib_module_names:
        return None
    return f"imports {library}, which is in no room yet: a new dependency needs a line in LIBRARIES and in setup.cfg"


def _fault_within(room: str, target: str, function: str | None) -> str | None:
    if target == room or target in DOORS_UP.get((room, function or ""), ()):
        return None
    if room.startswith("plugins.") and target not in ("hookspecs", "plugins._address"):
        return f"imports {target}: a built-in plugin imports hookspecs alone, as anybody's could"
    if target not in FLOORS:
        return f"imports {target}, which has no floor: put it into FLOORS"
    if FLOORS[target] >= FLOORS[room]:
        return f"(floor {FLOORS[room]}) imports {target} (floor {FLOORS[target]}): only lower floors"
    return None


def faults_of(module: str, source: str) -> list[str]:
    """Return what a module imports against the rules, one line for each."""
    room = room_of(module)
    if room not in FLOORS:
        return [f"{room} has no floor: put it into FLOORS in tests/test_house.py, above all that it imports"]
    faults = ((found.line, fault_of(room, found)) for found in imports_of(source))
    return [f"line {line}: {room} {fault}" for line, fault in faults if fault]


@pytest.mark.parametrize("module", FILES)
def test_every_room_imports_lower_floors_and_its_own_libraries_only(module: str) -> None:
    assert faults_of(module, FILES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        (
            "_sender",
            "from ld_deploy_hooks._reporter import Reporter",
            "line 1: _sender (floor 2) imports _reporter (floor 3)",
        ),
        ("_sender", "import ld_deploy_hooks._outbox", "_sender (floor 2) imports _outbox (floor 2)"),
        ("_sender", "from ld_deploy_hooks import _outbox", "_sender (floor 2) imports _outbox (floor 2)"),
        ("_sender", "from ld_deploy_hooks import flush", "_sender (floor 2) imports _deployment (floor 4)"),
        ("_sender", "import ld_deploy_hooks", "_sender (floor 2) imports __init__ (floor 7)"),
        ("_sender", "def f():\n    from ld_deploy_hooks import cli", "line 2: _sender (floor 2) imports"),
        ("_sender", "if TYPE_CHECKING:\n    from ld_deploy_hooks._run import Run", "line 2: _sender (floor 2) imports"),
        ("_sender", "import importlib\nimportlib.import_module('sqlite3')", "line 2: _sender imports sqlite3"),
        ("_sender", "from importlib import import_module\nimport_module(name)", "by a name that only the run knows"),
        ("_sender", "import requests.adapters", "_sender imports requests, which lives in ['_launchdarkly']"),
        ("_sender", "import numpy", "numpy, which is in no room yet"),
        ("_sender", "import ld_deploy_hooks._new", "_new, which has no floor"),
        ("_new", "", "_new has no floor"),
        ("_door", "import ld_deploy_hooks.invoke", "_door (floor 2.95) imports invoke"),
        ("_door", "def another():\n    import ld_deploy_hooks.invoke", "_door (floor 2.95) imports invoke"),
        ("fabric", "import pytest", "fabric imports pytest"),
        ("invoke", "import fabric", "invoke imports fabric, which lives in ['fabric']"),
        ("plugins.git", "from ld_deploy_hooks._records import Identity", "a built-in plugin imports hookspecs alone"),
        ("testing._server", "import pytest", "testing imports pytest"),
    ],
)
def test_what_the_house_forbids_is_seen(module: str, source: str, fault: str) -> None:
    module = f"{PACKAGE}.{module}"
    # A room of the table that nobody has written yet is a module all the same.
    files = {f"{PACKAGE}.{room}": Path() for room in FLOORS}
    added = {name: path for name, path in files.items() if name not in FILES}
    FILES.update(added)
    try:
        (only,) = faults_of(module, source)
    finally:
        for name in added:
            del FILES[name]
    assert fault in only


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("_sender", "import json\nfrom ld_deploy_hooks._log import logger"),
        ("_door", "def host_room():\n    import ld_deploy_hooks.fabric\n    import ld_deploy_hooks.invoke"),
        ("fabric", "import fabric\nimport invoke\nfrom ld_deploy_hooks.invoke import Executor"),
        ("plugins.git", "import subprocess\nfrom ld_deploy_hooks import hookimpl"),
        ("testing._server", "from ld_deploy_hooks.testing._wire import Answer"),
    ],
)
def test_what_the_house_allows_passes(module: str, source: str) -> None:
    assert faults_of(f"{PACKAGE}.{module}", source) == []


def test_the_tables_name_no_room_of_the_past() -> None:
    rooms = {room_of(module) for module in FILES}
    assert {room for (room, _) in DOORS_UP} <= rooms
    assert rooms >= BY_NAME


@pytest.mark.parametrize("module", FILES)
def test_a_file_is_short_enough_to_be_read(module: str) -> None:
    lines = len(FILES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE, (
        f"{module} has {lines} lines, more than {LONGEST_FILE}: give a part of it its own room"
    )


GUARDED = """
import os, socket, subprocess, sys, threading, time

def test_thread():
    threading.Thread(target=time.sleep, args=(3,)).start()

def test_process():
    global left
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])

def test_connect():
    left.kill()
    left.wait()
    with socket.socket() as sock:
        try:
            sock.connect(("192.0.2.1", 80))
        except RuntimeError:
            pass

def test_lookup():
    try:
        socket.getaddrinfo("app.launchdarkly.com", 443)
    except RuntimeError:
        pass

def test_datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(b"", ("192.0.2.1", 53))
        except RuntimeError:
            pass

def test_loopback_and_what_ends_in_time(run_python, child_env):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        threading.Thread(target=time.sleep, args=(0.1,)).start()
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()

def test_environment(run_python, child_env):
    wrong = {"LD_ACCESS_TOKEN", "CI", "GITHUB_ACTIONS", "https_proxy", "LD_DEPLOY_OUTBOX", "GIT_DIR"}
    assert not wrong & set(os.environ)
    assert "elsewhere" not in os.environ["HOME"] + os.environ["XDG_STATE_HOME"]
    assert not (wrong | {"PYTEST_VERSION", "PYTEST_CURRENT_TEST"}) & set(child_env)
    seen = run_python("import os; print(os.environ['HOME'], os.environ['XDG_STATE_HOME'], *os.environ)").stdout.split()
    assert seen[:2] == [child_env["HOME"], child_env["XDG_STATE_HOME"]]
    assert set(seen[2:]) - {"LC_CTYPE"} == set(child_env)
"""


@pytest.mark.slow
def test_what_a_test_leaves_behind_fails_it(
    run_python: Callable[..., subprocess.CompletedProcess[str]], child_env: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text(encoding="utf-8"))
    (tmp_path / "test_guarded.py").write_text(GUARDED)
    machine = {
        "LD_ACCESS_TOKEN": "api-1",
        "CI": "true",
        "GITHUB_ACTIONS": "true",
        "https_proxy": "http://proxy.invalid",
    }
    machine |= {"LD_DEPLOY_OUTBOX": "/elsewhere", "XDG_STATE_HOME": "/elsewhere", "GIT_DIR": "/elsewhere"}
    # The copy of conftest.py takes its folder's parent for the checkout.
    env = child_env | machine | {"PYTHONPATH": os.pathsep.join(filter(None, (child_env.get("PYTHONPATH"), str(ROOT))))}
    flags = ("-W", "error", "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-rA", "--tb=line")
    done = run_python(tmp_path / "test_guarded.py", flags=flags, env=env)
    errors = re.findall(r"^ERROR .*::(\w+) - Failed: (left behind: <?\w+|wanted to leave.*)", done.stdout, re.MULTILINE)
    assert errors == [
        ("test_thread", "left behind: <Thread"),
        ("test_process", "left behind: process"),
        ("test_connect", "wanted to leave this machine: socket.connect '192.0.2.1'"),
        ("test_lookup", "wanted to leave this machine: socket.getaddrinfo 'app.launchdarkly.com'"),
        ("test_datagram", "wanted to leave this machine: socket.sendto '192.0.2.1'"),
    ], done.stdout
    assert "7 passed, 5 errors" in done.stdout, done.stdout
