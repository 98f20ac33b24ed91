"""``python -m ld_deploy_hooks.testing``: the stand-in for LaunchDarkly by itself, until SIGINT or SIGTERM."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from ld_deploy_hooks.testing import FakeLaunchDarkly

_EPILOG = """\
The first line of its output tells the address; then comes one line for every
event that it accepts. It asks for the access token in LD_ACCESS_TOKEN; any token
will do when that is not set.

  $ python -m ld_deploy_hooks.testing --port 8080 &
  $ export LD_BASE_URI=http://127.0.0.1:8080 LD_ACCESS_TOKEN=api-anything
  $ fab deploy

It listens on 127.0.0.1 only, and forgets everything when it ends (Ctrl-C or
SIGTERM, exit status 0).
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ld_deploy_hooks.testing",
        description="A stand-in for LaunchDarkly: post deployment events to it, and read them back.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=_port, default=0, metavar="N", help="port to listen on (default: a free one)")
    parser.add_argument(
        "--delay", type=_seconds, default=0.0, metavar="S", help="seconds to wait before every answer (default: 0)"
    )
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError("must be a number from 0 to 65535")
    return int(text)


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 3600:
            return float(text)
    raise argparse.ArgumentTypeError("must be a number from 0 to 3600")


def _stop(number: int, frame: FrameType | None) -> None:
    # Closing takes a moment; a second signal must not break into it.
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt


def _say(line: str) -> None:
    try:
        print(line, flush=True)
    except BrokenPipeError:
        # Whoever read the address from a pipe and left still wants the server.
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal comes, and return the exit status."""
    options = _parser().parse_args(argv)
    # Also where the shell made it ignore SIGINT, as it does for "&" in a script.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    server = FakeLaunchDarkly(os.environ.get("LD_ACCESS_TOKEN") or None, port=options.port, delay=options.delay)
    try:
        server.start()
    except OSError as error:
        print(f"cannot listen on port {options.port}: {error.strerror}", file=sys.stderr)
        return 1
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(server):
        _say(f"FakeLaunchDarkly listens on {server.base_uri}")
        shown = 0
        while True:
            events = server.wait_for(shown + 1, timeout=None)
            for event in events[shown:]:
                # A key may hold anything, a line's end and a terminal's commands too.
                key = ascii(event["applicationKey"])[1:-1]
                _say(f"{event['eventType']} {key} {event['version']}")
            shown = len(events)
    return 0


if __name__ == "__main__":
    sys.exit(main())
