"""The built-in plugin ``console``: one line on stderr when a deployment starts, and one when it ends."""

from __future__ import annotations

import io
import logging
import sys
from typing import Any

import pytest

from ld_deploy_hooks._plugins import Plugins
from ld_deploy_hooks._records import DeploymentRecord, Identity
from ld_deploy_hooks.plugins import console

IDENTITY = Identity("default", "production", "billing-service", "a90a8a2")
WHAT = "ld-deploy: billing-service a90a8a2 to production"


def record(**fields: Any) -> DeploymentRecord:
    return DeploymentRecord(**{"id": "one", "identity": IDENTITY, "state": "started", "started_at": 1_000, **fields})


def ended(milliseconds: int, **fields: Any) -> DeploymentRecord:
    return record(state="finished", ended_at=1_000 + milliseconds, **fields)


def test_a_start_is_one_line_on_stderr_alone(capsys: pytest.CaptureFixture[str]) -> None:
    console.ld_deploy_started(record())
    assert capsys.readouterr() == ("", f"{WHAT}: started\n")


@pytest.mark.parametrize(
    ("milliseconds", "duration"),
    [
        (-5, "0.0 s"),
        (0, "0.0 s"),
        (49, "0.0 s"),
        (450, "0.4 s"),
        (12_345, "12.3 s"),
        (59_999, "59.9 s"),
        (60_000, "1 min 0 s"),
        (252_999, "4 min 12 s"),
        (3_599_999, "59 min 59 s"),
        (3_600_000, "1 h 0 min"),
        (3_780_000, "1 h 3 min"),
        (93_600_000, "26 h 0 min"),
    ],
)
def test_an_end_says_how_long_it_took(milliseconds: int, duration: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.ld_deploy_finished(ended(milliseconds))
    console.ld_deploy_failed(ended(milliseconds))
    assert capsys.readouterr().err == f"{WHAT}: finished in {duration}\n{WHAT}: failed after {duration}\n"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, ""),
        ({"reason": "error", "error_type": "UnexpectedExit"}, " (error: UnexpectedExit)"),
        ({"reason": "error", "detail": "smoke test red"}, " (error: smoke test red)"),
        ({"reason": "error", "error_type": "E", "detail": "why"}, " (error: E, why)"),
        ({"reason": "killed"}, " (killed)"),
        ({"error_type": "E"}, " (E)"),
    ],
)
def test_a_failure_says_why(fields: dict[str, str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.ld_deploy_failed(ended(252_000, **fields))
    assert capsys.readouterr().err == f"{WHAT}: failed after 4 min 12 s{why}\n"


@pytest.mark.parametrize("fields", [{"started_at": None, "ended_at": 5}, {"ended_at": None}])
def test_without_both_times_there_is_no_duration(
    fields: dict[str, int | None], capsys: pytest.CaptureFixture[str]
) -> None:
    console.ld_deploy_finished(record(**fields))
    assert capsys.readouterr().err == f"{WHAT}: finished\n"


def test_names_for_people_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    console.ld_deploy_started(record(application_name="Billing", version_name="2024.7 (hotfix)"))
    assert capsys.readouterr().err == "ld-deploy: Billing 2024.7 (hotfix) to production: started\n"


def test_it_stays_one_line_that_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console.ld_deploy_failed(ended(0, application_name="a\r\nb", detail="\x1b[31mred\x1b[0m\n\ttwo\u2028three"))
    assert capsys.readouterr().err == (
        "ld-deploy: a b a90a8a2 to production: failed after 0.0 s ( [31mred [0m two three)\n"
    )


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, Broken(), closed(), io.TextIOWrapper(io.BytesIO(), "ascii"), object()])
def test_a_stderr_that_cannot_be_written_is_silent(
    stream: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(sys, "stderr", stream)
    console.ld_deploy_started(record(application_name="größer"))
    assert caplog.records == []


def test_stderr_is_looked_up_when_a_line_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = io.StringIO(), io.StringIO()
    for stream in streams:
        monkeypatch.setattr(sys, "stderr", stream)
        console.ld_deploy_started(record())
    assert [stream.getvalue() for stream in streams] == [f"{WHAT}: started\n"] * 2


def test_a_line_is_written_at_once_and_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    class Recording(io.StringIO):
        def write(self, text: str) -> int:
            calls.append(text)
            return len(text)

        def flush(self) -> None:
            calls.append("flush")

    calls: list[str] = []
    monkeypatch.setattr(sys, "stderr", Recording())
    console.ld_deploy_started(record())
    assert calls == [f"{WHAT}: started\n", "flush"]


def test_it_is_loaded_by_name_and_written_before_other_plugins_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    class Later:
        @console.hookimpl
        def ld_deploy_started(self, deployment: DeploymentRecord) -> None:
            sys.stderr.write("later\n")

    plugins = Plugins.load(autoload=False, builtin=("console",))
    plugins.register(Later(), "later", "this test")
    plugins.started(record())
    plugins.finished(ended(100))
    plugins.failed(ended(100), ValueError("s3cret"))
    assert plugins.flush(5)
    plugins.close()
    assert capsys.readouterr().err == (
        f"{WHAT}: started\nlater\n{WHAT}: finished in 0.1 s\n{WHAT}: failed after 0.1 s\n"
    )
