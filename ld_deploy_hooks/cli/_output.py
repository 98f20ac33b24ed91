"""What a command prints. A stdout that is closed or full costs one line and the exit status, and no work."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress

__all__ = ["complain", "finish", "prepare", "say", "write"]

# What went wrong first.
_faults: list[OSError] = []


def prepare() -> None:
    """Have stdout show what its encoding does not know as an escape, as stderr does, instead of raising."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Print ``text`` as lines on stdout."""
    write(lambda: print(text))


def write(printing: Callable[[], object]) -> None:
    """Call what prints on stdout; after a first fault nothing more is printed, and :func:`finish` tells of it."""
    if _faults:
        return
    try:
        if _is_closed():
            raise OSError(errno.EBADF, "")
        printing()
    except OSError as error:
        _faults.append(error)


def complain(text: str) -> None:
    """Print ``text`` as a line on stderr, if that can be written."""
    if sys.stderr is not None:  # `2>&-`, where print() would take stdout
        with suppress(OSError):
            print(text, file=sys.stderr)


def finish() -> bool:
    """Return whether stdout has taken all that was printed; a line says why not, unless its reader has seen enough."""
    if _is_closed():
        # Nor has the interpreter anything to write to when it exits.
        sys.stdout = None
    stdout = sys.stdout
    if stdout is not None:
        write(stdout.flush)
    if not _faults:
        return True
    fault = _faults.pop()
    if stdout is not None:
        # The interpreter is not to find the same once more when it exits.
        with suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stdout.fileno())
            os.close(null)
    if not isinstance(fault, BrokenPipeError):
        why = errno.errorcode.get(fault.errno or 0, "unknown error")
        complain(f"ld-deploy: stdout could not be written ({why}), so what was to be shown is missing or cut off.")
    return False


def _is_closed() -> bool:
    """Whether there is no stdout: since `>&-`, or since a plugin has closed or detached it."""
    try:
        return sys.stdout is None or sys.stdout.closed
    except ValueError:
        return True
