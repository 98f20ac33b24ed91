"""How long one waits before it is tried again, so that many who were refused together do not come back together."""

from __future__ import annotations

import os

__all__ = ["backoff", "jitter"]

# Seconds.
_FIRST = 0.5
# Doublings: a float holds no more than a thousand of them.
_MOST_TRIES = 16


def backoff(tries: int, most: float) -> float:
    """Return seconds: full jitter, doubled with each try.

    Args:
        tries: how often it was tried in vain.
        most: seconds, at most.
    """
    return jitter(min(most, _FIRST * 2 ** min(tries, _MOST_TRIES)))


def jitter(most: float) -> float:
    """Return seconds between 0 and ``most``, all of them as likely."""
    # The system's, not `random`: an import may fail where something else has gone wrong already.
    return most * int.from_bytes(os.urandom(4), "big") / 2**32
