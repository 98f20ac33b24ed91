"""The settings of a command, or the reason why it cannot be done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ld_deploy_hooks._errors import SettingsError
from ld_deploy_hooks.cli._output import complain

if TYPE_CHECKING:
    from ld_deploy_hooks._settings import Settings

__all__ = ["settings_or_exit"]

_CONCERNS_US = ("access_token", "base_uri", "outbox", "disabled", "dry_run", "strict")


def settings_or_exit() -> Settings:
    """Return the settings, saying what is wrong with those that concern the outbox and its delivery.

    Raises:
        SettingsError: telling is switched off.
    """
    from ld_deploy_hooks._settings import resolve

    settings = resolve()
    for problem in settings.problems:
        if problem.field in _CONCERNS_US:
            complain(f"ld-deploy: {problem.message}")
    if settings.silent:
        switch = "disabled" if settings.disabled else "dry_run"
        raise SettingsError(
            f"Nothing is sent: {switch} is on (from {settings.sources[switch]}). Unset it and try again.", field=switch
        )
    return settings
