"""Whole processes: the same deploy untracked, told in the naive way, by the honest minimum and by this package."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fault_server import FaultServer, answer
from kit import ROOT, environment
from ssh import SSHHosts
from wire import LOOPBACK, Authority

__all__ = ["DELAYS", "Deploy", "Place", "added", "deploys", "listing", "measure", "place"]

DELAYS = (0, 20, 100)  # milliseconds that the server takes
WORK = 0.3  # seconds that the deploy works, where it does
WAYS = ("untracked", "naive", "floor", "ours")
_LONGEST = 60.0  # seconds until a run has failed

# Told by the process itself: what its parent is told of it holds the parent's own memory, from before the exec.
_PEAK = """
import atexit, pathlib, runpy, sys

def peak():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    print(next(line.split()[1] for line in lines if line.startswith("VmHWM")))

atexit.register(peak)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Deploy:
    """A deploy that is run in several ways.

    Attributes:
        name: as it stands in the table.
        commands: the command line of each way.
        work: seconds that it works.
        decides: whether a bar depends on it, beside the slowest server.
    """

    name: str
    commands: Mapping[str, Sequence[str]]
    work: float = WORK
    decides: bool = False


@dataclass(frozen=True)
class Ran:
    """What a run cost: seconds of the clock, and of the processors (those of its own children among them)."""

    clock: float
    processor: float


@dataclass(frozen=True)
class Place:
    """Where the deploys run: a folder under git with the deploys of this benchmark, and what they find there.

    Attributes:
        project: the folder.
        home: what the deploys keep.
        hosts: names of the SSH hosts.
        ssh: their SSH configuration.
        servers: by delay in milliseconds, and whether over TLS.
        authority: who has signed the servers' certificates.
    """

    project: Path
    home: Path
    hosts: Sequence[str]
    ssh: Path
    servers: Mapping[tuple[int, bool], FaultServer]
    authority: Path

    def run(self, command: Sequence[str], server: FaultServer | None, work: float = 0.0, events: int = 0) -> Ran:
        """Run a command to its end; it has to succeed and to bring so many events to the server."""
        env = environment(self.home, server.base_uri if server else "http://127.0.0.1:9") | {
            "BENCH_RUN": f"v{uuid.uuid4().hex[:12]}",
            "BENCH_WORK": str(work),
            "REQUESTS_CA_BUNDLE": str(self.authority),
        }
        posts = server.posts if server else 0
        with tempfile.TemporaryFile(dir=self.home) as output:
            before, began = os.times(), time.perf_counter()
            process = subprocess.Popen(
                command, env=env, cwd=self.project, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
            # Not wait(timeout): that looks every 50 ms only.
            overdue = threading.Timer(_LONGEST, process.kill)
            overdue.start()
            try:
                status = process.wait()
                clock, after = time.perf_counter() - began, os.times()
            finally:
                overdue.cancel()
                process.kill()
                process.wait()
            output.seek(0)
            said = output.read()[-2000:].decode(errors="replace")
        arrived = server.posts - posts if server else 0
        if status != 0 or arrived != events:
            raise SystemExit(f"{' '.join(command)}: status {status}, {arrived} events arrived:\n{said}")
        processor = (after.children_user - before.children_user) + (after.children_system - before.children_system)
        return Ran(clock, processor)

    def peak(self, script: str, server: FaultServer) -> float | None:
        """Return the peak memory of a script of the folder in MiB; None where the system does not tell it."""
        if not Path("/proc/self/status").exists():
            return None
        env = environment(self.home, server.base_uri) | {"BENCH_RUN": f"v{uuid.uuid4().hex[:12]}", "BENCH_WORK": "0.3"}
        command = [sys.executable, "-c", _PEAK, script]
        done = subprocess.run(command, env=env, cwd=self.project, capture_output=True, text=True, check=True)
        return int(done.stdout) / 1024


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    """Make the folder of the deploys, three SSH hosts, and a server for each delay over http and over TLS."""
    project, home, keys = folder / "project", folder / "home", folder / "keys"
    shutil.copytree(ROOT / "benchmarks" / "deploys", project, ignore=shutil.ignore_patterns("__pycache__"))
    home.mkdir()
    keys.mkdir()
    if shutil.which("git"):
        # As a deploy has it: the plugin that asks git has something to ask.
        name = ["-c", "user.name=bench", "-c", "user.email=bench@example.invalid"]
        for command in (["init", "--quiet"], ["add", "."], [*name, "commit", "--quiet", "--message", "deploys"]):
            subprocess.run(["git", *command], cwd=project, check=True)
    authority = Authority(folder)
    hosts = ["web1", "web2", "web3"]
    with ExitStack() as stack:
        config = stack.enter_context(SSHHosts(keys, hosts)).config
        servers = {
            (delay, tls): stack.enter_context(
                FaultServer(answer(delay=delay / 1000), tls=authority.server_side(LOOPBACK) if tls else None)
            )
            for delay in DELAYS
            for tls in (False, True)
        }
        yield Place(project, home, hosts, config, servers, authority.file)


def deploys(where: Place) -> tuple[list[Deploy], list[str]]:
    """Return the deploys that can be measured here, and what has to be said of those that cannot."""
    found, notes = [], []
    script = {way: [sys.executable, f"script_{way}.py"] for way in WAYS}
    found.append(Deploy("a script that does nothing", script, work=0.0, decides=True))
    found.append(Deploy("a script that works 0.3 s", script, decides=True))
    hosts = ["--ssh-config", str(where.ssh), "-H", ",".join(where.hosts)]
    ways = ("untracked", "naive", "ours")
    if inv := program("inv"):
        found.append(Deploy("`inv deploy`", {way: [inv, "-c", f"invoke_{way}", "deploy"] for way in ways}))
    else:
        notes.append("Invoke is not installed: its rows are left out.")
    if fab := program("fab"):
        commands = {way: [fab, "-c", f"fabric_{way}", *hosts, "deploy"] for way in ways}
        found.append(Deploy("`fab -H`, three hosts", commands))
    else:
        notes.append("Fabric is not installed: its rows are left out.")
    ours = [sys.executable, "-m", "ld_deploy_hooks", "run"]
    help = subprocess.run([*ours, "--help"], env=environment(where.home, ""), cwd=where.project, capture_output=True)
    if help.returncode == 0:
        commands = {
            "untracked": ["true"],
            "naive": [sys.executable, "command_naive.py"],
            "ours": [*ours, "--application-key", "billing-service", "--", "true"],
        }
        found.append(Deploy("`ld-deploy run -- true`", commands, work=0.0))
    else:
        notes.append("`ld-deploy run --help` failed: its row is left out.")
    return found, notes


def program(name: str) -> str | None:
    """Return the path of a program of this Python."""
    return shutil.which(name, path=str(Path(sys.executable).parent))


Samples = dict[tuple[str, int, bool, str], list[Ran]]


def measure(where: Place, todo: Sequence[Deploy], rounds: int, more: int) -> Samples:
    """Run every deploy in every way at every server, in turns, ``rounds`` times after one that does not count.

    Args:
        where: the place.
        todo: the deploys.
        rounds: how often.
        more: how often those that decide a bar are run after that, beside the slowest server.
    """
    samples: Samples = {}
    for turn in range(rounds + more + 1):
        print(f"whole processes: round {turn} of {rounds + more}", file=sys.stderr)
        for delay, tls in where.servers if turn else [(0, False)]:
            for deploy in todo:
                if turn > rounds and not (deploy.decides and delay == DELAYS[-1]):
                    continue
                for way, command in deploy.commands.items():
                    events = 0 if way == "untracked" else 2
                    ran = where.run(command, where.servers[delay, tls], deploy.work, events)
                    if turn:
                        samples.setdefault((deploy.name, delay, tls, way), []).append(ran)
    return samples


def added(samples: Samples, name: str, delay: int, tls: bool, way: str) -> float:
    """Return what a way adds to the untracked deploy: the difference of the medians, in seconds."""
    return median(samples[name, delay, tls, way]) - median(samples[name, delay, tls, "untracked"])


def median(runs: Sequence[Ran]) -> float:
    """Return the median of the clock, in seconds."""
    return statistics.median(ran.clock for ran in runs)


def listing(where: Place, rounds: int) -> tuple[float, float, float] | None:
    """Return the median seconds of ``inv --list`` with an undecorated and a decorated task, and the ratio of turns."""
    inv = program("inv")
    if inv is None:
        return None
    commands = [[inv, "-c", f"invoke_{way}", "--list"] for way in ("untracked", "ours")]
    turns = [[where.run(command, None) for command in commands] for _ in range(rounds + 1)][1:]
    plain, decorated = (statistics.median(turn[way].clock for turn in turns) for way in (0, 1))
    return plain, decorated, statistics.median(turn[1].clock / turn[0].clock for turn in turns)
