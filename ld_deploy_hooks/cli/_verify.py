"""``ld-deploy verify``: whether LaunchDarkly shows what was delivered to it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ld_deploy_hooks._errors import DeployHooksError
from ld_deploy_hooks.cli._comparison import Expected, Shown, compare, expected_of, expected_of_lone
from ld_deploy_hooks.cli._flush import seconds
from ld_deploy_hooks.cli._masking import without_keys
from ld_deploy_hooks.cli._output import complain, say
from ld_deploy_hooks.cli._table import print_table

if TYPE_CHECKING:
    from ld_deploy_hooks._launchdarkly import Client
    from ld_deploy_hooks._settings import Settings

__all__ = ["add_to"]

# Seconds in all, unless --timeout says otherwise.
_PATIENCE = 30.0
# Seconds between two questions: the first pause and the longest. Windows of the rate limit are ten seconds.
_PAUSE, _LONGEST_PAUSE = 0.5, 5.0
# Seconds that an answer may always take, however little is left.
_LEAST, _MOST = 1.0, 10.0
# Milliseconds around the deployments that are asked for.
_MARGIN = 60_000
# More events than an outbox keeps.
_ALL = 10**9


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "verify",
        help="ask LaunchDarkly whether it shows what was delivered",
        description="Read back from LaunchDarkly the last deployments of the outbox whose events were delivered to the "
        "base URI of the settings, and show which of them are missing there or shown with another status. LaunchDarkly "
        "takes a while to process an event, so what is missing is asked for again until the time is over. Deployments "
        "of one version are told apart by the time at which they started. What `ld-deploy send` told alone is looked "
        "for as well, an end together with the start before it.",
        epilog="Exit status: 0 all is there (or there is nothing to look for); 1 something is missing, or has another "
        "status; 2 it cannot be asked: no token, refused, no answer in time, or the command line, a setting or the "
        "outbox cannot be used.",
    )
    command.add_argument(
        "--timeout", type=seconds, default=_PATIENCE, metavar="S", help="seconds to wait at most, in all (default: 30)"
    )
    command.add_argument(
        "--limit",
        type=_positive,
        default=20,
        metavar="N",
        help="how many of the last deployments, and of those sent alone (default: 20)",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=_run)


def _positive(text: str) -> int:
    if text.isascii() and text.isdigit() and 0 < int(text) < 1_000_000:
        return int(text)
    raise argparse.ArgumentTypeError("give a number from 1 up")


def _run(arguments: argparse.Namespace) -> int:
    from ld_deploy_hooks._launchdarkly import LaunchDarklyError
    from ld_deploy_hooks._outbox import looking
    from ld_deploy_hooks.cli._settings import settings_or_exit

    deadline = time.monotonic() + arguments.timeout
    settings = settings_or_exit()
    with looking(settings.outbox) as box:
        deployments = box.deployments(limit=arguments.limit) if box is not None else []
        # All of the history: what ended lately may have started long ago.
        lone_events = box.lone_events(limit=_ALL) if box is not None else []
    made, others = expected_of_lone(
        reversed(lone_events), settings.base_uri, expected_of(deployments, settings.base_uri)
    )
    looked_at = [*others, *made[-arguments.limit :]]
    expected = sorted((one for one in looked_at if one is not None), key=lambda one: -one.started_at)
    shown: list[Shown] = []
    if expected:
        if not settings.sendable:
            raise DeployHooksError(
                f"{settings.base_uri} cannot be asked: there is no usable token and base URI. Set LD_ACCESS_TOKEN to "
                "an API access token (api-...); `ld-deploy doctor` says what is wrong."
            )
        try:
            shown = _asked_until(deadline, settings, expected)
        except LaunchDarklyError as error:
            complain(f"ld-deploy: {error}")
            return 2
    report = _report(settings, shown, untold=len(looked_at) - len(expected))
    if arguments.json:
        say(json.dumps(report, indent=2))
    else:
        _show(report)
    return int(report["wrong"] > 0)


def _asked_until(deadline: float, settings: Settings, expected: list[Expected]) -> list[Shown]:
    """Return how each is shown, the latest first; what is not right is asked for again until then.

    Raises:
        LaunchDarklyError: a refusal; or no answer at all in time, for some of it.
    """
    from ld_deploy_hooks._launchdarkly import LaunchDarklyError
    from ld_deploy_hooks.cli._client import client_for

    read_timeout = min(max(deadline - time.monotonic(), _LEAST), _MOST)
    client = client_for(settings, read_timeout=read_timeout)
    shown: dict[str, Shown] = {}
    pause = _PAUSE
    try:
        while True:
            failed: LaunchDarklyError | None = None
            for group in _groups(expected):
                if all(one.id in shown and shown[one.id].right for one in group):
                    continue
                try:
                    shown.update((one.expected.id, one) for one in compare(group, _items(client, group)))
                except LaunchDarklyError as error:
                    if not _may_pass(error.status):
                        raise
                    failed = error
                if time.monotonic() > deadline:
                    break
            done = failed is None and len(shown) == len(expected) and all(one.right for one in shown.values())
            if done or time.monotonic() + pause > deadline:
                break
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
    finally:
        client.close()
    if len(shown) < len(expected):
        raise failed or LaunchDarklyError("The time was over before all was asked for. Give --timeout.", status=None)
    return [shown[one.id] for one in expected]


def _groups(expected: list[Expected]) -> Iterator[list[Expected]]:
    """Yield those of one project, environment and application together: what can be asked for in one question."""

    def place(one: Expected) -> tuple[str, ...]:
        return (one.identity.project_key, one.identity.environment_key, one.identity.application_key)

    for _, group in groupby(sorted(expected, key=place), key=place):
        yield list(group)


def _items(client: Client, group: list[Expected]) -> Iterator[dict[str, Any]]:
    identity = group[0].identity
    return client.deployments(
        project_key=identity.project_key,
        environment_key=identity.environment_key,
        application_key=identity.application_key,
        # Without these LaunchDarkly answers for the last seven days only.
        since=min(one.started_at for one in group) - _MARGIN,
        until=max(one.started_at for one in group) + _MARGIN,
    )


def _may_pass(status: int | None) -> bool:
    from ld_deploy_hooks._launchdarkly import Outcome, outcome_of

    return status is None or outcome_of(status) is Outcome.RETRY


def _report(settings: Settings, shown: list[Shown], *, untold: int) -> dict[str, Any]:
    report = {
        "base_uri": settings.base_uri,
        "right": sum(one.right for one in shown),
        "wrong": sum(not one.right for one in shown),
        "not_delivered": untold,
        "deployments": [
            {
                "id": one.expected.id,
                **one.expected.identity._asdict(),
                "started_at": one.expected.started_at,
                "delivered": list(one.expected.told),
                "shown": one.status,
                "right": one.right,
            }
            for one in shown
        ],
    }
    cleared: dict[str, Any] = without_keys(report, settings.access_token)
    return cleared


def _show(report: dict[str, Any]) -> None:
    rows = [
        (
            each["application_key"],
            each["version"],
            each["environment_key"],
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each["started_at"] / 1000)),
            ", ".join(each["delivered"]),
            each["shown"] or "nothing",
            "yes" if each["right"] else "NO",
        )
        for each in report["deployments"]
    ]
    print_table(("application", "version", "environment", "when", "delivered", "LaunchDarkly shows", "right"), rows)
    if report["not_delivered"]:
        say(
            f"{report['not_delivered']} deployment(s) are not looked for: none of their events was delivered to "
            f"{report['base_uri']} (`ld-deploy status` says what they wait for)"
        )
    if not rows:
        say(f"There is nothing to look for: no deployment of the outbox was delivered to {report['base_uri']}")
        return
    say(f"{report['right']} deployment(s) are shown by {report['base_uri']} as they were told, {report['wrong']} not")
    if report["wrong"]:
        say("LaunchDarkly may still be at it: ask again later. If it stays so, somebody may have changed it there.")
