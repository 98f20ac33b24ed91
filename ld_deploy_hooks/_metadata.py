"""Metadata made fit to travel: JSON values only, no secret in them, no more than the service should get.

In this order: :func:`jsonable`, :func:`redact`, :func:`fit`. A secret that was cut in two could not be found any more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ld_deploy_hooks._outside import is_from_outside

__all__ = ["fit", "jsonable", "redact"]

# LaunchDarkly documents no limit for metadata; 8 KiB is what we keep to.
_LIMIT = 8192
# How many containers may lie in one another.
_DEEPEST = 50
# How many values are looked at before further containers are only named: nothing of that size fits anyway, and those
# that share their content (a = [b, b]; b = [c, c]; …) would otherwise take for ever.
_MOST_VALUES = 100_000
_SHORTEST_SECRET = 6

_encode = json.JSONEncoder(separators=(",", ":")).encode


def jsonable(value: object) -> Any:
    """Return a fresh copy of ``value`` that holds JSON values only; what is no JSON value is told as its type's name.

    Subclasses and enum members become their plain base, tuples lists, keys strings (as the json module writes them).
    Told as their type's name too: floats that are not finite, whole numbers that no double holds, and containers that
    hold themselves, lie deeper than 50 or come after 100,000 values. Lone surrogates become U+FFFD. Nothing that the
    value's own methods raise gets out.
    """
    return _Copier().copy(value, 0)


class _Copier:
    def __init__(self) -> None:
        self._around: set[int] = set()
        self._left = _MOST_VALUES

    def copy(self, value: object, depth: int) -> Any:
        container = _container(value)
        if container is None:
            return _scalar(value)
        if depth >= _DEEPEST or id(value) in self._around or self._left <= 0:
            return _type_name(value)
        is_mapping, read = container
        self._around.add(id(value))
        try:
            # Read all at once, so that another thread may go on writing to the container.
            items = read()
            self._left -= len(items)
            if is_mapping:
                return {_key(key): self.copy(item, depth + 1) for key, item in items}
            return [self.copy(item, depth + 1) for item in items]
        except BaseException as error:
            if is_from_outside(error):
                raise
            return _type_name(value)
        finally:
            self._around.discard(id(value))


def _container(value: Any) -> tuple[bool, Callable[[], list[Any]]] | None:
    """Return whether a container is a mapping, and what reads its items; None for what is no container."""
    # By the real type and with its base's methods: isinstance() asks ``__class__``, and a subclass overrides anything.
    kind = type(value)
    if issubclass(kind, dict):
        return True, lambda: list(dict.items(value))
    if issubclass(kind, list):
        return False, lambda: list(list.__iter__(value))
    if issubclass(kind, tuple):
        return False, lambda: list(tuple.__iter__(value))
    try:
        if not isinstance(value, Mapping) and not _is_invoke_data(kind):
            return None
    except BaseException as error:
        if is_from_outside(error):
            raise
        return None
    # A mapping may make its keys up as it goes, without an end.
    return True, lambda: [(key, value[key]) for key in islice(iter(value), _MOST_VALUES)]


def _is_invoke_data(kind: type) -> bool:
    # What Invoke wraps every nested dict of its configuration in; it is registered as no Mapping. Its subclasses Config
    # and Context stay out: they hold sudo's password.
    return kind.__name__ == "DataProxy" and kind.__module__ == "invoke.config"


def _scalar(value: Any) -> bool | int | float | str | None:
    kind = type(value)
    if value is None or kind is bool:
        return value  # type: ignore[no-any-return]
    if issubclass(kind, str):
        return _well_formed(str.__str__(value))
    if issubclass(kind, int):
        number = int.__int__(value)
        try:
            float(number)
        except OverflowError:
            return "int"
        return number
    if issubclass(kind, float):
        real = float.__float__(value)
        return real if math.isfinite(real) else "float"
    return _type_name(value)


def _key(key: object) -> str:
    plain = _scalar(key)
    return plain if isinstance(plain, str) else _encode(plain)


def _type_name(value: object) -> str:
    try:
        return _well_formed(str.__str__(type(value).__name__))
    except BaseException as error:  # a metaclass, too, overrides what it likes
        if is_from_outside(error):
            raise
        return "object"


def _well_formed(text: str) -> str:
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def redact(value: Any, secret: str) -> Any:
    """Return a JSON value in which every string (keys too) has ``secret`` replaced by ``[redacted]``.

    A secret of fewer than 6 characters is left alone: it would be found in the middle of ordinary words, and one that
    short protects nothing.
    """
    if len(secret) < _SHORTEST_SECRET:
        return value
    if isinstance(value, str):
        return value.replace(secret, "[redacted]")
    if isinstance(value, dict):
        return {redact(key, secret): redact(item, secret) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item, secret) for item in value]
    return value


_NAMES = ("eventMetadata", "deploymentMetadata")
# Of eventMetadata: what tells events apart, and why a deployment failed. Ours, and small.
_RESERVED = frozenset({"source", "eventId", "task", "durationMs", "reason", "exitCode", "error"})
# Bytes that every value may keep, as long as it is not dropped whole.
_FLOOR = 64
_LONGEST_KEY = 256
# Of the limit, how much plugins' values may take before they are cut for the sake of the user's: one part in eight.
_PLUGINS_SHARE = 8
_ELLIPSIS = "…"


# Whose a value is, in the order in which values are cut.
_USERS, _PLUGINS, _OURS = range(3)


@dataclass(eq=False, repr=False)
class _Entry:
    """One key of the mappings that have to fit together."""

    mapping: int
    key: str
    value: Any
    owner: int
    reserved: bool
    key_size: int
    size: int
    cut: bool = False
    dropped: bool = False

    @property
    def total(self) -> int:
        """Bytes with the colon and the comma."""
        return self.key_size + self.size + 2


def fit(
    event_metadata: Mapping[str, Any],
    deployment_metadata: Mapping[str, Any],
    *,
    users: tuple[Set[str], Set[str]],
    plugins: tuple[Set[str], Set[str]] = (frozenset(), frozenset()),
    limit: int = _LIMIT,
) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """Return both metadata, of at most ``limit`` bytes together as compact JSON, and what was cut for that.

    What plugins add beyond an eighth of ``limit`` is cut first. Then the user's values are, then what is left of
    plugins', then ours. Of each the largest are cut first, and no more than is needed: a text keeps its beginning,
    anything else becomes ``[cut: 12345 bytes]``. If it is too much even so, entries are dropped, the smallest first.
    Reserved keys of eventMetadata are never dropped, and never cut either while their values are ours: with endless
    ones alone the answer can be larger than ``limit``.

    Args:
        event_metadata: JSON values, as :func:`jsonable` returns them.
        deployment_metadata: likewise.
        users: the top-level keys that come from the user, of the first and of the second.
        plugins: those whose values come from plugins, whoever had them before.
        limit: in bytes.

    Returns:
        The two, in their order, and the names of what was cut or dropped, such as ``deploymentMetadata.notes``.
    """
    before = (dict(event_metadata), dict(deployment_metadata))
    if sum(len(_encode(mapping)) for mapping in before) <= limit:
        return *before, ()
    entries = [
        _Entry(
            mapping=index,
            key=key,
            value=value,
            owner=_PLUGINS if key in plugins[index] else _USERS if key in users[index] else _OURS,
            reserved=index == 0 and key in _RESERVED,
            key_size=len(_encode(key)),
            size=len(_encode(value)),
        )
        for index, mapping in enumerate(before)
        for key, value in mapping.items()
    ]
    over = sum(entry.total for entry in entries) + len("{}{}") - limit
    of_users, of_plugins, ours = ([entry for entry in entries if entry.owner == owner] for owner in range(3))
    beyond = min(over, sum(entry.total for entry in of_plugins) - limit // _PLUGINS_SHARE)
    over += _reduce(of_plugins, beyond) - beyond
    for group in (of_users, of_plugins, ours):
        over = _reduce(group, over)
    after: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for entry in entries:
        if not entry.dropped:
            after[entry.mapping][entry.key] = entry.value
    return *after, tuple(f"{_NAMES[entry.mapping]}.{entry.key}" for entry in entries if entry.cut or entry.dropped)


def _reduce(entries: Iterable[_Entry], over: int) -> int:
    """Cut values, then drop entries, until nothing is over; return what is over then."""
    kept = [entry for entry in entries if not entry.dropped]
    over = _shorten((entry for entry in kept if entry.owner != _OURS or not entry.reserved), over)
    return _drop((entry for entry in kept if not entry.reserved), over)


def _shorten(entries: Iterable[_Entry], over: int) -> int:
    """Cut the largest values, one after the other, until nothing is over; return what is over then."""
    large = [entry for entry in entries if entry.size > _FLOOR]
    for entry in sorted(large, key=lambda entry: -entry.size):
        if over <= 0:
            break
        before = entry.size
        if isinstance(entry.value, str):
            entry.value = _beginning(entry.value, max(before - over, _FLOOR))
        else:
            entry.value = f"[cut: {before} bytes]"
        entry.size = len(_encode(entry.value))
        entry.cut = True
        over -= before - entry.size
    return over


def _drop(entries: Iterable[_Entry], over: int) -> int:
    """Drop entries, endless keys first, then the smallest, until nothing is over; return what is over then."""
    for entry in sorted(entries, key=lambda entry: (entry.key_size <= _LONGEST_KEY, entry.total)):
        if over <= 0:
            break
        entry.dropped = True
        over -= entry.total
    return over


def _beginning(text: str, room: int) -> str:
    """Return as much of the beginning of ``text`` as takes ``room`` bytes, with an ellipsis at its end."""
    low, high = 0, room
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(_encode(text[:middle] + _ELLIPSIS)) <= room else (low, middle - 1)
    return text[:low] + _ELLIPSIS
