"""``ld-deploy``: tells deployments, and looks after the outbox, from a shell or a CI job.

Exit statuses: 0 all is well; 1 something is left, and a line says what and why; 2 the command line, a setting or the
outbox cannot be used. ``ld-deploy run`` has those of its command.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ld_deploy_hooks._version import __version__
from ld_deploy_hooks.cli import _doctor, _flush, _plugins, _retry, _run, _send, _status, _verify
from ld_deploy_hooks.cli._output import complain, finish, prepare

__all__ = ["main"]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    whole = argparse.ArgumentParser(
        prog="ld-deploy",
        description="Tell LaunchDarkly about deployments, and look after the events that wait in the outbox.",
        epilog="Settings come from LD_ACCESS_TOKEN, LD_BASE_URI, LD_DEPLOY_OUTBOX and the rest of the table in "
        "docs/settings.md. No option takes the token: it would show in `ps`.",
    )
    whole.add_argument("--version", action="version", version=f"ld-deploy-hooks {__version__}")
    commands = whole.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for room in (_run, _send, _status, _flush, _retry, _verify, _doctor, _plugins):
        room.add_to(commands)
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        argv: without the program's name; None takes ``sys.argv``.
    """
    prepare()
    try:
        arguments = parser().parse_args(argv)
    except SystemExit as left:
        # --help and --version print as well.
        if not finish() and not left.code:
            return 1
        raise
    status = _status_of(arguments)
    # What plugins have printed is no matter of the command that was run.
    return status if finish() or arguments.command == "run" else status or 1


def _status_of(arguments: argparse.Namespace) -> int:
    from ld_deploy_hooks._errors import DeployHooksError

    try:
        return int(arguments.run(arguments))
    except DeployHooksError as error:
        complain(f"ld-deploy: {error}")
        return 2
    except ImportError as error:
        if error.name not in ("sqlite3", "_sqlite3"):
            raise
        complain("ld-deploy: the outbox cannot be used: this Python was built without SQLite. Use another one.")
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        from ld_deploy_hooks._reporter import close_all

        # At once: whoever has pressed Ctrl-C does not want to wait for what a deploy would wait for at its exit.
        close_all()
