"""``ld-deploy retry``: put back in line what was rejected, or send elsewhere what waits for another service."""

from __future__ import annotations

import argparse
import time
from typing import Any

from ld_deploy_hooks.cli._asking import ask
from ld_deploy_hooks.cli._output import say

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "retry",
        help="put rejected events back in line",
        description="Put events that were rejected or given up back in line; `ld-deploy flush` then sends them. Behind "
        "a start goes its end once more if that was delivered already, or the deployment would be shown as in progress "
        "for ever.",
    )
    command.add_argument(
        "--base-uri",
        metavar="URI",
        help="instead: re-address what waits for URI to the base URI of the settings (LD_BASE_URI)",
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from ld_deploy_hooks.cli._settings import settings_or_exit

    settings = settings_or_exit()
    now = int(time.time() * 1000)
    if arguments.base_uri is not None:
        moved = ask(
            settings,
            lambda box: box.readdress(
                from_base_uri=arguments.base_uri.rstrip("/"), to_base_uri=settings.base_uri, now=now
            ),
        )
        say(f"{moved} event(s) re-addressed from {arguments.base_uri} to {settings.base_uri}")
    else:
        rejected, ends = ask(settings, lambda box: box.requeue_rejected(base_uri=settings.base_uri, now=now))
        once_more = f", and behind their starts {ends} end(s) that were delivered already" if ends else ""
        say(f"{rejected} rejected event(s) put back in line for {settings.base_uri}{once_more}")
    return 0
