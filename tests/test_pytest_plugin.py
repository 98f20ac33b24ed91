"""The pytest plugin, in pytest runs of their own: as a developer starts them, whose shell could tell LaunchDarkly."""

from __future__ import annotations

import importlib.util
import subprocess
import textwrap
from collections.abc import Callable, Iterator, Mapping
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
from told import TOKEN

from ld_deploy_hooks.testing import FakeLaunchDarkly

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = ("-p", "ld_deploy_hooks.pytest_plugin")
# The hosts leave pipes open, and import what is deprecated.
HOSTS = ("-W", "ignore")

DEPLOY = """
import os
import subprocess
import sys
import threading
import time
from unittest import mock

from ld_deploy_hooks import current_deployment, deployment, flush


def deploy(application="billing", **fields):
    with deployment(application, **fields) as d:
        d.custom(step="migrated")
    return d


def deploy_in_a_child():
    subprocess.run([sys.executable, "-c", "import deploy; deploy.deploy('of-a-child')"], check=True)


def deploy_in_a_thread():
    thread = threading.Thread(target=deploy)
    thread.start()
    thread.join()


def deploy_in_a_cleared_environment():
    kept = {name: value for name, value in os.environ.items() if name.startswith(("LD_", "XDG_"))}
    kept.pop("LD_DEPLOY_PYTEST", None)
    with mock.patch.dict(os.environ, {**kept, "LD_DEPLOY_DISABLED": "0"}, clear=True):
        deploy()


def no_thread_is_left(deadline=5):
    ends = time.monotonic() + deadline
    while left := [thread for thread in threading.enumerate() if thread.name.startswith("ld-deploy")]:
        assert time.monotonic() < ends, left
        time.sleep(0.01)


if __name__ == "__main__":
    deploy()
"""


class Session:
    """A folder with tests and a file to deploy with, and a service that could be told.

    Attributes:
        service: the one that the developer's settings name.
        env: the developer's environment.
    """

    def __init__(
        self, folder: Path, service: FakeLaunchDarkly, env: dict[str, str], run_python: Callable[..., Any]
    ) -> None:
        self.folder = folder
        self.service = service
        self.env = env
        self._run_python = run_python
        self.write("deploy.py", DEPLOY)

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(textwrap.dedent(text))

    def python(self, what: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a script as the developer would."""
        return self._run_python(what, env=self.env, cwd=self.folder)  # type: ignore[no-any-return]

    def run(self, tests: str, *options: str, plugin: tuple[str, ...] = PLUGIN, **env: str) -> dict[str, int]:
        """Run tests; return how many passed, failed, … Whatever they do, nothing was sent and no outbox was touched."""
        self.write("test_it.py", f"import pytest\nfrom deploy import *\n{textwrap.dedent(tests)}")
        flags = ("-W", "error", "-m", "pytest", "--strict-markers", "-p", "no:cacheprovider", "-rA", *plugin, *options)
        done = self._run_python(Path("test_it.py"), flags=flags, env=self.env | env, cwd=self.folder, timeout=60)
        self.output = done.stdout + done.stderr
        print(self.output)  # shown if the counts are not what they should be
        assert self.service.requests == [], self.output
        assert self.outboxes() == [], self.output
        (summary,) = [line for line in self.output.splitlines() if line.startswith("====") and " in " in line][-1:]
        words = summary.strip("= ").partition(" in ")[0].split(", ")
        return {what: int(count) for count, what in map(str.split, words)}

    def outboxes(self) -> list[Path]:
        """Return what lies where the developer's outbox is."""
        return list(Path(self.env["XDG_STATE_HOME"]).rglob("*"))


@pytest.fixture
def session(run_python: Callable[..., Any], child_env: dict[str, str], tmp_path: Path) -> Iterator[Session]:
    folder = tmp_path / "project"
    folder.mkdir()
    with FakeLaunchDarkly(TOKEN) as service:
        told = {
            "LD_BASE_URI": service.base_uri,
            "LD_ACCESS_TOKEN": TOKEN,
            "LD_PROJECT": "default",
            "LD_ENVIRONMENT": "production",
            "LD_DEPLOY_VERSION": "a90a8a2",
            "LD_DEPLOY_FLUSH_TIMEOUT": "20",
        }
        yield Session(folder, service, child_env | told, run_python)


# -- nothing is sent --------------------------------------------------------------------------------------------------


def test_what_these_tests_deploy_is_told_outside_of_tests(session: Session) -> None:
    assert session.python(Path("deploy.py")).returncode == 0
    assert [event["eventType"] for event in session.service.events] == ["started", "custom", "finished"]
    assert len(session.outboxes()) > 1


EVERYWHERE = """
deploy()

@pytest.fixture(scope="session", autouse=True)
def of_the_session():
    with deployment("of-the-session"):
        yield

@pytest.mark.parametrize("way", [deploy, deploy_in_a_child, deploy_in_a_thread, deploy_in_a_cleared_environment])
def test_deploys(way):
    way()
    assert flush()

def test_says_so():
    d = deploy()
    assert (d.state, d.identity) == ("finished", None)
"""


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"LD_DEPLOY_DISABLED": "0"},
        {"LD_DEPLOY_PYTEST": "loopback"},
        {"LD_DEPLOY_PYTEST": "", "LD_DEPLOY_DISABLED": "no"},
    ],
    ids=str,
)
def test_nothing_is_sent_from_anywhere(session: Session, asked: Mapping[str, str]) -> None:
    session.write(
        "conftest.py",
        """
        from deploy import deploy, deploy_in_a_cleared_environment
        deploy()
        deploy_in_a_cleared_environment()

        def pytest_sessionfinish():
            deploy()

        def pytest_unconfigure():
            deploy_in_a_cleared_environment()
        """,
    )
    assert session.run(EVERYWHERE, **asked) == {"passed": 5}


def test_nothing_is_sent_without_the_plugin_either(session: Session) -> None:
    options = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "LD_DEPLOY_DISABLED": "0"}
    assert session.run(EVERYWHERE, plugin=(), **options) == {"passed": 5}


def test_a_conftest_may_name_the_plugin(session: Session) -> None:
    session.write("conftest.py", "pytest_plugins = ['ld_deploy_hooks.pytest_plugin']\n")
    options = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "LD_DEPLOY_DISABLED": "0"}
    tests = (
        f"{EVERYWHERE}\ndef test_recorded(deployment_events):\n    deploy()\n    deployment_events.one('finished')\n"
    )
    assert session.run(tests, plugin=(), **options) == {"passed": 6}


@pytest.mark.parametrize("plugin", [(), PLUGIN])
def test_the_entry_point_brings_it(session: Session, plugin: tuple[str, ...]) -> None:
    """As it is installed: nothing to import, nothing to name; and naming it all the same does no harm."""
    points = ConfigParser()
    points.read(ROOT / "setup.cfg")
    described = session.folder / "ld_deploy_hooks-0.dist-info"
    described.mkdir()
    session.write("ld_deploy_hooks-0.dist-info/METADATA", "Metadata-Version: 2.1\nName: ld-deploy-hooks\nVersion: 0\n")
    text = points["options.entry_points"]["pytest11"]
    session.write("ld_deploy_hooks-0.dist-info/entry_points.txt", f"[pytest11]\n{text.strip()}\n")
    tests = "def test_recorded(deployment_events):\n    deploy()\n    deployment_events.one('finished')\n"
    assert session.run(tests, plugin=plugin) == {"passed": 1}


LEFT = """
import atexit

def late(*ways):
    threading.main_thread().join()  # until pytest has ended and only the threads of tests are left
    for way in ways:
        way()
    print("deployed late")

def at_exit():
    deploy()
    print("deployed at exit")

def test_leaves_something_behind(request):
    threading.Thread(target=late, args=[{}]).start()
    atexit.register(at_exit)
"""


@pytest.mark.parametrize("plugin", [PLUGIN, ()], ids=["with the plugin", "without"])
@pytest.mark.parametrize("options", [(), ("-p", "xdist", "-n", "1")], ids=["alone", "xdist"])
def test_what_tests_leave_behind_sends_nothing_when_they_are_over(
    session: Session, options: tuple[str, ...], plugin: tuple[str, ...]
) -> None:
    if options:
        pytest.importorskip("xdist")
    ways = ["deploy", "deploy_in_a_cleared_environment", "deploy_in_a_child"]
    if not plugin:  # a child's environment has nothing of pytest's any more
        ways = ways[:2]
    left = LEFT.format(", ".join(ways))
    env = {"LD_DEPLOY_DISABLED": "0"} | ({} if plugin else {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
    assert session.run(left, *options, plugin=plugin, **env) == {"passed": 1}
    assert options or ("deployed late" in session.output and "deployed at exit" in session.output)


def test_what_tests_leave_behind_in_a_program_that_goes_on_sends_nothing(session: Session) -> None:
    left = LEFT.format("deploy")
    session.write("test_it.py", f"from deploy import *\n{left}")
    session.write(
        "release.py",
        f"""
        import pytest
        from deploy import deploy

        assert pytest.main(["-q", "-s", "-p", "no:cacheprovider", {", ".join(map(repr, PLUGIN))}, "test_it.py"]) == 0
        deploy("released")
        """,
    )
    done = session.python(Path("release.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "deployed late" in done.stdout, done.stderr
    assert "deployed at exit" in done.stdout, done.stderr
    assert [event["applicationKey"] for event in session.service.events] == ["released"] * 3


def test_a_session_within_a_test_ends_alone(session: Session) -> None:
    tests = """
    pytest_plugins = ["pytester"]

    def inner(pytester):
        pytester.makepyfile("def test_it(deployment_events):\\n    pass")
        assert pytester.inline_run(*OPTIONS).ret == 0

    @pytest.mark.real_deployment_events
    def test_told(pytester, fake_launchdarkly):
        inner(pytester)
        deploy()
        fake_launchdarkly.wait_for(event_type="finished")

    def test_recorded(pytester, deployment_events):
        inner(pytester)
        deploy()
        deployment_events.one("finished")

    def test_held(pytester):
        inner(pytester)
        assert os.environ["LD_DEPLOY_PYTEST"] == "off"
        deploy_in_a_cleared_environment()
    """
    names = f"OPTIONS = {('-p', 'no:cacheprovider', *PLUGIN)}"
    assert session.run(f"{names}\n{textwrap.dedent(tests)}") == {"passed": 3}


@pytest.mark.parametrize("plugin", [PLUGIN, ()], ids=["with the plugin", "without"])
def test_what_deploys_after_its_tests_is_told(session: Session, plugin: tuple[str, ...]) -> None:
    options = ", ".join(map(repr, plugin))
    session.write("test_it.py", "from deploy import deploy\ndef test_it():\n    deploy('untold')\n")
    session.write(
        "release.py",
        f"""
        import os
        import pytest
        from deploy import deploy

        before = dict(os.environ)
        for _ in range(2):
            assert pytest.main(["-q", "-p", "no:cacheprovider", "test_it.py", {options}]) == 0
        assert pytest.main(["--no-such-option", {options}]) == 4
        assert dict(os.environ) == before
        deploy()
        """,
    )
    session.env |= {"LD_DEPLOY_DISABLED": "0", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = session.python(Path("release.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert {event["applicationKey"] for event in session.service.events} == {"billing"}


def test_a_run_that_ld_deploy_has_started_is_a_test_run(session: Session) -> None:
    parent = '{"id": "1", "identity": ["default", "production", "billing", "a90a8a2"]}'
    tests = """
    def test_recorded(deployment_events):
        deploy()
        assert len(deployment_events) == 3
    """
    switches = {"LD_DEPLOY_PARENT": parent, "LD_DEPLOY_DISABLED": "1", "LD_DEPLOY_DRY_RUN": "1"}
    assert session.run(tests, **switches) == {"passed": 1}


# -- the fixture ------------------------------------------------------------------------------------------------------


def test_the_fixture_records(session: Session) -> None:
    tests = """
    def test_good(deployment_events):
        assert deployment_events == []
        deploy(version="1")
        assert [event.event_type for event in deployment_events] == ["started", "custom", "finished"]
        assert deployment_events.one("finished").application_key == "billing"
        assert deployment_events.started[0].version == "1"

    def test_bad(deployment_events, capsys):
        with pytest.raises(KeyError), deployment("web"):
            raise KeyError
        assert deployment_events.failed[0].event_metadata["error"] == "KeyError"
        assert "ld-deploy: web a90a8a2 to production: failed" in capsys.readouterr().err
        deploy_in_a_child()
        assert len(deployment_events) == 2

    def test_missed(deployment_events):
        deploy()
        deployment_events.one("failed")
    """
    assert session.run(tests) == {"passed": 2, "failed": 1}
    shown = session.output.partition("FAILURES")[2].partition("PASSES")[0]
    assert "E       AssertionError: expected one failed event, saw none." in shown
    assert "E         custom billing a90a8a2 to production" in shown
    assert ">       deployment_events.one(" in shown
    assert "_recorder.py" not in shown


def test_the_fixture_records_from_the_first_fixture_to_the_last(session: Session) -> None:
    tests = """
    @pytest.fixture
    def deployed():
        with deployment("fx", version="1") as d:
            yield d

    @pytest.fixture(scope="module")
    def of_the_module():
        deploy("of-the-module")
        with deployment("of-the-module") as d:
            yield d

    @pytest.fixture
    def seen():
        yield (seen := [])
        assert [event.event_type for event in seen[0]] == ["started", "custom", "finished"]

    def test_a_fixture_before_it(seen, deployed, deployment_events):
        deployed.custom(x=1)
        assert deployment_events.one("started").application_key == "fx"
        seen.append(deployment_events)

    @pytest.mark.usefixtures("deployed")
    class TestUsed:
        def test_used(self, deployment_events):
            deployment_events.one("started")

    def test_asked_for_in_the_middle(deployed, request):
        events = request.getfixturevalue("deployment_events")
        assert events == []
        deploy()
        events.one("finished")

    @pytest.mark.parametrize("time", [1, 2])
    def test_a_wider_one_is_of_no_test(of_the_module, deployment_events, time):
        assert current_deployment() is of_the_module
        assert deployment_events == []
        with pytest.raises(AssertionError, match="fixture of a wider scope"):
            deployment_events.one("started")
        deploy()
        deployment_events.one("finished")

    def test_untold():
        assert deploy().identity is None

    def test_fails(deployed, deployment_events):
        raise KeyError

    def test_begins_anew(deployment_events):
        assert deployment_events == []
    """
    assert session.run(tests) == {"failed": 1, "passed": 7}


def test_nothing_leaks_from_test_to_test(session: Session) -> None:
    tests = """
    import logging

    left = []

    @pytest.fixture(scope="module")
    def of_the_module():
        with deployment("of-the-module") as d:
            yield d

    def test_leaves_open():
        left.append(deployment("billing").__enter__())
        left.append(deployment("billing", autostart=False).__enter__())

    def test_leaves_a_recorded_one_open(deployment_events):
        assert current_deployment() is None
        left.append(deployment("billing").__enter__())

    def test_begins_anew(deployment_events):
        assert current_deployment() is None
        assert deployment_events == []
        deploy()
        assert len(deployment_events) == 3
        for d in left:
            d.mark_failed("late")
        assert len(deployment_events) == 3

    def test_opens_one_for_the_module(of_the_module):
        assert of_the_module.state == "started"

    def test_finds_it_open(of_the_module, deployment_events):
        assert of_the_module.state == "started"
        assert current_deployment() is of_the_module

    @pytest.mark.parametrize("time", [1, 2])
    def test_hears_every_line(time, caplog):
        deploy().custom(late=True)
        assert "A custom event was not told" in caplog.text

    def test_leaves_no_thread():
        no_thread_is_left()
    """
    assert session.run(tests) == {"passed": 8}


def test_who_watches_processes_in_a_test_sees_their_own_alone(session: Session) -> None:
    del session.env["LD_DEPLOY_VERSION"]  # which the plugin `git` would look for
    tests = """
    from ld_deploy_hooks.testing import record_deployments

    def deploys(name, events):
        with mock.patch.object(subprocess, name) as called:
            deploy()
            getattr(subprocess, name)(["./deploy.sh"])
            deploy(version="1")  # for which it would be asked in a thread
            no_thread_is_left()
        called.assert_called_once_with(["./deploy.sh"])
        assert [event.version for event in events.finished] == ["test-version", "1"]

    @pytest.mark.parametrize("name", ["run", "Popen"])
    def test_in_the_fixture(name, deployment_events):
        deploys(name, deployment_events)

    @pytest.mark.parametrize("name", ["run", "Popen"])
    def test_in_a_block(name):
        with record_deployments() as events:
            deploys(name, events)
    """
    # No plugin with a thread of its own for its tells is left then.
    assert session.run(tests, LD_DEPLOY_PLUGINS="no:console,no:opentelemetry") == {"passed": 4}


def test_plugins_of_the_user_are_loaded_for_each_test(session: Session) -> None:
    session.write(
        "someone.py",
        """
        from ld_deploy_hooks import hookimpl
        told = []

        @hookimpl
        def ld_deploy_finished(deployment):
            told.append(deployment.identity.application_key)
        """,
    )
    tests = """
    import someone

    @pytest.mark.parametrize("name", ["one", "two"])
    def test_told(name, deployment_events):
        someone.told.clear()
        deploy(name)
        assert someone.told == [name]
    """
    assert session.run(tests, LD_DEPLOY_PLUGINS="someone,no:console") == {"passed": 2}
    assert "ld-deploy: " not in session.output


# -- real events ------------------------------------------------------------------------------------------------------

REAL = """
real = pytest.mark.real_deployment_events

def kinds(server):
    return sorted(event["applicationKey"] + " " + event["eventType"] for event in server.events)
"""


def test_the_marker_sends_to_the_stand_in(session: Session) -> None:
    tests = f"""{REAL}
@real
@pytest.mark.parametrize("time", [1, 2])
def test_real(fake_launchdarkly, tmp_path, time):
    deploy()
    fake_launchdarkly.wait_for(3)
    assert flush()
    deploy_in_a_child()
    told = ["custom", "finished", "started"]
    assert kinds(fake_launchdarkly) == [f"{{name}} {{kind}}" for name in ("billing", "of-a-child") for kind in told]
    assert (tmp_path / "ld-deploy-hooks" / "outbox.db").exists()
    project = os.environ.get("LD_PROJECT", "test-project")
    assert {{event["projectKey"] for event in fake_launchdarkly.events}} == {{project}}
    deployment("left-open").__enter__()

def test_not_marked(fake_launchdarkly):
    assert current_deployment() is None
    deploy()
    deploy_in_a_child()
    deploy_in_a_cleared_environment()
    assert flush()
    assert fake_launchdarkly.requests == []

@real
def test_cleared(fake_launchdarkly):
    deploy_in_a_cleared_environment()
    assert fake_launchdarkly.requests == []

@real
@pytest.mark.parametrize("where", ["https://app.launchdarkly.com", "http://192.0.2.1"])
def test_elsewhere(fake_launchdarkly, monkeypatch, where):
    monkeypatch.setenv("LD_BASE_URI", where)
    assert deploy().identity is None

def test_recorded(deployment_events):
    deploy()
    assert len(deployment_events) == 3

def test_leaves_no_thread():
    no_thread_is_left()
"""
    assert session.run(tests) == {"passed": 8}
    for name in ("LD_PROJECT", "LD_ENVIRONMENT", "LD_DEPLOY_VERSION"):
        del session.env[name]
    assert session.run(tests) == {"passed": 8}


def test_the_marker_needs_the_stand_in(session: Session) -> None:
    tests = f"""{REAL}
@real
def test_real():
    deploy()

@real
@pytest.mark.usefixtures("fake_launchdarkly")
class TestUses:
    def test_real(self):
        deploy()

@real
def test_both(fake_launchdarkly, deployment_events):
    deploy()

@real
@pytest.mark.skip
def test_skipped():
    deploy()

def test_waits_for_what_nobody_sends(fake_launchdarkly):
    deploy()
    fake_launchdarkly.wait_for(timeout=0.1)
"""
    assert session.run(tests) == {"failed": 1, "passed": 1, "errors": 2, "skipped": 1}
    hint = "The deployments of this test are not told to fake_launchdarkly without @pytest.mark.real_deployment_events."
    assert session.output.count(hint) == 1
    assert "@pytest.mark.real_deployment_events needs the fixture fake_launchdarkly" in session.output
    assert "deployment_events records in place of sending" in session.output


def test_it_is_documented_where_pytest_shows_it(session: Session) -> None:
    session.write("test_it.py", "")
    for option, said in {
        "--markers": "@pytest.mark.real_deployment_events: the deployments of this test",
        "--fixtures": "deployment_events -- ",
    }.items():
        source = f"import pytest, sys; sys.exit(pytest.main([{option!r}, '-p', 'no:cacheprovider', *{PLUGIN}]))"
        done = session.python(source)
        assert said in done.stdout, done.stdout + done.stderr


# -- beside others ----------------------------------------------------------------------------------------------------


def test_a_program_that_has_imported_the_package_runs_tests(session: Session) -> None:
    """Of the files of a package with a plugin, pytest warns where one is imported before it could rewrite it."""
    points = "[pytest11]\nld_deploy_hooks.pytest_plugin = ld_deploy_hooks.pytest_plugin\n"
    (session.folder / "ld_deploy_hooks-0.dist-info").mkdir()
    for name, text in {
        "METADATA": "Metadata-Version: 2.1\nName: ld-deploy-hooks\nVersion: 0\n",
        "entry_points.txt": points,
        "RECORD": "ld_deploy_hooks/__init__.py,,\nld_deploy_hooks/pytest_plugin.py,,\n",
    }.items():
        session.write(f"ld_deploy_hooks-0.dist-info/{name}", text)
    session.write(
        "test_it.py",
        """
        from deploy import deploy

        def test_it(deployment_events):
            deploy()
            deployment_events.one("finished")
        """,
    )
    session.write(
        "release.py",
        """
        import sys
        import pytest
        from deploy import deploy

        sys.exit(pytest.main(["-W", "error", "-p", "no:cacheprovider", "test_it.py"]))
        """,
    )
    done = session.python(Path("release.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_it_asks_for_nothing_that_pytest_6_has_not(session: Session) -> None:
    """It comes with the package into every pytest; one that old cannot be had for all that these tests run with."""
    done = session.python(
        "import pytest\n"
        "for name in vars(pytest).keys() - {'__name__', '__spec__', 'fail', 'fixture', 'hookimpl'}:\n"
        "    delattr(pytest, name)\n"
        "import ld_deploy_hooks.pytest_plugin\n"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_import_loads_nothing_of_the_package(session: Session) -> None:
    done = session.python(
        "import pytest, sys\n"
        "import ld_deploy_hooks.pytest_plugin\n"
        "names = {name for name in sys.modules if name.startswith('ld_deploy_hooks')}\n"
        "assert names == {'ld_deploy_hooks', 'ld_deploy_hooks._version', 'ld_deploy_hooks.pytest_plugin'}, names\n"
    )
    assert done.returncode == 0, done.stderr


def test_a_session_without_deployments_loads_next_to_nothing(session: Session) -> None:
    session.write("deploy.py", "")
    tests = """
    import sys

    def test_other(): pass

    def test_loaded():
        ours = {name for name in sys.modules if name.startswith("ld_deploy_hooks.")}
        assert ours == {"ld_deploy_hooks._version", "ld_deploy_hooks._testrun", "ld_deploy_hooks.pytest_plugin"}
        assert not {"invoke", "fabric", "requests", "pluggy._sqlite", "sqlite3"} & set(sys.modules)
    """
    session.env = {name: value for name, value in session.env.items() if not name.startswith("COVERAGE_")}
    assert session.run(tests) == {"passed": 2}


@pytest.mark.skipif(importlib.util.find_spec("xdist") is None, reason="pytest-xdist is not installed")
def test_beside_xdist(session: Session) -> None:
    tests = f"""{REAL}
@pytest.mark.parametrize("number", range(6))
def test_recorded(number, deployment_events):
    deploy(f"app-{{number}}")
    deploy_in_a_child()
    assert {{event.application_key for event in deployment_events}} == {{f"app-{{number}}"}}

@pytest.mark.parametrize("number", range(4))
def test_untold(number):
    deploy()
    deploy_in_a_child()

@real
@pytest.mark.parametrize("number", range(2))
def test_real(number, fake_launchdarkly):
    deploy(f"app-{{number}}")
    assert {{event["applicationKey"] for event in fake_launchdarkly.wait_for(3)}} == {{f"app-{{number}}"}}

@real
def test_refused():
    deploy()
"""
    counts = session.run(tests, "-n", "2", LD_DEPLOY_DISABLED="0")
    assert counts == {"passed": 12, "error": 1}


def test_beside_pytester(session: Session) -> None:
    tests = """
    pytest_plugins = ["pytester"]
    INNER = '''
    import os
    from ld_deploy_hooks import deployment
    from ld_deploy_hooks._testrun import current_recording

    def test_untold():
        assert current_recording() is None
        assert os.environ["LD_DEPLOY_PYTEST"] == "off"
        with deployment("inner") as d:
            pass
        assert d.identity is None

    def test_recorded(deployment_events):
        with deployment("inner"):
            pass
        assert len(deployment_events) == 2
        deployment("left-open").__enter__()
    '''

    @pytest.mark.parametrize("how", ["inprocess", "subprocess"])
    def test_runs_tests(pytester, monkeypatch, deployment_events, how):
        monkeypatch.setenv("LD_DEPLOY_DISABLED", "0")
        monkeypatch.setenv("PYTHONPATH", PATH, prepend=os.pathsep)
        pytester.makepyfile(INNER)
        with deployment("outer") as d:
            monkeypatch.delenv("LD_DEPLOY_DISABLED")
            run = getattr(pytester, f"runpytest_{how}")
            run("-p", "ld_deploy_hooks.pytest_plugin", "-p", "no:cacheprovider").assert_outcomes(passed=2)
            assert current_deployment() is d
        assert {event.application_key for event in deployment_events} <= {"outer"}

    def test_records_after_it(deployment_events):
        deploy()
        assert len(deployment_events) == 3
    """
    tests = f"PATH = {str(ROOT)!r}\n{textwrap.dedent(tests)}"
    assert session.run(tests) == {"passed": 3}


@pytest.mark.skipif(importlib.util.find_spec("invoke") is None, reason="Invoke is not installed")
def test_with_a_task_file_of_invoke(session: Session) -> None:
    session.write(
        "tasks.py",
        """
        from invoke import task
        from ld_deploy_hooks import deployment

        @task
        def site(c):
            c.run("echo site", in_stream=False)

        @task
        @deployment("billing", version=lambda c, tag: tag)
        def deploy(c, tag):
            c.run(f"test {tag} != v1", in_stream=False)
        """,
    )
    session.write(
        "invoke.yaml",
        """
        tasks: {executor_class: ld_deploy_hooks.invoke.Executor}
        ld_deploy_hooks: {environment_key: staging, tasks: {site: {application_key: site, version: "1"}}}
        """,
    )
    tests = """
    from invoke import Context, MockContext, Program, Result, UnexpectedExit
    import tasks

    def test_mock_context(deployment_events):
        tasks.deploy(MockContext(run=Result("ok")), tag="v1")
        assert deployment_events.one("finished").version == "v1"
        assert deployment_events.one("started").event_metadata["task"] == "deploy"

    def test_a_command_that_fails(deployment_events):
        with pytest.raises(UnexpectedExit):
            tasks.deploy(Context(), tag="v1")
        assert deployment_events.one("failed").event_metadata["exitCode"] == 1

    @pytest.mark.parametrize(
        ("command", "told"), [("deploy --tag v2", ("billing", "v2", "staging")), ("site", ("site", "1", "staging"))]
    )
    def test_program(deployment_events, monkeypatch, command, told):
        monkeypatch.delenv("LD_ENVIRONMENT")
        monkeypatch.delenv("LD_DEPLOY_VERSION")
        Program().run(f"inv {command}", exit=False)
        events = [(e.event_type.value, e.application_key, e.version, e.environment_key) for e in deployment_events]
        assert events == [("started", *told), ("finished", *told)]

    def test_dry(deployment_events, monkeypatch):
        Program().run("inv --dry deploy --tag v2", exit=False)
        with pytest.raises(AssertionError, match=r"a dry run \\(--dry, or run: dry: of Invoke or Fabric\\)"):
            deployment_events.one()
        monkeypatch.setenv("LD_DEPLOY_DRY_RUN", "1")
        Program().run("inv --dry deploy --tag v2", exit=False)
        with pytest.raises(AssertionError, match=r"a dry run \\(LD_DEPLOY_DRY_RUN\\)"):
            deployment_events.one()

    def test_untold():
        tasks.deploy(MockContext(run=Result("ok")), tag="v1")
        Program().run("inv site", exit=False)

    def test_begins_anew(deployment_events):
        tasks.deploy(MockContext(run=Result("ok")), tag="v3")
        assert deployment_events.one("finished").version == "v3"
    """
    assert session.run(tests, *HOSTS) == {"passed": 7}


@pytest.mark.skipif(importlib.util.find_spec("fabric") is None, reason="Fabric is not installed")
def test_beside_fabrics_own_fixtures(session: Session) -> None:
    session.write(
        "fabfile.py",
        """
        from fabric import task
        from ld_deploy_hooks import deployment

        @task
        @deployment("billing")
        def deploy(c):
            c.run("whoami", in_stream=False)
        """,
    )
    session.write("conftest.py", "from fabric.testing.fixtures import *\n")
    tests = """
    from fabric import Connection
    from fabric.main import program
    import fabfile

    def test_remote(remote, deployment_events):
        remote.expect(host="web1", cmd="whoami", out=b"me")
        fabfile.deploy(Connection("web1"))
        assert deployment_events.one("finished").deployment_metadata["hosts"] == ["web1"]

    def test_the_program(remote, deployment_events):
        from fabric.testing.base import Session, Command
        remote.expect_sessions(
            Session("web1", commands=[Command("whoami")]), Session("web2", commands=[Command("whoami", exit=2)])
        )
        program.run(["fab", "-H", "web1,web2", "deploy"], exit=False)
        event = deployment_events.one("failed")
        assert event.deployment_metadata["hostsSucceeded"] == ["web1"]
        assert event.deployment_metadata["hostsFailed"] == ["web2"]

    def test_connection(connection, deployment_events):
        fabfile.deploy(connection)
        connection.run.assert_called_once_with("whoami", in_stream=False)
        assert deployment_events.one("finished").deployment_metadata["hosts"] == ["host"]

    def test_untold(remote):
        remote.expect(host="web1", cmd="whoami")
        fabfile.deploy(Connection("web1"))
    """
    assert session.run(tests, *HOSTS) == {"passed": 4}
