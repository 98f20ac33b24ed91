"""Keeping keys out of what is shown, whatever they came in by."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ld_deploy_hooks._metadata import redact

if TYPE_CHECKING:
    from ld_deploy_hooks._settings import Secret

__all__ = ["masked", "without_keys"]

# The beginnings by which LaunchDarkly tells its keys apart, and what such a key looks like.
_KINDS = ("api-", "sdk-", "mob-")
_A_KEY = re.compile(r"\b(api|sdk|mob)-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE)


def masked(secret: Secret) -> str:
    """Return what may be shown of a token: its kind."""
    shown = secret.reveal().lower()
    return next((kind for kind in _KINDS if shown.startswith(kind)), "") + "****"


def without_keys(value: Any, token: Secret | None) -> Any:
    """Return a JSON value without the token, and without what looks like one: people take one variable for another."""
    if isinstance(value, dict):
        return {without_keys(key, token): without_keys(item, token) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_keys(item, token) for item in value]
    if isinstance(value, str):
        return _A_KEY.sub(r"\1-****", redact(value, "" if token is None else token.reveal()))
    return value
