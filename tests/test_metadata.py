"""Metadata: only JSON travels, no secret, and no more than fits."""

from __future__ import annotations

import datetime
import decimal
import enum
import json
import math
import sys
import threading
import time
import types
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ld_deploy_hooks._metadata import fit, jsonable, redact

texts = st.text(max_size=20)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4))


def size_of(*parts: object) -> int:
    return sum(len(json.dumps(part, separators=(",", ":")).encode()) for part in parts)


# -- jsonable ---------------------------------------------------------------------------------------------------------


@given(values)
def test_json_values_stay_as_they_are(value: Any) -> None:
    assert json.dumps(jsonable(value)) == json.dumps(value)


@given(values)
def test_a_copy_shares_nothing_that_can_change(value: Any) -> None:
    def containers(part: Any) -> Iterator[Any]:
        if isinstance(part, (dict, list)):
            yield part
            for item in part.values() if isinstance(part, dict) else part:
                yield from containers(item)

    assert {id(part) for part in containers(value)}.isdisjoint(id(part) for part in containers(jsonable(value)))


class Color(str, enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Ratio(float, enum.Enum):
    HALF = 0.5


class Plain(enum.Enum):
    RED = "red"


class Loud(str):
    def __str__(self) -> str:
        return "LOUD"


class Sum(int):
    def __int__(self) -> int:
        return 99


class Half(float):
    def __float__(self) -> float:
        return 99.0


class Lazy(list):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError("secret")


class Shy(dict):  # type: ignore[type-arg]
    def items(self) -> Any:
        raise RuntimeError("secret")

    __iter__ = keys = items


Point = namedtuple("Point", ["x", "y"])
huge = 10**400


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (Color.RED, "red"),
        (Level.HIGH, 3),
        (Ratio.HALF, 0.5),
        (Loud("quiet"), "quiet"),
        (Sum(1), 1),
        (Half(0.5), 0.5),
        (Lazy([1]), [1]),
        (Shy(a=1), {"a": 1}),
        (Point(1, (2, [3])), [1, [2, [3]]]),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (defaultdict(list, a=[1]), {"a": [1]}),
        (types.MappingProxyType({"a": {1: 2}}), {"a": {"1": 2}}),
        (UserDict(a=1), {"a": 1}),
        (
            {1: 1, 2.5: 2, False: 3, None: 4, Color.RED: 5, (1, 2): 6, huge: 7, math.nan: 8},
            {"1": 1, "2.5": 2, "false": 3, "null": 4, "red": 5, "tuple": 6, "int": 7, "float": 8},
        ),
        (Plain.RED, "Plain"),
        (datetime.datetime(2020, 1, 1), "datetime"),
        (decimal.Decimal("1.5"), "Decimal"),
        (b"bytes", "bytes"),
        ({1, 2}, "set"),
        (PurePosixPath("/secret"), "PurePosixPath"),
        (ValueError("secret"), "ValueError"),
        (int, "type"),
        (range(3), "range"),
        ((number for number in [1]), "generator"),
        (math.nan, "float"),
        (math.inf, "float"),
        (Half("-inf"), "float"),
        (huge, "int"),
        (-huge, "int"),
        (2**1023, 2**1023),
        (-(2**63), -(2**63)),
        (True, True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_json_is_told_as_its_type(value: Any, told: Any) -> None:
    answer = jsonable(value)
    assert answer == told
    assert type(answer) is type(told)
    assert jsonable([value]) == [told]
    assert jsonable({"key": value}) == {"key": told}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\ud800", "\ufffd"),
        ("a\udfffb", "a\ufffdb"),
        ("\udc00\ud800", "\ufffd\ufffd"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\ufeffü\U0001f600", "\ufeffü\U0001f600"),
    ],
)
def test_lone_surrogates_are_replaced(text: str, told: str) -> None:
    assert jsonable({text: [text]}) == {told: [told]}


def test_cycles_are_cut() -> None:
    around: dict[str, Any] = {"name": "x"}
    around["self"] = around
    around["list"] = ring = [1]
    ring.append(ring)  # type: ignore[arg-type]
    ring.append((around,))  # type: ignore[arg-type]
    assert jsonable(around) == {"name": "x", "self": "dict", "list": [1, "list", ["dict"]]}


def test_what_is_shared_is_no_cycle() -> None:
    shared = {"a": 1}
    assert jsonable([shared, shared, (shared,)]) == [{"a": 1}, {"a": 1}, [{"a": 1}]]


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: {"k": inner}, lambda inner: (inner,)])
def test_deep_nesting_is_cut(wrap: Callable[[Any], Any]) -> None:
    value: Any = "heart"
    for _ in range(50):
        value = wrap(value)
    assert "heart" in json.dumps(jsonable(value))
    for deeper in (1, 200, 5000):
        for _ in range(deeper):
            value = wrap(value)
        told = json.dumps(jsonable(value))
        assert "heart" not in told
        assert type(value).__name__ in told


def test_containers_that_share_their_content_do_not_explode() -> None:
    value: Any = [1]
    for _ in range(49):
        value = [value, value]
    started = time.monotonic()
    told = json.dumps(jsonable({"bomb": value, "wide": [list(range(10_000))] * 10_000, "name": "x"}))
    assert time.monotonic() - started < 10
    assert '"list"' in told
    assert json.loads(told)["name"] == "x"


class Meta(type):
    @property
    def __name__(cls) -> str:  # type: ignore[misc]
        raise RuntimeError("secret")


class Nameless(metaclass=Meta):
    pass


class Liar:
    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("secret")


class Pretender:
    __class__ = dict  # type: ignore[assignment]


class Everything:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("secret")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("secret")

    def __hash__(self) -> int:
        return id(self)

    def __bool__(self) -> bool:
        raise RuntimeError("secret")

    def __repr__(self) -> str:
        raise RuntimeError("secret")

    __str__ = __repr__


class Broken(Mapping[str, Any]):
    __hash__ = object.__hash__

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getitem__(self, key: str) -> Any:
        raise self.error

    def __iter__(self) -> Iterator[str]:
        return iter(["key"])

    def __len__(self) -> int:
        raise self.error


class Endless(Broken):
    def __getitem__(self, key: str) -> Any:
        return key

    def __iter__(self) -> Iterator[str]:
        number = 0
        while True:
            yield str(number)
            number += 1


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (Nameless(), "object"),
        (Liar(), "Liar"),
        (Pretender(), "Pretender"),
        (Everything(), "Everything"),
        (Broken(KeyError("secret")), "Broken"),
        (Broken(RecursionError()), "Broken"),
    ],
    ids=lambda value: type(value).__name__ if type(value) is not Nameless else "Nameless",
)
def test_nothing_that_a_value_raises_gets_out(value: Any, told: str) -> None:
    assert jsonable(value) == told
    assert jsonable({"key": [value, 1]}) == {"key": [told, 1]}
    assert jsonable({Everything(): value}) == {"Everything": told}


def test_a_mapping_without_an_end_comes_to_one() -> None:
    assert 0 < len(jsonable(Endless(KeyError()))) <= 100_000


def test_the_configuration_of_invoke_is_a_mapping_and_its_passwords_stay() -> None:
    config = pytest.importorskip("invoke.config")
    context = pytest.importorskip("invoke.context")
    data = config.DataProxy.from_data({"team": "web", "limits": {"cpu": 2}})
    assert jsonable(data) == {"team": "web", "limits": {"cpu": 2}}
    secret = config.Config(overrides={"sudo": {"password": "secret"}, "team": "web"})
    assert jsonable({"config": secret, "context": context.Context(secret)}) == {
        "config": "Config",
        "context": "Context",
    }
    assert jsonable(secret.sudo) == {**jsonable(secret.sudo), "password": "secret"}  # asked for by name


def test_another_thread_may_go_on_writing() -> None:
    value: dict[str, Any] = {"key": {str(number): [number] for number in range(200)}}
    done = threading.Event()

    def write() -> None:
        number = 0
        while not done.is_set():
            number += 1
            value["key"][f"more{number % 50}"] = number
            value["key"].pop(f"more{(number + 25) % 50}", None)

    writer = threading.Thread(target=write)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    writer.start()
    try:
        answers = [jsonable(value) for _ in range(100)]
    finally:
        sys.setswitchinterval(interval)
        done.set()
        writer.join()
    assert {type(answer["key"]) for answer in answers} == {dict}


# By number: Hypothesis would ask these for their repr.
ODD = [
    math.nan,
    math.inf,
    huge,
    b"x",
    {1},
    Color.RED,
    Plain.RED,
    "\ud800",
    Everything(),
    Liar(),
    Nameless(),
    Broken(KeyError()),
]
odd = st.integers(0, len(ODD) - 1).map(lambda number: ODD[number])
leaves = scalars | odd | st.text(st.characters(min_codepoint=0xD7F0, max_codepoint=0xE010))


@given(
    st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner)
            | st.tuples(inner, inner)
            | st.lists(st.tuples(leaves, inner)).map(
                lambda items: {key: item for key, item in items if key is not ODD[4]}
            )
            | st.dictionaries(texts, inner).map(UserDict)
        ),
    )
)
def test_whatever_comes_is_json_afterwards(value: Any) -> None:
    told = jsonable(value)
    written = json.dumps(told, allow_nan=False)
    written.encode()
    json.dumps(told, ensure_ascii=False).encode()
    assert jsonable(told) == told
    assert json.loads(written) == told


# -- redact -----------------------------------------------------------------------------------------------------------

SECRET = "api-1234"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (SECRET, "[redacted]"),
        (f"{SECRET}{SECRET} x {SECRET}", "[redacted][redacted] x [redacted]"),
        ({f"a {SECRET}": [f"b {SECRET}", {"c": SECRET}]}, {"a [redacted]": ["b [redacted]", {"c": "[redacted]"}]}),
        ((SECRET, 1), ["[redacted]", 1]),
        (SECRET.upper(), SECRET.upper()),
        (None, None),
        ({"a": [1, 2.5, True, None]}, {"a": [1, 2.5, True, None]}),
    ],
)
def test_a_secret_is_replaced_wherever_it_is(value: Any, told: Any) -> None:
    assert redact(value, SECRET) == told


@pytest.mark.parametrize("secret", ["", "a", "prod", "deplo"])
def test_a_short_secret_is_left_alone(secret: str) -> None:
    assert redact({"deploy": "prod", "a": ["deploys"]}, secret) == {"deploy": "prod", "a": ["deploys"]}


def test_six_characters_are_a_secret() -> None:
    assert redact("a deploy", "deploy") == "a [redacted]"


@given(values, st.text("abc-123", min_size=6, max_size=9), st.data())
def test_no_string_holds_the_secret_afterwards(value: Any, secret: str, data: st.DataObject) -> None:
    place = data.draw(
        st.sampled_from([lambda v: {secret + "x": v}, lambda v: [v, f"x{secret}"], lambda v: {"k": [v, secret]}])
    )

    def strings(part: Any) -> Iterator[str]:
        if isinstance(part, str):
            yield part
        for item in [*part, *part.values()] if isinstance(part, dict) else part if isinstance(part, list) else ():
            yield from strings(item)

    told = redact(place(value), secret)
    assert not any(secret in text for text in strings(told))
    assert any("[redacted]" in text for text in strings(told))


# -- fit --------------------------------------------------------------------------------------------------------------

OURS = {"source": "ld-deploy-hooks/1.0", "eventId": "0f9f9d4c-55c3-4d26-a6fa-7f1e4b0b0f3e", "task": "deploy"}


def fitted(
    users: dict[str, Any],
    ours: dict[str, Any] | None = None,
    limit: int = 8192,
    plugins: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return what becomes of deploymentMetadata beside a usual eventMetadata."""
    deployment = {**(ours or {}), **(plugins or {}), **users}
    event, deployment, cut = fit(
        OURS, deployment, users=(set(), set(users)), plugins=(set(), set(plugins or {})), limit=limit
    )
    assert event == OURS
    assert size_of(event, deployment) <= limit
    return deployment, cut


def test_what_fits_stays_as_it_is() -> None:
    users = {"notes": "x" * 7000, "tables": [1, 2]}
    assert fitted(users) == (users, ())


def test_the_last_byte_counts() -> None:
    room = 8192 - size_of(OURS, {"notes": ""})
    assert fitted({"notes": "x" * room}) == ({"notes": "x" * room}, ())
    deployment, cut = fitted({"notes": "x" * (room + 1)})
    assert cut == ("deploymentMetadata.notes",)
    assert len(deployment["notes"]) > room - 20


def test_a_long_text_keeps_its_beginning() -> None:
    users = {"notes": "".join(str(number) for number in range(9000)), "team": "web"}
    deployment, cut = fitted(users)
    assert cut == ("deploymentMetadata.notes",)
    assert deployment["team"] == "web"
    assert deployment["notes"].endswith("…")
    assert users["notes"].startswith(deployment["notes"][:-1])
    assert size_of(OURS, deployment) > 8192 - 10  # and no more was cut than had to be


@pytest.mark.parametrize("letter", ["ü", "\U0001f600", '"', "\\", "\0", "a\U0001f600\n"])
def test_what_a_letter_takes_on_the_wire_counts(letter: str) -> None:
    deployment, _ = fitted({"notes": letter * 9000})
    assert size_of(OURS, deployment) > 8192 - 30
    assert set(deployment["notes"]) <= {*letter, "…"}


@pytest.mark.parametrize("value", [list(range(3000)), {"k": "x" * 12_343}, [["x" * 9000]]])
def test_a_large_container_is_told_by_its_size(value: Any) -> None:
    deployment, cut = fitted({"rows": value, "team": "web"})
    assert deployment == {"rows": f"[cut: {size_of(value)} bytes]", "team": "web"}
    assert cut == ("deploymentMetadata.rows",)


def test_a_long_number_is_told_by_its_size() -> None:
    deployment, cut = fitted({"number": 10**300, "team": "web"}, limit=300)
    assert deployment == {"number": "[cut: 301 bytes]", "team": "web"}
    assert cut == ("deploymentMetadata.number",)


def test_the_largest_are_cut_first() -> None:
    users = {"small": "s" * 1000, "middle": "m" * 3000, "large": "l" * 5000}
    deployment, cut = fitted(users)
    assert cut == ("deploymentMetadata.large",)
    assert {key: deployment[key] for key in ("small", "middle")} == {key: users[key] for key in ("small", "middle")}
    deployment, cut = fitted(users, limit=2000)
    assert cut == ("deploymentMetadata.middle", "deploymentMetadata.large")  # in the order of the mapping
    assert len(deployment["large"]) < 64 < len(deployment["middle"])
    assert deployment["small"] == users["small"]


def test_what_is_ours_is_cut_last() -> None:
    ours = {"hosts": ["h" * 60] * 50, "hostCount": 50}
    deployment, cut = fitted({"notes": "n" * 6000, "team": "web"}, ours)
    assert deployment == {**ours, "notes": deployment["notes"], "team": "web"}
    assert cut == ("deploymentMetadata.notes",)
    deployment, cut = fitted({"notes": "n" * 3000}, ours, limit=2000)
    assert deployment == {"hosts": f"[cut: {size_of(ours['hosts'])} bytes]", "hostCount": 50}
    assert cut == ("deploymentMetadata.hosts", "deploymentMetadata.notes")


BUILT_IN = {"commit": "c" * 40, "branch": "main", "runUrl": "https://ci.example/" + "u" * 100}


@pytest.mark.parametrize(
    "large",
    [{"blob": "b" * 20_000}, {"rows": list(range(5000))}, {f"key{number}": "k" * 50 for number in range(400)}],
    ids=["a text", "a container", "many small ones"],
)
def test_what_plugins_have_too_much_goes_before_anything_of_the_users(large: dict[str, Any]) -> None:
    users = {"team": "web", "ticket": "SHOP-1", "notes": "n" * 6500}
    deployment, cut = fitted(users, plugins={**large, **BUILT_IN})
    assert users.items() <= deployment.items()
    assert {name.removeprefix("deploymentMetadata.") for name in cut} <= {*large, *BUILT_IN}
    if len(large) == 1:
        assert deployment.items() >= BUILT_IN.items()


def test_what_plugins_have_of_the_usual_size_stays_whole() -> None:
    users = {"team": "web", "notes": "n" * 9000}
    deployment, cut = fitted(users, plugins=BUILT_IN)
    assert deployment == {**BUILT_IN, "team": "web", "notes": deployment["notes"]}
    assert cut == ("deploymentMetadata.notes",)


def test_where_both_have_too_much_the_users_have_most_of_the_room() -> None:
    deployment, cut = fitted({"team": "web", "notes": "n" * 9000}, plugins={"blob": "b" * 9000, "region": "eu"})
    assert cut == ("deploymentMetadata.blob", "deploymentMetadata.notes")
    assert (deployment["team"], deployment["region"]) == ("web", "eu")
    assert 900 < len(deployment["blob"]) < 1024
    assert size_of(OURS, deployment) > 8192 - 10


def test_a_reserved_key_that_a_plugin_has_changed_is_cut() -> None:
    event, deployment, cut = fit(
        {**OURS, "task": "t" * 9000}, {"notes": "n" * 6000}, users=(set(), {"notes"}), plugins=({"task"}, set())
    )
    assert (event["source"], event["eventId"], deployment) == (OURS["source"], OURS["eventId"], {"notes": "n" * 6000})
    assert event["task"].startswith("ttt")
    assert cut == ("eventMetadata.task",)
    assert size_of(event, deployment) <= 8192


def test_the_smallest_of_very_many_are_dropped() -> None:
    users = {f"key{number:05}": number for number in range(2000)} | {"notes": "n" * 5000, "team": "the team of the web"}
    deployment, cut = fitted(users)
    assert deployment["team"] == users["team"]
    assert deployment["notes"].startswith("nnn")
    kept = [key for key in users if key in deployment]
    assert list(deployment) == kept
    assert set(cut) == {f"deploymentMetadata.{key}" for key in users if key not in kept or key == "notes"}
    assert "key01999" in deployment
    assert "key00000" not in deployment
    assert size_of(OURS, deployment) > 8192 - 100


def test_an_endless_key_goes_before_the_small_ones() -> None:
    deployment, cut = fitted({"a": 1, "k" * 9000: 2, "b": 3})
    assert deployment == {"a": 1, "b": 3}
    assert cut == (f"deploymentMetadata.{'k' * 9000}",)


def test_what_is_reserved_is_never_cut() -> None:
    ours = {**OURS, "reason": "error", "error": "E" * 500, "exitCode": 1, "durationMs": 10**15, "detail": "d" * 9000}
    event, deployment, cut = fit(ours, {"notes": "n" * 9000, "error": "x" * 9000}, users=(set(), {"notes"}), limit=1000)
    assert {key: event[key] for key in ours if key != "detail"} == {key: ours[key] for key in ours if key != "detail"}
    assert set(cut) == {"eventMetadata.detail", "deploymentMetadata.notes", "deploymentMetadata.error"}
    assert size_of(event, deployment) <= 1000


def test_reserved_keys_alone_may_be_too_much() -> None:
    ours = {**OURS, "task": "t" * 500}
    assert fit(ours, {"notes": "n"}, users=(set(), {"notes"}), limit=100) == (ours, {}, ("deploymentMetadata.notes",))


def test_a_reserved_key_of_the_users_own_is_cut_but_not_dropped() -> None:
    event, deployment, cut = fit(
        {**OURS, "reason": "r" * 9000}, {"notes": 1}, users=({*OURS, "reason"}, {"notes"}), limit=300
    )
    assert {key: event[key] for key in OURS} == OURS
    assert event["reason"].startswith("rrr")
    assert cut == ("eventMetadata.reason",)
    assert deployment == {"notes": 1}


def test_the_mappings_that_come_in_stay_as_they_are() -> None:
    users = {"notes": "n" * 9000}
    event, deployment, _ = fit(types.MappingProxyType(OURS), types.MappingProxyType(users), users=(set(), {"notes"}))
    assert len(users["notes"]) == 9000
    event["more"] = deployment["more"] = 1
    assert "more" not in {**OURS, **users}


def test_a_hundred_thousand_keys_take_no_time_to_speak_of() -> None:
    users = {f"key{number}": "x" * (number % 200) for number in range(100_000)}
    started = time.monotonic()
    fitted(users)
    assert time.monotonic() - started < 20  # what is quadratic takes minutes


users_values = st.dictionaries(st.text(max_size=30), values | st.text(max_size=400), max_size=8)


@given(
    users=st.tuples(users_values, users_values),
    ours=st.tuples(users_values, users_values),
    plugins=st.tuples(users_values, users_values),
    limit=st.integers(min_value=size_of(OURS) + 2, max_value=2500),
)
def test_it_fits_and_says_what_it_took(
    users: tuple[dict[str, Any], dict[str, Any]],
    ours: tuple[dict[str, Any], dict[str, Any]],
    plugins: tuple[dict[str, Any], dict[str, Any]],
    limit: int,
) -> None:
    for mapping in (*users, *ours, *plugins):
        for reserved in ("source", "eventId", "task", "durationMs", "reason", "exitCode", "error"):
            mapping.pop(reserved, None)
    before = ({**OURS, **ours[0], **plugins[0], **users[0]}, {**ours[1], **plugins[1], **users[1]})
    of_users = (set(users[0]), set(users[1]))
    of_plugins = (set(plugins[0]) - of_users[0], set(plugins[1]) - of_users[1])
    *after, cut = fit(*before, users=of_users, plugins=of_plugins, limit=limit)
    assert fit(*before, users=of_users, plugins=of_plugins, limit=limit) == (*after, cut)

    assert size_of(*after) <= limit
    assert bool(cut) == (size_of(*before) > limit)
    told = []
    users_left = any(set(part) & mine for part, mine in zip(after, of_users, strict=True))
    of_plugins_left = sum(
        size_of(key) + size_of(part[key]) + 2
        for part, mine in zip(after, of_plugins, strict=True)
        for key in mine & set(part)
    )
    names = ("eventMetadata", "deploymentMetadata")
    for name, was, now, mine, theirs in zip(names, before, after, of_users, of_plugins, strict=True):
        assert list(now) == [key for key in was if key in now]
        for key, value in was.items():
            if key not in now or json.dumps(now[key]) != json.dumps(value):
                told.append(f"{name}.{key}")
                if key in mine:
                    # the user's only when plugins have no more than their share
                    assert of_plugins_left <= limit // 8
                elif key not in theirs:
                    # ours only when nothing of the user's is left to take
                    assert not users_left
            if key in now and f"{name}.{key}" in cut:
                whole = value if isinstance(value, str) else f"[cut: {size_of(value)} bytes]…"
                assert now[key] == whole.removesuffix("…") or whole.startswith(now[key].removesuffix("…"))
                assert size_of(now[key]) < size_of(value)
    assert tuple(told) == cut
    assert OURS.items() <= after[0].items()
