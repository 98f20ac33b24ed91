"""What ``ld-deploy doctor`` finds."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["FAULT", "NOTE", "WARNING", "Finding"]

FAULT = "fault"
WARNING = "warning"
NOTE = "note"


class Finding(NamedTuple):
    """Something to be told.

    Attributes:
        level: ``fault`` keeps deployments from being told, ``warning`` is wrong but does not, ``note`` is good to know.
        about: the setting or the part that it is about.
        message: what is so, and the next step.
    """

    level: str
    about: str
    message: str
