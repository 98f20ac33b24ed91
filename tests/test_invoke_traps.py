"""What Invoke does that one would not expect, and real deploy code that lives with it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hosts_kit import Project

pytest.importorskip("invoke")

import invoke

from ld_deploy_hooks import deployment
from ld_deploy_hooks._decorator import marks_of
from ld_deploy_hooks._deployment import Block
from ld_deploy_hooks.invoke import Executor, surroundings


@pytest.fixture
def project(tmp_path: Path, child_env: dict[str, str]) -> Iterator[Project]:
    with Project(tmp_path, child_env) as project:
        yield project


TASKS = """
    import contextvars, functools, threading
    from concurrent.futures import ThreadPoolExecutor
    from invoke import Collection, Context, call, task
    from invoke.executor import Executor
    from ld_deploy_hooks import deployment
    from ld_deploy_hooks.invoke import Executor as Ours

    # Tasks of one name: the wrappers that one decorator makes share a code object, by which Invoke tells tasks apart.
    @task(name="deploy")
    @deployment("web", version="1")
    def web_deploy(c):
        print("deploy web")

    @task(name="deploy")
    @deployment("api", version="1")
    def api_deploy(c):
        print("deploy api")

    @deployment("web", version="1")
    @task(name="up")
    def web_up(c):
        print("up web")

    @deployment("api", version="1")
    @task(name="up")
    def api_up(c):
        print("up api")

    @task
    def build(c, what):
        print("build", what)

    SHARED = call(build, "shared")

    @task(pre=[SHARED], post=[SHARED])
    @deployment("first", version="1")
    def first(c):
        print("first")

    @task(pre=[SHARED], post=[SHARED])
    @deployment("second", version="1")
    def second(c):
        print("second")

    # What runs the body in a thread, or in a context, that knows nothing of the executor's.
    def timed(function):
        @functools.wraps(function)
        def wrapper(*args):
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(function, *args).result()
        return wrapper

    def twice(function):
        @functools.wraps(function)
        def wrapper(*args):
            for _ in range(2):
                contextvars.Context().run(function, *args)
        return wrapper

    versions = iter(range(10))

    @task(pre=[call(build, "pre")])
    @timed
    @deployment("timed", version=lambda c: f"v{next(versions)}")
    def in_thread(c):
        print("in a thread")

    @task
    @twice
    @deployment("twice", version=lambda c: f"v{next(versions)}")
    def in_context(c):
        print("in a context")

    # Decorators of their own: over and under, with functools.wraps and without.
    def theirs(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            print("before")
            return function(*args, **kwargs)
        return wrapper

    def careless(function):
        def wrapper(c, tag="v1"):
            return function(c, tag)
        return wrapper

    @task(pre=[call(build, "pre")])
    @theirs
    @deployment("over", version="1")
    def over(c):
        print("over")

    @task(pre=[call(build, "pre")])
    @deployment("under", version="1")
    @theirs
    def under(c):
        print("under")

    @task(pre=[call(build, "pre")], name="careless")
    @careless
    @deployment("careless", version=lambda c, tag: tag)
    def carelessly(c, tag):
        print("careless", tag)

    @task
    @deployment("outer", version="1")
    def nested(c, ours=False):
        executor = (Ours if ours else Executor)(ns, c.config)
        executor.execute("first", "plain")
        print("nested")

    @task
    def plain(c):
        print("plain")

    @task
    @deployment("web", version="1")
    def threads(c):
        def work():
            with deployment():
                pass
            first(Context())
        workers = [threading.Thread(target=work) for _ in range(3)]
        for worker in workers:
            worker.start()
            worker.join()

    @task
    @deployment("web", version="1")
    def seven(c):
        for number in range(7):
            one_of_seven(c, number)

    @task
    @deployment("web", version="1")
    def one_of_seven(c, number):
        print(number)

    @task
    @deployment("web", version="1")
    def caught(c):
        try:
            fails(c)
        except RuntimeError:
            print("caught")

    @task
    @deployment("web", version="1")
    def fails(c):
        raise RuntimeError

    @task(help={"number": "how many"})
    @deployment("web", version="1")
    def helpful(c, number=1):
        "Says what it takes."

    @task(name="with-config", pre=[call(build, "pre")])
    def with_config(c):
        with deployment():
            print("configured")

    @task
    @deployment("web", version="1", pre_and_post=False)
    def pre_deployment(c, number=0):
        print("pre", number)

    @task(pre=[call(pre_deployment, 1), call(pre_deployment, 2)])
    @deployment("main", version="1")
    def with_pre_deployments(c):
        print("main")

    @task(default=True)
    @deployment("default", version="1")
    def default(c):
        print("default")

    # Invoke deep-copies the tasks of a namespace.
    configured = Collection("sub", with_config)
    configured.configure({"ld_deploy_hooks": {"application_key": "sub", "version": "4"}})
    ns = Collection(
        first, second, in_thread, in_context, over, under, carelessly, nested, plain, threads, seven, caught, helpful,
        with_pre_deployments,
        default, configured,
        web=Collection(web_deploy, web_up), api=Collection(api_deploy, api_up),
    )
    """


def both(key: str, task: str, version: str = "1") -> list[str]:
    return [f"{kind} {key} {version} task={task}" for kind in ("started", "finished")]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("web.deploy api.deploy", [*both("api", "api.deploy"), *both("web", "web.deploy")]),
        ("web.up api.up", [*both("api", "api.up"), *both("web", "web.up")]),
        ("first second", [*both("first", "first"), *both("second", "second")]),
        ("--no-dedupe first second", [*both("first", "first"), *both("second", "second")]),
        ("in-thread", both("timed", "in-thread", "v0")),
        ("in-context", both("twice", "in-context", "v0")),
        ("over", both("over", "over")),
        ("under", both("under", "under")),
        # It hides the mark from the executor: the deployment is the body, and nothing else.
        ("careless --tag v7", both("careless", "carelessly", "v7")),
        ("nested", [*both("first", "first"), *both("outer", "nested")]),
        ("nested --ours", [*both("first", "first"), *both("outer", "nested")]),
        ("threads", [*both("first", "first") * 3, *both("web", "threads")]),
        ("seven", both("web", "seven")),
        ("caught", both("web", "caught")),
        ("sub.with-config", ["started sub 4", "finished sub 4"]),
        ("", both("default", "default")),
        (
            "with-pre-deployments",
            [*both("main", "with-pre-deployments"), *both("web", "pre_deployment"), *both("web", "pre_deployment")],
        ),
        ("--help helpful", []),
        ("plain", []),
    ],
)
def test_traps(project: Project, line: str, told: list[str]) -> None:
    project.write(tasks_py=TASKS)
    ran, without = project.run("inv", *line.split()), project.without_us("inv", *line.split())
    assert (ran.status, ran.err, ran.told) == (0, "", told)
    assert ran.out == without.out != ""


def test_a_setting_that_is_missing_is_said_before_anything_runs_when_strict(project: Project) -> None:
    project.write(
        tasks_py="""
        from invoke import task
        from ld_deploy_hooks import deployment

        @task
        def build(c):
            print("build")

        @task(pre=[build])
        @deployment("web")
        def deploy(c):
            print("deploy")
        """
    )
    ran = project.run("inv", "deploy", LD_DEPLOY_STRICT="1")
    assert (ran.status, ran.out, ran.told) == (1, "", [])
    assert ran.err.splitlines()[-1].startswith("ld_deploy_hooks._errors.SettingsError: version is not set")
    ran = project.run("inv", "deploy")
    assert (ran.status, ran.out, ran.told, ran.err.count("\n")) == (0, "build\ndeploy\n", [], 1)


def test_our_variables_are_read_past_invokes_own(project: Project) -> None:
    """Invoke takes "false" for True where a file has set a key, and crashes over a variable for a list."""
    project.write(
        tasks_py="""
        from invoke import task
        from ld_deploy_hooks import deployment

        @task
        @deployment("web", version="1")
        def deploy(c):
            print(c.config.ld_deploy_hooks.disabled)
        """,
        invoke_yaml="ld_deploy_hooks: {disabled: true, plugins: [no.such.module]}",
    )
    on = project.run("inv", "deploy", INVOKE_LD_DEPLOY_HOOKS_DISABLED="false")
    assert (on.status, on.out, on.told) == (0, "True\n", [])
    crash = project.run("inv", "deploy", INVOKE_LD_DEPLOY_HOOKS_PLUGINS="no:console")
    assert (crash.status, crash.out, crash.told) == (1, "", [])
    ours = project.run("inv", "deploy", LD_DEPLOY_DISABLED="false", LD_DEPLOY_PLUGINS="no:console")
    assert (ours.status, ours.out, ours.err) == (0, "True\n", "")
    assert ours.told == ["started web 1 task=deploy", "finished web 1 task=deploy"]


def test_a_program_that_does_not_exit(project: Project) -> None:
    """Its failure is swallowed, not by us; and its ``--dry`` is over when it is."""
    project.write(
        tasks_py="""
        from invoke import Exit, task
        from ld_deploy_hooks import deployment

        @task
        @deployment("web", version="1")
        def deploy(c):
            raise Exit("no", code=3)
        """,
        run_py="""
        from invoke.main import program
        from ld_deploy_hooks import deployment

        program.run(["inv", "deploy"], exit=False)
        program.run(["inv", "--dry", "deploy"], exit=False)
        with deployment("plain", version="2"):
            pass
        try:
            with deployment("plain", version="3"):
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        """,
    )
    ran = project.run("python", "run.py")
    assert (ran.status, ran.err) == (0, "no\nno\n")
    assert ran.told == [
        "started plain 2",
        "finished plain 2",
        "started plain 3",
        "failed plain 3 reason=cancelled error=KeyboardInterrupt exitCode=130",
        "started web 1 task=deploy",
        "failed web 1 task=deploy reason=error error=Exit exitCode=3",
    ]


@pytest.mark.parametrize(
    ("decorators", "told"),
    [("@task\n        @deployment('web', version='1')", []), ("@deployment('web', version='1')\n        @task", [])],
    ids=["below", "above"],
)
def test_an_async_task_is_refused(project: Project, decorators: str, told: list[str]) -> None:
    project.write(
        tasks_py=f"""
        from invoke import task
        from ld_deploy_hooks import deployment

        {decorators}
        async def release(c):
            print("never")

        @task(pre=[release] if {decorators.startswith("@task")} else [])
        def deploy(c):
            print("never")
        """
    )
    ran = project.run("inv", "deploy")
    assert (ran.status, ran.out, ran.told) == (1, "", told)
    assert ran.err.splitlines()[-1].startswith("TypeError: ")
    assert "asyncio.run(...)" in ran.err.splitlines()[-1]


class _Callable:
    def __call__(self, c: Any) -> None: ...

    def method(self, c: Any) -> None: ...


def _generator(c: Any) -> Iterator[None]:
    yield


async def _coroutine(c: Any) -> None: ...


@pytest.mark.parametrize(
    "thing",
    [
        functools.partial(_Callable.method, None),
        _Callable().method,
        _Callable(),
        _generator,
    ],
)
def test_what_would_lose_the_command_lines_arguments_is_refused(thing: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="deployment"):
        deployment("web", version="1")(thing)


@pytest.mark.parametrize("body", [_generator, _coroutine, functools.partial(_Callable.method, None)])
def test_above_a_task_too(body: Callable[..., Any]) -> None:
    task = invoke.Task(body, name="deploy")
    with pytest.raises(TypeError, match="deployment"):
        deployment("web", version="1")(task)
    assert task.body is body


def test_a_task_stays_the_same_task_and_a_function_stays_a_function() -> None:
    @invoke.task(name="deploy", aliases=["push"])
    def task(c: Any, tag: str = "v1") -> None:
        """Put it there."""

    wrapped = deployment("web", version="1")(task)
    assert wrapped is task
    assert (task.name, task.aliases, task.__doc__) == ("deploy", ["push"], "Put it there.")
    assert [argument.name for argument in task.get_arguments()] == ["tag"]

    def function(c: Any) -> None: ...

    assert not isinstance(deployment("web", version="1")(function), invoke.Task)


def test_marks() -> None:
    one, two = deployment("one", version="1"), deployment("two", version="1")

    @one
    @two
    def both(c: Any) -> None: ...

    assert marks_of(both, Block) == [one, two]
    assert marks_of(invoke.Task(both, name="both"), Block) == [one, two]
    assert marks_of(invoke.Task(Mock(pre=[], post=[]), name="mock"), Block) == []
    circular = functools.wraps(both)(lambda c: None)
    circular.__wrapped__ = circular  # type: ignore[attr-defined]
    assert marks_of(circular, Block) == [one]


def test_calls_of_a_run_without_deployments_are_left_as_they_are() -> None:
    @invoke.task
    def pre(c: Any) -> None: ...

    @invoke.task(pre=[pre])
    def main(c: Any) -> None: ...

    seen: list[Any] = []

    class Watching(Executor):
        def dedupe(self, calls: list[Any]) -> list[Any]:
            seen.extend(calls)
            return calls

    Watching(invoke.Collection(main, pre)).execute("main")
    assert [call.task for call in seen] == [pre, main]
    assert all("make_context" not in vars(call) for call in seen)


class _NoCopy(invoke.Config):
    def _clone_init_kwargs(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("hunter2")


class _NoHosts(Executor):
    def hosts_of(self, calls: list[Any]) -> list[str | None]:
        raise RuntimeError("hunter2")


@pytest.mark.parametrize(
    ("executor", "config", "line"),
    [
        (Executor, _NoCopy, "Starting a deployment failed with RuntimeError"),
        (_NoHosts, invoke.Config, "Looking for deployments among the tasks failed with RuntimeError"),
    ],
)
def test_a_fault_of_ours_leaves_the_tasks_alone(
    executor: Any, config: Any, line: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_DEPLOY_DRY_RUN", "1")

    @invoke.task
    @deployment("web", version="1")
    def main(c: Any) -> str:
        return "done"

    with caplog.at_level("WARNING", "ld_deploy_hooks"):
        assert executor(invoke.Collection(main), config=config()).execute("main") == {main: "done"}
    assert line in caplog.text
    assert "hunter2" not in caplog.text


def test_a_mock_of_a_configuration_does_not_run_dry() -> None:
    context = invoke.MockContext()
    assert surroundings((context,)).dry is False
    context.config.run.dry = Mock()
    assert surroundings((context,)).dry is False
    context.config.run.dry = True
    assert surroundings((context,)).dry is True
