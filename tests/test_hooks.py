"""What each hook promises, and what it may do wrong, through whole deployments told to a server on loopback."""

from __future__ import annotations

import json
import sqlite3
import textwrap
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from told import IDENTITY, TOKEN, Told, kinds, script, settings, told_fixture  # noqa: F401

from ld_deploy_hooks import DeploymentEvent, DropEvent, deployment
from ld_deploy_hooks._reporter import plugins_for
from ld_deploy_hooks._settings import resolve
from ld_deploy_hooks.hookspecs import DeploymentRecord, SettingsView, hookimpl

Register = Callable[..., None]


@pytest.fixture
def register(told: Told) -> Register:
    """Return a function that adds the functions that it is given, hooks by their names, as one plugin."""

    def register(*functions: Callable[..., Any]) -> None:
        plugin = SimpleNamespace(**{function.__name__: hookimpl(function) for function in functions})
        plugins_for(resolve()).register(plugin, f"p{id(plugin)}", "this test")

    return register


# -- what each promises -----------------------------------------------------------------------------------------------


def test_ld_deploy_provide_defaults_fills_what_nobody_has_set(told: Told, register: Register) -> None:
    seen: list[SettingsView] = []

    def ld_deploy_provide_defaults(settings: SettingsView) -> dict[str, Any]:
        seen.append(settings)
        return {"version": "b", "application_key": "web", "application_kind": "browser"}

    register(ld_deploy_provide_defaults)
    with deployment():
        pass
    assert [(event["applicationKey"], event["version"], event["applicationKind"]) for event in told.events()] == [
        ("web", IDENTITY["LD_DEPLOY_VERSION"], "browser")
    ] * 2
    assert seen == [SettingsView(project_key="default", environment_key="production", version="a90a8a2")]
    assert "token" not in repr(seen)


def test_ld_deploy_add_metadata_is_in_every_event_below_the_user_s_own(told: Told, register: Register) -> None:
    def ld_deploy_add_metadata(deployment: DeploymentRecord) -> dict[str, Any]:
        return {"team": "payments", "ticket": deployment.state}

    register(ld_deploy_add_metadata)
    with deployment("billing", metadata={"team": "mine"}) as d:
        d.custom()
    expected = {"team": "mine", "ticket": "started"}
    assert [event["deploymentMetadata"] for event in told.events()] == [expected] * 3


def test_ld_deploy_modify_event_changes_what_is_sent_and_drops_it(told: Told, register: Register) -> None:
    def ld_deploy_modify_event(event: DeploymentEvent) -> DeploymentEvent:
        if event.application_key == "untold" or event.event_type == "custom":
            raise DropEvent
        return replace(event, event_metadata={**event.event_metadata, "region": "eu"})

    register(ld_deploy_modify_event)
    with deployment("untold"):
        pass
    with deployment("billing") as d:
        d.custom()
    assert [(event["eventType"], event["eventMetadata"]["region"]) for event in told.events()] == [
        ("started", "eu"),
        ("finished", "eu"),
    ]


def test_what_plugins_have_to_say_takes_nothing_of_the_user_s(told: Told, register: Register) -> None:
    def ld_deploy_add_metadata(deployment: DeploymentRecord) -> dict[str, Any]:
        return {"blob": "b" * 20_000}

    def ld_deploy_modify_event(event: DeploymentEvent) -> DeploymentEvent:
        enlarged = {**event.event_metadata, "task": "t" * 20_000, "step": "s" * 20_000}
        return replace(event, event_metadata=enlarged)

    register(ld_deploy_add_metadata, ld_deploy_modify_event)
    mine = {"team": "web", "notes": "n" * 6000}
    with deployment("billing", metadata=mine, event_metadata={"why": "because"}) as d:
        d.custom(step="migrated", note="m" * 500)
    started, custom, finished = told.events()
    for event in (started, custom, finished):
        assert mine.items() <= event["deploymentMetadata"].items()
        assert len(json.dumps([event["eventMetadata"], event["deploymentMetadata"]], separators=(",", ":"))) < 8200
    assert (started["eventMetadata"]["why"], custom["eventMetadata"]["note"]) == ("because", "m" * 500)
    assert [line for line in told.lines if "eventMetadata.task, eventMetadata.step, deploymentMetadata.blob" in line]


def test_a_key_that_held_the_token_is_the_user_s_all_the_same(told: Told) -> None:
    with deployment("billing", metadata={f"notes {TOKEN}": "n" * 9000, "team": "web"}):
        pass
    for event in told.events():
        metadata = event["deploymentMetadata"]
        assert metadata["team"] == "web"
        assert metadata["notes [redacted]"].startswith("nnn")


@pytest.mark.parametrize("hook", ["ld_deploy_started", "ld_deploy_custom", "ld_deploy_finished", "ld_deploy_failed"])
def test_a_tell_comes_after_the_commit(hook: str, told: Told, register: Register) -> None:
    committed: list[int] = []

    def count(deployment: DeploymentRecord) -> None:
        with sqlite3.connect(f"file:{told.outbox}?mode=ro", uri=True) as database:
            kind = hook.removeprefix("ld_deploy_")
            events = [payload for (payload,) in database.execute("SELECT payload FROM events")]
            committed.append(sum(f'"eventType":"{kind}"' in payload for payload in events))
        database.close()

    count.__name__ = hook
    register(count)
    with deployment("billing") as d:
        d.custom()
        if hook == "ld_deploy_failed":
            d.mark_failed("health check")
    told.events()
    assert committed == [1]


def test_ld_deploy_started_is_told_while_the_deploy_goes_on(told: Told, register: Register) -> None:
    seen: list[DeploymentRecord] = []

    def ld_deploy_started(deployment: DeploymentRecord) -> None:
        seen.append(deployment)

    register(ld_deploy_started)
    with deployment("billing") as d:
        deadline = time.monotonic() + 10
        while not seen and time.monotonic() < deadline:
            time.sleep(0.005)
        (record,) = seen
        assert (record.id, record.identity, record.state) == (d.id, d.identity, "started")
        assert (record.started_at, record.ended_at) == (d.started_at, None)


def test_ld_deploy_finished_has_both_times(told: Told, register: Register) -> None:
    seen: list[DeploymentRecord] = []

    def ld_deploy_finished(deployment: DeploymentRecord) -> None:
        seen.append(deployment)

    register(ld_deploy_finished)
    with deployment("billing") as d:
        pass
    told.events()
    (record,) = seen
    assert (record.state, record.reason) == ("finished", None)
    assert (record.started_at, record.ended_at) == (d.started_at, d.ended_at)


def test_ld_deploy_failed_has_what_left_the_deployment_and_leaves_it_alone(told: Told, register: Register) -> None:
    seen: list[Any] = []

    def ld_deploy_failed(deployment: DeploymentRecord, error: BaseException | None) -> None:
        seen.append((deployment.reason, deployment.detail, deployment.error_type, repr(error)))
        if error is not None:
            with suppress(ValueError):
                raise error from KeyError()

    register(ld_deploy_failed)
    error = ValueError("sesame")
    with pytest.raises(ValueError, match="sesame"), deployment("billing"):
        raise error
    with deployment("billing") as d:
        d.mark_cancelled("the manager says no")
    told.events()
    assert seen == [("error", None, "ValueError", repr(error)), ("cancelled", "the manager says no", None, "None")]
    assert "ld_deploy_failed" not in {step.name for step in traceback.extract_tb(error.__traceback__)}
    assert (error.__cause__, error.__context__) == (None, None)


def test_ld_deploy_custom_has_the_deploy_s_own_words_as_json(told: Told, register: Register) -> None:
    seen: list[Any] = []

    def ld_deploy_custom(deployment: DeploymentRecord, metadata: Any) -> None:
        seen.append((deployment.state, dict(metadata)))
        metadata["step"] = "spoilt"

    register(ld_deploy_custom)
    with deployment("billing") as d:
        d.custom(step="migrated", tables=(1, 2))
    assert told.kinds() == ["started", "custom", "finished"]
    assert seen == [("started", {"step": "migrated", "tables": [1, 2]})]
    assert [line for line in told.lines if "ld_deploy_custom raised TypeError" in line]


def test_ld_deploy_event_delivered_comes_after_the_service_has_it(told: Told, register: Register) -> None:
    seen: list[bool] = []

    def ld_deploy_event_delivered(event: DeploymentEvent) -> None:
        seen.append(event.event_id in [one["eventMetadata"]["eventId"] for one in told.server.events])

    register(ld_deploy_event_delivered)
    with deployment("billing"):
        pass
    assert len(told.events()) == 2
    assert seen == [True, True]


def test_ld_deploy_event_rejected_has_the_line_of_the_log(told: Told, register: Register) -> None:
    seen: list[tuple[str, str]] = []

    def ld_deploy_event_rejected(event: DeploymentEvent, error: str) -> None:
        seen.append((event.event_type.value, error))

    register(ld_deploy_event_rejected)
    told.server.answer_next(400)
    with deployment("billing"):
        pass
    assert told.kinds() == ["finished"]
    ((kind, line),) = seen
    assert kind == "started"
    assert line in told.lines
    assert "400" in line


# -- what they may do wrong -------------------------------------------------------------------------------------------

EVERY = """
import os, signal, sys, threading, time
from ld_deploy_hooks import hookimpl

def misbehave():
    {0}

def ask(given):
    misbehave()

def tell(given):
    misbehave()

@hookimpl
def ld_deploy_provide_defaults(settings): ask(settings)
@hookimpl
def ld_deploy_add_metadata(deployment): ask(deployment)
@hookimpl
def ld_deploy_modify_event(event): ask(event)
@hookimpl
def ld_deploy_started(deployment): tell(deployment)
@hookimpl
def ld_deploy_custom(deployment, metadata): tell(deployment)
@hookimpl
def ld_deploy_finished(deployment): tell(deployment)
@hookimpl
def ld_deploy_event_delivered(event): tell(event)
"""
DEPLOY = """
import os, sys, time
with deployment("billing") as d:
    print("deploying")
    d.custom(step="migrated")
    time.sleep(float(os.environ.get("WORKS_FOR", 0)))
sys.exit(5)
"""
HOOKS_OF_A_DEPLOY = {
    "ld_deploy_provide_defaults",
    "ld_deploy_add_metadata",
    "ld_deploy_modify_event",
    "ld_deploy_started",
    "ld_deploy_custom",
    "ld_deploy_finished",
    "ld_deploy_event_delivered",
}

Deploy = Callable[..., Any]


@pytest.fixture
def deploy(told: Told, tmp_path: Path, run_python: Any, child_env: dict[str, str]) -> Deploy:
    """Return a function that runs a deploy in a child, with a ``deployhooks.py`` beside it."""

    def deploy(hooks: str, **more: str) -> Any:
        folder = tmp_path / "deploy"
        folder.mkdir(exist_ok=True)
        (folder / "deploy.py").write_text(script(DEPLOY))
        (folder / "deployhooks.py").write_text(textwrap.dedent(hooks))
        env = child_env | settings(told.server.base_uri, told.outbox, **more)
        return run_python(folder / "deploy.py", env=env)

    return deploy


@pytest.mark.parametrize(
    ("misbehaviour", "named"),
    [
        ("sys.exit(7)", "SystemExit"),
        ("exit()", "SystemExit"),
        ("raise SystemExit", "SystemExit"),
        ("misbehave()", "RecursionError"),
        ("raise MemoryError", "MemoryError"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("raise BaseException('sesame')", "BaseException"),
        ("os.close(99999)", "OSError"),
        ("os.kill(99999999, signal.SIGKILL)", "ProcessLookupError"),
        ("threading.Thread(target=sys.exit).start(); assert False", "AssertionError"),
    ],
)
def test_whatever_every_hook_raises_the_deploy_is_told_as_it_was(
    misbehaviour: str, named: str, told: Told, deploy: Deploy
) -> None:
    done = deploy(EVERY.format(misbehaviour))
    assert (done.returncode, done.stdout) == (5, "deploying\n")
    assert told.kinds() == ["started", "custom", "finished"]
    lines = done.stderr.splitlines()
    for line in lines:
        assert line.startswith("Plugin deployhooks: ld_deploy_")
        assert f" raised {named} (deployhooks.py, line " in line or f" raised {named};" in line
    assert {line.split()[2] for line in lines} == HOOKS_OF_A_DEPLOY
    assert "sesame" not in done.stderr


def test_a_hook_that_goes_elsewhere_and_closes_stdin_changes_nothing_that_is_told(told: Told, deploy: Deploy) -> None:
    done = deploy(EVERY.format("os.chdir('/'); sys.stdin.close()"))
    assert (done.returncode, done.stdout, done.stderr) == (5, "deploying\n", "")
    assert told.kinds() == ["started", "custom", "finished"]


@pytest.mark.parametrize("hook", ["ld_deploy_add_metadata", "ld_deploy_modify_event"])
def test_an_ask_that_deploys_joins_what_it_is_asked_about_and_waits_for_nothing(
    hook: str, told: Told, register: Register
) -> None:
    took: list[float] = []

    def ask() -> None:
        begun = time.monotonic()
        with deployment("billing"):
            pass
        took.append(time.monotonic() - begun)

    ask.__name__ = hook
    register(ask)
    with deployment("billing") as d:
        d.custom()
    assert told.kinds() == ["started", "custom", "finished"]
    assert len(took) == (1 if hook == "ld_deploy_add_metadata" else 3)
    assert max(took) < 0.5, "it has waited for a start or an end that waits for the hook"
    said = [line for line in told.lines if "while the end of one" in line]
    assert len(said) == (hook == "ld_deploy_modify_event"), told.lines
    assert not [line for line in told.lines if "on disk" in line or "took" in line]


def test_an_ask_that_deploys_something_else_has_both_told(told: Told, register: Register) -> None:
    def ld_deploy_add_metadata(deployment: DeploymentRecord) -> None:
        if deployment.identity.application_key == "billing":
            with deploying("migration"):
                pass

    deploying = deployment
    register(ld_deploy_add_metadata)
    with deployment("billing"):
        pass
    events = sorted(told.events(), key=lambda event: event["eventTime"])
    assert kinds([event for event in events if event["applicationKey"] == "migration"]) == ["started", "finished"]
    assert kinds([event for event in events if event["applicationKey"] == "billing"]) == ["started", "finished"]
    assert told.lines == []


def test_an_ask_that_sleeps_holds_the_deploy_up_and_is_said(told: Told, deploy: Deploy) -> None:
    done = deploy(
        """
        import time
        from ld_deploy_hooks import hookimpl

        @hookimpl
        def ld_deploy_add_metadata(deployment):
            time.sleep(2)
            return {"slept": True}
        """
    )
    assert (done.returncode, done.stdout) == (5, "deploying\n")
    assert [event["deploymentMetadata"] for event in told.events()] == [{"slept": True}] * 3
    (line,) = done.stderr.splitlines()
    assert line.startswith("Plugin deployhooks: ld_deploy_add_metadata took 2.")
    assert "the deploy waited for it" in line


@pytest.mark.parametrize("hook", ["ld_deploy_started", "ld_deploy_finished", "ld_deploy_event_delivered"])
def test_a_tell_that_sleeps_a_minute_is_named_and_holds_up_neither_others_nor_the_exit_beyond_the_flush_timeout(
    hook: str, told: Told, deploy: Deploy
) -> None:
    given = "event" if hook.endswith("delivered") else "deployment"
    hooks = f"""
        import time
        from ld_deploy_hooks import hookimpl

        @hookimpl
        def {hook}({given}):
            time.sleep(60)
        """
    begun = time.monotonic()
    done = deploy(hooks, LD_DEPLOY_FLUSH_TIMEOUT="2", LD_DEPLOY_PLUGINS="no:git")
    took = time.monotonic() - begun
    assert (done.returncode, done.stdout) == (5, "deploying\n")
    started, finished, line = done.stderr.splitlines()
    assert (started[-9:], finished.split()[:2]) == (": started", ["ld-deploy:", "billing"])
    assert line.startswith(f"Plugin deployhooks: {hook} did not return")
    assert 2 <= took < 15
    assert told.kinds() == ["started", "custom", "finished"]


@pytest.mark.parametrize("hook", ["ld_deploy_started", "ld_deploy_modify_event"])
def test_a_hook_that_ends_the_process_is_told_by_the_next_run(hook: str, told: Told, deploy: Deploy) -> None:
    given = "event" if hook.endswith("event") else "deployment"
    condition = "event.event_type == 'custom'" if given == "event" else "True"
    hooks = f"""
        import os
        from ld_deploy_hooks import hookimpl

        @hookimpl
        def {hook}({given}):
            if {condition}:
                os._exit(9)
        """
    assert deploy(hooks, WORKS_FOR="60").returncode == 9
    assert deploy("# empty").returncode == 5
    # The first may have been sent when the process ended, and not acknowledged: it is sent twice then.
    once = {event["eventMetadata"]["eventId"]: event for event in told.events()}
    told_of = [(event["eventType"], event["eventMetadata"].get("reason")) for event in once.values()]
    # A tell runs beside the deploy, which may have told its custom event by then.
    assert [one for one in told_of if one[0] != "custom"] == [
        ("started", None),
        ("failed", "killed"),
        ("started", None),
        ("finished", None),
    ]
