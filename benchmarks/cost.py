"""What telling costs a deploy, when all is well: in time, in memory, in modules.

::

    python benchmarks/cost.py             # all of it, in less than 10 minutes; writes docs/performance.md
    python benchmarks/cost.py --part inside --no-write

Whole processes are run in turns, so that a machine that is busy is so for all of them; medians count. All of it
stays on loopback, and nothing is left behind but the figures in docs/performance.md.
"""

from __future__ import annotations

import argparse
import compileall
import importlib.metadata
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).resolve().parent
# The servers and the certificates are those of the tests.
sys.path[:0] = [str(_HERE), str(_HERE.parent / "tests")]

import backlog  # noqa: E402
import inside  # noqa: E402
import whole  # noqa: E402
from kit import ROOT, machine, table  # noqa: E402

PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- figures: written by benchmarks/cost.py -->", "<!-- end of figures -->"

# Runs that decide a bar, for each of all others: five are too few where milliseconds count.
_MORE = 3


@dataclass(frozen=True)
class Bar:
    """What a figure has to be: in words, what was measured, whether that is enough."""

    what: str
    measured: str
    met: bool


@dataclass(frozen=True)
class Part:
    """A part of the figures: its title, Markdown, and the bars that it decides."""

    title: str
    text: str
    bars: list[Bar]


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


# -- whole processes --------------------------------------------------------------------------------------------------


def processes(folder: Path, rounds: int) -> Iterator[Part]:
    """Measure whole processes, ``inv --list``, and peak memory."""
    with whole.place(folder) as where:
        todo, notes = whole.deploys(where)
        samples = whole.measure(where, todo, rounds, _MORE * rounds)
        rows = [row(samples, deploy, delay, tls) for deploy in todo for delay, tls in where.servers]
        head = ["deploy", "server", "untracked", "adds: ours", "naive", "floor", "ours / untracked", "ours / naive"]
        head.append("ours, in delays")
        notes.append(
            f"Medians of {rounds} runs, in turns; of {(1 + _MORE) * rounds} where a bar depends on them. `adds`: the "
            "difference to the untracked deploy."
        )
        yield Part("Whole processes", "\n\n".join([table(head, rows), *notes]), list(script_bars(samples)))
        rows = [[deploy.name, *(used(samples, deploy, way) for way in whole.WAYS)] for deploy in todo]
        text = table(["deploy", *whole.WAYS], rows)
        yield Part("Processor time, their children's included, beside a server of 100 ms", text, [])
        yield listing(where, 4 * rounds)
        yield memory(where, rounds)


def row(samples: whole.Samples, deploy: whole.Deploy, delay: int, tls: bool) -> list[str]:
    untracked = whole.median(samples[deploy.name, delay, tls, "untracked"])
    adds = {way: whole.added(samples, deploy.name, delay, tls, way) for way in deploy.commands if way != "untracked"}
    return [
        deploy.name,
        f"{delay} ms, {'https' if tls else 'http'}",
        ms(untracked),
        *(ms(adds[way]) if way in adds else "" for way in ("ours", "naive", "floor")),
        f"{1 + adds['ours'] / untracked:.2f}",
        f"{adds['ours'] / adds['naive']:.2f}",
        f"{adds['ours'] * 1000 / delay:.1f}" if delay else "",
    ]


def used(samples: whole.Samples, deploy: whole.Deploy, way: str) -> str:
    if way not in deploy.commands:
        return ""
    return ms(statistics.median(ran.processor for ran in samples[deploy.name, 100, False, way]))


def script_bars(samples: whole.Samples) -> Iterator[Bar]:
    """Return what has to hold for a script beside a server of 100 ms."""
    for tls in (False, True):
        scheme = "https" if tls else "http"
        for name in ("a script that does nothing", "a script that works 0.3 s"):
            ours, naive, floor = (whole.added(samples, name, 100, tls, way) for way in ("ours", "naive", "floor"))
            what = f"{name}, 100 ms, {scheme}: adds at most what the floor adds, and 60 ms"
            yield Bar(what, f"floor and {ms(ours - floor)}", ours <= floor + 0.06)
            what = f"{name}, 100 ms, {scheme}: adds at most 0.6 of what the naive way adds"
            yield Bar(what, f"{ours / naive:.2f}; the floor {floor / naive:.2f}", ours <= 0.6 * naive)


def listing(where: whole.Place, rounds: int) -> Part:
    """Compare ``inv --list`` with a decorated task and with an undecorated one."""
    found = whole.listing(where, rounds)
    if found is None:
        return Part("`inv --list`", "Invoke is not installed: not measured.", [])
    plain, decorated, ratio = found
    text = table(["undecorated task", "decorated task", "ratio"], [[ms(plain), ms(decorated), f"{ratio:.3f}"]])
    text += f"\n\nMedians of {rounds} runs, in turns; the ratio is the median of each turn's."
    return Part(
        "`inv --list`", text, [Bar("`inv --list`: at most 1.05 of an undecorated one", f"{ratio:.3f}", ratio <= 1.05)]
    )


def memory(where: whole.Place, rounds: int) -> Part:
    """Compare the peak memory of a script that is told in each way."""
    peaks: dict[str, float] = {}
    for way in whole.WAYS:
        found = [where.peak(f"script_{way}.py", where.servers[20, False]) for _ in range(rounds)]
        peaks[way] = statistics.median(peak for peak in found if peak is not None) if None not in found else 0.0
    if not all(peaks.values()):
        return Part("Peak memory", "This system does not tell it: not measured.", [])
    text = table(list(whole.WAYS), [[f"{peaks[way]:.1f} MiB" for way in whole.WAYS]])
    more = peaks["ours"] - peaks["naive"]
    bar = Bar("peak memory: at most 12 MiB above the naive script's", f"{more:.1f} MiB above", more <= 12)
    return Part("Peak memory of a script", text, [bar])


# -- inside one process -----------------------------------------------------------------------------------------------


def within(folder: Path, rounds: int) -> Iterator[Part]:
    """Measure entry and exit, and the imports."""
    found = inside.taken(_made(folder / "taken"))
    rows = [
        [name, f"{one.first * 1e6:,.0f} µs", f"{one.median * 1e6:,.0f} µs", f"{one.late * 1e6:,.0f} µs"]
        for name, one in found.items()
    ]
    text = table(["", "the first", "median of 200 more", "95th percentile"], rows)
    bars = [
        Bar(
            f"{name}: below 3 ms in the median and 10 ms at the 95th percentile",
            f"{one.median * 1000:.2f} ms and {one.late * 1000:.2f} ms",
            one.median < 0.003 and one.late < 0.01,
        )
        for name, one in found.items()
    ]
    yield Part("Entry and exit, beside a server of 100 ms", text, bars)
    own, until = inside.own_import(_made(folder / "import"), 3 * rounds)
    counts = inside.imports(_made(folder / "counts"))
    text = table(["loaded modules", "in all"], [[point, str(count)] for point, count in counts.items()])
    text += (
        f"\n\n`import ld_deploy_hooks` takes {own:.2f} ms of its own; until `deployment` is there it is {until:.1f} ms "
    )
    text += "(`-X importtime`, which slows imports down)."
    yield Part("Imports", text, [Bar("`import ld_deploy_hooks`: below 1 ms of its own", f"{own:.2f} ms", own < 1)])


def at_once(folder: Path, rounds: int) -> Iterator[Part]:
    """Measure many deployments at once; that every event came once is checked."""
    rows, delivered = [], {}
    for way, number in [("in a row", 200), *((way, n) for way in ("threads", "coroutines") for n in (1, 10, 50, 200))]:
        runs = [inside.at_once(_made(folder / f"{way}-{number}-{turn}"), way, number) for turn in range(min(rounds, 3))]
        left, arrived = (statistics.median(run[side] for run in runs) for side in (0, 1))
        delivered[way, number] = left, arrived
        rows.append([f"{number} {way}", ms(left), ms(arrived)])
    head = ["deployments", "until the last block is left", "until all has arrived"]
    row = delivered["in a row", 200]
    bars = []
    for way in ("threads", "coroutines"):
        these = delivered[way, 200]
        met = these[0] <= row[0] and these[1] <= row[1]
        measured = f"{these[0] / row[0]:.2f} of its time, {these[1] / row[1]:.2f} until all has arrived"
        bars.append(Bar(f"200 at once ({way}): every event once, and not slower than 200 in a row", measured, met))
    yield Part("Many at once, beside a server of 20 ms", table(head, rows), bars)


# -- an outbox full of old events -------------------------------------------------------------------------------------


def flushing(folder: Path, rounds: int) -> Iterator[Part]:
    """Measure ``ld-deploy flush``."""
    small, _ = backlog.flushed(_made(folder / "small"), 1000, delay=0.02)
    loop = backlog.loop(_made(folder / "loop"), 1000, delay=0.02)
    large, _ = backlog.flushed(_made(folder / "large"), 50_000, delay=0.02)
    gap, early = backlog.held_back(_made(folder / "held"), 400, delay=0.02, patience=2)
    rows = [
        ["loop over one `requests.Session`", "1,000", f"{loop:.1f} s", f"{loop:.1f} ms", ""],
        ["`ld-deploy flush`", "1,000", f"{small.seconds:.1f} s", f"{small.seconds:.1f} ms", f"{small.peak:.0f} MiB"],
        ["", "50,000", f"{large.seconds:.0f} s", f"{large.seconds / 50:.1f} ms", f"{large.peak:.0f} MiB"],
    ]
    text = table(["", "events", "in all", "each", "peak memory"], rows)
    text += f"\n\nRefused once in mid-flush with `Retry-After: 2`, it sent nothing for {gap:.1f} s."
    share, more = small.seconds / loop, large.peak - small.peak
    bars = [
        Bar("flushing 1,000 events: at most 0.25 of the loop's time", f"{share:.2f}", share <= 0.25),
        Bar("and obeying rate limits", f"{early} requests in the 2 s that were asked for", early == 0),
        Bar("50,000 events: memory flat (at most 4 MiB more than 1,000)", f"{more:.1f} MiB more", more <= 4),
    ]
    yield Part("An outbox full of old events, beside a server of 20 ms", text, bars)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


# -- the page ---------------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Path, int], Iterator[Part]]] = {
    "processes": processes,
    "inside": within,
    "at-once": at_once,
    "flush": flushing,
}


def page(found: list[Part], busy: str) -> str:
    """Return the figures as they stand in the docs."""
    bars = [[bar.what, bar.measured, "met" if bar.met else "**not met**"] for part in found for bar in part.bars]
    versions = [
        f"{name} {importlib.metadata.version(name)}"
        for name in ("requests", "pluggy", "invoke", "fabric")
        if _has(name)
    ]
    head = f"{machine()}; {', '.join(versions)}{busy}."
    texts = [f"### {part.title}\n\n{part.text}" for part in found]
    return "\n\n".join([head, "### The bars\n\n" + table(["bar", "measured", ""], bars), *texts])


def _has(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="runs of each kind (default: 5)")
    parser.add_argument(
        "--part", action="append", choices=PARTS, help="only this one, and write nothing; may be repeated"
    )
    parser.add_argument("--no-write", action="store_true", help=f"leave {PAGE.name} as it is")
    options = parser.parse_args(argv)
    # Whoever ends it leaves nothing behind, either.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # As pip does when it installs a package; `inv` writes no compiled file of what it imports.
    compileall.compile_dir(ROOT / "ld_deploy_hooks", quiet=1)
    began, load = time.monotonic(), _load()
    found: list[Part] = []
    with tempfile.TemporaryDirectory(prefix="ld-deploy-cost-") as name:
        for key in options.part or PARTS:
            print(f"{key} ...", file=sys.stderr)
            found += PARTS[key](_made(Path(name) / key), max(options.rounds, 2))
    figures = page(found, f"; load {load} at the start and {_load()} at the end" if load else "")
    print(figures)
    print(f"took {time.monotonic() - began:.0f} s", file=sys.stderr)
    if not options.part and not options.no_write:
        text = PAGE.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{figures}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 0


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""


if __name__ == "__main__":
    sys.exit(main())
