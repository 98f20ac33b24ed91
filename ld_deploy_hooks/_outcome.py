"""How a run ends, by all that happened in it: who left it and how, what the user said of it, how its hosts fared."""

from __future__ import annotations

from collections.abc import Iterable

from ld_deploy_hooks._hosts import Hosts
from ld_deploy_hooks._verdicts import FINISHED, Verdict

__all__ = ["Outcome"]

Way = tuple[Verdict, BaseException | None]


class Outcome:
    """What a run gathers until its end. Not thread-safe: the run's lock guards what changes it.

    Attributes:
        hosts: how each of them fared.
        signal: the last signal that a handler of the user's was given; it explains a failure that follows.
    """

    def __init__(self, hosts: Iterable[str]) -> None:
        self.hosts = Hosts()
        for host in hosts:
            self.hosts.plan(host)
        self.signal: int | None = None
        self._mark: Verdict | None = None
        self._opener: Way | None = None
        self._joiner: Way | None = None
        self._failed_host: tuple[str | None, str | None] = (None, None)
        self._said_failed: set[str] = set()

    def opener_left(self, verdict: Verdict, error: BaseException | None) -> None:
        """Note how the opener left: that is the verdict."""
        self._opener = (verdict, error)

    def joiner_left(self, verdict: Verdict, error: BaseException | None, *, inner: bool) -> None:
        """Note how a joiner left; ``inner``: in the opener's own thread and task, where that may catch a failure."""
        if verdict.failed and self._joiner is None and not (inner and self._opener is None):
            self._joiner = (verdict, error)

    def mark(self, verdict: Verdict | None) -> None:
        """Let the run fail, whatever else happens; the first mark counts."""
        self._mark = self._mark or verdict

    def host_went(self, host: str, error: BaseException | None, *, failed: bool) -> None:
        """Note how a call on ``host`` fared; what the user said of the host stands."""
        if failed:
            self._host_failed(host, error)
        elif host in self._said_failed:
            self.hosts.failed(host)
        else:
            self._host_succeeded(host)

    def host_is_also(self, host: str, name: str) -> None:
        """Note another name of ``host``, which the user may call it by."""
        self.hosts.also(host, name)

    def host_succeeded(self, host: str) -> None:
        """Note that the user says that ``host`` went well, at last."""
        host = self.hosts.named(host)
        self._said_failed.discard(host)
        self._host_succeeded(host)

    def host_failed(self, host: str, error: BaseException | None) -> None:
        """Note that the user says that ``host`` did not go well."""
        host = self.hosts.named(host)
        self._said_failed.add(host)
        self._host_failed(host, error)

    def _host_succeeded(self, host: str) -> None:
        self.hosts.succeeded(host)
        if self._failed_host[0] == host:
            self._failed_host = (None, None)

    def _host_failed(self, host: str, error: BaseException | None) -> None:
        self.hosts.failed(host)
        self._failed_host = (host, type(error).__name__ if error is not None else None)

    def take_over(self, other: Outcome) -> None:
        """Take over what ``other`` gathered before its run joined this one."""
        for host in other.hosts.all:
            self.hosts.plan(host)
        self.mark(other._mark)

    def verdict(self) -> Way:
        """Return how the run ends, and the exception that it ends with."""
        verdict, error = self._opener or (FINISHED, None)
        if not verdict.failed and self._joiner is not None:
            verdict, error = self._joiner
        # They lead to the frames of the deploy, which must not live on for our sake.
        self._opener = self._joiner = None
        for host in verdict.hosts_succeeded:
            self.hosts.succeeded(host)
        for host in verdict.hosts_failed:
            self.hosts.failed(host)
        mark = self._mark
        if mark is not None and verdict.failed:
            verdict = verdict._replace(reason=mark.reason, detail=mark.detail)
        elif mark is not None:
            verdict = mark
        elif not verdict.failed and self.hosts.pending:
            verdict = Verdict(failed=True, reason="incomplete", exit_code=0)
        if verdict.failed and self.signal is not None:
            verdict = verdict._replace(reason="cancelled")
        return self._with_host(verdict), error

    def _with_host(self, verdict: Verdict) -> Verdict:
        host, error = self._failed_host
        # How the executor or the user calls a host goes before what an exception calls it.
        if verdict.failed and (verdict.host is None or error == verdict.error):
            return verdict._replace(host=host or verdict.host, error=verdict.error or error)
        return verdict
