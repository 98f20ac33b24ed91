"""Tells LaunchDarkly's engineering insights about every deployment: started, and finished or failed.

::

    from ld_deploy_hooks import deployment

    with deployment("billing-service", version="a90a8a2"):
        migrate()
        switch()

A name loads its room when it is first asked for: tasks.py and fabfile.py are imported for ``--list``, ``--help`` and
``--complete`` too, and those must cost what they cost without this package.

PYTEST_DONT_REWRITE: a program that has imported this package may go on to run pytest, which would warn of that.
"""

from __future__ import annotations

from ld_deploy_hooks._version import __version__

# Not typing's constant, whose import would be the most expensive line of this file: type checkers go by the name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from ld_deploy_hooks._deployment import current_deployment, deployment, flush
    from ld_deploy_hooks._errors import DeployHooksError, DropEvent, EventError, SettingsError
    from ld_deploy_hooks._handle import Deployment
    from ld_deploy_hooks._records import DeploymentEvent, DeploymentRecord, EventType, Identity
    from ld_deploy_hooks.hookspecs import hookimpl, hookspec

__all__ = [
    "DeployHooksError",
    "Deployment",
    "DeploymentEvent",
    "DeploymentRecord",
    "DropEvent",
    "EventError",
    "EventType",
    "Identity",
    "SettingsError",
    "__version__",
    "current_deployment",
    "deployment",
    "flush",
    "hookimpl",
    "hookspec",
]

_ROOMS = {
    "_deployment": ("current_deployment", "deployment", "flush"),
    "_errors": ("DeployHooksError", "DropEvent", "EventError", "SettingsError"),
    "_handle": ("Deployment",),
    "_records": ("DeploymentEvent", "DeploymentRecord", "EventType", "Identity"),
    "hookspecs": ("hookimpl", "hookspec"),
}

# Hidden from type checkers, which would take every misspelt name for one that it can answer.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Load the room of ``name`` and keep the name here, so that this runs once for each."""
        from importlib import import_module

        for room, names in _ROOMS.items():
            if name in names:
                globals()[name] = value = getattr(import_module(f"{__name__}.{room}"), name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
