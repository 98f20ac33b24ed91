"""Tables: by rich on a terminal, plain columns everywhere else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ld_deploy_hooks.cli._output import say, write

__all__ = ["print_table"]


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under their columns' names; without any row nothing.

    Args:
        columns: the names.
        rows: as many cells each; what no terminal should be sent is shown as ``?``.
    """
    lines: list[Sequence[str]] = [tuple(map(_visible, row)) for row in rows]
    if not lines:
        return
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        console = None
    else:
        console = Console(markup=False, emoji=False)
    if console is not None and console.is_terminal:
        table = Table(*columns, box=None)
        for line in lines:
            table.add_row(*line)
        write(lambda: console.print(table))
        return
    widths = [max(len(line[column]) for line in [columns, *lines]) for column in range(len(columns) - 1)]
    for line in [columns, *lines]:
        cells = [*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]
        say("  ".join(cells).rstrip())


def _visible(cell: str) -> str:
    return "".join(sign if sign.isprintable() else "?" for sign in cell)
