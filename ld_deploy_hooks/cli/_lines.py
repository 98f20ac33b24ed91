"""What the package says through its logger, caught for a command that shows it in its own place."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ld_deploy_hooks._log import logger

__all__ = ["caught_lines"]


class _Catcher(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def caught_lines() -> Iterator[list[str]]:
    """Give a list that takes every line that is said in the block; none of them goes to stderr."""
    catcher, ours = _Catcher(), logger.logger
    passed_on, ours.propagate = ours.propagate, False
    ours.addHandler(catcher)
    try:
        yield catcher.lines
    finally:
        ours.removeHandler(catcher)
        ours.propagate = passed_on
