"""A look at the outbox that leaves everything as it is: for who wants to know and not to deploy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ld_deploy_hooks._outbox._upkeep import Outbox

__all__ = ["looking"]


@contextmanager
def looking(path: Path) -> Iterator[Outbox | None]:
    """Give the outbox ``path`` to be read in the block; None where nothing was recorded yet.

    Nothing is made, written, repaired or moved, and nobody who records has to wait for it.

    Raises:
        OutboxError: it cannot be read.
    """
    if not _has_something(path):
        yield None
        return
    box = Outbox(path, read_only=True)
    try:
        yield box
    finally:
        box.close()


def _has_something(path: Path) -> bool:
    """Whether anything was written, into the file or into its log; True where that cannot be known."""
    for name in (str(path), f"{path}-wal"):
        try:
            if os.stat(name).st_size:  # noqa: PTH116 (a name, not a path)
                return True
        except FileNotFoundError:
            continue
        except OSError:
            # Opening it will say why.
            return True
    return False
