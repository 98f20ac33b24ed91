"""``ld-deploy``: tells deployments, and looks after the outbox, from a shell or a CI job.

Exit statuses: 0 all is well; 1 something is left, and a line says what and why; 2 the command line, a setting or the
outbox cannot be used. ``ld-deploy run`` has those of its command.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ld_deploy_hooks._version import __version__
from ld_deploy_hooks.cli import _doctor, _flush, _plugins, _retry, _run, _send, _status, _verify

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
    arguments = parser().parse_args(argv)
    from ld_deploy_hooks._errors import DeployHooksError

    try:
        status = int(arguments.run(arguments))
        if sys.stdout is not None:  # `>&-`
            sys.stdout.flush()
        return status
    except DeployHooksError as error:
        print(f"ld-deploy: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever reads our output has seen enough; the interpreter is not to find the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        from ld_deploy_hooks._reporter import close_all

        # At once: whoever has pressed Ctrl-C does not want to wait for what a deploy would wait for at its exit.
        close_all()
