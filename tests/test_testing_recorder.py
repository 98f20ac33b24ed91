"""The recorder of the test kit: what a test's deployments tell, in memory, and why they did not."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import types
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from told import TOKEN, forget, script, settings

from ld_deploy_hooks import DropEvent, current_deployment, deployment, flush, hookimpl
from ld_deploy_hooks.cli import main
from ld_deploy_hooks.testing import FakeLaunchDarkly, RecordedEvents, record_deployments


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    forget()


@pytest.fixture
def events() -> Iterator[RecordedEvents]:
    with record_deployments() as events:
        yield events


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that makes hooks a plugin which the settings name."""

    def install(*hooks: Callable[..., Any]) -> None:
        module = types.ModuleType("plugin_of_a_test")
        for hook in hooks:
            setattr(module, hook.__name__, hookimpl(hook))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setenv("LD_DEPLOY_PLUGINS", module.__name__)

    return install


def kinds(events: RecordedEvents) -> list[str]:
    return [event.event_type.value for event in events]


# -- what is recorded -------------------------------------------------------------------------------------------------


def test_events_are_there_when_the_deploy_goes_on(events: RecordedEvents) -> None:
    assert events == []
    with deployment("billing", version="a90a8a2", metadata={"team": "payments"}) as d:
        assert kinds(events) == ["started"]
        d.custom(step="migrated")
        assert kinds(events) == ["started", "custom"]
    assert kinds(events) == ["started", "custom", "finished"]
    with pytest.raises(KeyError), deployment("web", version="1"):
        raise KeyError
    assert [event.application_key for event in events.started] == ["billing", "web"]
    assert [event.event_metadata["step"] for event in events.custom] == ["migrated"]
    assert [event.deployment_metadata for event in events.finished] == [{"team": "payments"}]
    assert [event.event_metadata["error"] for event in events.failed] == ["KeyError"]
    assert events.failed == [events.one("failed")] == [events.one("failed", application_key="web", version="1")]


def test_what_nobody_has_set_has_an_obvious_value(events: RecordedEvents, monkeypatch: pytest.MonkeyPatch) -> None:
    with deployment():
        pass
    with deployment("mine"):
        pass
    monkeypatch.setenv("LD_PROJECT", "theirs")
    with deployment("mine"):
        pass
    assert [event.identity for event in events.started] == [
        ("test-project", "test-environment", "test-application", "test-version"),
        ("test-project", "test-environment", "mine", "test-version"),
        ("theirs", "test-environment", "mine", "test-version"),
    ]
    assert events._lines == []


def test_threads_and_coroutines_are_recorded_and_join(events: RecordedEvents) -> None:
    def work() -> None:
        with pytest.raises(ValueError, match="no"), deployment("billing"):
            raise ValueError("no")

    async def coroutine() -> None:
        async with deployment("web"):
            await asyncio.sleep(0)

    with deployment("billing"):
        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
    alone = threading.Thread(target=asyncio.run, args=(coroutine(),))
    alone.start()
    alone.join()
    assert [f"{event.event_type} {event.application_key}" for event in events] == [
        "started billing",
        "failed billing",
        "started web",
        "finished web",
    ]


def test_plugins_have_been_told_when_the_deploy_goes_on(events: RecordedEvents, plugin: Callable[..., None]) -> None:
    told = []

    def ld_deploy_provide_defaults() -> dict[str, str]:
        return {"version": "of-the-plugin"}

    def ld_deploy_started(deployment: Any) -> None:
        told.append(("started", deployment.identity.version))

    def ld_deploy_custom(metadata: Any) -> None:
        told.append(("custom", metadata["step"]))

    def ld_deploy_finished() -> None:
        told.append(("finished", ""))

    def ld_deploy_failed(error: Any) -> None:
        told.append(("failed", type(error).__name__))

    plugin(ld_deploy_provide_defaults, ld_deploy_started, ld_deploy_custom, ld_deploy_finished, ld_deploy_failed)
    with deployment("billing") as d:
        assert told == [("started", "of-the-plugin")]
        d.custom(step="1")
        assert told[1:] == [("custom", "1")]
    assert told[2:] == [("finished", "")]
    with pytest.raises(OSError, match="no"), deployment("billing"):
        raise OSError("no")
    assert told[4:] == [("failed", "OSError")]


def test_the_inner_recording_records(events: RecordedEvents) -> None:
    with record_deployments() as inner, deployment("inner"):
        pass
    with deployment("outer"):
        pass
    assert [event.application_key for event in inner] == ["inner", "inner"]
    assert [event.application_key for event in events] == ["outer", "outer"]


# -- nothing is sent, and nothing stays -------------------------------------------------------------------------------


@pytest.mark.parametrize("may_tell", ["loopback", "off"])
def test_neither_service_nor_outbox_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], may_tell: str
) -> None:
    with FakeLaunchDarkly(TOKEN) as server:
        for name, value in settings(server.base_uri, tmp_path / "outbox.db", LD_DEPLOY_PYTEST=may_tell).items():
            monkeypatch.setenv(name, value)
        with record_deployments() as events:
            with deployment("billing"):
                pass
            monkeypatch.setenv("LD_DEPLOY_PYTEST", "off")
            assert flush()
            assert main(["flush"]) == 2
        assert "disabled is on (from a test records what is told)" in capsys.readouterr().err
        forget()
    assert kinds(events) == ["started", "finished"]
    assert server.requests == []
    assert list(tmp_path.iterdir()) == []


UNITTEST = """
import unittest
from ld_deploy_hooks.testing import record_deployments

class Deploys(unittest.TestCase):
    def test_recorded(self):
        with record_deployments() as events:
            with deployment("billing"):
                pass
            assert flush()
        self.assertEqual([event.event_type for event in events], ["started", "finished"])

    def test_nothing_recorded(self):
        with record_deployments() as events:
            with self.assertRaisesRegex(AssertionError, "No deployment was started in this process"):
                events.one()

unittest.main(argv=["deploys"], exit=False)
assert "pytest" not in __import__("sys").modules
with deployment("real", version="1"):
    pass
"""


def test_it_works_without_pytest(
    run_python: Callable[..., subprocess.CompletedProcess[str]], child_env: dict[str, str], tmp_path: Path
) -> None:
    with FakeLaunchDarkly(TOKEN) as server:
        env = child_env | settings(server.base_uri, tmp_path / "outbox.db")
        del env["LD_DEPLOY_PYTEST"]
        done = run_python(script(UNITTEST), env=env)
    assert done.returncode == 0, done.stderr
    assert "Ran 2 tests" in done.stderr
    assert "OK" in done.stderr
    assert [event["applicationKey"] for event in server.events] == ["real", "real"]


def test_after_it_everything_is_as_before() -> None:
    with record_deployments() as events:
        left_open = deployment("billing")
        left_open.__enter__()
        pending = deployment("web", autostart=False)
        pending.__enter__()
    assert current_deployment() is None
    assert left_open.__exit__(None, None, None) is False
    with deployment("billing") as d:
        pass
    assert d.identity is None
    assert kinds(events) == ["started"]
    with record_deployments() as later, deployment("billing"):
        assert kinds(later) == ["started"]
    assert kinds(later) == ["started", "finished"]


def test_a_thread_that_outlives_it_tells_nothing_more(plugin: Callable[..., None]) -> None:
    told = []

    def ld_deploy_finished(deployment: Any) -> None:
        told.append(deployment.identity.application_key)

    plugin(ld_deploy_finished)
    inside, go = threading.Event(), threading.Event()

    def work() -> None:
        with deployment("billing"):
            inside.set()
            go.wait(10)
        with deployment("web"):
            pass

    with record_deployments() as events:
        worker = threading.Thread(target=work)
        worker.start()
        assert inside.wait(10)
    with record_deployments() as later:
        pass
    go.set()
    worker.join()
    assert kinds(events) == ["started"]
    assert later == []
    assert told == []


def test_what_was_open_before_stays_open(events: RecordedEvents) -> None:
    with deployment("billing") as d:
        with record_deployments():
            pass
        assert d.state == "started"
        assert current_deployment() is d
    assert kinds(events) == ["started", "finished"]


def test_each_recording_hears_a_line_anew_and_no_other_does(caplog: pytest.LogCaptureFixture) -> None:
    def say() -> None:
        with deployment("billing") as d:
            pass
        d.custom(step=1)

    recordings = []
    say()
    for _ in range(2):
        with record_deployments() as events:
            say()
        recordings.append(events)
    say()
    for events in recordings:
        story = missed(events, "custom")
        assert story[-2] == "said by ld_deploy_hooks:"
        assert story[-1].startswith("  A custom event was not told")
    assert len(caplog.messages) == 4


def test_ctrl_c_while_an_end_is_told_tells_no_second_one(events: RecordedEvents, plugin: Callable[..., None]) -> None:
    def ld_deploy_finished() -> None:
        signal.raise_signal(signal.SIGINT)

    plugin(ld_deploy_finished)
    with pytest.raises(KeyboardInterrupt), deployment("billing"):
        pass
    assert kinds(events) == ["started", "finished"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_signal_kills_as_it_would(
    run_python: Callable[..., subprocess.CompletedProcess[str]], child_env: dict[str, str], tmp_path: Path
) -> None:
    source = """
    import os, signal
    from ld_deploy_hooks.testing import record_deployments
    with record_deployments(), deployment("billing"):
        os.kill(os.getpid(), signal.SIGTERM)
    """
    with FakeLaunchDarkly(TOKEN) as server:
        done = run_python(script(source), env=child_env | settings(server.base_uri, tmp_path / "outbox.db"))
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGTERM, "", "")
    assert server.requests == []


# -- a miss is explained ----------------------------------------------------------------------------------------------


def missed(events: RecordedEvents, *args: str, **fields: object) -> list[str]:
    """Return the lines that explain a miss."""
    with pytest.raises(AssertionError) as caught:
        events.one(*args, **fields)
    return str(caught.value).splitlines()


def test_a_miss_shows_what_was_recorded(events: RecordedEvents) -> None:
    with deployment("billing", version="1") as d:
        d.mark_failed("the smoke test")
    with deployment("billing", version="2"):
        pass
    recorded = [
        "recorded:",
        "  started billing 1 to test-environment",
        "  failed billing 1 to test-environment (error, the smoke test)",
        "  started billing 2 to test-environment",
        "  finished billing 2 to test-environment",
    ]
    assert missed(events, "custom") == ["expected one custom event, saw none.", *recorded]
    assert missed(events, "started") == ["expected one started event, saw 2.", *recorded]
    assert missed(events, "failed", version="2") == ["expected one failed event version='2', saw none.", *recorded]
    assert missed(events)[0] == "expected one event, saw 4."
    assert repr(events) == f"<deployment events: {'; '.join(line.strip() for line in recorded[1:])}>"
    events.clear()
    assert repr(events) == "<deployment events: none>"


def test_a_miss_names_a_plugin_that_hangs(events: RecordedEvents, plugin: Callable[..., None]) -> None:
    def ld_deploy_finished(deployment: Any) -> None:
        go.wait(30)

    go = threading.Event()
    plugin(ld_deploy_finished)
    try:
        with deployment("billing"):
            pass
    finally:
        go.set()
    line = missed(events, "custom")[-1]
    assert line.startswith("  Plugin plugin_of_a_test: ld_deploy_finished did not return")


def test_a_mistake_in_the_question_is_one(events: RecordedEvents) -> None:
    with pytest.raises(
        ValueError, match="no event is of type 'finnished'; there are started, finished, failed, custom"
    ):
        events.one("finnished")
    with pytest.raises(TypeError, match="events have no 'application'; they have event_type, project_key"):
        events.one("finished", application="billing")


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("LD_DEPLOY_DISABLED", "1", "a deployment: disabled is on (LD_DEPLOY_DISABLED)"),
        ("LD_DEPLOY_DRY_RUN", "1", "a deployment: a dry run (LD_DEPLOY_DRY_RUN)"),
        ("LD_DEPLOY_VERSION", "?", "billing: version cannot be used"),
        (
            "LD_DEPLOY_PARENT",
            '{"id": "1", "identity": ["test-project", "test-environment", "billing", "test-version"]}',
            "billing: the process that this one was started by tells it",
        ),
    ],
)
def test_a_miss_tells_why_nothing_was_told(
    events: RecordedEvents, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, why: str
) -> None:
    monkeypatch.setenv(variable, value)
    with deployment("billing"):
        pass
    lines = missed(events, "finished")
    assert lines[:3] == ["expected one finished event, saw none.", "not told:", f"  {why}"]
    if variable == "LD_DEPLOY_VERSION":
        assert lines[3] == "said by ld_deploy_hooks:"
        assert lines[4].startswith("  version (LD_DEPLOY_VERSION) is '?'")


def test_a_miss_tells_of_a_plugin_that_dropped_it(events: RecordedEvents, plugin: Callable[..., None]) -> None:
    def ld_deploy_modify_event(event: Any) -> None:
        raise DropEvent

    plugin(ld_deploy_modify_event)
    with deployment("billing"):
        pass
    assert missed(events)[1:] == ["not told:", "  billing: a plugin dropped its start (DropEvent)"]


def test_ids_that_a_test_has_frozen_lose_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uuid.uuid4", lambda: uuid.UUID(int=7))
    with record_deployments() as events:
        for version in ("1", "2"):
            with deployment("billing", version=version):
                pass
    assert [(event.event_type, event.version) for event in events] == [
        *(("started", "1"), ("finished", "1"), ("started", "2"), ("finished", "2"))
    ]
