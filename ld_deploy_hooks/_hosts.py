"""The hosts of one deployment: how they are named, and how each of them fared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["Hosts", "connection_labels", "labels"]

# DESIGN.md, "What is sent": the first 50 are named, all are counted.
_NAMED = 50


class Hosts:
    """Hosts in the order in which they were planned or first seen. Not thread-safe: the run's lock guards it."""

    def __init__(self) -> None:
        self._outstanding: dict[str, int] = {}
        self._failed: set[str] = set()
        self._also: dict[str, str] = {}

    def also(self, host: str, name: str) -> None:
        """Note that ``host`` is called ``name``, too: the SSH configuration may make another one of what was given."""
        self._also[name] = host

    def named(self, name: str) -> str:
        """Return the host that is called ``name``."""
        return name if name in self._outstanding else self._also.get(name, name)

    def plan(self, host: str) -> None:
        """Note that the deployment goes to ``host``; once more for every time that it does."""
        self._outstanding[host] = self._outstanding.get(host, 0) + 1

    def succeeded(self, host: str) -> None:
        """Note a success; it undoes an earlier failure of the same host, which was then tried again."""
        self._outstanding[host] = max(self._outstanding.get(host, 0) - 1, 0)
        self._failed.discard(host)

    def failed(self, host: str) -> None:
        """Note a failure."""
        self._outstanding[host] = max(self._outstanding.get(host, 0) - 1, 0)
        self._failed.add(host)

    @property
    def all(self) -> tuple[str, ...]:
        """Every host, in order."""
        return tuple(self._outstanding)

    @property
    def pending(self) -> tuple[str, ...]:
        """The hosts that the deployment has not been to, or not as often as was planned."""
        return tuple(host for host, left in self._outstanding.items() if left and host not in self._failed)

    def told(self) -> dict[str, object]:
        """Return deploymentMetadata that names the hosts; empty when there are none."""
        if not self._outstanding:
            return {}
        return {"hosts": list(self.all[:_NAMED]), "hostCount": len(self._outstanding)}

    def told_at_end(self) -> dict[str, object]:
        """Return deploymentMetadata that also says how each host fared; empty when there are none."""
        if not self._outstanding:
            return {}
        pending = self.pending
        failed = [host for host in self._outstanding if host in self._failed]
        succeeded = [host for host in self._outstanding if host not in self._failed and host not in pending]
        return {
            **self.told(),
            "hostsSucceeded": succeeded[:_NAMED],
            "hostsFailed": failed[:_NAMED],
            "hostsPending": list(pending[:_NAMED]),
        }


def labels(addresses: Sequence[tuple[str, Any] | None]) -> list[str | None]:
    """Return how each address (host, port) is told: by its host, and with its port where only that tells two apart."""
    ports: dict[str, set[Any]] = {}
    for address in addresses:
        if address is not None:
            ports.setdefault(address[0], set()).add(address[1])
    return [
        None if address is None else address[0] if len(ports[address[0]]) == 1 else f"{address[0]}:{address[1]}"
        for address in addresses
    ]


def connection_labels(connections: Iterable[Any]) -> list[str]:
    """Return how the hosts of Fabric connections are told: as the user named them, without the user's name."""
    addresses = []
    for connection in connections:
        # ``host`` is what the SSH configuration makes of the name that was given.
        host = getattr(connection, "original_host", None) or getattr(connection, "host", None)
        addresses.append((str(host or type(connection).__name__), getattr(connection, "port", None)))
    return [str(label) for label in labels(addresses)]
