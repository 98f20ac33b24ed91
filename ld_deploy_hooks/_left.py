"""What a process could not record before it had to go: it leaves it beside the outbox, and the next run records it.

That is for an outbox that another process holds for longer than this one may wait, or that cannot be used.
"""

from __future__ import annotations

import json
import os
import stat
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ld_deploy_hooks._clock import now
from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks._log import logger, say_once
from ld_deploy_hooks._private import create_file, is_foreign, make_folder
from ld_deploy_hooks._records import DeploymentEvent, EventType
from ld_deploy_hooks._recovery import details_of

if TYPE_CHECKING:
    from ld_deploy_hooks._outbox import Outbox

__all__ = ["Step", "files_in", "leave", "remove", "take_up"]


class Step(NamedTuple):
    """A step of a deployment, or a lone event, as it is recorded.

    Attributes:
        deployment_id: UUID of the deployment; None for a lone event, which opens and ends none.
        base_uri: the service that it is told to.
        owner: the process that it belongs to.
        event: what is told.
    """

    deployment_id: str | None
    base_uri: str
    owner: str
    event: DeploymentEvent

    @property
    def begins(self) -> bool:
        """Whether no event of the same deployment came before it."""
        return self.deployment_id is None or self.event.event_type is EventType.STARTED

    def record(self, box: Outbox) -> bool:
        """Record it; the very same a second time changes nothing. False: the deployment has ended already."""
        if self.deployment_id is None:
            box.add_event(deployment_id=None, base_uri=self.base_uri, event=self.event, now=now())
            return True
        if self.event.event_type is EventType.STARTED:
            box.open_deployment(
                id=self.deployment_id,
                base_uri=self.base_uri,
                identity=self.event.identity,
                owner=self.owner,
                event=self.event,
                details=details_of(self.event),
                now=now(),
            )
            return True
        if self.event.event_type is not EventType.CUSTOM:
            try:
                return box.end_deployment(id=self.deployment_id, event=self.event, now=now())
            except OutboxError:
                # It does not know the start, which went to a file that is gone or to memory: an end alone is legal.
                pass
        box.add_event(deployment_id=self.deployment_id, base_uri=self.base_uri, event=self.event, now=now())
        return True


def leave(folder: Path, owner: str, steps: list[Step], delivered: list[str]) -> Path | None:
    """Leave steps, in their order, for the next run; return the file, or None if it could not be written.

    Args:
        folder: where it is looked for.
        owner: the process that leaves them.
        steps: what happened.
        delivered: the ids of events that have been delivered already.
    """
    path = folder / f"{owner}-{uuid.uuid4().hex}.json"
    content = {
        "steps": [[step.deployment_id, step.base_uri, step.owner, step.event.to_json()] for step in steps],
        "delivered": delivered,
    }
    part = path.with_suffix(".part")
    try:
        if any(map(_is_anothers, (folder.parent, folder.with_suffix("")))):
            # As root in a user's: who could neither read nor remove it would have nothing left beside the outbox again.
            return None
        make_folder(folder)
        # Not synced: a disk so slow that the outbox did not answer would hold the exit up as well. What is written
        # outlives the process, if not a power cut.
        with os.fdopen(create_file(part), "w", encoding="utf-8") as file:
            json.dump(content, file)
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink()
        return None
    return path


def take_up(folder: Path, box: Outbox) -> list[Path]:
    """Record what other processes have left; any number of processes may do this at the same time.

    Returns:
        The files that are recorded, to be removed once that is durable.
    """
    try:
        files = files_in(folder)
    except OSError as error:
        say_once(
            f"What earlier runs have left in {folder} cannot be looked at ({type(error).__name__}). {_mend(folder)}"
        )
        return []
    recorded = []
    for path in sorted(files, key=_written_at):
        try:
            content = json.loads(_trusted_text(path))
            with box.transaction():
                for deployment_id, base_uri, owner, event in content["steps"]:
                    Step(deployment_id, base_uri, owner, DeploymentEvent.from_json(event)).record(box)
                for event_id in content["delivered"]:
                    box.ack_event(event_id, now=now())
            recorded.append(path)
        except (FileNotFoundError, OutboxError):
            # Another was faster, or it is tried again by the next run.
            continue
        except OSError as error:
            say_once(
                f"What an earlier run has left in {path} cannot be used ({type(error).__name__}): it is not a file of "
                f"this user's, or cannot be read. {_mend(folder)}"
            )
        except Exception as error:
            _set_aside(path, error)
    return recorded


def files_in(folder: Path) -> list[Path]:
    """Return the files that processes have left in ``folder``, there or not, and that are not taken up yet.

    Raises:
        OSError: it cannot be looked at.
    """
    try:
        # Not what an editor puts beside a file that it shows.
        return [path for path in folder.iterdir() if path.suffix == ".json" and not path.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_anothers(path: Path) -> bool:
    try:
        owner = path.stat().st_uid
    except OSError:
        return False
    return is_foreign(owner) and owner != 0


def _written_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        # Another process was faster.
        return 0


def _mend(folder: Path) -> str:
    return f"Give it back with `sudo chown -R $(id -u) {folder}`, or remove it."


def _trusted_text(path: Path) -> str:
    """Return what a file says that this user has written: with it anybody could have events told.

    Raises:
        OSError: it cannot be read, or is somebody else's.
    """
    # A FIFO would keep the opening waiting.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with os.fdopen(os.open(path, flags), encoding="utf-8") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or (hasattr(os, "geteuid") and status.st_uid != os.geteuid()):
            raise PermissionError
        return file.read()


def remove(files: list[Path]) -> None:
    """Remove files that are recorded."""
    for path in files:
        with suppress(OSError):
            path.unlink()


def _set_aside(path: Path, error: Exception) -> None:
    """Move away what no run can read: it would be tried, and said, by each."""
    aside = path.with_suffix(".unreadable")
    with suppress(OSError):
        path.replace(aside)
        logger.warning(
            "What an earlier run has left in %s cannot be read (%s); it was moved to %s and is not sent. Keep that "
            "file if you need to know what it was.",
            path,
            type(error).__name__,
            aside,
        )
