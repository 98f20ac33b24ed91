"""The built-in plugin ``opentelemetry``: spans of real deployments, made by a real SDK."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from told import Told, script, settings
from told import told_fixture as told_fixture

from ld_deploy_hooks import deployment, flush
from ld_deploy_hooks.plugins import opentelemetry as plugin

pytest.importorskip("opentelemetry.sdk", reason="the OpenTelemetry SDK is not installed")

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"

# What a child does first: every span becomes a line of JSON on stdout as soon as it is exported.
PROVIDER = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

def set_up():
    exporter = ConsoleSpanExporter(formatter=lambda span: span.to_json(indent=None) + "\\n")
    trace.set_tracer_provider(TracerProvider())
    trace.get_tracer_provider().add_span_processor(BatchSpanProcessor(exporter))
"""

RunChild = Callable[..., "list[dict[str, Any]]"]


@pytest.fixture(scope="module")
def _exporter() -> InMemorySpanExporter:
    # A process has one provider, for good.
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    assert trace.get_tracer_provider() is provider, "another test has set up a provider"
    return exporter


class Traced:
    """Deployments that are traced, and what comes of it."""

    def __init__(self, told: Told, exporter: InMemorySpanExporter) -> None:
        self.told = told
        self._exporter = exporter

    def spans(self) -> list[ReadableSpan]:
        """Return all spans in the order in which they ended, when all that was told so far has been passed on."""
        assert flush(10.0), self.told.lines
        assert self.told.lines == []
        return list(self._exporter.get_finished_spans())

    def span(self) -> ReadableSpan:
        """Return the only span."""
        (span,) = self.spans()
        return span


@pytest.fixture
def traced(told: Told, _exporter: InMemorySpanExporter) -> Iterator[Traced]:
    _exporter.clear()
    # What other tests in this process have left open, on purpose.
    before = {**plugin._open}, {**plugin._around}
    yield Traced(told, _exporter)
    assert (plugin._open, plugin._around) == before, "a deployment that has ended is not forgotten"


@pytest.fixture
def run_child(told: Told, run_python: Any, child_env: dict[str, str]) -> RunChild:
    """Return a function that runs a deploy in a child with an SDK, and returns its spans as the SDK writes them."""

    def run(source: str, *, returncode: int = 0, stderr: str = "", **env: str) -> list[dict[str, Any]]:
        done = run_python(source, env=child_env | settings(told.server.base_uri, told.outbox, **env))
        assert (done.returncode, done.stderr) == (returncode, stderr)
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    return run


def _hex(span: ReadableSpan) -> tuple[str, str]:
    assert span.context is not None
    return trace.format_trace_id(span.context.trace_id), trace.format_span_id(span.context.span_id)


def _instant(text: str) -> int:
    """Return Unix milliseconds of a time as the SDK writes it."""
    return round(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1000)


# -- what a span says -------------------------------------------------------------------------------------------------


def test_a_deployment_is_one_span_with_its_own_times(traced: Traced) -> None:
    metadata = {"branch": "main", "commit": "a90a8a2b", "runUrl": "https://ci.example/1"}
    with deployment("billing", metadata=metadata) as d:
        pass
    span = traced.span()
    assert span.name == "deploy billing"
    assert span.kind is SpanKind.SERVER
    assert (span.start_time, span.end_time) == ((d.started_at or 0) * 1_000_000, (d.ended_at or 0) * 1_000_000)
    assert span.status.status_code is StatusCode.UNSET
    assert (span.parent, list(span.events), list(span.links)) == (None, [], [])
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "ld_deploy_hooks"
    assert dict(span.attributes or {}) == {
        "cicd.pipeline.name": "billing",
        "cicd.pipeline.result": "success",
        "cicd.pipeline.run.id": d.id,
        "cicd.pipeline.run.url.full": "https://ci.example/1",
        "deployment.environment.name": "production",
        "deployment.id": d.id,
        "deployment.name": "deploy billing",
        "deployment.status": "succeeded",
        "service.name": "billing",
        "service.version": "a90a8a2",
        "vcs.ref.head.name": "main",
        "vcs.ref.head.revision": "a90a8a2b",
    }
    assert traced.told.kinds() == ["started", "finished"]


def test_a_function_is_the_task_and_a_tag_stands_for_a_branch(traced: Traced) -> None:
    @deployment("billing", metadata={"tag": "v1", "commit": 7, "runUrl": ""})
    def release() -> None:
        pass

    release()
    attributes = dict(traced.span().attributes or {})
    assert attributes["cicd.pipeline.task.name"] == "release"
    assert attributes["vcs.ref.head.name"] == "v1"
    assert not {"vcs.ref.head.revision", "cicd.pipeline.run.url.full"} & set(attributes)


def test_metadata_that_comes_after_the_start_is_there_at_the_end(traced: Traced) -> None:
    with deployment("billing") as d:
        d.metadata["commit"] = "a90a8a2b"
    assert (traced.span().attributes or {})["vcs.ref.head.revision"] == "a90a8a2b"


def _error(d: Any) -> None:
    raise LookupError("sesame: the password of the database")


@pytest.mark.parametrize(
    ("deploy", "result", "kind"),
    [
        (_error, "failure", "LookupError"),
        (lambda d: d.mark_failed("sesame"), "failure", "error"),
        (lambda d: d.mark_cancelled("sesame"), "cancellation", "cancelled"),
    ],
    ids=["an exception", "marked failed", "marked cancelled"],
)
def test_a_failure_is_an_error_by_the_name_of_its_type_alone(
    traced: Traced, deploy: Callable[[Any], None], result: str, kind: str
) -> None:
    try:
        with deployment("billing") as d:
            deploy(d)
    except LookupError:
        pass
    span = traced.span()
    attributes = dict(span.attributes or {})
    assert attributes["deployment.status"] == "failed"
    assert (attributes["cicd.pipeline.result"], attributes["error.type"]) == (result, kind)
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, kind)
    assert list(span.events) == []
    assert "sesame" not in span.to_json()


# -- custom events ----------------------------------------------------------------------------------------------------


def test_a_custom_event_is_a_child_without_length(traced: Traced) -> None:
    with deployment("billing") as d:
        d.custom(step="migrated", tables=12)
    event = traced.told.events()[1]
    child, span = traced.spans()
    assert (child.name, child.kind) == ("ld_deploy.custom", SpanKind.INTERNAL)
    assert child.start_time == child.end_time == event["eventTime"] * 1_000_000
    assert child.parent == span.context
    assert dict(child.attributes or {}) == {"ld_deploy.custom.step": "migrated", "ld_deploy.custom.tables": 12}
    assert child.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(
    ("value", "attribute"),
    [
        ("größer", "größer"),
        (True, True),
        (1.5, 1.5),
        (-(2**63), -(2**63)),
        (2**63, "9223372036854775808"),
        (None, "null"),
        ({"ä": [1, None]}, '{"ä":[1,null]}'),
        ([], ()),
        ([1, 2], (1, 2)),
        (["a", "b"], ("a", "b")),
        ([True, 1], "[true,1]"),
        ([1, 2.5], "[1,2.5]"),
        ([1, 2**63], "[1,9223372036854775808]"),
        ([None], "[null]"),
        ([[1], [2]], "[[1],[2]]"),
    ],
    ids=str,
)
def test_what_is_no_attribute_travels_as_json_text(traced: Traced, value: Any, attribute: Any) -> None:
    with deployment("billing") as d:
        d.custom({"any key at all": value})
    child, _ = traced.spans()
    (seen,) = (child.attributes or {}).values()
    assert (seen, type(seen)) == (attribute, type(attribute))
    assert list(child.attributes or {}) == ["ld_deploy.custom.any key at all"]


def test_the_access_token_is_in_no_attribute(traced: Traced) -> None:
    with deployment("billing", metadata={"commit": "api-test-token"}) as d:
        d.custom(header="Authorization: api-test-token")
    assert [span for span in traced.spans() if "api-test-token" in span.to_json()] == []


# -- the parent -------------------------------------------------------------------------------------------------------


def test_the_parent_comes_from_the_environment(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPARENT", TRACEPARENT)
    monkeypatch.setenv("TRACESTATE", "vendor=1")
    with deployment("billing") as d:
        d.custom(step="migrated")
    child, span = traced.spans()
    assert _hex(span)[0] == _hex(child)[0] == TRACE
    assert span.parent is not None
    assert trace.format_span_id(span.parent.span_id) == SPAN
    assert span.parent.is_remote
    assert span.context is not None
    assert span.context.trace_state.to_header() == "vendor=1"


@pytest.mark.parametrize("value", ["", "nonsense", f"00-{'0' * 32}-{SPAN}-01", f"ff-{TRACE}-{SPAN}-01"])
def test_a_parent_that_cannot_be_read_is_none(traced: Traced, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPARENT", value)
    with deployment("billing"):
        pass
    assert traced.span().parent is None


def test_a_parent_that_is_not_sampled_has_no_children(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPARENT", f"00-{TRACE}-{SPAN}-00")
    with deployment("billing") as d:
        d.custom(step="migrated")
    assert traced.spans() == []


def test_a_span_that_the_deploy_runs_in_is_the_parent(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPARENT", TRACEPARENT)
    with trace.get_tracer("deploy").start_as_current_span("release") as release, deployment("billing"):
        pass
    (span,) = (span for span in traced.spans() if span.name == "deploy billing")
    assert span.parent == release.get_span_context()


def test_many_deployments_at_once_keep_apart(traced: Traced) -> None:
    async def deploy(number: int) -> None:
        async with deployment(f"app{number}", version="1") as d:
            await asyncio.sleep(0)
            d.custom(number=number)

    def in_a_thread(number: int) -> None:
        barrier.wait()
        release = trace.get_tracer("deploy").start_as_current_span(f"release {number}")
        with release, deployment(f"app{number}", version="1") as d:
            barrier.wait()
            d.custom(number=number)

    async def all_of_them() -> None:
        await asyncio.gather(*(deploy(number) for number in range(10, 20)))

    barrier = threading.Barrier(10)
    threads = [threading.Thread(target=in_a_thread, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(all_of_them())
    spans = {span.name: span for span in traced.spans() if span.name != "ld_deploy.custom"}
    assert len(spans) == 30
    for number in range(20):
        span = spans[f"deploy app{number}"]
        (child,) = (span_ for span_ in traced.spans() if span_.parent == span.context)
        assert dict(child.attributes or {}) == {"ld_deploy.custom.number": number}
        assert span.parent == (spans[f"release {number}"].context if number < 10 else None)
    ids = {(span.attributes or {}).get("deployment.id") for span in spans.values()} - {None}
    assert len(ids) == 20


def test_a_start_that_a_plugin_drops_is_no_span_and_leaves_nothing(
    traced: Traced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dropping.py").write_text(
        "from ld_deploy_hooks import DropEvent, hookimpl\n"
        "@hookimpl\n"
        "def ld_deploy_modify_event(event):\n"
        "    raise DropEvent\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LD_DEPLOY_PLUGINS", "no:console,dropping")
    with trace.get_tracer("deploy").start_as_current_span("release"), deployment("billing") as d:
        d.custom(step="migrated")
    assert [span.name for span in traced.spans()] == ["release"]


def test_it_can_be_switched_off(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_DEPLOY_PLUGINS", "no:console,no:opentelemetry")
    with deployment("billing"):
        pass
    assert traced.spans() == []


# -- processes --------------------------------------------------------------------------------------------------------

BILLING = "\nwith deployment('billing') as d:\n    d.custom(step='migrated')\n"


@pytest.mark.parametrize(
    "source",
    [
        f"{PROVIDER}\nset_up()\nfrom ld_deploy_hooks import deployment\n{BILLING}",
        f"from ld_deploy_hooks import deployment\n{PROVIDER}\nset_up()\n{BILLING}",
    ],
    ids=["set up first", "set up last"],
)
def test_what_is_told_last_is_exported_before_the_provider_shuts_down(
    source: str, run_child: RunChild, tmp_path: Path, told: Told
) -> None:
    """With a plugin before ours that is slow, the end is told long after the main program has run out."""
    (tmp_path / "slow.py").write_text(
        "import time\nfrom ld_deploy_hooks import hookimpl\n@hookimpl\ndef ld_deploy_finished():\n    time.sleep(0.5)\n"
    )
    child, span = run_child(source, LD_DEPLOY_PLUGINS="no:console,slow", TRACEPARENT=TRACEPARENT)
    assert (child["name"], span["name"]) == ("ld_deploy.custom", "deploy billing")
    assert (child["parent_id"], span["parent_id"]) == (span["context"]["span_id"], f"0x{SPAN}")
    assert told.kinds() == ["started", "custom", "finished"]


def test_a_provider_that_the_deploy_itself_sets_up_gets_the_whole_deployment(run_child: RunChild, told: Told) -> None:
    source = f"""{PROVIDER}
with deployment("billing") as d:
    d.custom(step="early")
    flush()
    set_up()
    d.custom(step="late")
flush()
trace.get_tracer_provider().shutdown()
"""
    spans = {span["name"]: span for span in run_child(script(source), TRACEPARENT=TRACEPARENT)}
    assert spans["ld_deploy.custom"]["attributes"] == {"ld_deploy.custom.step": "late"}
    span = spans["deploy billing"]
    assert span["parent_id"] == f"0x{SPAN}"
    assert spans["ld_deploy.custom"]["parent_id"] == span["context"]["span_id"]
    assert [_instant(span[end]) for end in ("start_time", "end_time")] == [
        told.events()[which]["eventTime"] for which in (0, -1)
    ]


def test_a_killed_deployment_is_a_span_of_the_run_that_finds_it(run_child: RunChild, told: Told) -> None:
    killed = "import os, signal\nwith deployment('billing') as d:\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    assert run_child(script(killed), returncode=-signal.SIGKILL) == []
    recovering = f"{PROVIDER}\nset_up()\nwith deployment('web'): pass\n"
    spans = {span["name"]: span for span in run_child(script(recovering), TRACEPARENT=TRACEPARENT)}
    assert sorted(spans) == ["deploy billing", "deploy web"]
    span = spans["deploy billing"]
    assert span["parent_id"] is None, "it belonged to another trace"
    assert spans["deploy web"]["parent_id"] == f"0x{SPAN}"
    assert span["status"] == {"status_code": "ERROR", "description": "killed"}
    assert span["attributes"]["cicd.pipeline.result"] == "error"
    started, failed = (event for event in told.events() if event["applicationKey"] == "billing")
    assert _instant(span["start_time"]) == started["eventTime"]
    assert _instant(span["end_time"]) == failed["eventTime"]


@pytest.mark.parametrize("imported", ["", "import opentelemetry.trace"], ids=["not imported", "the API alone"])
def test_without_an_sdk_nothing_happens(run_child: RunChild, imported: str) -> None:
    source = f"""
import json, sys
{imported}
{BILLING}
flush()
loaded = sorted(name for name in sys.modules if name.partition(".")[0] == "opentelemetry")
print(json.dumps({{"plugin": "ld_deploy_hooks.plugins.opentelemetry" in sys.modules, "loaded": loaded}}))
"""
    (seen,) = run_child(script(source), TRACEPARENT=TRACEPARENT)
    assert seen["plugin"], "it is loaded by default"
    if imported:
        assert not [name for name in seen["loaded"] if name.startswith("opentelemetry.sdk")]
    else:
        assert seen["loaded"] == []


def test_without_opentelemetry_nothing_is_said(run_child: RunChild, told: Told) -> None:
    source = f"import sys\nsys.modules['opentelemetry'] = sys.modules['opentelemetry.trace'] = None\n{BILLING}"
    assert run_child(script(source)) == []
    assert told.kinds() == ["started", "custom", "finished"]


def test_a_provider_that_cannot_be_loaded_is_a_line_and_no_fault_of_the_deploys(
    told: Told, run_python: Any, child_env: dict[str, str]
) -> None:
    env = settings(told.server.base_uri, told.outbox, OTEL_PYTHON_TRACER_PROVIDER="none_such")
    done = run_python(script(f"import opentelemetry.trace\n{BILLING}"), env=child_env | env)
    assert done.returncode == 0
    assert "Plugin opentelemetry: ld_deploy_started raised" in done.stderr
    assert told.kinds() == ["started", "custom", "finished"]


# -- the document -----------------------------------------------------------------------------------------------------

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "opentelemetry.md"


def test_the_document_shows_what_works(run_python: Any, child_env: dict[str, str], told: Told) -> None:
    (block,) = re.findall(r"(?s)^```python\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    done = run_python(block, env=child_env | settings(told.server.base_uri, told.outbox))
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r'(?m)^    "name": "(.*)",$', done.stdout) == ["ld_deploy.custom", "deploy billing-service"]
    assert told.kinds() == ["started", "custom", "finished"]


def test_the_document_names_every_attribute(traced: Traced) -> None:
    @deployment("billing", metadata={"branch": "main", "commit": "a90a8a2b", "runUrl": "https://ci.example/1"})
    def deploy() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        deploy()
    table = re.findall(r"(?m)^\| (`.*`) \| ", DOCUMENT.read_text(encoding="utf-8"))
    assert sorted(re.findall("`(.*?)`", " ".join(table))) == sorted(traced.span().attributes or {})
