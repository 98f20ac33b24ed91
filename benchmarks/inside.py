"""Inside one process: what entry and exit take, what is imported, and many deployments at once."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fault_server import FaultServer, answer, repeats
from kit import child, environment

__all__ = ["Loaded", "Taken", "at_once", "imports", "own_import", "taken"]

_TAKEN = """
import json, sys, time
from ld_deploy_hooks import deployment

times = []
for number in range(int(sys.argv[1])):
    # No deploy begins in the millisecond in which another ends, while that one's event is still being claimed.
    time.sleep(0.01)
    t0 = time.perf_counter()
    block = deployment("billing-service", version=f"v{number}")
    block.__enter__()
    t1 = time.perf_counter()
    time.sleep(0.01)
    t2 = time.perf_counter()
    block.__exit__(None, None, None)
    times.append((t1 - t0, time.perf_counter() - t2))
print(json.dumps(times))
"""

_AT_ONCE = """
import asyncio, json, sys, threading, time
from ld_deploy_hooks import deployment, flush

way, number = sys.argv[1], int(sys.argv[2])
together = threading.Barrier(number)

def deploy(name):
    with deployment(f"app-{name}", version="v1"):
        if way == "threads":
            together.wait()

async def deploy_too(name):
    async with deployment(f"app-{name}", version="v1"):
        await asyncio.sleep(0)

async def gather():
    await asyncio.gather(*(deploy_too(name) for name in range(number)))

with deployment("warm", version="v1"):
    pass
flush(30)
began = time.perf_counter()
if way == "threads":
    threads = [threading.Thread(target=deploy, args=(name,)) for name in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
elif way == "coroutines":
    asyncio.run(gather())
else:
    for name in range(number):
        deploy(name)
passed = time.perf_counter() - began
assert flush(60)
print(json.dumps([passed, time.perf_counter() - began]))
"""

_LOADED = """
import json, sys
counts = {"Python itself": len(sys.modules)}
import ld_deploy_hooks
counts["`import ld_deploy_hooks`"] = len(sys.modules)
from ld_deploy_hooks import deployment
@deployment
def deploy(): pass
counts["and one decorated function"] = len(sys.modules)
with deployment("billing-service", version="v1"):
    counts["and the first entry (its threads may have begun)"] = len(sys.modules)
ld_deploy_hooks.flush(30)
counts["and all delivered"] = len(sys.modules)
print(json.dumps(counts))
"""


@dataclass(frozen=True)
class Taken:
    """What one side of a deployment took, in seconds: the first, then median and 95th percentile of the others."""

    first: float
    median: float
    late: float


def _child(source: str, *arguments: str, folder: Path, url: str) -> Any:
    return json.loads(child(source, *arguments, folder=folder, url=url, LD_DEPLOY_FLUSH_TIMEOUT="60")[-1])


def taken(folder: Path, number: int = 200) -> dict[str, Taken]:
    """Return what entry and exit take, of ``number`` deployments one after another beside a server of 100 ms."""
    with FaultServer(answer(delay=0.1)) as server:
        times = _child(_TAKEN, str(number + 1), folder=folder, url=server.base_uri)
    found = {}
    for side, name in enumerate(("entry", "exit")):
        first, *others = (pair[side] for pair in times)
        found[name] = Taken(first, statistics.median(others), statistics.quantiles(others, n=20)[-1])
    return found


def at_once(folder: Path, way: str, number: int) -> tuple[float, float]:
    """Return the seconds that ``number`` deployments took, until the last block was left and until all had arrived.

    Args:
        folder: for the outbox.
        way: ``threads``, ``coroutines`` or ``in a row``.
        number: of deployments.
    """
    with FaultServer(answer(delay=0.02)) as server:
        passed, delivered = _child(_AT_ONCE, way, str(number), folder=folder, url=server.base_uri)
        told: dict[str, list[str]] = {}
        for event in server.events:
            told.setdefault(event["applicationKey"], []).append(event["eventType"])
        again = repeats(server.events)
    if again or len(told) != number + 1 or set(map(tuple, told.values())) != {("started", "finished")}:
        raise SystemExit(f"{number} deployments at once ({way}): not every event came once: {again} came again")
    return passed, delivered


Loaded = Mapping[str, int]


def imports(folder: Path) -> Loaded:
    """Return how many modules are loaded at each point of a deploy's life."""
    with FaultServer() as server:
        return dict(_child(_LOADED, folder=folder, url=server.base_uri))


def own_import(folder: Path, rounds: int = 15) -> tuple[float, float]:
    """Return milliseconds, each the median: ``import ld_deploy_hooks`` alone, and until ``deployment`` is there."""
    of_its_own, until_there = [], []
    for _ in range(rounds):
        command = [sys.executable, "-X", "importtime", "-c", "from ld_deploy_hooks import deployment"]
        done = subprocess.run(
            command, env=environment(folder, ""), cwd=folder, capture_output=True, text=True, check=True
        )
        lines = re.findall(r"import time: +(\d+) \| +(\d+) \|( +)([\w.]+)", done.stderr)
        package = ("ld_deploy_hooks", "ld_deploy_hooks._version")
        of_its_own.append(sum(int(own) for own, _, _, name in lines if name in package) / 1000)
        until_there.append(
            sum(int(whole) for _, whole, indent, name in lines if len(indent) == 1 and name.startswith(package[0]))
            / 1000
        )
    return statistics.median(of_its_own), statistics.median(until_there)
