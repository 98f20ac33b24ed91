"""What a recorder has not recorded or delivered: left to the next run, and the line that says so."""

from __future__ import annotations

from pathlib import Path

from ld_deploy_hooks._clock import monotonic
from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks._journal import Journal
from ld_deploy_hooks._left import Step
from ld_deploy_hooks._sender import Sender
from ld_deploy_hooks._settings import Settings
from ld_deploy_hooks._spare import Spare
from ld_deploy_hooks._store import Store

__all__ = ["Rest"]

# Seconds for the question, when the time for it is over.
_LEAST = 0.02


class Rest:
    """What is left of one recorder's work.

    Attributes:
        not_on_disk: what is not durable yet, in its order.
        lost: whether :meth:`line` found, when it was last asked, what no later run will be able to send.
    """

    def __init__(self, settings: Settings, store: Store, journal: Journal, spare: Spare, sender: Sender | None) -> None:
        self._settings = settings
        self._store = store
        self._journal = journal
        self._spare = spare
        self._sender = sender
        self.not_on_disk: dict[int, Step] = {}
        self.lost = False

    def leave_undone(self) -> None:
        """Leave to the next run what is in memory or not on disk yet; takes no lock that others hold."""
        self._leave([*self._spare.waiting(), *self.not_on_disk.values()])

    def _leave(self, steps: list[Step]) -> Path | None:
        # What the outbox has not been told of yet would be sent again.
        delivered = self._journal.sent
        return self._store.leave(steps, delivered) if steps or delivered else None

    def beside(self) -> str | None:
        """Return the line that says what is still left beside the outbox, by any process; None if nothing is."""
        return self._store.not_taken_up()

    def stop(self, timeout: float) -> None:
        """Send nothing more; what is under way has so many seconds to be answered."""
        if self._sender is not None:
            self._sender.stop(timeout)

    def line(self, timeout: float = 0.3, *, final: bool = False) -> str | None:
        """Return the line that says what could not be delivered so far, and why; None if nothing is left.

        Args:
            timeout: seconds to wait for the outbox, which another process may hold, and for answers to what was sent.
            final: nothing is sent any more, and what is in memory or not on disk yet is left to the next run.
        """
        deadline = monotonic() + timeout
        # Where there is no time at all, as at the exit of a process with many recorders, there is none for this.
        least = min(_LEAST, timeout)
        lines = []
        self.lost = False
        if final and self._sender is not None:
            self._sender.close(timeout)
        try:
            kept = self._journal.pending(max(deadline - monotonic(), least))
            # Delivered, but the outbox could not take that: a disk was full. Sent again, they would come out of order.
            if final and self._journal.sent and self._leave([]) is not None:
                kept -= len(self._journal.sent)
            if kept > 0:
                lines.append(
                    f"{kept} event(s) wait in {self._settings.outbox} for {self._settings.base_uri}: {self._why()}. "
                    "The next deployment sends them; `ld-deploy flush` does it now."
                )
        except TimeoutError:
            lines.append(self._not_on_disk(final=final))
        except OutboxError as error:
            if not self._spare:
                lines.append(str(error))
        if waiting := self._spare.waiting():
            lines.append(self._not_from_memory(waiting, final=final))
        return " ".join(lines) or None

    def _not_from_memory(self, waiting: list[Step], *, final: bool) -> str:
        """Return the line that says what has not been delivered from memory."""
        line = f"{len(waiting)} event(s) of this run could not be delivered: {self._spare.trouble or self._why()}."
        if not final:
            return line
        path = self._leave(waiting)
        if path is None:
            self.lost = True
            return f"{line} They are lost: nothing can be written beside the outbox either."
        return f"{line} They are in {path}; the next deployment that can use {self._settings.outbox} sends them."

    def _not_on_disk(self, *, final: bool) -> str:
        """Return the line that says what an outbox which does not answer in time has not taken."""
        steps = list(self.not_on_disk.values())
        busy = f"The outbox {self._settings.outbox} did not answer in time; another process may hold it."
        path = self._leave(steps) if final else None
        if not (final and steps):
            return f"{busy} The next deployment sends what waits in it; `ld-deploy status` shows it."
        if path is None:
            self.lost = True
            return f"{busy} The last {len(steps)} event(s) of this run may be lost: nothing can be written beside it."
        return f"{busy} The last {len(steps)} event(s) of this run are in {path}; the next deployment sends them."

    def _why(self) -> str:
        if self._sender is not None:
            if self._sender.stopped:
                return "sending was stopped, as was said above"
            return (self._sender.trouble or "there was not enough time to send them").rstrip(".")
        if self._settings.access_token is not None:
            return "the access token or the base URI cannot be used"
        return "no access token is set (LD_ACCESS_TOKEN)"
