"""The command of ``ld-deploy run``: found as a shell finds it, started, given our signals, waited for.

It shares everything with us: process group, terminal, all file descriptors. So what is typed at the terminal reaches it
by the terminal, and job control works as without us.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from ld_deploy_hooks.cli._senders import Listener

__all__ = ["CANCELLING", "Child", "NotStartedError", "find", "inherited_environment"]

# All signals that can be handed on are, but not these:
_NOT_FORWARDED = (
    # which cannot be caught;
    *("SIGKILL", "SIGSTOP"),
    # which mean our own child;
    *("SIGCHLD", "SIGCLD"),
    # which whoever controls jobs sends to the whole group, or we would not stop with the command;
    *("SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGCONT"),
    # which a fault in this very process raises.
    *("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS", "SIGEMT"),
)
# Those that a terminal sends to every process in its foreground.
_TYPED = ("SIGINT", "SIGQUIT", "SIGBREAK", "SIGINFO", "SIGWINCH")
# Those of them that somebody else may send to end us alone.
_ENDING = ("SIGINT", "SIGQUIT")
# As a shell has them.
_NOT_EXECUTABLE = 126
_NOT_FOUND = 127
# Seconds.
_OFTEN = 1.0


class NotStartedError(Exception):
    """The command could not be started.

    Attributes:
        status: what a shell exits with: 126 not executable, 127 not found.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def find(name: str) -> str:
    """Return the path of a program, looked up on PATH if its name holds no slash.

    Raises:
        NotStartedError: there is none, or it cannot be executed.
    """
    path = shutil.which(name)
    if path is not None:
        return path
    if shutil.which(name, mode=os.F_OK) is not None or (os.sep in name and Path(name).is_dir()):
        raise NotStartedError("it is not executable", _NOT_EXECUTABLE)
    raise NotStartedError("it was not found", _NOT_FOUND)


def inherited_environment() -> dict[str, str]:
    """Return the environment as this process was given it, as far as it is still the same.

    In the locale "C" Python exports an LC_CTYPE of its own (PEP 538), which is not for the command. What was there
    before is known on Linux; elsewhere it stays.
    """
    environment = dict(os.environ)
    with suppress(OSError):
        given = dict(entry.partition(b"=")[::2] for entry in Path("/proc/self/environ").read_bytes().split(b"\0"))
        was = given.get(b"LC_CTYPE")
        if was is None:
            environment.pop("LC_CTYPE", None)
        else:
            environment["LC_CTYPE"] = os.fsdecode(was)
    return environment


class Child:
    """The command, from before its start to its end.

    Attributes:
        received: the signals that came to us meanwhile.
        typed: those of them that the terminal sent to all that is in its foreground.
    """

    def __init__(self) -> None:
        self.received: set[int] = set()
        self.typed: set[int] = set()
        self._early: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._listener = Listener((), self._heard)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Hand signals on to the command in the block, and live on; what is ignored (``nohup``) stays ignored.

        SIGCHLD alone does not: where it is ignored the system forgets how a child has ended.
        """
        for number in _numbers(("SIGCHLD",)):
            signal.signal(number, signal.SIG_DFL)
        forwarded = signal.valid_signals().difference(_numbers(_NOT_FORWARDED))
        # SIGPIPE and SIGXFSZ are ignored, by Python: the command has them as ever, what we write is none of its matter.
        before = {number: signal.getsignal(number) for number in sorted(forwarded)}
        replaced = {number: old for number, old in before.items() if old is not None and old is not signal.SIG_IGN}
        for number in replaced:
            signal.signal(number, self._forward)
        self._listener = Listener(set(_numbers(_ENDING)).intersection(replaced), self._heard)
        try:
            yield
        finally:
            self._listener.close()
            for number, old in replaced.items():
                signal.signal(number, old)

    def run(self, path: str, command: Sequence[str], env: Mapping[str, str]) -> int:
        """Run the command to its end; return its exit status, or minus the number of the signal that ended it.

        A command that was cancelled before it has begun is not begun.

        Args:
            path: of the program.
            command: its name as it was given, and its arguments.
            env: its environment.

        Raises:
            NotStartedError: the system would not start it.
        """
        with self._listener.let_through():
            cancelled = [number for number in self._early if number in CANCELLING]
            if cancelled:
                return -cancelled[0]
            process = _start(path, command, env)
        self._process = process
        # The terminal did not send these to the command, which was not there yet.
        while self._early:
            process.send_signal(self._early.pop(0))
        with self._listener.listening():
            while True:
                # A signal that comes right before a wait in C does not end that wait: it may not be one without an end.
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(_OFTEN)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        # Who has sent it is not known.
        self._heard(number, number in _numbers(_TYPED) and _in_foreground())

    def _heard(self, number: int, typed: bool) -> None:
        self.received.add(number)
        if typed:
            self.typed.add(number)
        if self._process is None:
            self._early.append(number)
        elif not typed:
            self._process.send_signal(number)


def _start(path: str, command: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    def start(path: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        # What we were given open beyond stderr is the command's, too; nothing of our own is inheritable.
        return subprocess.Popen(command, executable=path, env=env, close_fds=False)

    try:
        try:
            return start(path, command)
        except OSError as error:
            if error.errno != errno.ENOEXEC or os.name != "posix":
                raise
            # A script without a first line that says by what: a shell runs it itself.
            return start("/bin/sh", ["/bin/sh", path, *command[1:]])
    except FileNotFoundError:
        # We have found it, so it is what the system looked for next.
        missing = "what it is to be run by was not found: the interpreter that its first line names, or its loader"
        raise NotStartedError(missing, _NOT_FOUND) from None
    except OSError as error:
        why = errno.errorcode.get(error.errno or 0, "unknown error")
        raise NotStartedError(f"the system would not execute it ({why})", _NOT_EXECUTABLE) from None


def _in_foreground() -> bool:
    """Whether we, and so the command, are in the foreground of a terminal that we belong to."""
    if not hasattr(os, "tcgetpgrp"):
        # A Windows console: all its processes get what is typed.
        return True
    with suppress(OSError):
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
        try:
            return os.tcgetpgrp(terminal) == os.getpgrp()
        finally:
            os.close(terminal)
    return False


def _numbers(names: Sequence[str]) -> list[int]:
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


# Whoever sends one of these, to us or to the command, wants the deployment to stop.
CANCELLING = frozenset(_numbers(("SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT", "SIGBREAK")))
