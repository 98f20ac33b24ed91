"""The deployment that deploy code gets to hold: ``with deployment(...) as d``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ld_deploy_hooks._hosts import connection_labels
from ld_deploy_hooks._log import internal_fault, say_once
from ld_deploy_hooks._metadata import jsonable
from ld_deploy_hooks._plan import Plan
from ld_deploy_hooks._run import Run
from ld_deploy_hooks._verdicts import Verdict
from ld_deploy_hooks._waiting import wait

if TYPE_CHECKING:
    from ld_deploy_hooks._records import Identity

__all__ = ["Deployment"]


class Deployment:
    """One deployment that runs. Nested blocks of the same identity give the same object.

    None of its methods waits for the network, and none but :meth:`start` raises anything of ours.
    """

    def __init__(self, plan: Plan) -> None:
        self._own_run = Run(plan)
        self._own_run.handle = self

    def __repr__(self) -> str:
        application = self.identity.application_key if self.identity is not None else None
        return f"<Deployment {application!r} {self.state} id={self.id}>"

    @property
    def _run(self) -> Run:
        return self._own_run.current

    @property
    def id(self) -> str:
        """UUID of this run of the deployment."""
        return self._run.id

    @property
    def identity(self) -> Identity | None:
        """What LaunchDarkly pairs its events by; None before the start, and when a required field is missing."""
        return self._run.identity

    @property
    def state(self) -> str:
        """``pending``, ``started``, ``finished`` or ``failed``."""
        return self._run.state

    @property
    def started_at(self) -> int | None:
        """When it started, in Unix milliseconds; None while pending."""
        return self._run.started_at

    @property
    def ended_at(self) -> int | None:
        """When it ended, in Unix milliseconds; None while open."""
        return self._run.ended_at

    @property
    def metadata(self) -> dict[str, Any]:
        """The user's deploymentMetadata; what is put into it is sent with the next event."""
        return self._run.metadata

    def start(self) -> None:
        """Tell the start now (for ``autostart=False``); does nothing when it has started.

        Raises:
            SettingsError: a setting is missing or cannot be used, and ``strict`` is on.
        """
        self._run.start()
        wait(self._run.on_disk)

    def custom(self, metadata: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Tell a custom event: an annotation that opens and closes nothing.

        Args:
            metadata: sent as eventMetadata; what is no JSON is told as its type's name.
            **more: the same, by keyword; they win over ``metadata``.
        """
        if metadata is not None and not isinstance(metadata, Mapping):
            say_once(f"custom() takes a mapping, not {type(metadata).__name__}; this custom event was not told.")
            return
        try:
            wait(self._run.custom({**(metadata or {}), **more}))
        except Exception as error:
            internal_fault("Telling a custom event", error)

    def mark_failed(self, detail: str) -> None:
        """Let the deployment end as failed, with these words, whatever its outcome; the block goes on."""
        verdict = Verdict(failed=True, reason="error", detail=_words(detail))
        with self._run.noting() as outcome:
            outcome.mark(verdict)

    def mark_cancelled(self, detail: str) -> None:
        """Let the deployment end as failed because somebody cancelled it; the block goes on."""
        verdict = Verdict(failed=True, reason="cancelled", detail=_words(detail))
        with self._run.noting() as outcome:
            outcome.mark(verdict)

    def host_succeeded(self, host: str) -> None:
        """Say that the deployment went well on ``host``."""
        name = _host(host)
        with self._run.noting() as outcome:
            outcome.host_succeeded(name)

    def host_failed(self, host: str, error: BaseException | None = None) -> None:
        """Say that the deployment failed on ``host``; whether it failed as a whole, the block's outcome says.

        Args:
            host: as it should be shown.
            error: what happened there; of a deployment that fails without an error of its own, its type's name is told.
        """
        name = _host(host)
        with self._run.noting() as outcome:
            outcome.host_failed(name, error)

    def record_group(self, group_result: Any) -> None:
        """Take over how each host fared from a Fabric ``GroupResult``, or from ``GroupException.result``."""
        try:
            succeeded = list(group_result.succeeded)
            failed = dict(group_result.failed)
            named = connection_labels([*succeeded, *failed])
        except Exception as error:
            say_once(
                f"record_group() got a {type(group_result).__name__} that cannot be read ({type(error).__name__}), so "
                "its hosts are not told. Give it a Fabric GroupResult, or the result of a GroupException."
            )
            return
        with self._run.noting() as outcome:
            for host in named[: len(succeeded)]:
                outcome.host_succeeded(host)
            for host, its in zip(named[len(succeeded) :], failed.values(), strict=True):
                outcome.host_failed(host, its if isinstance(its, BaseException) else None)


def _words(detail: object) -> str:
    """Return the user's words. Of an exception that was given in their place not its text, which may hold secrets."""
    return detail if isinstance(detail, str) else str(jsonable(detail))


def _host(host: object) -> str:
    return host if isinstance(host, str) else connection_labels([host])[0]
