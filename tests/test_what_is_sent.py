"""What goes over the wire, whole; and what does not."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from told import TOKEN, Told, told_fixture  # noqa: F401

from ld_deploy_hooks import (
    DeploymentEvent,
    DeploymentRecord,
    DropEvent,
    current_deployment,
    deployment,
    flush,
    hookimpl,
)

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def steady(event: dict[str, Any]) -> dict[str, Any]:
    """Return an event with what differs from run to run replaced by what it is."""
    event = json.loads(json.dumps(event))
    assert isinstance(event["eventTime"], int)
    event["eventTime"] = "ms"
    about = event["eventMetadata"]
    assert UUID.fullmatch(about["eventId"])
    about["eventId"] = "uuid"
    if "durationMs" in about:
        assert isinstance(about["durationMs"], int)
        about["durationMs"] = "ms"
    return event


def test_a_plain_block_whole(told: Told) -> None:
    from ld_deploy_hooks import __version__

    with deployment("billing", metadata={"ticket": 7}, event_metadata={"by": "me"}) as d:
        d.custom(step="migrated")
    identity = {
        "projectKey": "default",
        "environmentKey": "production",
        "applicationKey": "billing",
        "version": "a90a8a2",
        "eventTime": "ms",
        "deploymentMetadata": {"ticket": 7},
    }
    ours = {"source": f"ld-deploy-hooks/{__version__}", "eventId": "uuid"}
    assert [steady(event) for event in told.events()] == [
        {**identity, "eventType": "started", "eventMetadata": {"by": "me", **ours}},
        {**identity, "eventType": "custom", "eventMetadata": {"step": "migrated", **ours}},
        {**identity, "eventType": "finished", "eventMetadata": {**ours, "durationMs": "ms"}},
    ]
    assert len({event["eventMetadata"]["eventId"] for event in told.events()}) == 3


def test_a_task_with_hosts_that_fails_whole(told: Told) -> None:
    from ld_deploy_hooks import __version__, current_deployment

    @deployment("billing", application_name="Billing", application_kind="browser", version="v1", version_name="One")
    def deploy() -> None:
        d = current_deployment()
        assert d is not None
        d.host_succeeded("web1")
        d.host_failed("web2", OSError("secret"))
        d.mark_failed("the smoke test did not pass")
        raise ValueError("secret")

    with pytest.raises(ValueError, match="secret"):
        deploy()
    identity = {
        "projectKey": "default",
        "environmentKey": "production",
        "applicationKey": "billing",
        "applicationName": "Billing",
        "applicationKind": "browser",
        "version": "v1",
        "versionName": "One",
        "eventTime": "ms",
    }
    ours = {"source": f"ld-deploy-hooks/{__version__}", "eventId": "uuid", "task": "deploy"}
    assert [steady(event) for event in told.events()] == [
        {**identity, "eventType": "started", "eventMetadata": ours},
        {
            **identity,
            "eventType": "failed",
            "eventMetadata": {
                **ours,
                "durationMs": "ms",
                "reason": "error",
                "detail": "the smoke test did not pass",
                "error": "ValueError",
                "exitCode": 1,
                "host": "web2",
            },
            "deploymentMetadata": {
                "hosts": ["web1", "web2"],
                "hostCount": 2,
                "hostsSucceeded": ["web1"],
                "hostsFailed": ["web2"],
                "hostsPending": [],
            },
        },
    ]


def test_the_request_whole(told: Told) -> None:
    from ld_deploy_hooks import __version__

    with deployment("billing"):
        pass
    told.events()
    for request in told.server.requests:
        assert (request.method, request.path) == ("POST", "/api/v2/engineering-insights/deployment-events")
        assert request.headers["User-Agent"] == f"ld-deploy-hooks/{__version__}"
        assert request.headers["LD-API-Version"] == "beta"


# -- metadata ---------------------------------------------------------------------------------------------------------

cyclic: list[Any] = []
cyclic.append(cyclic)


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (object(), "object"),
        (float("nan"), "float"),
        (cyclic, ["list"]),
        ({1, 2}, "set"),
        (b"bytes", "bytes"),
        (ValueError("secret"), "ValueError"),
        ({"a": (1, None)}, {"a": [1, None]}),
        (SimpleNamespace(a=1), "SimpleNamespace"),
    ],
)
def test_what_is_no_json_is_told_as_its_type(told: Told, value: Any, sent: Any) -> None:
    with deployment("billing", metadata={"value": value}, event_metadata={"value": value}) as d:
        d.custom(value=value)
    started, custom, finished = told.events()
    assert started["deploymentMetadata"] == finished["deploymentMetadata"] == {"value": sent}
    assert started["eventMetadata"]["value"] == custom["eventMetadata"]["value"] == sent


def test_a_megabyte_is_cut_and_said(told: Told) -> None:
    with deployment("billing", metadata={"large": "a" * 1_000_000, "small": "b" * 100}) as d:
        d.mark_failed("c" * 1_000_000)
    started, failed = told.events()
    for event in (started, failed):
        assert len(json.dumps(event["deploymentMetadata"])) + len(json.dumps(event["eventMetadata"])) < 8400
        assert event["deploymentMetadata"]["small"] == "b" * 100
        assert event["deploymentMetadata"]["large"].startswith("aaa")
    assert failed["eventMetadata"]["detail"].startswith("ccc")
    assert "deploymentMetadata.large" in told.lines[0]
    assert "eventMetadata.detail" in told.lines[1]


def test_the_token_travels_nowhere(told: Told, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with deployment(
        f"billing {TOKEN}",
        version=f"v-{TOKEN}",
        version_name=f"name {TOKEN}",
        application_name=TOKEN,
        metadata={TOKEN: TOKEN, "deep": [{"a": f"x{TOKEN}x"}]},
        event_metadata={"a": TOKEN},
    ) as d:
        d.custom({"b": TOKEN})
        d.host_failed(f"host-{TOKEN}")
        d.mark_failed(f"it was {TOKEN}")
        assert TOKEN not in repr(d)
    events = told.events()
    assert [event["eventType"] for event in events] == ["started", "custom", "failed"]
    for event in events:
        assert TOKEN not in json.dumps(event)
        assert event["version"] == "v--redacted"
    assert events[2]["eventMetadata"]["detail"] == "it was [redacted]"
    assert events[2]["eventMetadata"]["host"] == "host-[redacted]"
    assert TOKEN not in caplog.text
    folder = told.outbox.parent
    assert all(TOKEN.encode() not in path.read_bytes() for path in folder.iterdir() if path.is_file())


def test_hooks_do_not_see_the_token_either(told: Told, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "looking.py").write_text(
        "from ld_deploy_hooks import hookimpl\n"
        "seen = []\n"
        "@hookimpl\n"
        "def ld_deploy_started(deployment): seen.append(deployment)\n"
        "@hookimpl\n"
        "def ld_deploy_failed(deployment, error): seen.append(deployment)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LD_DEPLOY_PLUGINS", "looking,no:console")
    error = type(f"E-{TOKEN}", (Exception,), {})()

    def deploy() -> None:
        d = current_deployment()
        assert d is not None
        d.host_failed(f"host-{TOKEN}")
        raise error

    deploy.__name__ = f"deploy-{TOKEN}"
    with pytest.raises(type(error)):
        deployment("billing")(deploy)()
    flush()
    started, failed = sys.modules.pop("looking").seen
    assert (started.task, failed.task) == ("deploy-[redacted]", "deploy-[redacted]")
    assert (failed.error_type, failed.hosts) == ("E-[redacted]", ("host-[redacted]",))
    assert TOKEN not in repr(failed)


# -- hosts ------------------------------------------------------------------------------------------------------------


def test_the_first_fifty_hosts_are_named_and_all_are_counted(told: Told) -> None:
    with deployment("billing") as d:
        for number in range(60):
            d.host_succeeded(f"web{number}")
    sent = told.end()["deploymentMetadata"]
    assert sent["hosts"] == sent["hostsSucceeded"] == [f"web{number}" for number in range(50)]
    assert sent["hostCount"] == 60


def test_a_host_that_went_well_at_last_did_not_fail(told: Told) -> None:
    with pytest.raises(ValueError), deployment("billing") as d:  # noqa: PT011, PT012
        d.host_failed("web1", OSError())
        d.host_succeeded("web1")
        raise ValueError
    assert told.failure() == {"reason": "error", "error": "ValueError", "exitCode": 1}
    assert told.end()["deploymentMetadata"]["hostsFailed"] == []


def test_what_failed_on_a_host_explains_a_failure_without_an_error(told: Told) -> None:
    with deployment("billing") as d:
        d.host_failed("web1", OSError("secret"))
        d.mark_failed("no")
    assert told.failure() == {"reason": "error", "detail": "no", "error": "OSError", "host": "web1"}


def test_a_failed_host_alone_is_no_failed_deployment(told: Told) -> None:
    with deployment("billing") as d:
        d.host_failed("web1", OSError("secret"))
    end = told.end()
    assert end["eventType"] == "finished"
    assert "host" not in end["eventMetadata"]


def connection(host: str, port: int = 22) -> SimpleNamespace:
    """Return what a Fabric connection shows of itself."""
    return SimpleNamespace(host=host, original_host=host, port=port)


def test_a_groups_result_is_taken_over(told: Told) -> None:
    one, two, three = ("web1", 22), ("web1", 23), ("web2", 22)

    class Connection:
        def __init__(self, host: str, port: int) -> None:
            self.original_host, self.port = host, port

    connections = [Connection(*each) for each in (one, two, three)]
    result = SimpleNamespace(
        succeeded={connections[0]: "ok", connections[2]: "ok"}, failed={connections[1]: OSError("secret")}
    )
    with deployment("billing") as d:
        d.record_group(result)
        d.mark_failed("one host")
    sent = told.end()
    assert sent["deploymentMetadata"]["hostsSucceeded"] == ["web1:22", "web2"]
    assert sent["deploymentMetadata"]["hostsFailed"] == ["web1:23"]
    assert (sent["eventMetadata"]["error"], sent["eventMetadata"]["host"]) == ("OSError", "web1:23")


@pytest.mark.parametrize("nonsense", [None, 5, SimpleNamespace(succeeded=5, failed={}), {"web1": "ok"}])
def test_a_groups_result_that_is_none_is_a_line(told: Told, nonsense: Any) -> None:
    with deployment("billing") as d:
        d.record_group(nonsense)
    assert told.lines[0].startswith(f"record_group() got a {type(nonsense).__name__} that cannot be read")
    assert told.end()["eventType"] == "finished"


def test_a_host_given_as_a_connection_is_told_by_its_name(told: Told) -> None:
    with deployment("billing") as d:
        d.host_succeeded(connection("web1"))  # type: ignore[arg-type]
        d.host_failed(5)  # type: ignore[arg-type]
    assert told.end()["deploymentMetadata"]["hosts"] == ["web1", "int"]


# -- plugins ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def plugin(told: Told) -> Any:
    """Return what has plugins registered in the deployments of this test."""
    from ld_deploy_hooks._reporter import plugins_for
    from ld_deploy_hooks._settings import resolve

    def register(thing: object) -> None:
        plugins_for(resolve()).register(thing, "test", "a test")

    return register


def test_what_plugins_add_goes_below_the_users_own(told: Told, plugin: Any) -> None:
    class Adds:
        @hookimpl
        def ld_deploy_add_metadata(self, deployment: DeploymentRecord) -> dict[str, Any]:
            return {"commit": "c", "both": "plugin", "told": deployment.state}

    plugin(Adds())
    with deployment("billing", metadata={"both": "user"}):
        pass
    assert [event["deploymentMetadata"] for event in told.events()] == [
        {"commit": "c", "both": "user", "told": "started"}
    ] * 2


def test_a_dropped_start_leaves_the_whole_deployment_untold(told: Told, plugin: Any) -> None:
    class Drops:
        @hookimpl
        def ld_deploy_modify_event(self, event: DeploymentEvent) -> None:
            if event.event_type == "started":
                raise DropEvent

    plugin(Drops())
    with deployment("billing") as d:
        d.custom()
    assert told.kinds() == []


def test_a_dropped_custom_event_is_that_one_alone(told: Told, plugin: Any) -> None:
    class Drops:
        @hookimpl
        def ld_deploy_modify_event(self, event: DeploymentEvent) -> None:
            if event.event_metadata.get("step") == 1:
                raise DropEvent

    plugin(Drops())
    with deployment("billing") as d:
        d.custom(step=1)
        d.custom(step=2)
    assert told.kinds() == ["started", "custom", "finished"]


def test_plugins_are_told_when_a_custom_event_happened(told: Told, plugin: Any) -> None:
    heard: list[int | None] = []

    class Hears:
        @hookimpl
        def ld_deploy_started(self, deployment: DeploymentRecord) -> None:
            heard.append(deployment.custom_at)

        @hookimpl
        def ld_deploy_custom(self, deployment: DeploymentRecord) -> None:
            heard.append(deployment.custom_at)

        @hookimpl
        def ld_deploy_finished(self, deployment: DeploymentRecord) -> None:
            heard.append(deployment.custom_at)

    plugin(Hears())
    with deployment("billing") as d:
        d.custom(step=1)
    _, custom, _ = told.events()
    assert heard == [None, custom["eventTime"], None]


def test_plugins_are_told_in_order_and_get_the_exception(told: Told, plugin: Any) -> None:
    heard: list[Any] = []

    class Hears:
        @hookimpl
        def ld_deploy_started(self, deployment: DeploymentRecord) -> None:
            heard.append(("started", deployment.state, deployment.ended_at))

        @hookimpl
        def ld_deploy_custom(self, deployment: DeploymentRecord, metadata: Any) -> None:
            heard.append(("custom", deployment.state, dict(metadata)))

        @hookimpl
        def ld_deploy_failed(self, deployment: DeploymentRecord, error: BaseException | None) -> None:
            heard.append(("failed", deployment.state, deployment.reason, deployment.error_type, repr(error)))

        @hookimpl
        def ld_deploy_event_delivered(self, event: DeploymentEvent) -> None:
            heard.append(("delivered", event.event_type))

    plugin(Hears())
    with pytest.raises(ValueError, match="sesame"), deployment("billing") as d:  # noqa: PT012
        d.custom(step=1)
        raise ValueError("sesame")
    told.events()
    assert [each for each in heard if each[0] != "delivered"] == [
        ("started", "started", None),
        ("custom", "started", {"step": 1}),
        ("failed", "failed", "error", "ValueError", "ValueError('sesame')"),
    ]
    # What was delivered by the time that flush() returns is told by then.
    assert [each[1] for each in heard if each[0] == "delivered"] == ["started", "custom", "failed"]


def test_ctrl_c_in_a_plugin_at_the_end_is_the_deploys_and_the_end_is_told(told: Told, plugin: Any) -> None:
    class Interrupted:
        @hookimpl
        def ld_deploy_modify_event(self, event: DeploymentEvent) -> None:
            if event.event_type == "finished":
                raise KeyboardInterrupt

    plugin(Interrupted())
    with pytest.raises(KeyboardInterrupt), deployment("billing"):
        pass
    assert told.kinds() == ["started", "finished"]


def test_ctrl_c_in_a_plugin_at_the_start_tells_nothing(told: Told, plugin: Any) -> None:
    class Interrupted:
        @hookimpl
        def ld_deploy_add_metadata(self, deployment: DeploymentRecord) -> None:
            raise KeyboardInterrupt

    plugin(Interrupted())
    with pytest.raises(KeyboardInterrupt), deployment("billing"):
        pytest.fail("entered")
    assert told.kinds() == []
    assert told.lines == []
