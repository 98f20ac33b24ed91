"""The steps of an executor, and the deployments that open and close between them.

An executor makes one call after another; a group is those that belong to one deployment. The last call of a group need
not be known: it ends when a call begins that is not of it, or when the executor is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from ld_deploy_hooks._deployment import Block, Bound, Call, Entry, begun, bind, leave, over, unbind
from ld_deploy_hooks._errors import SettingsError
from ld_deploy_hooks._log import internal_fault

__all__ = ["Group", "Step", "Steps"]


class Step:
    """One call that the executor is going to make.

    Attributes:
        call: the host's own.
        groups: the deployments that it is part of, the outer first.
        own: those of them whose own task it is, and not a pre or post task.
        host: how its host is told.
    """

    def __init__(self, call: Any, *, own: list[Group], host: str | None) -> None:
        self.call = call
        self.groups: list[Group] = []
        self.own = own
        self.host = host


class Group:
    """The calls of one deployment.

    Attributes:
        block: the decorator's, or one that the mapping asks for.
        call: makes what the block is entered with; asked when the group opens, since the host's configuration is
            complete only then.
        hosts: the hosts of its own task's calls, in order.
    """

    def __init__(self, block: Block, call: Callable[[], Call]) -> None:
        self.block = block
        self.call = call
        self.hosts: list[str] = []
        self.entry: Entry | None = None

    def open(self) -> None:
        """Enter the block.

        Raises:
            SettingsError: a setting is missing or cannot be used, and ``strict`` is on.
        """
        try:
            call = self.call()
            call.hosts = tuple(self.hosts)
            self.entry = self.block.enter(call)
            begun(self.entry)
        except SettingsError:
            raise
        except Exception as error:
            internal_fault("Starting a deployment", error)

    def close(self, error: BaseException | None) -> None:
        """Leave the block."""
        entry, self.entry = self.entry, None
        over(leave(entry, error))


class Steps:
    """Where an executor is among its steps; a context manager around all of them."""

    def __init__(self) -> None:
        self._open: list[Group] = []
        self._host: str | None = None
        self._bound: list[Bound] = []

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> Literal[False]:
        try:
            self._done(error)
        except Exception as fault:
            internal_fault("Following the executor", fault)
        finally:
            while self._open:
                self._open.pop().close(error)
        return False

    def begin(self, step: Step) -> None:
        """Note that ``step`` is next: close the deployments that it is not part of, open those that it is.

        Raises:
            SettingsError: a setting is missing or cannot be used, and ``strict`` is on.
        """
        self._done(None)
        while self._open and self._open[-1] not in step.groups:
            self._open.pop().close(None)
        for group in step.groups:
            if group not in self._open:
                self._open.append(group)
                group.open()
        self._host = step.host
        self._bound = [Bound(group.entry, step.host) for group in step.own if group.entry is not None]
        bind(self._bound)

    def _done(self, error: BaseException | None) -> None:
        """Note how the last step fared."""
        host, bound = self._host, self._bound
        self._host, self._bound = None, []
        unbind(bound)
        if host is not None:
            for one in bound:
                one.entry.note_host(host, error, failed=one.failed)
