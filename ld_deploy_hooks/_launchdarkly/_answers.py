"""What LaunchDarkly's answers mean: what becomes of the event, what the user should do, how long to wait."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from datetime import timezone
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any, NamedTuple

from ld_deploy_hooks._metadata import redact

__all__ = ["Answer", "Outcome", "hold_back", "json_object", "no_answer", "outcome_of", "refusal"]

# Seconds: a window of the rate limit is ten; a reset that lies further away comes from a clock that is wrong.
_RESET_LEAST, _RESET_MOST = 0.5, 15.0
_RETRY_AFTER_MOST = 300.0
# How many of the reasons for a refusal are told, and how many characters of each part.
_REASONS = 5
_LONGEST_PART = 120

_REMAINING = ("X-Ratelimit-Global-Remaining", "X-Ratelimit-Route-Remaining", "X-Ratelimit-Auth-Token-Remaining")
_RESETS = ("X-Ratelimit-Reset", "X-Ratelimit-Auth-Token-Reset")


class Outcome(str, Enum):
    """What becomes of an event that was sent; compares equal to its plain string."""

    ACCEPTED = "accepted"
    RETRY = "retry"
    """Kept, and sent again later."""
    STOP = "stop"
    """Kept, and nothing more is sent by this process: a setting has to be mended first."""
    REJECTED = "rejected"
    """This event can never be accepted."""

    def __str__(self) -> str:
        return self.value


class Answer(NamedTuple):
    """What the service said to one event.

    Attributes:
        outcome: what becomes of the event.
        status: HTTP status; None when there was no answer.
        line: for the user: what happened and what to do. Holds neither the token nor the text of an exception.
        hold_back: seconds from now that every send with this token has to wait; None when nothing says so.
    """

    outcome: Outcome
    status: int | None
    line: str
    hold_back: float | None = None


def outcome_of(status: int) -> Outcome:
    """Return what becomes of an event that was answered with ``status``: 201 alone is a success."""
    if status == 201:
        return Outcome.ACCEPTED
    if status in (400, 405, 413, 414, 415, 422):
        return Outcome.REJECTED
    if status in (408, 409, 425, 429) or 500 <= status <= 599:
        return Outcome.RETRY
    return Outcome.STOP


def no_answer(host: str, error: str) -> str:
    """Return the line for a request without an answer; ``error`` is the name of the exception's type."""
    step = "check the network, LD_BASE_URI (base_uri), HTTPS_PROXY and NO_PROXY"
    if error in ("SSLError", "OSError"):  # requests raises the latter when the file of certificates is missing
        step = "let REQUESTS_CA_BUNDLE name the file of certificates to trust, and check LD_BASE_URI (base_uri)"
    return f"No answer from {host} ({error}). If it stays so, {step}."


def refusal(host: str, status: int, body: bytes, token: str) -> str:
    """Return the line for an answer that is no success: the status, what it means and the next step."""
    cause, step = _advice(status)
    told = _reasons(body, token) if status in (400, 422) else ""
    return f"{host} answered {status}: {told or cause}. {step}."


_WRITER = "Set LD_ACCESS_TOKEN (access_token) to an API access token with the Writer role"
_FIELDS = ("it gave no reason that can be read", "Mend what the event says for the next deployment")
_ADVICE = {
    400: _FIELDS,
    401: ("the access token is wrong, has expired or may not do this", _WRITER),
    403: (
        "the access token may not do this, or the API version is wrong",
        f"{_WRITER}, and leave LD_DEPLOY_API_VERSION (api_version) at beta",
    ),
    404: (
        "no such project or environment, or a wrong address",
        "Check LD_PROJECT (project_key), LD_ENVIRONMENT (environment_key) and LD_BASE_URI (base_uri)",
    ),
    407: ("a proxy asks for a user and a password", "Put them into HTTPS_PROXY, or the host into NO_PROXY"),
    413: ("the event is too large", "Send less metadata"),
    422: _FIELDS,
    429: ("too many requests", "Nothing needs to be done"),
}


def _advice(status: int) -> tuple[str, str]:
    """Return what the status means and the next step."""
    if status in _ADVICE:
        return _ADVICE[status]
    if outcome_of(status) is Outcome.RETRY:
        return "it cannot take the request now", "If it stays so, check LD_BASE_URI (base_uri) and HTTPS_PROXY"
    if 300 <= status <= 399:
        return (
            "a redirect, not followed since the access token must not go to another address",
            "Set LD_BASE_URI (base_uri) to the address of the service itself",
        )
    return "this is not what LaunchDarkly answers", "Check LD_BASE_URI (base_uri) and HTTPS_PROXY"


def _reasons(body: bytes, token: str) -> str:
    """Return what LaunchDarkly says is wrong: attributes and reasons, else its message; empty if it says nothing."""
    answer = json_object(body) or {}
    errors = answer.get("errors")
    told = []
    for error in (errors if isinstance(errors, list) else [])[:_REASONS]:
        if isinstance(error, dict):
            parts = [_line_of(error.get(name), token) for name in ("attribute", "reason")]
            told.append(": ".join(part for part in parts if part))
    return "; ".join(part for part in told if part) or _line_of(answer.get("message"), token)


def _line_of(text: object, token: str) -> str:
    """Return ``text`` as a part of one line: short, printable, without the token."""
    if not isinstance(text, str):
        return ""
    visible = "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
    visible = str(redact(visible, token))
    return visible if len(visible) <= _LONGEST_PART else f"{visible[: _LONGEST_PART - 1]}…"


def hold_back(status: int, headers: Mapping[str, str]) -> float | None:
    """Return the seconds that the rate limit asks to wait: the latest of all hints, None if there is none."""
    date = _http_date(headers.get("Date"))
    # The hints are points of the server's time; this machine's clock can be an hour off.
    now = time.time() if date is None else date
    limited = status == 429 or any(_number(headers.get(name)) == 0 for name in _REMAINING)
    waits = []
    if limited:
        resets = [reset for name in _RESETS if (reset := _number(headers.get(name))) is not None]
        waits += [min(max(reset / 1000 - now, _RESET_LEAST), _RESET_MOST) for reset in resets]
    if limited or outcome_of(status) is Outcome.RETRY:
        seconds, until = _number(headers.get("Retry-After")), _http_date(headers.get("Retry-After"))
        if seconds is None and until is not None:
            seconds = max(until - now, 0.0)
        if seconds is not None:
            waits.append(min(seconds, _RETRY_AFTER_MOST))
    return max(waits, default=None)


def _number(text: str | None) -> float | None:
    return float(text) if text is not None and re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else None


def _http_date(text: str | None) -> float | None:
    try:
        date = parsedate_to_datetime(text or "")
        return (date if date.tzinfo else date.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return None


def json_object(body: bytes) -> dict[str, Any] | None:
    """Return the JSON object that ``body`` is, None if it is anything else."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None
