"""The pytest plugin: no test run sends anything, and a test sees what its deployments tell.

It comes with the package (entry point ``pytest11``, named as this module)::

    def test_deploy(deployment_events):
        deploy()
        assert deployment_events.one("finished").version == "a90a8a2"

The package's own rooms are imported in hooks and fixtures: at the top they would be loaded before coverage starts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import pytest

if TYPE_CHECKING:
    from ld_deploy_hooks._run import Run
    from ld_deploy_hooks.testing import FakeLaunchDarkly, RecordedEvents

__all__ = ["deployment_events", "fake_launchdarkly"]

_MARKER = "real_deployment_events"
_TOKEN = "api-test-token"
# Seconds that the end of a test waits for what is still on its way to the stand-in.
_ENDING = 1.0

# Not in a stash, which pytest has from 7 on: this plugin is loaded by every pytest that finds the package.
_held: WeakSet[pytest.Config] = WeakSet()
# Deployments that a fixture of a wider scope than a function has opened: they outlive a test.
_wider: WeakKeyDictionary[pytest.Config, set[Run]] = WeakKeyDictionary()
# Of a test that asks for deployment_events: its events, and what ends their recording.
_recorded: WeakKeyDictionary[pytest.Item, tuple[RecordedEvents, ExitStack]] = WeakKeyDictionary()


# -- nothing is sent --------------------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Hold everything back before the first file of the user's is imported."""
    _hold(early_config)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Hold everything back, where a conftest.py has named this plugin, and register the marker."""
    _hold(config)
    config.addinivalue_line(
        "markers", f"{_MARKER}: the deployments of this test are told to its fixture fake_launchdarkly"
    )


def _hold(config: pytest.Config) -> None:
    """Send nothing until the end of this process.

    A program that has called ``pytest.main()`` goes on after it, and may deploy then; a session that runs inside
    another's test ends alone.
    """
    if config in _held:
        return
    _held.add(config)
    from ld_deploy_hooks._testrun import OFF, VARIABLE, held, hold_process, is_held, is_pytests_own

    # For children. The switches of whoever started pytest would hide from the fixtures what a deploy tells.
    inherited = dict.fromkeys(("LD_DEPLOY_DISABLED", "LD_DEPLOY_DRY_RUN", "LD_DEPLOY_PARENT"))
    environment = {VARIABLE: OFF, **inherited}
    until_the_end = ExitStack()
    config.add_cleanup(until_the_end.close)
    if is_held():
        until_the_end.enter_context(held())
    else:
        let_go = hold_process()
        # Such a process, or a worker of pytest-xdist's, ends with this session.
        if is_pytests_own() or hasattr(config, "workerinput"):
            _set(environment)
            return
        until_the_end.callback(let_go)
    until_the_end.enter_context(_environment(environment))


@contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables, None removes one, and put back what was there."""
    before = {name: os.environ.get(name) for name in values}
    try:
        _set(values)
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


# -- nothing leaks from test to test ----------------------------------------------------------------------------------


def _open_runs() -> set[Run]:
    # A test that has nothing to do with deployments pays for none of it.
    if "ld_deploy_hooks._run" not in sys.modules:
        return set()
    from ld_deploy_hooks._run import runs

    return set(runs.present)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Forget what the test has left open."""
    before = _open_runs()
    try:
        return (yield)
    finally:
        if "ld_deploy_hooks._run" in sys.modules:
            from ld_deploy_hooks._log import forget_said
            from ld_deploy_hooks._run import runs

            wider: set[Run] = _wider.get(item.config, set())
            runs.forget(before | wider)
            forget_said()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    """Notice what fixtures of a wider scope open; that is not of the test that happens to be the first."""
    if fixturedef.scope == "function":
        return (yield)
    from ld_deploy_hooks._testrun import current_recording, held

    before = _open_runs()
    try:
        with nullcontext() if current_recording() is None else held():
            return (yield)
    finally:
        wider = _wider.setdefault(request.config, set())
        wider &= _open_runs()
        wider |= _open_runs() - before


# -- what a test sees -------------------------------------------------------------------------------------------------


def _is_marked(request: pytest.FixtureRequest) -> bool:
    return request.node.get_closest_marker(_MARKER) is not None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Record from the first fixture on."""
    if "deployment_events" in getattr(item, "fixturenames", ()) and item.get_closest_marker(_MARKER) is None:
        recording = ExitStack()
        _recorded[item] = (recording.enter_context(_recording(item.config)), recording)


# Not first: a test that is skipped needs nothing.
@pytest.hookimpl(specname="pytest_runtest_setup")
def pytest_runtest_setup_of_marked(item: pytest.Item) -> None:
    """Refuse the marker where there is nothing to send to."""
    marked = item.get_closest_marker(_MARKER) is not None
    if marked and "fake_launchdarkly" not in getattr(item, "fixturenames", ()):
        pytest.fail(
            f"@pytest.mark.{_MARKER} needs the fixture fake_launchdarkly, which the deployments of this test are then "
            "told to: add it to the test's arguments, or by @pytest.mark.usefixtures('fake_launchdarkly').",
            pytrace=False,
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    """Record until the last fixture has ended."""
    try:
        return (yield)
    finally:
        if item in _recorded:
            _recorded.pop(item)[1].close()


def _recording(config: pytest.Config) -> AbstractContextManager[RecordedEvents]:
    from ld_deploy_hooks.testing._recorder import recording

    wider = _wider.setdefault(config, set())
    return recording(wider)


@pytest.fixture
def deployment_events(request: pytest.FixtureRequest) -> Iterator[RecordedEvents]:
    """The events of this test's deployments, a list in the order in which they were recorded; nothing is sent.

    ``.started``, ``.finished``, ``.failed`` and ``.custom`` are lists, ``.one("failed")`` is the only one of its type,
    and tells what was seen instead. What is required and nobody has set is ``test-project``, ``test-environment``,
    ``test-application`` and ``test-version``. Those that the test's other fixtures make are among them.
    """
    if _is_marked(request):
        pytest.fail(
            f"deployment_events records in place of sending, and @pytest.mark.{_MARKER} sends: ask fake_launchdarkly "
            "for its events, or take the marker away.",
            pytrace=False,
        )
    if request.node in _recorded:
        yield _recorded[request.node][0]
        return
    # Asked for in the middle, by getfixturevalue().
    with _recording(request.config) as events:
        yield events


@pytest.fixture
def fake_launchdarkly(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FakeLaunchDarkly]:
    """A started FakeLaunchDarkly.

    With the marker ``real_deployment_events`` the deployments of this test and of its children are told to it, by way
    of an outbox in ``tmp_path``; ``wait_for()`` waits until they are. Without the marker nothing is told.
    """
    from ld_deploy_hooks.testing import FakeLaunchDarkly

    with FakeLaunchDarkly(_TOKEN) as server:
        if not _is_marked(request):
            # Shown where the test fails, perhaps because it waits for what nobody sends.
            hint = f"The deployments of this test are not told to fake_launchdarkly without @pytest.mark.{_MARKER}."
            request.node.add_report_section("setup", "ld-deploy-hooks", hint)
            yield server
            return
        from ld_deploy_hooks._reporter import close_all, flush_all
        from ld_deploy_hooks._testrun import LOOPBACK, VARIABLE

        told = {
            VARIABLE: LOOPBACK,
            "LD_BASE_URI": server.base_uri,
            "LD_ACCESS_TOKEN": _TOKEN,
            "LD_DEPLOY_OUTBOX": str(tmp_path / "ld-deploy-hooks" / "outbox.db"),
            # A child waits for its events before it ends; two seconds are not much where many tests run at once.
            "LD_DEPLOY_FLUSH_TIMEOUT": os.environ.get("LD_DEPLOY_FLUSH_TIMEOUT", "5"),
        }
        with _environment(told):
            try:
                yield server
            finally:
                flush_all(_ENDING)
                close_all()
