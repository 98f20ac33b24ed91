"""What a repository's address tells: its name, and nothing of a user, a password or a token that stand in it too."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

__all__ = ["repository_name", "without_user"]


def repository_name(address: str | None) -> str | None:
    """Return the last part of the path in ``address``: ``web`` of ``git@example.org:shop/web.git``.

    Args:
        address: as git takes it: a URL, ``user@host:path``, or a path of this machine or of Windows; or ``shop/web``.

    Returns:
        None where there is no name, or where it might be part of a password.
    """
    # What stands behind these marks, a token among others, is no path even where there is no URL.
    text = re.split("[?#;]", (address or "").strip().replace("\\", "/"))[0]
    if text.startswith("ext::"):
        # A command line of the user's.
        return None
    if text.startswith("codecommit:"):
        # AWS's helper has the name where others have the host.
        text = text.rpartition("@")[2]
    elif "://" in text:
        try:
            parts = urlsplit(text)
            # Raises where a slash in the password makes a port of it, and a path of the host.
            _ = parts.port
        except ValueError:
            return None
        text = unquote(parts.path)
    path = re.sub(r"/\.git$", "", text.rstrip("/"))
    name = re.split("[/:]", path)[-1].removesuffix(".git")
    return name if name.strip(".") and name.isprintable() and "@" not in name else None


def without_user(url: str | None) -> str | None:
    """Return ``url`` without the user and password that may stand before its host."""
    return re.sub(r"(?<=://)[^/?#]*@", "", url) if url else None
