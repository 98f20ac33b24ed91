"""``ld-deploy run``: run a command and tell its deployment."""

from __future__ import annotations

import argparse
import os
import signal
from typing import TYPE_CHECKING, Any

from ld_deploy_hooks.cli._fields import FIELDS_USAGE, add_fields, fields_of

if TYPE_CHECKING:
    from ld_deploy_hooks._handle import Deployment
    from ld_deploy_hooks._verdicts import Verdict

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "run",
        usage=f"%(prog)s [-h] {FIELDS_USAGE} -- COMMAND [ARGUMENT ...]",
        allow_abbrev=False,
        help="run a command and tell its deployment: started, then finished or failed",
        description="Run a command and tell its deployment: started before it runs, then finished if it exits with 0, "
        "else failed. The command has our input, output and terminal, and is sent the signals that we are sent. A "
        "deployment of the same application, version, environment and project that the command tells by itself "
        "is the same one, and is told once. The command line is not told. No option takes the token: it would show in "
        "`ps`; set LD_ACCESS_TOKEN.",
        epilog="Exit status: that of the command; 128 + n if signal n ended it; 127 if it was not found and 126 if it "
        "is not executable (nothing is told then); likewise if the system would not start it, as with a script whose "
        "interpreter is missing (told as failed); 2 if the command line cannot be used, or a setting cannot and "
        "LD_DEPLOY_STRICT is on (the command is not run then). If Ctrl-C at the terminal ended the command, ld-deploy "
        "dies of it as well, so that a script around both ends too.",
    )
    add_fields(command)
    command.add_argument("command_line", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    command.set_defaults(run=_run, refuse=command.error)


def _run(arguments: argparse.Namespace) -> int:
    command = arguments.command_line
    if command[:1] == ["--"]:
        del command[0]
    if not command:
        arguments.refuse("give a command to run, after --")
    from ld_deploy_hooks._log import say_once
    from ld_deploy_hooks.cli._child import Child, NotStartedError, find, inherited_environment

    try:
        path = find(command[0])
    except NotStartedError as error:
        say_once(f"ld-deploy: the command was not run and nothing was told: {error}.")
        return error.status
    from ld_deploy_hooks._deployment import deployment
    from ld_deploy_hooks._reporter import end_all
    from ld_deploy_hooks._run import runs

    child, code = Child(), None
    try:
        with child.signals(), deployment(**fields_of(arguments)) as told:
            try:
                code = child.run(path, command, {**inherited_environment(), **_exported(told)})
            except NotStartedError as error:
                say_once(f"ld-deploy: the command was not run: {error}.")
                code = error.status
            verdict = _verdict(code, child.received)
            # Where no deployment could be made there is nothing to note.
            if verdict.failed and told.identity is not None:
                with told._run.noting() as outcome:
                    outcome.mark(verdict)
        # The command's signals are ours again, and the end may not be on disk yet.
        runs.watch()
        end_all()
    except KeyboardInterrupt:
        # Somebody does not want to wait; how the command has ended stays.
        if code is None:
            raise
    if code == -signal.SIGINT and signal.SIGINT in child.typed:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return code if code >= 0 else 128 - code


def _exported(told: Deployment) -> dict[str, str]:
    """Return what the command's environment says of the deployment, so that it does not tell the same one again."""
    from ld_deploy_hooks._parent import exported

    if told.identity is None or told._run.told_by_parent:
        return {}
    return exported(told.id, told.identity, dropped=not told._run.tells)


def _verdict(code: int, received: set[int]) -> Verdict:
    """Return how the deployment ends.

    Args:
        code: the command's exit status, or minus the number of the signal that ended it.
        received: the signals that came to us while it ran.
    """
    from ld_deploy_hooks._verdicts import FINISHED, Verdict
    from ld_deploy_hooks.cli._child import CANCELLING

    if code == 0:
        return FINISHED
    reason = "cancelled" if received & CANCELLING else "error"
    if code > 0:
        return Verdict(failed=True, reason=reason, exit_code=code)
    if -code in CANCELLING:
        reason = "cancelled"
    elif -code == getattr(signal, "SIGKILL", None):
        reason = "killed"
    named = {number.value: number.name for number in signal.Signals}
    return Verdict(failed=True, reason=reason, error=named.get(-code, f"signal {-code}"), exit_code=128 - code)
