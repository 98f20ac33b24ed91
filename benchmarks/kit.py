"""What the benchmarks share: where things are, a clean environment, and what the tables need."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["ROOT", "child", "environment", "machine", "table"]

ROOT = Path(__file__).resolve().parent.parent


def environment(folder: Path, url: str) -> dict[str, str]:
    """Return a deploy's variables: nothing of the user's, and everything it keeps goes below ``folder``."""
    return {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ} | {
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "XDG_STATE_HOME": str(folder),
        "PYTHONPATH": str(ROOT),
        "BENCH_URL": url,
        "LD_BASE_URI": url,
        "LD_ACCESS_TOKEN": "api-bench",
        "LD_PROJECT": "default",
        "LD_ENVIRONMENT": "production",
    }


def child(source: str, *arguments: str, folder: Path, url: str, **more: str) -> list[str]:
    """Return the lines that a child of this Python prints, which runs ``source`` with ``more`` variables."""
    done = subprocess.run(
        [sys.executable, "-c", source, *arguments],
        env=environment(folder, url) | more,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"a child of the benchmark failed:\n{done.stdout}{done.stderr[-2000:]}")
    return done.stdout.splitlines()


def machine() -> str:
    """Return the date, and on what it was measured."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{time.strftime('%Y-%m-%d')}, {cpus} CPUs, {platform.system()}, Python {platform.python_version()}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])
