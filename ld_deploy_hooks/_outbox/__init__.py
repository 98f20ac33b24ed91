"""The durable queue and the history: one SQLite file, which outlives the processes that write it.

``_recorded`` records, ``_queue`` delivers, ``_upkeep`` looks at what is kept and keeps it in order: the ``Outbox`` does
it all. ``_looking`` gives an ``Outbox`` that changes nothing.
``_database`` and its ``_connection`` are where sqlite3 lives, ``_file`` is the file as the operating system sees it,
``_refusals`` says why it cannot be used, ``_tables`` what is in it.
"""

from __future__ import annotations

from ld_deploy_hooks._outbox._file import check_access, on_network
from ld_deploy_hooks._outbox._looking import looking
from ld_deploy_hooks._outbox._tables import Claimed, Counts, DeploymentStatus, EventStatus, OpenDeployment
from ld_deploy_hooks._outbox._upkeep import Outbox

__all__ = [
    "Claimed",
    "Counts",
    "DeploymentStatus",
    "EventStatus",
    "OpenDeployment",
    "Outbox",
    "check_access",
    "looking",
    "on_network",
]
