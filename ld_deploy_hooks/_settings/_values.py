"""Reading one value: what each kind of setting may be, and what is wrong with one that cannot be used."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

from ld_deploy_hooks._records import APPLICATION_KINDS

WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
UNUSABLE_URI = "unusable"  # what events are bound to where nothing of a base URI could be kept

# Less than RFC 3986 allows, on purpose: what two parsers could read differently is refused, not interpreted.
_BASE_URI = re.compile(
    r"(?P<scheme>https?)://(?P<host>([a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}\.?|\[[0-9a-f:.]+\])"
    r"(:(?P<port>[0-9]{1,5}))?(?P<path>(/[!$-.0-9:;=A-Z_a-z~]*)*)",
    re.ASCII | re.IGNORECASE,
)


class Secret:
    """A string that shows itself to nobody: masked in repr, str and format, not picklable. Equal by value."""

    __slots__ = ("__value",)

    def __init__(self, value: str) -> None:
        self.__value = value

    def reveal(self) -> str:
        """Return the value in clear: for the request's header and for redaction, nothing else."""
        return self.__value

    def __repr__(self) -> str:
        return "****"

    def __format__(self, specification: str) -> str:
        return "****"

    def __eq__(self, other: object) -> bool:
        return self.__value == other.__value if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash((Secret, self.__value))

    def __reduce_ex__(self, protocol: object) -> Any:
        raise TypeError("a Secret cannot be pickled or copied: it would leave the process in clear")


class Unusable(Exception):
    """A value cannot be used: what is wrong with it, and what to do instead."""

    def __init__(self, wrong: str, instead: str) -> None:
        super().__init__(wrong)
        self.wrong = wrong
        self.instead = instead


def read_text(value: object) -> str:
    """Return text, also from what YAML and TOML make of bare words: ``version: 12``, ``version: 2024-01-15``."""
    import datetime

    if isinstance(value, bool):
        raise Unusable("is true or false, not text", "put it in quotes (YAML reads a bare yes, no, on or off as that)")
    if isinstance(value, (int, float)) and abs(value) < 1e100:  # Python writes no number of 5,000 digits
        value = str(value)
    elif type(value) is datetime.date:
        value = value.isoformat()
    if not isinstance(value, str):
        raise Unusable(f"is of type {type(value).__name__}, not text", "write it as text, in quotes")
    if not value.strip():
        raise Unusable("is empty", "give it a value or leave it out")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unusable("holds bytes that are no UTF-8 text", "write it as UTF-8") from None
    return value.strip()


def read_token(value: object) -> Secret:
    return Secret(read_text(value.reveal() if isinstance(value, Secret) else value))


def read_kind(value: object) -> str:
    kind = read_text(value)
    if kind not in APPLICATION_KINDS:
        raise Unusable(f"is {kind!r}", f"write one of {', '.join(APPLICATION_KINDS)}")
    return kind


def read_header(value: object) -> str:
    header = read_text(value)
    if not header.isascii() or not header.isprintable():
        raise Unusable("holds characters that no HTTP header may hold", "write plain ASCII such as beta")
    return header


def read_path(value: object) -> Path:
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path.strip() or "\0" in path:
        raise Unusable("is no path", "write the path of a file, as text")
    try:
        return Path(path.strip()).expanduser()
    except RuntimeError:
        raise Unusable("begins with a home folder (~) that is not known", "write an absolute path") from None


def read_seconds(value: object) -> float:
    seconds = math.nan
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except (ValueError, OverflowError):
            seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0:
        raise Unusable("is no finite number from 0 up", "write seconds, such as 5, or 0 for no wait")
    return seconds


def read_switch(value: object) -> bool:
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    answer = WORDS.get(value.strip().lower()) if isinstance(value, str) else None
    if answer is None:
        raise Unusable("is neither on nor off", "write one of 1/true/yes/on or 0/false/no/off")
    return answer


def read_names(value: object) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise Unusable("is no list of names", "write modules' names, separated by commas")
    return tuple(name.strip() for name in names if name.strip())


def parsed_uri(base_uri: str) -> re.Match[str] | None:
    parsed = _BASE_URI.fullmatch(base_uri)
    if parsed is None or not 0 < int(parsed["port"] or 1) < 65536:
        return None
    if parsed["host"].startswith("["):
        import ipaddress

        try:
            ipaddress.IPv6Address(parsed["host"][1:-1])
        except ValueError:
            return None
    return parsed


def is_loopback(base_uri: str) -> bool:
    """Return whether the host of ``base_uri`` is plainly this machine: ``localhost``, 127.0.0.0/8 or ``[::1]``.

    What some resolver might read as something else (``localhost.``, ``127.1``, ``2130706433``, anything with an ``@``)
    is not. Never raises.
    """
    import ipaddress

    parsed = parsed_uri(base_uri)
    host = parsed["host"].lower().strip("[]") if parsed is not None else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address in ipaddress.ip_network("127.0.0.0/8") or address == ipaddress.ip_address("::1")


def without_user(text: str) -> str:
    """Return what may be kept of a base URI that is none: no user, password or query; nothing where in doubt."""
    rough = re.match(r"([A-Za-z][A-Za-z0-9+.-]*://)?([^/?#]*)([^?#]*)", text)
    scheme, authority, path = rough.groups(default="") if rough is not None else ("", "", "")
    if "@" in text[len(scheme) + len(authority) :]:  # perhaps a password with a slash in it
        return UNUSABLE_URI
    if "@" in authority and scheme.lower() not in ("", "http://", "https://"):  # perhaps it ends in the middle of one
        return UNUSABLE_URI
    kept = re.sub("[^!-~]", "?", scheme + authority.rpartition("@")[2] + path)
    return kept.rstrip("/") or UNUSABLE_URI
