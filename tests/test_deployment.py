"""``with deployment(...)``: what it tells, what it holds, and what it leaves as it was."""

from __future__ import annotations

import copy
import importlib
import threading
import time
from typing import Any

import pytest
from told import Told, script, settings, told_fixture  # noqa: F401

from ld_deploy_hooks import Deployment, SettingsError, current_deployment, deployment, flush


def test_a_block_tells_its_start_and_its_end(told: Told) -> None:
    before = time.time_ns() // 1_000_000
    with deployment("billing") as d:
        assert d.state == "started"
        assert d.identity == ("default", "production", "billing", "a90a8a2")
        assert d.ended_at is None
    after = time.time_ns() // 1_000_000
    assert d.state == "finished"
    started, finished = told.events()
    assert (started["eventType"], finished["eventType"]) == ("started", "finished")
    assert before <= d.started_at == started["eventTime"] <= d.ended_at == finished["eventTime"] <= after
    assert finished["eventMetadata"]["durationMs"] == d.ended_at - d.started_at


def test_what_a_run_puts_into_its_metadata_stays_with_it(told: Told) -> None:
    @deployment("billing", metadata={"steps": []})
    def deploy() -> None:
        d = current_deployment()
        assert d is not None
        assert d.metadata["steps"] == []
        d.metadata["steps"].append("migrated")

    deploy()
    deploy()
    assert [event["deploymentMetadata"] for event in told.events()] == [{"steps": []}, {"steps": ["migrated"]}] * 2


def test_a_block_that_raises_failed_and_the_exception_is_the_same(told: Told) -> None:
    cause, context = KeyError("cause"), OSError("context")
    error = ValueError("secret text")
    error.__cause__, error.__context__ = cause, context
    with pytest.raises(ValueError, match="secret text") as caught, deployment("billing"):
        raise error
    assert caught.value is error
    assert (error.__cause__, error.__context__) == (cause, context)
    assert told.failure() == {"reason": "error", "error": "ValueError", "exitCode": 1}


def test_nothing_is_chained_to_an_exception(told: Told) -> None:
    error = ValueError()
    with pytest.raises(ValueError), deployment("billing"):  # noqa: PT011
        raise error
    assert error.__context__ is None
    assert error.__cause__ is None
    assert not error.__suppress_context__
    assert told.kinds() == ["started", "failed"]


def test_the_exception_is_let_go(told: Told) -> None:
    """Nothing of ours keeps the frames of a deploy alive, which close what they hold when they go."""
    import gc
    import weakref

    # What knows Invoke looks through the frames for the program that runs.
    importlib.import_module("ld_deploy_hooks.invoke")

    class Connection:
        pass

    def deploy() -> weakref.ref[Connection]:
        connection = Connection()
        kept = weakref.ref(connection)
        try:
            with deployment("billing"):
                raise ValueError
        except ValueError:
            pass
        return kept

    gc.disable()
    try:
        kept = deploy()
        told.events()
        deadline = time.monotonic() + 5
        while kept() is not None and time.monotonic() < deadline:
            time.sleep(0.001)
        assert kept() is None
    finally:
        gc.enable()


def test_custom_events_come_between_start_and_end(told: Told) -> None:
    with deployment("billing", metadata={"ticket": 7}) as d:
        d.custom({"step": "migrated", "tables": 1}, tables=12)
    events = told.events()
    assert [event["eventType"] for event in events] == ["started", "custom", "finished"]
    assert events[1]["eventMetadata"].items() >= {"step": "migrated", "tables": 12}.items()
    assert events[1]["deploymentMetadata"] == {"ticket": 7}
    assert events[0]["eventTime"] <= events[1]["eventTime"] <= events[2]["eventTime"]


def test_custom_events_outside_of_the_deployment_are_said_and_not_told(told: Told) -> None:
    with deployment("billing", autostart=False) as d:
        d.custom(step=1)
        assert "is pending. Call custom() between start and end" in told.lines[-1]
        d.start()
    d.custom(step=2)
    assert "is finished. Call custom() between start and end" in told.lines[-1]
    assert told.kinds() == ["started", "finished"]


@pytest.mark.parametrize("nonsense", [5, "text", ["a"], object()])
def test_custom_takes_a_mapping_and_says_so(told: Told, nonsense: Any) -> None:
    with deployment("billing") as d:
        d.custom(nonsense)
    assert told.lines == [f"custom() takes a mapping, not {type(nonsense).__name__}; this custom event was not told."]
    assert told.kinds() == ["started", "finished"]


def test_what_is_put_into_the_metadata_is_sent_with_the_next_event(told: Told) -> None:
    given = {"kept": 1, "replaced": 1}
    with deployment("billing", metadata=given) as d:
        d.metadata["replaced"] = 2
        d.custom()
        d.metadata["added"] = 3
        del d.metadata["kept"]
    sent = [event["deploymentMetadata"] for event in told.events()]
    assert sent == [{"kept": 1, "replaced": 1}, {"kept": 1, "replaced": 2}, {"replaced": 2, "added": 3}]
    assert given == {"kept": 1, "replaced": 1}


@pytest.mark.parametrize(("method", "reason"), [("mark_failed", "error"), ("mark_cancelled", "cancelled")])
def test_a_mark_makes_it_fail_and_the_block_goes_on(told: Told, method: str, reason: str) -> None:
    went_on = False
    with deployment("billing") as d:
        getattr(d, method)("the smoke test did not pass")
        d.mark_failed("the first mark counts")
        went_on = True
    assert went_on
    assert d.state == "failed"
    assert told.failure() == {"reason": reason, "detail": "the smoke test did not pass"}


def test_a_mark_explains_the_failure_that_follows(told: Told) -> None:
    with pytest.raises(SystemExit), deployment("billing") as d:  # noqa: PT012
        d.mark_cancelled("somebody pressed no")
        raise SystemExit(3)
    assert told.failure() == {
        "reason": "cancelled",
        "detail": "somebody pressed no",
        "error": "SystemExit",
        "exitCode": 3,
    }


def test_of_an_exception_given_as_detail_only_the_type_is_told(told: Told) -> None:
    with deployment("billing") as d:
        d.mark_failed(RuntimeError("secret command line"))  # type: ignore[arg-type]
    assert told.failure() == {"reason": "error", "detail": "RuntimeError"}


def test_autostart_off_tells_nothing_until_start(told: Told) -> None:
    with deployment("billing", autostart=False) as d:
        assert (d.state, d.identity, d.started_at) == ("pending", None, None)
        assert current_deployment() is d
        assert told.kinds() == []
        d.start()
        d.start()
        assert d.state == "started"
    assert told.kinds() == ["started", "finished"]


@pytest.mark.parametrize("error", [None, ValueError(), SystemExit(3)])
def test_what_never_started_tells_nothing(told: Told, error: BaseException | None) -> None:
    block = deployment("billing", autostart=False)
    d = block.__enter__()
    d.mark_failed("no")
    assert block.__exit__(type(error), error, None) is False
    assert d.state == "pending"
    d.start()
    assert "its block had been left already" in told.lines[-1]
    assert told.kinds() == []


def test_a_mark_before_the_start_counts(told: Told) -> None:
    with deployment("billing", autostart=False) as d:
        d.mark_failed("early")
        d.start()
    assert told.failure() == {"reason": "error", "detail": "early"}


def test_start_joins_what_is_open(told: Told) -> None:
    with deployment("billing", autostart=False, metadata={"inner": 1, "both": 1}) as late:
        late.mark_failed("early")
        with deployment("billing", metadata={"both": 2}) as d:
            late.start()
            assert late.id == d.id
            assert late.metadata is d.metadata
            late.metadata["after"] = 3
            late.custom()
    events = told.events()
    assert [event["eventType"] for event in events] == ["started", "custom", "failed"]
    assert events[-1]["deploymentMetadata"] == {"both": 2, "inner": 1, "after": 3}
    assert events[-1]["eventMetadata"]["detail"] == "early"


def test_started_by_many_threads_at_once_it_starts_once(told: Told) -> None:
    with deployment("billing", autostart=False) as d:
        threads = [threading.Thread(target=d.start) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert d.state == "started"
    assert told.kinds() == ["started", "finished"]


def test_a_block_can_be_used_again_and_carries_no_run(told: Told) -> None:
    block = deployment("billing")
    with block as first:
        pass
    with block as second:
        pass
    assert first.id != second.id
    assert told.kinds() == ["started", "finished"] * 2


def test_a_block_survives_copies(told: Told) -> None:
    block = deployment("billing")
    assert copy.copy(block) is block
    assert copy.deepcopy({"block": block})["block"] is block


def test_the_handle_shows_itself_without_secrets(told: Told) -> None:
    with deployment("billing") as d:
        assert repr(d) == f"<Deployment 'billing' started id={d.id}>"
    assert isinstance(d, Deployment)


def test_what_a_bad_field_leaves_untold_runs_as_ever(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_DEPLOY_VERSION", "?")  # what is missing is filled in where tests run
    with deployment("billing") as d:
        d.custom(step=1)
        d.mark_failed("no")
        d.host_failed("web1")
        assert current_deployment() is d
        assert d.identity is None
    assert d.state == "failed"
    assert told.kinds() == []
    (line,) = told.lines
    assert line.startswith("version (LD_DEPLOY_VERSION) is '?'")
    assert "this deployment is not told to LaunchDarkly" in line


def test_strict_raises_before_the_first_line(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_DEPLOY_STRICT", "1")
    monkeypatch.setenv("LD_DEPLOY_VERSION", "?")
    began = []
    with pytest.raises(SettingsError) as caught, deployment("billing"):
        began.append(1)
    assert caught.value.field == "version"
    assert caught.value.__context__ is None

    @deployment("billing")
    def deploy() -> None:
        began.append(1)

    with pytest.raises(SettingsError):
        deploy()
    with deployment("billing", autostart=False) as d:
        with pytest.raises(SettingsError):
            d.start()
        d.start()
    assert not began
    assert current_deployment() is None
    assert told.kinds() == []


@pytest.mark.parametrize("variable", ["LD_DEPLOY_DISABLED", "LD_DEPLOY_DRY_RUN"])
def test_silent_runs_tell_nothing_and_make_no_file(told: Told, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    with deployment("billing", version=lambda: pytest.fail("asked")) as d:
        d.custom(step=1)
    assert told.kinds() == []
    assert flush() is True
    assert not told.outbox.exists()
    assert told.lines == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"version": 5}, TypeError),
        ({"version": ["a"]}, TypeError),
        ({"application_kind": "desktop"}, ValueError),
        ({"metadata": "text"}, TypeError),
        ({"event_metadata": [("a", 1)]}, TypeError),
        ({"success": True}, TypeError),
        ({"pre_and_post": "no"}, TypeError),
        ({"autostart": 0}, TypeError),
        ({"unknown": 1}, TypeError),
        ({"access_token": "api-x"}, TypeError),
    ],
)
def test_a_mistake_in_code_raises_where_it_is_written(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        deployment("billing", **arguments)


def test_a_key_is_given_once() -> None:
    with pytest.raises(TypeError, match="twice"):
        deployment("billing", application_key="billing")  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        deployment(5)  # type: ignore[call-overload]


def test_success_is_for_functions(told: Told) -> None:
    with pytest.raises(TypeError, match="mark_failed"), deployment("billing", success=bool):
        pass
    assert told.kinds() == []


def test_the_wall_clock_may_be_set_back(told: Told, run_python: Any, child_env: dict[str, str]) -> None:
    # What stands in for the system's clock must be there before ours is bound.
    source = """
import time
real, ahead = time.time_ns, [3600 * 10**9]
time.time_ns = lambda: real() + ahead[0]
from ld_deploy_hooks import deployment
with deployment("billing") as d:
    ahead[0] = 0
    d.custom()
    time.sleep(0.05)
assert d.ended_at >= d.started_at + 50
"""
    done = run_python(source, env=child_env | settings(told.server.base_uri, told.outbox))
    assert (done.returncode, done.stderr) == (0, "")
    started, custom, finished = told.events()
    assert started["eventTime"] <= custom["eventTime"] <= finished["eventTime"]
    assert finished["eventMetadata"]["durationMs"] >= 50


def test_deploy_code_that_patches_time_changes_no_event(told: Told, run_python: Any, child_env: dict[str, str]) -> None:
    source = """
    import time
    now = time.time()
    time.time = time.time_ns = time.monotonic = lambda: None
    with deployment("billing") as d:
        pass
    assert now * 1000 - 1 <= d.started_at <= now * 1000 + 10_000
    """
    done = run_python(script(source), env=child_env | settings(told.server.base_uri, told.outbox))
    assert (done.returncode, done.stderr) == (0, "")
    assert told.kinds() == ["started", "finished"]


def test_flush_says_whether_anything_is_left(told: Told) -> None:
    told.server.answer_next(503)
    with deployment("billing"):
        pass
    assert flush(0) is False
    assert flush(10) is True
    assert len(told.server.events) == 2


def test_a_process_that_deploys_for_weeks_keeps_nothing_of_what_is_told(told: Told) -> None:
    import gc

    told.server.answer_next(201, 400)  # the first one's end is rejected
    ids = []
    for version in ("v1", "v2"):
        with deployment("billing", version=version) as d:
            ids.append(d.id)
    told.events()

    def holders() -> list[object]:
        return [one for one in gc.get_objects() if type(one) in (set, dict) and any(id in one for id in ids)]

    deadline = time.monotonic() + 5
    while holders() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not holders()
