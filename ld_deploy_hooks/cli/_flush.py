"""``ld-deploy flush``: send what waits, now."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from ld_deploy_hooks.cli._output import complain, say

if TYPE_CHECKING:
    from ld_deploy_hooks._outbox import Outbox

__all__ = ["add_to"]

# Seconds in all, unless --timeout says otherwise.
_TIMEOUT = 60.0
# Seconds that the outbox has to say what is left.
_MOMENT = 1.0

T = TypeVar("T")


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "flush",
        help="send what waits in the outbox",
        description="Send what waits in the outbox, and wait until it is delivered. Exits 0 when nothing is left, 1 "
        "when something is.",
    )
    command.add_argument(
        "--recover",
        action="store_true",
        help="first tell as failed what killed processes left open; for a step that runs whatever came before it: "
        "GitHub's `if: always()`, GitLab's `after_script`, Jenkins' `post`",
    )
    command.add_argument(
        "--timeout", type=seconds, default=_TIMEOUT, metavar="S", help="seconds to wait at most, in all (default: 60)"
    )
    command.set_defaults(run=_run)


def seconds(text: str) -> float:
    with suppress(ValueError):
        value = float(text)
        if 0 <= value <= 86_400:
            return value
    raise argparse.ArgumentTypeError("give seconds, from 0 to 86400")


def _run(arguments: argparse.Namespace) -> int:
    from ld_deploy_hooks._reporter import ask_outbox, reporter_for
    from ld_deploy_hooks.cli._settings import settings_or_exit

    deadline = time.monotonic() + arguments.timeout
    settings = settings_or_exit()

    def ask(question: Callable[[Outbox], T]) -> T:
        # It has a moment even when the time is over: what is left can be told only by the outbox.
        return ask_outbox(settings, question, timeout=max(deadline - time.monotonic(), _MOMENT))

    rejected_before = ask(lambda box: box.counts(base_uri=settings.base_uri)).rejected
    reporter = reporter_for(settings)
    if arguments.recover:
        for record in reporter.recover():
            where = f"{record.identity.application_key} {record.identity.version} to {record.identity.environment_key}"
            say(f"{where}: its process was killed; told as failed ({record.reason})")
    # Recovery has also deleted old history.
    delivered_before = ask(lambda box: box.counts(base_uri=settings.base_uri)).delivered
    with _progress(lambda: ask(lambda box: box.counts(base_uri=settings.base_uri)).pending) as shown:
        reporter.send(max(deadline - time.monotonic(), 0), shown)
    # As at the end of a deploy: who is told of it has as long.
    reporter.plugins.flush(settings.flush_timeout)
    after = ask(lambda box: box.counts(base_uri=settings.base_uri))
    say(f"{max(after.delivered - delivered_before, 0)} event(s) delivered to {settings.base_uri}")
    for base_uri, number in ask(lambda box: box.waiting_elsewhere(settings.base_uri)).items():
        say(f"{number} event(s) wait for {base_uri}: set LD_BASE_URI to it, or `ld-deploy retry --base-uri {base_uri}`")
    rejected = after.rejected - rejected_before
    if rejected > 0:
        complain(f"{rejected} event(s) were rejected: `ld-deploy status` says why")
    left = [line for line in (reporter.rest.line(_MOMENT), reporter.rest.beside()) if line is not None]
    for line in left:
        complain(line)
    return int(bool(left) or rejected > 0)


@contextmanager
def _progress(pending: Callable[[], int]) -> Iterator[Callable[[], None]]:
    """Give a function to be called now and then; on a terminal it moves a bar, if rich is installed."""
    total = pending()
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield lambda: None
        return
    console = Console(stderr=True)
    if not console.is_terminal or not total:
        yield lambda: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("Sending events", total=total)
        yield lambda: bar.update(task, completed=total - pending())
