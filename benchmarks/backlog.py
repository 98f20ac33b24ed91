"""An outbox full of old events: how long sending them takes, in what memory, and whether limits are obeyed."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from fault_server import Exchange, FaultServer, Step, answer
from kit import child

__all__ = ["Flushed", "flushed", "held_back", "loop"]

_FLUSH = """
import pathlib, sys, time
from ld_deploy_hooks.cli import main

began = time.perf_counter()
status = main(["flush", "--timeout", "400"])
print(time.perf_counter() - began)
proc = pathlib.Path("/proc/self/status")
lines = proc.read_text().splitlines() if proc.exists() else []
print(next((line.split()[1] for line in lines if line.startswith("VmHWM")), 0))
sys.exit(status)
"""

_FILL = """
import sys, time, uuid
from pathlib import Path
from ld_deploy_hooks import DeploymentEvent
from ld_deploy_hooks._outbox import Outbox

path, url, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
path.parent.mkdir(parents=True, exist_ok=True)
box, now = Outbox(path), int(time.time() * 1000)
with box.transaction():
    for one in range(number):
        event = DeploymentEvent(
            project_key="default",
            environment_key="production",
            application_key=f"app-{one % 500}",
            version=f"v{one // 1000}",
            event_type="started" if one % 1000 < 500 else "finished",
            event_time=now - 3_600_000 + one,
            event_metadata={"eventId": str(uuid.uuid4()), "source": "bench"},
        )
        box.add_event(deployment_id=None, base_uri=url, event=event, now=now - 3_600_000 + one)
box.close()
"""

_LOOP = """
import sys, time
began = time.perf_counter()
import requests

event = {"projectKey": "default", "environmentKey": "production", "applicationKey": "app", "version": "v1"}
event |= {"eventType": "started", "eventTime": 1700000000000}
event |= {"eventMetadata": {"eventId": "00000000-0000-0000-0000-000000000000", "source": "bench"}}
headers = {"Authorization": "api-bench", "LD-API-Version": "beta"}
with requests.Session() as session:
    for _ in range(int(sys.argv[2])):
        url = sys.argv[1] + "/api/v2/engineering-insights/deployment-events"
        session.post(url, json=event, headers=headers, timeout=10).raise_for_status()
print(time.perf_counter() - began)
"""


@dataclass(frozen=True)
class Flushed:
    """What it took: seconds, and the peak of the memory in MiB (0 where the system does not tell)."""

    seconds: float
    peak: float


def _run(source: str, *arguments: str, folder: Path, url: str) -> list[str]:
    return child(source, *arguments, folder=folder, url=url, LD_DEPLOY_OUTBOX=str(folder / "outbox" / "outbox.db"))


def flushed(folder: Path, number: int, *, delay: float, steps: tuple[Step, ...] = ()) -> tuple[Flushed, FaultServer]:
    """Fill an outbox with so many old events, and flush it; every one has to arrive, once, in its order.

    Args:
        folder: empty, for the outbox.
        number: of events.
        delay: seconds that the server takes.
        steps: what the server does instead of accepting.
    """
    with FaultServer(*(steps or (answer(delay=delay),))) as server:
        _run(
            _FILL,
            str(folder / "outbox" / "outbox.db"),
            server.base_uri,
            str(number),
            folder=folder,
            url=server.base_uri,
        )
        seconds, peak = _run(_FLUSH, folder=folder, url=server.base_uri)[-2:]
    ids = [event["eventMetadata"]["eventId"] for event in server.events]
    order: dict[tuple[str, str], list[str]] = {}
    for event in server.events:
        order.setdefault((event["applicationKey"], event["version"]), []).append(event["eventType"])
    paired = all(kinds in (["started"], ["started", "finished"]) for kinds in order.values())
    if not len(ids) == len(set(ids)) == number or not paired:
        raise SystemExit(
            f"{number} events were to arrive once and in order, {len(ids)} came, {len(set(ids))} of them new"
        )
    return Flushed(float(seconds), int(peak) / 1024), server


def loop(folder: Path, number: int, *, delay: float) -> float:
    """Return the seconds that a loop over one ``requests.Session`` takes for so many events."""
    with FaultServer(answer(delay=delay)) as server:
        return float(_run(_LOOP, server.base_uri, str(number), folder=folder, url=server.base_uri)[-1])


def held_back(folder: Path, number: int, *, delay: float, patience: int) -> tuple[float, int]:
    """Flush past a server that once asks for patience, in mid-flush.

    Returns:
        Seconds from the refusal to the next request, and how many requests came in between that were not on their way.
    """
    lock = threading.Lock()
    coming = iter(range(number))
    refused: list[float] = []
    well, busy = answer(delay=delay), answer(429, {"Retry-After": str(patience)})

    def limited(exchange: Exchange) -> bool:
        with lock:
            now = not refused and next(coming) >= number // 2
            if now:
                refused.append(time.monotonic())
        return (busy if now else well)(exchange)

    _, server = flushed(folder, number, delay=delay, steps=(limited,))
    # What was sent before the answer could be read is no disobedience.
    later = [came - refused[0] for came in server.times if came - refused[0] > 0.05]
    return min(later), sum(1 for came in later if came < patience)
