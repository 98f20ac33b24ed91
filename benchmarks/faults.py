"""How long a deploy is held up, and whether its events arrive, when the other side or the process itself fails.

::

    python benchmarks/faults.py                   # with the clients that this Python has; it says which it has not
    python benchmarks/faults.py --with-clients    # makes a throw-away venv with all of them first

The same tiny deploy runs as a real child process: untold, told by this package, and told by others as people write it.
All of it stays on loopback, no run takes longer than a minute, and nothing is left behind. It prints a Markdown table.
"""

from __future__ import annotations

import argparse
import configparser
import gzip
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_HERE = Path(__file__).resolve().parent
# The servers and the certificates are those of the tests.
sys.path[:0] = [str(_HERE), str(_HERE.parent / "tests")]

from fault_server import Exchange, FaultServer, Step, answer, dripping, hung_up, silent  # noqa: E402
from kit import ROOT, environment, machine, table  # noqa: E402

LONGEST = 60.0  # seconds until a run is killed
DELAY = 0.1  # seconds that the server takes, when all is well
WORK = 0.2  # seconds that the deploy works, where nothing ends it before
SETTLE = 6.0  # seconds from the first output to the signal: clients that gather events for 5 s have sent them by then

# -- the deploy, and who tells it -------------------------------------------------------------------------------------

_DEPLOY = """\
import os, time

URL, RUN = os.environ["BENCH_URL"], os.environ["BENCH_RUN"]

def work():
    print("working", flush=True)
    time.sleep(float(os.environ["BENCH_WORK"]))

"""

_REQUESTS = """\
import requests

def tell(kind):
    event = {"projectKey": "default", "environmentKey": "production", "applicationKey": "billing-service",
             "version": RUN, "eventType": kind}
    try:
        requests.post(f"{URL}/api/v2/engineering-insights/deployment-events", json=event,
                      headers={"Authorization": "api-bench", "LD-API-Version": "beta"}, timeout=10)
    except requests.RequestException:
        pass

tell("started")
work()
tell("finished")
"""

_OURS = """\
from ld_deploy_hooks import deployment

with deployment("billing-service", version=RUN):
    work()
"""

_OPENTELEMETRY = """\
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{URL}/v1/traces")))
with provider.get_tracer("deploy").start_as_current_span(f"deployed {RUN}"):
    work()
"""

_SENTRY = """\
import sentry_sdk
from sentry_sdk.crons import monitor

sentry_sdk.init(dsn=URL.replace("://", "://bench@") + "/1")
with monitor(monitor_slug=f"deploy-{RUN}"):
    work()
"""

_POSTHOG = """\
from posthog import Posthog

client = Posthog("bench", host=URL)
client.capture("deploy started", distinct_id=RUN)
work()
client.capture("deploy finished", distinct_id=RUN)
"""


@dataclass(frozen=True)
class Client:
    """Who tells the deploy.

    Attributes:
        name: as it stands in the table.
        package: the distribution that it needs.
        source: the deploy, told by it.
        start: how a request's body looks that holds the start of the deploy; None where only the end is told.
        end: the same of the end.
        success: the status that it takes for one.
    """

    name: str
    package: str | None
    source: str
    start: str | None
    end: str | None
    success: int = 200


_KINDS = r'"eventType": ?"started"', r'"eventType": ?"(finished|failed)"'
CLIENTS = {
    "none": Client("untold", None, "work()", None, None),
    "ours": Client("ld-deploy-hooks", None, _OURS, *_KINDS, 201),
    "requests": Client("`requests.post`, twice", "requests", _REQUESTS, *_KINDS, 201),
    "opentelemetry": Client(
        "OpenTelemetry", "opentelemetry-exporter-otlp-proto-http", _OPENTELEMETRY, None, "deployed"
    ),
    "sentry": Client("Sentry", "sentry-sdk", _SENTRY, r'"status": ?"in_progress"', r'"status": ?"(ok|error)"'),
    "posthog": Client("PostHog", "posthog", _POSTHOG, "deploy started", "deploy finished"),
}

# -- what fails -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """What fails.

    Attributes:
        name: as it stands in the table.
        steps: what the server does instead of accepting, the last of them for ever, or once; none where it accepts.
        away: ``refused``: nobody listens.
        signal: what comes in the middle of the deploy.
        patience: seconds until the next run: what the service asked for.
    """

    name: str
    steps: tuple[Step, ...] = ()
    away: str = ""
    once: bool = False
    signal: str | None = None
    patience: float = 0.0


_BUSY = answer(503)
FAULTS = {
    "healthy": Fault("healthy, answers after 100 ms"),
    "refused": Fault("connection refused", away="refused"),
    "hang": Fault("accepted, never answered", (silent,)),
    "drip": Fault("a header that drips for ever", (dripping("header"),)),
    "503": Fault("503, always", (_BUSY,)),
    "503-once": Fault("503 once, then well", (_BUSY,), once=True),
    "429": Fault("429, `Retry-After: 5`, always", (answer(429, {"Retry-After": "5"}),), patience=6.0),
    "reset": Fault("reset after the request", (hung_up(processed=False, reset=True),)),
    "sigterm": Fault("SIGTERM in mid-deploy", signal="SIGTERM"),
    "sigkill": Fault("SIGKILL in mid-deploy", signal="SIGKILL"),
}


def accepting(bodies: list[bytes], client: Client) -> Step:
    """Answer with success, 100 ms later, and keep what was sent."""

    def step(exchange: Exchange) -> bool:
        if exchange.stopping.wait(DELAY):
            return False
        packed = exchange.body.startswith(b"\x1f\x8b")
        bodies.append(gzip.decompress(exchange.body) if packed else exchange.body)
        return answer(client.success)(exchange)

    return step


# -- measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One run: seconds until it was gone (None: it had to be killed), what arrived, what was odd."""

    seconds: float | None
    fate: str
    odd: str = ""


def measure(python: str, client: Client, key: str, folder: Path) -> Measured:
    """Run the deploy once with a fault, and once more when all is well again."""
    fault, run = FAULTS[key], _name()
    bodies: list[bytes] = []
    well = accepting(bodies, client)
    script = (*fault.steps, well) if fault.once or not fault.steps else fault.steps
    with FaultServer(*script, away=fault.away) as server:
        seconds, odd = _run(python, client, server.base_uri, run, folder, end_by=fault.signal)
        now = _arrived(client, run, bodies)
        server.heal(well)
        time.sleep(fault.patience)
        _run(python, client, server.base_uri, _name(), folder)
        later = _arrived(client, run, bodies)
    if client.end is None:
        return Measured(seconds, "", odd)
    fates = {(True, True): "by the next run", (True, False): "the start only", (False, True): "the end only"}
    return Measured(seconds, "at once" if all(now) else fates.get(later, "never"), odd)


def _name() -> str:
    return f"v{uuid.uuid4().hex[:12]}"


def _arrived(client: Client, run: str, bodies: list[bytes]) -> tuple[bool, bool]:
    """Return whether the start and the end of a run have arrived; one that is not told counts as the end."""

    def holds(pattern: str | None) -> bool:
        return pattern is not None and any(
            run.encode() in body and re.search(pattern.encode(), body) for body in list(bodies)
        )

    end = holds(client.end)
    return (holds(client.start) if client.start else end), end


def _run(
    python: str, client: Client, url: str, run: str, folder: Path, *, end_by: str | None = None
) -> tuple[float | None, str]:
    """Run the deploy; return the seconds until it was gone (from the signal, if one ends it) and what was odd."""
    env = environment(folder, url) | {"BENCH_RUN": run, "BENCH_WORK": str(WORK if end_by is None else 2 * LONGEST)}
    # A file: a child of theirs that holds a pipe open would hold us up, too.
    with tempfile.TemporaryFile(dir=folder) as errors:
        began = time.monotonic()
        process = subprocess.Popen(
            [python, "-c", _DEPLOY + client.source],
            env=env,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        assert process.stdout is not None
        too_long = threading.Event()

        def give_up() -> None:
            too_long.set()
            process.kill()

        overdue = threading.Timer(LONGEST, give_up)
        overdue.start()
        try:
            with process.stdout as output:
                said = output.readline()
                if end_by is not None:
                    time.sleep(SETTLE)
                    began = time.monotonic()
                    process.send_signal(getattr(signal, end_by))
                process.wait()
                seconds = time.monotonic() - began
                said += output.read()
        finally:
            overdue.cancel()
            process.kill()
            process.wait()
        expected = 0 if end_by is None else -getattr(signal, end_by)
        if too_long.is_set():
            return None, ""
        if b"ModuleNotFoundError" in (said_of := _tail(errors)) or not said:
            raise SystemExit(f"{client.name} did not run:\n{said_of.decode(errors='replace')}")
        odd = [f"exit {process.returncode}"] if process.returncode != expected else []
        odd += ["stdout changed"] if said != b"working\n" else []
        return seconds, ", ".join(odd)


def _tail(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()[-2000:]


# -- the table --------------------------------------------------------------------------------------------------------


def cell(runs: list[Measured]) -> str:
    """Return the median time and the fate of some runs, as they stand in the table."""
    times = [LONGEST if one.seconds is None else one.seconds for one in runs]
    middle = statistics.median(times)
    told = f"> {LONGEST:.0f} s" if middle >= LONGEST else f"{middle:.2f} s"
    for facts in ([one.fate for one in runs], [one.odd for one in runs]):
        told += "".join(f", {fact}" for fact in [" or ".join(sorted({fact for fact in facts if fact}))] if fact)
    return told


def versions(python: str) -> dict[str, str]:
    """Return the version of every client that ``python`` has."""
    names = [client.package for client in CLIENTS.values() if client.package]
    source = (
        "import importlib.metadata as m, json, sys\nfound = {}\nfor name in sys.argv[1:]:\n"
        "    try: found[name] = m.version(name)\n    except m.PackageNotFoundError: pass\nprint(json.dumps(found))"
    )
    answer = subprocess.run([python, "-c", source, *names], check=True, capture_output=True, text=True).stdout
    return dict(json.loads(answer))


def python_with_clients(folder: Path) -> str:
    """Make a venv with all clients, and with what this package depends on; return its Python."""
    venv.create(folder / "venv", with_pip=True)
    python = str(folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python")
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    needs = setup["options"]["install_requires"].split("\n")
    needs += [client.package for client in CLIENTS.values() if client.package]
    print("installing the clients", file=sys.stderr)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *filter(None, needs)], check=True, stdout=sys.stderr)
    return python


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--with-clients", action="store_true", help="install the clients into a throw-away venv first")
    parser.add_argument(
        "--runs", type=int, default=3, metavar="N", help="runs per cell; the median counts (default: 3)"
    )
    parser.add_argument("--fault", action="append", choices=FAULTS, help="only this one; may be repeated")
    parser.add_argument("--client", action="append", choices=CLIENTS, help="only this one; may be repeated")
    options = parser.parse_args(argv)
    # Whoever ends it ends what it has started, too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="ld-deploy-faults-") as name:
        folder = Path(name)
        report(python_with_clients(folder) if options.with_clients else sys.executable, options, folder)
    return 0


def report(python: str, options: Any, folder: Path) -> None:
    """Measure, and print the table."""
    found = versions(python)
    clients = []
    for key in options.client or CLIENTS:
        package = CLIENTS[key].package
        if package is None or package in found:
            clients.append(CLIENTS[key])
        else:
            print(f"{package} is not installed here, so it is left out (--with-clients brings it)", file=sys.stderr)
    rows = []
    for key in options.fault or FAULTS:
        cells = [FAULTS[key].name]
        for client in clients:
            home = folder / f"{key}-{len(cells)}"
            home.mkdir()
            cells.append(cell([measure(python, client, key, home) for _ in range(max(options.runs, 1))]))
            print(f"{key}: {client.name}: {cells[-1]}", file=sys.stderr)
        rows.append(cells)
    used = [f"{package} {found[package]}" for client in clients if (package := client.package)]
    print(f"{machine()}; median of {max(options.runs, 1)}{'; ' if used else ''}{', '.join(used)}\n")
    print(table(["fault", *(client.name for client in clients)], rows))


if __name__ == "__main__":
    sys.exit(main())
