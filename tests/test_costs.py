"""What makes telling cheap: the modules that are loaded, where, and how often something is committed, synced or sent.

The causes, not the times: `benchmarks/cost.py` measures those, and a timed test would fail on a busy machine.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from fault_server import FaultServer

ROOT = Path(__file__).resolve().parent.parent
FIGURES = re.compile("<!-- figures: written by benchmarks/cost.py -->\n(.*)<!-- end of figures -->", re.DOTALL)

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]

needs_invoke = pytest.mark.skipif(importlib.util.find_spec("invoke") is None, reason="Invoke is not installed")

# What a listing of decorated tasks loads of ours: the decorator, and the host's room for its executor.
LISTING = {
    "ld_deploy_hooks",
    *(
        f"ld_deploy_hooks.{room}"
        for room in (
            "_clock",
            "_decorator",
            "_deployment",
            "_door",
            "_entries",
            "_errors",
            "_fields",
            "_log",
            "_mapping",
            "_outside",
            "_steps",
            "_testrun",
            "_untold",
            "_verdicts",
            "_version",
            "_waiting",
            "invoke",
            "invoke._configuration",
            "invoke._executor",
            "invoke._running",
            "invoke._ways_out",
        )
    ),
}
# What is loaded in the thread of a deploy before its block's first line; the rest is the business of our threads.
IN_THE_CALLER = {"platformdirs", "pluggy"}
# What has no file, as this `python -c`, is asked which interpreter it is in.
NO_SCRIPT = {"_interpreters", "_xxsubinterpreters"}
IN_OUR_THREADS = {"certifi", "charset_normalizer", "idna", "requests", "urllib3"}


@pytest.fixture(name="env")
def env_fixture(unmeasured_env: dict[str, str]) -> dict[str, str]:
    """Return the variables of a deploy that tells, without coverage, whose own modules and commits would count."""
    return unmeasured_env | {
        "LD_ACCESS_TOKEN": "api-token-of-the-tests",
        "LD_PROJECT": "default",
        "LD_ENVIRONMENT": "production",
        "LD_DEPLOY_FLUSH_TIMEOUT": "30",
        "LD_DEPLOY_PLUGINS": "no:console",
    }


def run(run_python: RunPython, source: str | Path, env: Mapping[str, str]) -> Any:
    """Run a child that prints JSON, and return what that is."""
    done = run_python(source, env=env, timeout=60.0)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout.splitlines()[-1])


# -- modules ----------------------------------------------------------------------------------------------------------


@needs_invoke
def test_a_listing_loads_the_decorator_and_nothing_behind_it(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(
        "import atexit, json, sys\n"
        "from invoke import task\n"
        "from ld_deploy_hooks import deployment\n"
        "@atexit.register\n"
        "def tell():\n"
        "    names = sorted(name for name in sys.modules if name.startswith('ld_deploy_hooks'))\n"
        "    print(json.dumps(names), file=sys.stderr)\n"
        "@task\n"
        "@deployment('billing-service', version=lambda c: 'v1')\n"
        "def deploy(c):\n"
        "    'Put it there.'\n"
    )
    inv = shutil.which("inv", path=env["PATH"])
    assert inv is not None
    done = subprocess.run([inv, "--list"], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "deploy" in done.stdout) == (0, True)
    assert set(json.loads(done.stderr)) == LISTING


# Dear ones of the standard library, which a deploy that gives its version can do without.
DEAR = {"importlib.metadata", "zipfile", "email.message"}

WHERE_LOADED = (
    f"""
DEAR = {DEAR}
"""
    + """
import json, sys, threading

caller, before = threading.get_ident(), set(sys.modules)
where = {}

class Watch:
    def find_spec(self, name, path=None, target=None):
        where.setdefault(name.partition(".")[0], threading.get_ident() == caller)

sys.meta_path.insert(0, Watch())
from ld_deploy_hooks import deployment, flush

with deployment("billing-service", version="v1"):
    entered = {name for name, here in where.items() if here}
    dear = sorted(DEAR & set(sys.modules))
flush(30)
left = {name for name, here in where.items() if here}

def foreign(names):
    return sorted(name for name in names if name in sys.modules and name not in sys.stdlib_module_names)

ours = {"ld_deploy_hooks"}
print(json.dumps({
    "entry": foreign(entered - ours),
    "exit": foreign(left - entered - ours),
    "threads": foreign(where.keys() - left - ours),
    "sqlite3": where["sqlite3"],
    "dear": dear,
}))
"""
)


def test_what_a_deploy_loads_and_in_which_thread(run_python: RunPython, env: dict[str, str]) -> None:
    with FaultServer() as server:
        loaded = run(run_python, WHERE_LOADED, env | {"LD_BASE_URI": server.base_uri})
        assert server.posts == 2
    assert set(loaded["entry"]) - NO_SCRIPT == IN_THE_CALLER
    assert loaded["exit"] == []
    assert loaded["sqlite3"] is False
    assert loaded["dear"] == []
    assert {"requests", "urllib3"} <= set(loaded["threads"]) <= IN_OUR_THREADS


# -- commits, connections, requests -----------------------------------------------------------------------------------

DEPLOY = """
from ld_deploy_hooks import deployment, flush

# Everything that one of them sets off is over before the next: which commits fall together is no matter of chance.
with deployment("billing-service", version="v1"):
    flush(30)
flush(30)
"""

COUNTED = f"""
import atexit, json, sqlite3

connections, changing = [], []
connect = sqlite3.connect

def counted(*args, **options):
    connection = connect(*args, **options)
    connections.append(connection)
    began = [0]

    def trace(statement):
        if statement == "BEGIN IMMEDIATE":
            began[0] = connection.total_changes
        elif statement == "COMMIT" and connection.total_changes > began[0]:
            changing.append(statement)

    connection.set_trace_callback(trace)
    return connection

sqlite3.connect = counted
atexit.register(lambda: print(json.dumps({{"connections": len(connections), "commits": len(changing)}})))
{DEPLOY}
"""


class CountingServer(FaultServer):
    """Counts the connections, too."""

    def __init__(self) -> None:
        super().__init__()
        self.connections = 0

    def _converse(self, connection: Any) -> None:
        self.connections += 1
        super()._converse(connection)


def test_what_a_deploy_commits_and_sends(run_python: RunPython, env: dict[str, str]) -> None:
    with CountingServer() as server:
        url = {"LD_BASE_URI": server.base_uri}
        first, second = (run(run_python, COUNTED, env | url) for _ in range(2))
        assert (server.connections, server.posts) == (2 * 1, 2 * 2)
    # Each of the two events: recorded, claimed, acknowledged.
    assert first == second == {"connections": 1, "commits": 2 * 3}


@pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace")
def test_what_a_deploy_syncs(env: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "strace.log"
    tracing = ["strace", "-f", "-qq", "-e", "trace=fsync,fdatasync", "-o", str(log)]
    with FaultServer() as server:
        for _ in range(2):
            done = subprocess.run(
                [*tracing, sys.executable, "-c", DEPLOY],
                env=env | {"LD_BASE_URI": server.base_uri},
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=120,
            )
            if "ptrace" in done.stderr:
                pytest.skip("this system lets no process be traced")
            assert (done.returncode, done.stderr) == (0, "")
    # The log of the second run is the one that is left: its outbox was there.
    calls = re.findall(r"^\d+ +f(?:data)?sync\(", log.read_text(), re.MULTILINE)
    # Each commit once, or an event would not be durable; SQLite's own for a new log at the opening, and at the close.
    assert 2 * 3 <= len(calls) <= 2 * 3 + 3 + 2


# -- the benchmark ----------------------------------------------------------------------------------------------------


def test_the_benchmark_can_be_repeated(child_env: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("asyncssh", reason="the benchmark's SSH servers need it, as the tests' do")
    page = ROOT / "docs" / "performance.md"
    before = page.read_bytes()
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "cost.py", "--part", "inside", "--rounds", "2"],
        env=child_env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"\d{4}-\d\d-\d\d, \d+ CPUs", done.stdout)
    assert re.search(r"^\| entry \| [0-9,]+ µs \| [0-9,]+ µs \| [0-9,]+ µs \|$", done.stdout, re.MULTILINE)
    assert re.search(r"^\| `import ld_deploy_hooks`: .* \| (met|\*\*not met\*\*) \|$", done.stdout, re.MULTILINE)
    assert page.read_bytes() == before, "a part alone writes nothing"
    assert list(Path(child_env["TMPDIR"]).iterdir()) == []


def test_the_docs_show_the_figures_of_one_whole_run() -> None:
    figures = FIGURES.search((ROOT / "docs" / "performance.md").read_text(encoding="utf-8"))
    assert figures is not None
    parts = ["The bars", "Whole processes", "Entry and exit", "Imports", "Many at once", "An outbox full"]
    places = [figures[1].find(f"### {part}") for part in parts]
    assert -1 not in places
    assert places == sorted(places)
