"""What plugins do to what they are given stays with them."""

from __future__ import annotations

import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest

from ld_deploy_hooks._own import own
from ld_deploy_hooks._records import DeploymentEvent, DeploymentRecord, EventType, Identity

IDENTITY = Identity("default", "production", "billing", "a90a8a2")
METADATA = {"nested": {"x": "mine", "list": [1, {"y": 2}]}}
EVENT = DeploymentEvent(
    event_type=EventType.STARTED,
    event_time=1,
    event_metadata=METADATA,
    deployment_metadata=METADATA,
    **IDENTITY._asdict(),
)
RECORD = DeploymentRecord(id="one", identity=IDENTITY, state="started", metadata=METADATA)


@pytest.mark.parametrize(
    ("given", "metadata"),
    [
        (EVENT, lambda event: (event.event_metadata, event.deployment_metadata)),
        (RECORD, lambda record: (record.metadata,)),
        (MappingProxyType(METADATA), lambda metadata: (metadata,)),
    ],
    ids=["event", "record", "metadata"],
)
def test_metadata_is_a_copy_all_the_way_down(given: object, metadata: Callable[[Any], tuple[Any, ...]]) -> None:
    mine = own({"it": given})["it"]
    assert mine == given
    for theirs in metadata(mine):
        theirs["nested"]["x"] = "spoilt"
        theirs["nested"]["list"][1]["y"] = "spoilt"
        with pytest.raises(TypeError):
            theirs["more"] = "spoilt"
    assert METADATA == {"nested": {"x": "mine", "list": [1, {"y": 2}]}}


@pytest.mark.parametrize("given", [None, "400: no", 7])
def test_what_nobody_can_change_is_what_it_was(given: object) -> None:
    assert own({"it": given})["it"] is given


# What code of the following class has run.
ran: list[str] = []


class Picky(Exception):
    """It can be made by its own arguments only, and not twice."""

    __slots__ = ("slot",)

    def __new__(cls, *, host: str) -> Picky:
        ran.append(cls.__name__)
        return super().__new__(cls)

    def __init__(self, *, host: str) -> None:
        super().__init__("picky", host)
        vars(self)["host"] = host
        Picky.slot.__set__(self, [host])  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: object) -> None:
        ran.append(name)
        super().__setattr__(name, value)


class Answered(OSError):
    """As those of many a client: of its own arguments, of which OSError hears nothing."""

    def __init__(self, response: object) -> None:
        super().__init__("no answer")
        self.response = response


class Both(ValueError, OSError):
    """Laid out as an OSError, which is not the nearest of its bases."""


def undecodable() -> UnicodeDecodeError:
    return UnicodeDecodeError("utf-8", b"\xff" * 2000, 1000, 1001, "no")


ERRORS: list[Callable[[], BaseException]] = [
    lambda: ValueError("a", 1),
    lambda: KeyError("key"),
    lambda: SystemExit(3),
    lambda: KeyboardInterrupt(),
    lambda: StopIteration("value"),
    lambda: OSError("text alone"),
    lambda: FileNotFoundError(2, "No such file", "here", None, "there"),
    lambda: ImportError("no", name="module", path="/there"),
    lambda: SyntaxError("no", ("file.py", 3, 4, "a b")),
    undecodable,
    lambda: subprocess.CalledProcessError(3, ["deploy"], b"out", b"err"),
    lambda: Picky(host="web1"),
    lambda: Answered({"status": 500}),
    lambda: Both(13, "denied"),
]


def raised(error: BaseException) -> BaseException:
    """Raise ``error`` as a deploy does, because of another and while handling a third."""
    try:
        try:
            raise KeyError("context")
        except KeyError:
            raise error from LookupError("cause")
    except BaseException as caught:
        vars(caught)["__notes__"] = ["a note"]
        return caught


def picture(error: BaseException) -> tuple[object, ...]:
    """Return all that can be seen of an exception."""
    fields = {
        name: getattr(error, name, "not set")
        for name in dir(error)
        if not name.startswith("__") and not callable(getattr(error, name, None))
    }
    steps = [(step.filename, step.lineno) for step in traceback.extract_tb(error.__traceback__)]
    behind = (error.__cause__, error.__context__, error.__suppress_context__, list(vars(error)["__notes__"]))
    return type(error), str(error), repr(error), error.args, dict(vars(error)), fields, steps, *behind


def misuse(error: BaseException) -> None:
    """Do what a plugin may do with an exception."""
    try:
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            raise error from None
    except BaseException as caught:
        vars(caught)["__notes__"].append("more")
        caught.args = ()
        vars(caught)["mark"] = True
        caught.__context__ = None


@pytest.mark.parametrize("make", ERRORS, ids=lambda make: type(make()).__name__)
def test_an_exception_is_a_twin(make: Callable[[], BaseException]) -> None:
    error = raised(make())
    before = picture(error)
    ran.clear()
    twin = own({"error": error})["error"]
    assert isinstance(twin, BaseException)
    assert twin is not error
    assert picture(twin) == before
    assert ran == []
    misuse(twin)
    assert picture(error) == before


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no exception groups here")
def test_what_has_no_twin_is_given_itself() -> None:
    group = ExceptionGroup("hosts", [ValueError("web1")])  # noqa: F821  # ruff goes by Python 3.10
    twin: Any = own({"error": group})["error"]
    assert twin is not group
    assert twin.exceptions == group.exceptions
    group.args = ()
    assert own({"error": group})["error"] is group


def test_a_copy_keeps_all_else() -> None:
    event = replace(EVENT, application_name="Billing", application_kind="server", version_name="A")
    record = replace(RECORD, hosts=("web1",), reason="error", detail="d", error_type="E", custom_at=3)
    assert own({"event": event, "deployment": record}) == {"event": event, "deployment": record}
