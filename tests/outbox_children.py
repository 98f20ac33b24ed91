"""The processes of tests/test_outbox_processes.py: ``python outbox_children.py <what> <outbox> <owner> [<log>]``.

Each says ``ready`` and begins when it is told to. What it has done goes to the log, which all append to.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from outbox_kit import HERE, claim, end, event, lone, opened, start

from ld_deploy_hooks._outbox import Outbox


def now() -> int:
    return int(time.time() * 1000)


def note(log: str, line: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def deliver(box: Outbox, owner: str, log: str, limit: int) -> None:
    for one in claim(box, owner=owner, now=now(), limit=limit):
        # Now and then the service does not answer.
        if random.random() < 0.1:
            box.retry_later(one.event_id, owner=owner, next_attempt=now(), now=now())
            continue
        note(log, one.event_id)
        # A service takes its time; without, SQLite would give the lock to nobody else.
        time.sleep(random.random() / 200)
        box.ack(one.event_id, owner=owner, now=now())


def record_and_deliver(path: Path, owner: str, log: str) -> None:
    """Deploy 25 times, some of it under identities that others deploy under too, and send whatever waits."""
    with opened(path) as box:
        for number in range(25):
            of = f"shared{number % 3}" if number % 2 else f"{owner}-{number % 3}"
            start(box, f"{owner}-{number}", of=of, owner=owner, now=now())
            deliver(box, owner, log, 3)
            end(box, f"{owner}-{number}", of=of, now=now())
            deliver(box, owner, log, 3)


def deliver_all(path: Path, owner: str, log: str) -> None:
    """Send until nothing waits."""
    with opened(path) as box:
        while box.counts(base_uri=HERE).pending:
            deliver(box, owner, log, 4)


def record_for_ever(path: Path, owner: str, log: str) -> None:
    """Deploy, and note what is durable, until killed."""
    with opened(path) as box:
        for number in range(10_000):
            name = f"{owner}-{number}"
            start(box, name, of=name, owner=owner, now=now())
            note(log, f"{name}-started")
            end(box, name, of=name, now=now())
            note(log, f"{name}-finished")


def end_all(path: Path, owner: str, log: str) -> None:
    """Close whatever is open, as a recovery does."""
    with opened(path) as box:
        for one in box.open_of():
            if box.end_deployment(id=one.id, event=event("failed", f"{one.id}-by-{owner}", of=one.id), now=now()):
                note(log, one.id)


def first_starts(path: Path, owner: str, _: str) -> None:
    """Be one of the first that use a file, for every file that is named on stdin."""
    for line in sys.stdin:
        with opened(Path(line.strip())) as box:
            lone(box, owner, of=owner)
            print("aside" if box.set_aside else "new", flush=True)


def hold(path: Path, owner: str, _: str) -> None:
    """Stay in the middle of a group until told to go on."""
    with opened(path) as box:
        with box.transaction():
            start(box, owner, of=owner)
            print("inside", flush=True)
            sys.stdin.readline()
        print("committed", flush=True)


if __name__ == "__main__":
    what: Callable[[Path, str, str], None] = globals()[sys.argv[1]]
    print("ready", flush=True)
    sys.stdin.readline()
    what(Path(sys.argv[2]), sys.argv[3], sys.argv[4])
