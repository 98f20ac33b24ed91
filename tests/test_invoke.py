"""Deployments under ``inv``: how they begin, how they end, which executor tells them, and what never tells anything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts_kit import Project

pytest.importorskip("invoke")

EXECUTOR = """
    tasks:
      executor_class: ld_deploy_hooks.invoke.Executor
    """


@pytest.fixture
def project(tmp_path: Path, child_env: dict[str, str]) -> Iterator[Project]:
    with Project(tmp_path, child_env) as project:
        yield project


# -- how a task becomes a deployment ----------------------------------------------------------------------------------

TASKS = """
    import sys
    from invoke import Collection, task
    from ld_deploy_hooks import current_deployment, deployment

    @task
    def build(c):
        print("build", current_deployment() is not None)

    @task
    def announce(c):
        print("announce")

    @task(pre=[build], post=[announce])
    @deployment("below", version=lambda c, tag="none": tag, metadata={"team": "core"})
    def below(c, tag="v1"):
        "Put it there."
        c.run("echo there")
        current_deployment().custom(step="half")
        return 7

    @deployment("above", version="1", event_metadata={"why": "test"})
    @task(build, help={"tag": "what"})
    def above(c, tag="v1"):
        c.run("echo there")

    @task
    @deployment
    def bare_below(c):
        print("bare")

    @deployment
    @task(name="bare-above", aliases=["nickname"], autoprint=True)
    def bare_above(c):
        return "printed"

    @task(pre=[build], post=[announce])
    @deployment("main", version=lambda c: c.config.made, pre_and_post=False)
    def alone(c):
        print("alone")

    @task
    def make(c):
        c.config.made = "v1"

    @task(pre=[make], post=[announce])
    @deployment("main", version=lambda c: c.config.made, pre_and_post=False)
    def made(c):
        print(c.config.made)

    @task
    @deployment("main", version="1", autostart=False)
    def late(c, start=False):
        if start:
            current_deployment().start()

    @task
    @deployment("main", version="1", success=lambda result: result)
    def judged(c, answer=""):
        return answer

    @task(pre=[below])
    def outer(c):
        print("outer")

    @task
    def fails(c):
        c.run("exit 4")

    @task(pre=[fails], post=[announce])
    @deployment("main", version="1")
    def pre_fails(c):
        print("never")

    @task(post=[fails])
    @deployment("main", version="1")
    def post_fails(c):
        print("done")

    @task
    @deployment("one", version="1")
    @deployment("two", version="2")
    def stacked(c):
        print("stacked")

    @task
    def plain(c):
        with deployment("with", version="1"):
            print("plain")
    """

BARE = ["started app 9 task=bare-below", "finished app 9 task=bare-below"]
BELOW = [
    "started below v1 task=below team=core",
    "custom below v1 task=below step=half team=core",
    "finished below v1 task=below team=core",
]


@pytest.mark.parametrize(
    ("line", "status", "told"),
    [
        ("below", 0, BELOW),
        ("below --tag v2", 0, [one.replace("v1", "v2") for one in BELOW]),
        ("above -t 3", 0, ["started above 1 task=above why=test", "finished above 1 task=above"]),
        ("bare-below", 0, BARE),
        ("nickname", 0, ["started app 9 task=bare-above", "finished app 9 task=bare-above"]),
        ("made", 0, ["started main v1 task=made", "finished main v1 task=made"]),
        ("late", 0, []),
        ("late --start", 0, ["started main 1 task=late", "finished main 1 task=late"]),
        ("judged --answer yes", 0, ["started main 1 task=judged", "finished main 1 task=judged"]),
        ("judged", 0, ["started main 1 task=judged", "failed main 1 task=judged reason=error"]),
        ("outer", 0, BELOW),
        (
            "pre-fails",
            4,
            [
                "started main 1 task=pre-fails",
                "failed main 1 task=pre-fails reason=error error=UnexpectedExit exitCode=4",
            ],
        ),
        (
            "post-fails",
            4,
            [
                "started main 1 task=post-fails",
                "failed main 1 task=post-fails reason=error error=UnexpectedExit exitCode=4",
            ],
        ),
        (
            "stacked",
            0,
            [
                "started one 1 task=stacked",
                "finished one 1 task=stacked",
                "started two 2 task=stacked",
                "finished two 2 task=stacked",
            ],
        ),
        ("plain", 0, ["started with 1", "finished with 1"]),
        # A second call is the same one to Invoke, unless it is told otherwise; one from pre= has no arguments at all.
        ("bare-below bare-below", 0, BARE),
        (
            "--no-dedupe bare-below bare-below",
            0,
            ["started app 9 task=bare-below", "finished app 9 task=bare-below"] * 2,
        ),
        ("below outer", 0, BELOW * 2),
        # The first has ended when the second begins, deployment or not; pre tasks that both have are run once.
        ("bare-below build fails", 4, BARE),
        ("below above", 0, ["started above 1 task=above why=test", "finished above 1 task=above", *BELOW]),
    ],
)
def test_a_task_is_a_deployment(project: Project, line: str, status: int, told: list[str]) -> None:
    project.write(tasks_py=TASKS)
    env = {"LD_DEPLOY_APPLICATION_KEY": "app", "LD_DEPLOY_VERSION": "9"}
    ran = project.run("inv", *line.split(), **env)
    assert (ran.status, ran.told, ran.err) == (status, told, "")
    without = project.without_us("inv", *line.split(), **env)
    assert (ran.status, ran.out.replace("True", "False")) == (without.status, without.out.replace("True", "False"))


def test_pre_tasks_lie_inside_unless_they_are_left_out(project: Project) -> None:
    project.write(tasks_py=TASKS)
    assert project.run("inv", "below").out == "build True\nthere\nannounce\n"
    ran = project.run("inv", "alone", LD_DEPLOY_DISABLED="1")
    assert (ran.out, ran.err, ran.told) == ("build False\nalone\nannounce\n", "", [])


# -- ways out ---------------------------------------------------------------------------------------------------------

WAYS = """
    import os, sys
    from invoke import Exit, ParseError, Responder, Result, task
    from invoke.exceptions import AuthFailure, Failure
    from invoke.watchers import StreamWatcher
    from ld_deploy_hooks import deployment

    SECRET = "hunter" + "2"

    class Broken(StreamWatcher):
        def submit(self, stream):
            raise RuntimeError(SECRET)

    def raised(error):
        raise error

    WAYS = {
        "return": lambda c: None,
        "warn": lambda c: c.run("exit 3", warn=True),
        "Exit": lambda c: raised(Exit()),
        "Exit0": lambda c: raised(Exit(SECRET, code=0)),
        "sys.exit": lambda c: sys.exit(),
        "sys.exit0": lambda c: sys.exit(0),
        "Exit4": lambda c: raised(Exit(SECRET, code=4)),
        "Exit-text": lambda c: raised(Exit(SECRET)),
        "Exit-int": lambda c: raised(Exit(1)),
        "sys.exit3": lambda c: sys.exit(3),
        "sys.exit-text": lambda c: sys.exit(SECRET),
        "sys.exit-True": lambda c: sys.exit(True),
        "unexpected": lambda c: c.run(f"echo {SECRET}; exit 5", env={"PASSWORD": SECRET}),
        "signalled": lambda c: c.run("kill -TERM $$"),
        "interrupted": lambda c: c.run("kill -INT $$"),
        "shell-interrupted": lambda c: c.run("exit 130"),
        "timeout": lambda c: c.run(f"sleep 9 # {SECRET}", timeout=0.2),
        "failure": lambda c: raised(Failure(Result(command=SECRET), SECRET)),
        "auth": lambda c: raised(AuthFailure(result=Result(stdout=SECRET), prompt=SECRET)),
        "thread": lambda c: c.run(f"echo {SECRET}", watchers=[Broken()]),
        "ctrl-c": lambda c: raised(KeyboardInterrupt()),
        "closed-by-ctrl-c": lambda c: closed(),
        "parse": lambda c: raised(ParseError(SECRET)),
        "error": lambda c: raised(RuntimeError(SECRET)),
    }

    def closed():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise ValueError(SECRET)

    @task
    @deployment("web", version="1")
    def out(c, way):
        WAYS[way](c)
    """


@pytest.mark.parametrize(
    ("way", "status", "end"),
    [
        ("return", 0, "finished"),
        ("warn", 0, "finished"),
        ("Exit", 0, "finished"),
        ("Exit0", 0, "finished"),
        ("sys.exit", 0, "finished"),
        ("sys.exit0", 0, "finished"),
        ("Exit4", 4, "error error=Exit exitCode=4"),
        ("Exit-text", 1, "error error=Exit exitCode=1"),
        ("Exit-int", 1, "error error=Exit exitCode=1"),
        ("sys.exit3", 3, "error error=SystemExit exitCode=3"),
        ("sys.exit-text", 1, "error error=SystemExit exitCode=1"),
        ("sys.exit-True", 1, "error error=SystemExit exitCode=1"),
        ("unexpected", 5, "error error=UnexpectedExit exitCode=5"),
        ("signalled", 241, "error error=UnexpectedExit exitCode=-15"),
        ("interrupted", 254, "cancelled error=UnexpectedExit exitCode=-2"),
        ("shell-interrupted", 130, "cancelled error=UnexpectedExit exitCode=130"),
        ("timeout", 1, "error error=CommandTimedOut exitCode=1"),
        ("failure", 1, "error error=Failure exitCode=1"),
        ("auth", 1, "error error=AuthFailure exitCode=1"),
        ("thread", 1, "error error=ThreadException exitCode=1"),
        ("ctrl-c", 1, "cancelled error=KeyboardInterrupt exitCode=1"),
        ("closed-by-ctrl-c", 1, "cancelled error=ValueError exitCode=1"),
        ("parse", 1, "error error=ParseError exitCode=1"),
        ("error", 1, "error error=RuntimeError exitCode=1"),
    ],
)
def test_ways_out(project: Project, way: str, status: int, end: str) -> None:
    project.write(tasks_py=WAYS)
    ran = project.run("inv", "out", way, SECRET="hunter2")
    end = f"{end} web 1 task=out" if end == "finished" else f"failed web 1 task=out reason={end}"
    assert (ran.status, ran.told) == (status, ["started web 1 task=out", end])
    without = project.without_us("inv", "out", way, SECRET="hunter2")
    assert (ran.status, ran.out) == (without.status, without.out)
    # The last line of a traceback, or Invoke's own message: the very exception came out.
    assert ran.err.splitlines()[-1:] == without.err.splitlines()[-1:]
    assert b"hunter2" not in project.kept()
    assert not any(b"hunter2" in request.body for request in project.server.requests)


@pytest.mark.parametrize("line", ["nothing", "out", "out return --no-such-flag", "--no-such-flag"])
def test_a_wrong_command_line_tells_nothing(project: Project, line: str) -> None:
    project.write(tasks_py=WAYS)
    ran = project.run("inv", *line.split())
    without = project.without_us("inv", *line.split())
    assert (ran.status, ran.out, ran.err, ran.told) == (1, without.out, without.err, [])


@pytest.mark.parametrize("pty", ["False", "True"])
def test_ctrl_c_while_a_command_runs(project: Project, pty: str) -> None:
    project.write(
        tasks_py="""
        from invoke import task
        from ld_deploy_hooks import deployment

        @task
        @deployment("web", version="1")
        def deploy(c):
            c.run("exec {python} wait.py", pty={pty})
        """.replace("{pty}", pty).replace("{python}", sys.executable)
    )
    # By itself: a shell between two commands would take the signal, and go on.
    (project.folder / "wait.py").write_text("import time; open('running', 'w').close(); time.sleep(60)")
    child = subprocess.Popen(
        [project.program("inv"), "deploy"], cwd=project.folder, env=project.env({}), start_new_session=True
    )
    deadline = time.monotonic() + 20
    while not (project.folder / "running").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGINT)
    child.wait(20)
    types = [(event["eventType"], event["eventMetadata"].get("reason")) for event in project.server.events]
    assert types == [("started", None), ("failed", "cancelled")]


# -- the mapping ------------------------------------------------------------------------------------------------------

NAMESPACE = """
    from invoke import Collection, call, task
    from ld_deploy_hooks import deployment

    @task(aliases=["make"])
    def build(c, what="all"):
        print("build", what)

    @task(aliases=["push"], pre=[build], default=True)
    def deploy(c, tag="v1"):
        print("deploy", tag)

    @task(pre=[call(build, "one"), call(build, "two")])
    def roll_out(c):
        print("roll out")

    @task
    async def never(c):
        print("never")

    def collection(name, **configuration):
        made = Collection(name, deploy, roll_out, never)
        made.configure(configuration)
        return made

    ns = Collection(build, web=collection("web"), api=collection("api", ld_deploy_hooks={"version": "5"}))
    """


@pytest.mark.parametrize(
    ("tasks", "line", "told"),
    [
        ("web.deploy: {application_key: web, version: '1'}", "web.deploy", ["web 1 task=web.deploy"]),
        ("web.deploy: {application_key: web, version: '1'}", "web", ["web 1 task=web.deploy"]),
        ("web: {application_key: web, version: '1'}", "web.push", ["web 1 task=web.deploy"]),
        ("web.push: {application_key: web, version: '1'}", "web.deploy", ["web 1 task=web.deploy"]),
        ("'web.*': {application_key: web, version: '1'}", "web.roll-out", ["web 1 task=web.roll-out"]),
        ("web.roll_out: {application_key: web, version: '1'}", "web.roll-out", ["web 1 task=web.roll-out"]),
        ("api.deploy: {application_key: api}", "api.deploy", ["api 5 task=api.deploy"]),
        ("api.deploy: {application_key: api, version: '6'}", "api.deploy", ["api 6 task=api.deploy"]),
        ("web.*: {application_key: web, version: '1'}", "api.deploy build", []),
        ("'*.nothing': {application_key: web, version: '1'}", "web.deploy", []),
        ("make: {application_key: build, version: '3'}", "web.deploy", ["build 3 task=build"]),
        # A mapped pre task is one of its own, for every call of it.
        (
            "build: {application_key: build, version: '3', pre_and_post: false}",
            "web.roll-out",
            ["build 3 task=build", "build 3 task=build"],
        ),
        (
            "'*': {application_key: web, version: '1', metadata: {team: core}}",
            "web.deploy",
            ["web 1 task=web.deploy team=core"],
        ),
    ],
)
def test_mapped_tasks(project: Project, tasks: str, line: str, told: list[str]) -> None:
    project.write(tasks_py=NAMESPACE, invoke_yaml=_with_mapping(tasks))
    ran = project.run("inv", *line.split(), LD_DEPLOY_STRICT="1")
    assert ran.told == [f"{kind} {one}" for one in told for kind in ("started", "finished")]
    without = project.without_us("inv", *line.split())
    assert (ran.status, ran.out) == (without.status, without.out) == (0, without.out)


def test_a_mapped_pre_task_lies_inside_of_its_mapped_task(project: Project) -> None:
    tasks = "build: {application_key: build, version: '2'}, web.deploy: {application_key: web, version: '1'}"
    project.write(tasks_py=NAMESPACE, invoke_yaml=_with_mapping(f"{{{tasks}}}"))
    assert project.run("inv", "web.deploy").told == [
        "started build 2 task=build",
        "finished build 2 task=build",
        "started web 1 task=web.deploy",
        "finished web 1 task=web.deploy",
    ]


@pytest.mark.parametrize(
    ("tasks", "line"),
    [
        ("[deploy]", "tasks: in the host's configuration is no mapping"),
        ("{web.deploy: {}}\nld_deploy_hooks: text", "ld_deploy_hooks: in the host's configuration is no mapping"),
        ("{web.deploy: billing}", "tasks: web.deploy: in the host's configuration is no mapping"),
        ("{web.deploy: {metadata: text, application_key: w, version: '1'}}", "metadata=...) takes a mapping"),
        ("{web.deploy: {aplication_key: w, version: '1'}}", "did you mean application_key?"),
        ("{web.never: {application_key: w, version: '1'}}", "is an `async def` or a generator"),
    ],
)
def test_a_mapping_with_faults_leaves_the_deploy_alone(project: Project, tasks: str, line: str) -> None:
    project.write(tasks_py=NAMESPACE, invoke_yaml=_with_mapping(tasks))
    command = "web.never" if "never" in tasks else "web.deploy"
    ran, without = project.run("inv", command), project.without_us("inv", command)
    assert (ran.status, ran.out) == (without.status, without.out)
    assert ran.err.count(line) == 1, ran.err
    assert [one.split()[0] for one in ran.told] == (["started", "finished"] if "metadata" in tasks else [])


def _with_mapping(tasks: str) -> str:
    return (
        "tasks: {executor_class: ld_deploy_hooks.invoke.Executor}\n"
        f"ld_deploy_hooks:\n  tasks: {tasks if tasks[0] in '[{' else '{' + tasks + '}'}\n"
    )


# -- which executor ---------------------------------------------------------------------------------------------------

GROUPED = """
    from invoke import task
    from ld_deploy_hooks import current_deployment, deployment

    @task
    def build(c):
        print("inside", current_deployment() is not None)

    @task(pre=[build])
    @deployment("web", version="1")
    def deploy(c):
        print("deploy")
    """
MAPPED = """
    from invoke import task
    from ld_deploy_hooks import current_deployment
    {more}

    @task
    def build(c):
        print("inside", current_deployment() is not None)

    @task(pre=[build])
    def deploy(c):
        print("deploy")
    """
INSTALL = "from ld_deploy_hooks.invoke import install; install(); install()"
CONFIGURED = """
    from invoke import Collection
    ns = Collection(build, deploy)
    ns.configure({"tasks": {"executor_class": "ld_deploy_hooks.invoke.Executor"}})
    """
ENTRY = {"ld_deploy_hooks": {"tasks": {"deploy": {"application_key": "web", "version": "1"}}}}
TOLD = ["started web 1 task=deploy", "finished web 1 task=deploy"]


def _yaml(executor: str | None = None, entry: bool = True) -> str:
    import json

    return json.dumps((ENTRY if entry else {}) | ({"tasks": {"executor_class": executor}} if executor else {}))


OURS, THEIRS = "ld_deploy_hooks.invoke.Executor", "invoke.executor.Executor"


@pytest.mark.parametrize(
    ("tasks", "files", "flags", "env", "grouped"),
    [
        pytest.param(MAPPED, {"invoke_yaml": _yaml(OURS)}, [], {}, True, id="invoke.yaml"),
        pytest.param(MAPPED, {"other_yaml": _yaml(OURS)}, ["-f", "other.yaml"], {}, True, id="-f FILE"),
        pytest.param(
            MAPPED,
            {"other_yaml": _yaml(OURS)},
            [],
            {"INVOKE_RUNTIME_CONFIG": "other.yaml"},
            True,
            id="runtime variable",
        ),
        pytest.param(GROUPED, {}, [], {}, True, id="the decorator installs"),
        pytest.param(MAPPED.replace("{more}", INSTALL), {"invoke_yaml": _yaml()}, [], {}, True, id="install()"),
        pytest.param(GROUPED, {"invoke_yaml": _yaml(OURS)}, [], {}, True, id="decorator and file"),
        pytest.param(GROUPED, {"invoke_yaml": _yaml(THEIRS)}, [], {}, False, id="the file wins"),
        pytest.param(MAPPED, {"invoke_yaml": _yaml()}, [], {}, None, id="nothing names it"),
        pytest.param(
            MAPPED,
            {"invoke_yaml": _yaml()},
            [],
            {"INVOKE_TASKS_EXECUTOR_CLASS": OURS},
            None,
            id="a variable is too late",
        ),
        pytest.param(
            MAPPED + CONFIGURED,
            {"invoke_yaml": _yaml()},
            [],
            {},
            None,
            id="the collection's configuration is too late",
        ),
    ],
)
def test_how_the_executor_is_picked(
    project: Project, tasks: str, files: dict[str, str], flags: list[str], env: dict[str, str], grouped: bool | None
) -> None:
    project.write(tasks_py=tasks.replace("{more}", ""), **files)
    ran = project.run("inv", *flags, "deploy", **env)
    assert (ran.status, ran.out) == (0, f"inside {bool(grouped)}\ndeploy\n")
    assert ran.told == (TOLD if grouped is not None else [])
    said = f"tasks: executor_class: is {THEIRS}, so pre and post tasks and hosts are not told as one deployment"
    assert ran.err.count(said) == (grouped is False)
    assert ran.err.count("\n") == (grouped is False)


def test_another_executor_is_told_of_once(project: Project) -> None:
    project.write(tasks_py=GROUPED, invoke_yaml=_yaml(THEIRS))
    ran = project.run("inv", "--no-dedupe", "deploy", "deploy")
    assert (ran.told, ran.err.count("\n")) == (TOLD * 2, 1)


@pytest.mark.parametrize(
    ("name", "grouped"),
    [("mine.Executor", True), ("mine.Derived", True), ("mine.make", False), ("mine.Foreign", False)],
)
def test_a_program_of_ones_own(project: Project, name: str, grouped: bool) -> None:
    """Its executor goes on doing what it did."""
    project.write(
        mine_py="""
        import invoke
        from ld_deploy_hooks.invoke import Deploying

        class Executor(invoke.Executor):
            def expand_calls(self, calls):
                print("expanding", len(calls))
                return super().expand_calls(calls)

            def execute(self, *tasks):
                print("mine")
                return super().execute(*tasks)

        class Derived(Deploying, Executor):
            pass

        class Foreign:
            def __init__(self, *args):
                self.args = args

            def execute(self, *tasks):
                return Executor(*self.args).execute(*tasks)

        def make(*args):
            return Executor(*args)
        """,
        program_py=f"""
        import mine, sys
        from invoke import Collection, Program
        from ld_deploy_hooks.invoke import install
        import tasks
        program = Program(namespace=Collection.from_module(tasks), executor_class={name})
        install(program)
        installed = program.executor_class
        install(program)
        assert program.executor_class is installed
        program.run()
        """,
        tasks_py=GROUPED,
    )
    ran = project.run("python", "program.py", "deploy")
    lines = ran.out.splitlines()
    assert (ran.status, lines[-2:]) == (0, [f"inside {grouped}", "deploy"])
    assert "mine" in lines
    assert grouped == (ran.err == "")
    assert grouped or "Derive it from invoke.Executor and ld_deploy_hooks.invoke.Deploying." in ran.err
    assert ran.told == TOLD


# Made after its tasks were decorated.
HOLDS = """
    from invoke import Collection, Program
    import tasks
    program = Program(name="tool", namespace=Collection.from_module(tasks))
    {more}
    program.run()
    """


def test_a_program_of_ones_own_that_loads_its_tasks_tells_one_deployment(project: Project) -> None:
    project.write(tasks_py=GROUPED, tool_py="from invoke import Program\nProgram(name='tool').run()")
    ran = project.run("python", "tool.py", "deploy")
    assert (ran.status, ran.out, ran.err) == (0, "inside True\ndeploy\n", "")
    assert ran.told == TOLD


@pytest.mark.parametrize(
    ("more", "inside", "lines"),
    [("", False, 1), ("import ld_deploy_hooks.invoke; ld_deploy_hooks.invoke.install(program)", True, 0)],
)
def test_a_program_that_is_made_after_its_tasks_needs_install_and_says_so(
    project: Project, more: str, inside: bool, lines: int
) -> None:
    project.write(tasks_py=GROUPED, tool_py=textwrap.dedent(HOLDS).format(more=more))
    ran = project.run("python", "tool.py", "deploy")
    assert (ran.status, ran.out, len(ran.err.splitlines())) == (0, f"inside {inside}\ndeploy\n", lines)
    if lines:
        assert "Call ld_deploy_hooks.invoke.install(program) before program.run()." in ran.err
    assert ran.told == TOLD


HOSTS_OF_ONES_OWN = """
    import fabric
    from invoke import Argument, Program

    class Tool(Program):
        def core_args(self):
            return [*super().core_args(), Argument(names=("hosts",))]

    Tool(name="tool").run()
    """


@pytest.mark.parametrize("in_yaml", [False, True])
def test_an_argument_hosts_of_ones_own_is_none_of_fabrics(project: Project, in_yaml: bool) -> None:
    pytest.importorskip("fabric")
    project.write(tasks_py=GROUPED.replace('print("deploy")', "print(type(c).__name__)"), tool_py=HOSTS_OF_ONES_OWN)
    if in_yaml:
        project.write(invoke_yaml="tasks: {executor_class: ld_deploy_hooks.invoke.Executor}")
    ran = project.run("python", "tool.py", "--hosts", "nosuch.invalid", "deploy")
    assert (ran.status, ran.out, ran.err) == (0, "inside True\nContext\n", "")
    assert ran.told == TOLD


# -- what tells nothing -----------------------------------------------------------------------------------------------

QUIET = """
    import atexit, sys
    before = set(sys.modules)
    from invoke import task
    from ld_deploy_hooks import current_deployment, deployment

    @atexit.register
    def loaded():
        heavy = ("requests", "sqlite3", "pluggy", "fabric", "ld_deploy_hooks._outbox")
        print(*[name for name in heavy if name in sys.modules and name not in before], file=sys.stderr)

    @task
    @deployment(application_key=lambda c: c.run("echo asked") and "web", version="1")
    def deploy(c):
        "Put it there."
        with deployment("inner", version="2"):
            c.run("echo there")
        with deployment("hand-made", version="3"):
            made_by_hand(type(c)())

    @deployment("function", version="1")
    def made_by_hand(c):
        current_deployment().custom(done=True)
    """


@pytest.mark.parametrize(
    ("line", "env"),
    [
        ("--list", {}),
        ("-l -F json", {}),
        ("--help deploy", {}),
        ("--help", {}),
        ("--version", {}),
        ("--complete -- inv dep", {}),
        ("--print-completion-script bash", {}),
        ("--dry deploy", {}),
        ("deploy", {"INVOKE_RUN_DRY": "1"}),
        ("deploy", {"LD_DEPLOY_DISABLED": "1"}),
        ("deploy", {"LD_DEPLOY_DRY_RUN": "1"}),
    ],
)
def test_what_sends_nothing_and_does_no_work(project: Project, line: str, env: dict[str, str]) -> None:
    project.write(tasks_py=QUIET)
    ran, without = project.run("inv", *line.split(), **env), project.without_us("inv", *line.split(), **env)
    assert (ran.status, ran.out) == (without.status, without.out)
    # Where tasks.py was imported at all, it says what else was.
    assert (ran.err, ran.err.strip()) == (without.err, "")
    assert (ran.told, project.server.requests, project.outbox.exists()) == ([], [], False)


def test_a_program_that_is_registered_nowhere_runs_dry(project: Project) -> None:
    project.write(
        tasks_py="""
        from concurrent.futures import ThreadPoolExecutor
        from invoke import task
        from ld_deploy_hooks import deployment

        def step():
            with deployment("web", version="1"):
                print("there")

        @task
        def deploy(c):
            step()
            with ThreadPoolExecutor(1) as pool:
                pool.submit(step).result()
        """,
        tool_py="""
        from invoke import Collection, Program
        import tasks
        Program(namespace=Collection.from_module(tasks)).run()
        """,
    )
    dry = project.run("python", "tool.py", "--dry", "deploy")
    assert (dry.status, dry.out, dry.err, dry.told) == (0, "there\nthere\n", "", [])
    assert project.run("python", "tool.py", "deploy").told == ["started web 1", "finished web 1"] * 2


def test_a_dry_run_that_is_over_keeps_nothing_dry(project: Project) -> None:
    project.write(
        tasks_py="""
        from invoke import task

        @task
        def plain(c):
            print("plain")
        """,
        run_py="""
        from invoke.main import program
        from ld_deploy_hooks import deployment
        program.run("inv --dry plain", exit=False)
        with deployment("web", version="1"):
            print("there")
        """,
    )
    ran = project.run("python", "run.py")
    assert (ran.status, ran.out, ran.err) == (0, "plain\nthere\n", "")
    assert ran.told == ["started web 1", "finished web 1"]


def test_fabric_is_not_needed(project: Project) -> None:
    project.write(
        tasks_py=GROUPED,
        run_py="""
        import sys
        sys.modules["fabric"] = None  # as if it were not installed
        import invoke.main
        invoke.main.program.run(["inv", "deploy"])
        """,
    )
    ran = project.run("python", "run.py")
    assert (ran.status, ran.out, ran.told) == (0, "inside True\ndeploy\n", TOLD)
