"""The rules of LaunchDarkly's document for what is posted, written down a second time.

``ld_deploy_hooks._records`` holds the same rules for what we send. The two share nothing on purpose, so that each
checks the other: the real service ignores what it does not know, and would not tell.
"""

from __future__ import annotations

import json
import string
from typing import Any, NamedTuple, NoReturn

__all__ = ["Refused", "Violation", "event_violations", "parse_json"]

_REQUIRED = ("projectKey", "environmentKey", "applicationKey", "version", "eventType")
_STRINGS = (*_REQUIRED, "applicationName", "applicationKind", "versionName")
_OBJECTS = ("eventMetadata", "deploymentMetadata")
_KNOWN = frozenset({*_STRINGS, *_OBJECTS, "eventTime"})
_CHOICES = {
    "eventType": ("started", "finished", "failed", "custom"),
    "applicationKind": ("server", "browser", "mobile"),
}
_VERSION_CHARACTERS = frozenset(string.ascii_letters + string.digits + ".-_")


class Violation(NamedTuple):
    """One entry of the ``errors`` in a 400.

    Attributes:
        attribute: the JSON name of the field at fault; ``body`` when there is no such field.
        reason: what the document asks for.
    """

    attribute: str
    reason: str


class Refused(Exception):
    """A request that is answered by a 400, with what is wrong in it."""

    def __init__(self, *violations: Violation) -> None:
        super().__init__(*violations)
        self.violations = violations


def parse_json(body: bytes) -> Any:
    """Return what ``body`` holds, read as strictly as JSON is defined (UTF-8, no NaN).

    Raises:
        Refused: it is no JSON.
    """
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Refused(Violation("body", "must be JSON in UTF-8")) from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def event_violations(body: Any, *, strict_fields: bool) -> list[Violation]:
    """Return every rule that the body of a deployment event breaks, at most one for each field.

    Args:
        body: the parsed JSON.
        strict_fields: also refuse fields that the document does not know; the real service ignores them silently.
    """
    if not isinstance(body, dict):
        return [Violation("body", "must be a JSON object")]
    found = [Violation(name, "is required") for name in _REQUIRED if body.get(name) in (None, "")]
    missing = {violation.attribute for violation in found}
    for name, value in body.items():
        reason = None if name in missing else _broken(name, value, strict_fields)
        if reason is not None:
            found.append(Violation(name, reason))
    return found


def _broken(name: str, value: Any, strict_fields: bool) -> str | None:
    if name not in _KNOWN:
        return "is not a field of a deployment event" if strict_fields else None
    if name in _STRINGS and not isinstance(value, str):
        return "must be a string"
    if name in _CHOICES and value not in _CHOICES[name]:
        return f"must be one of {', '.join(_CHOICES[name])}"
    if name == "version" and not _VERSION_CHARACTERS.issuperset(value):
        return "may hold only letters, digits, '.', '-' and '_'"
    # type(), not isinstance(): true is an int to Python, and no number to LaunchDarkly.
    if name == "eventTime" and not (type(value) is int and -(2**63) <= value < 2**63):
        return "must be Unix milliseconds, a whole number of 64 bits"
    if name in _OBJECTS and not isinstance(value, dict):
        return "must be an object"
    return None
