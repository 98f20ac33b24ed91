"""Deployments under ``fab``: one for all hosts, with how each of them fared. The hosts are SSH servers on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts_kit import Project, Ran

pytest.importorskip("fabric")
pytest.importorskip("asyncssh")

from ssh import SSHHosts

FABFILE = """
    import sys
    from fabric import Connection, SerialGroup, ThreadingGroup, task
    from fabric.exceptions import GroupException
    from invoke import Exit
    from ld_deploy_hooks import current_deployment, deployment

    SECRET = "hunter" + "2"

    @task
    def build(c):
        print("build", type(c).__name__)

    @task
    def announce(c):
        print("announce", type(c).__name__)

    @task(pre=[build], post=[announce])
    @deployment("web", version=lambda c, tag="1": tag)
    def deploy(c, tag="1"):
        c.run(f"echo on $HOME | sed s,/.*/,,", warn=False)

    @task
    @deployment("web", version="1")
    def fail_on(c, host, how="run"):
        "Fails on one of the hosts."
        if c.original_host == host:
            if how == "run":
                c.run(f"echo {SECRET}; exit 3", env={"PASSWORD": SECRET})
            if how == "Exit":
                raise Exit(code=0)
            if how == "sys.exit":
                sys.exit(0)
            raise RuntimeError(SECRET)
        c.run("true")

    @task
    @deployment("web", version="1", success=lambda result: result)
    def judge(c, bad):
        return c.original_host != bad

    @deployment("web", version="1")
    @task(hosts=["web2", {"host": "web1", "connect_kwargs": {"password": SECRET}}])
    def with_hosts(c):
        print(c.original_host)

    @task(hosts=["web3"])
    @deployment("cache", version="2")
    def warm(c):
        print("warm", c.original_host)

    @task(pre=[warm])
    @deployment("web", version="1")
    def warmed(c):
        print("deploy", c.original_host)

    @task
    @deployment("one", version="1")
    @deployment("two", version="2")
    def stacked(c):
        print(c.original_host)

    NAMES = ["web1", "web2", "web3"]

    def group(c, kind, command, **kwargs):
        return kind(*NAMES, config=c.config).run(command, hide=True, **kwargs)

    @task
    @deployment("web", version="1")
    def threads(c):
        group(c, ThreadingGroup, 'test $(basename $HOME) != web2')

    @task
    @deployment("web", version="1")
    def in_series(c):
        group(c, SerialGroup, 'test $(basename $HOME) = web1')

    @task
    @deployment("web", version="1")
    def recorded(c):
        try:
            group(c, ThreadingGroup, 'test $(basename $HOME) != web2')
        except GroupException as error:
            current_deployment().record_group(error.result)
        current_deployment().record_group(group(c, SerialGroup, "true"))

    @task
    @deployment("web", version="1")
    def as_function(c):
        for name in NAMES:
            roll(Connection(name, config=c.config))

    @task
    @deployment("web", version="1")
    def roll(c):
        print("rolling", c.original_host)
        if c.original_host == "web3":
            c.run("exit 9")

    @task
    @deployment("web", version="1")
    def said(c):
        if c.original_host == "web2":
            # The SSH configuration makes an address of every name.
            current_deployment().host_failed(c.host)

    @task(name="self_calling")
    @deployment("web", version=lambda c: str(id(c)) if c.__class__.__name__ == "Connection" else "1")
    def itself(c):
        if hasattr(c, "host"):
            print("node", c.original_host)
        else:
            for name in NAMES[:2]:
                itself(Connection(name, config=c.config))

    @task
    def shown(c):
        print(c.config.sudo.password or c.connect_kwargs.password)

    @task
    @deployment("web", version="1")
    def keys(c):
        print(len(c.config.base_ssh_config._config), c.connect_kwargs)
    """


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[SSHHosts]:
    folder = tmp_path / "hosts"
    folder.mkdir()
    with SSHHosts(folder, ["web1", "web2", "web3"]) as hosts:
        yield hosts


class Fab(Project):
    """A folder with a fabfile.py."""

    ssh: SSHHosts

    def fab(self, line: str, typed: str = "", **env: str) -> Ran:
        """Run ``fab`` with and without us, and see that only the events differ."""
        command = ["fab", "--ssh-config", str(self.ssh.config), *line.split()]
        ran = self.run(*command, typed=typed, **env)
        without = self.without_us(*command, typed=typed, **env)
        assert (ran.status, ran.out) == (without.status, without.out)
        # Its words, not their order: threads finish as they like.
        last, last_without = (sorted(" ".join(one.err.splitlines()[-1:]).split()) for one in (ran, without))
        assert last == last_without
        assert "ld-deploy-hooks" not in ran.err, ran.err
        return ran


@pytest.fixture
def project(tmp_path: Path, child_env: dict[str, str], hosts: SSHHosts) -> Iterator[Fab]:
    with Fab(tmp_path, child_env) as project:
        project.ssh = hosts
        project.write(fabfile_py=FABFILE)
        yield project


ABC = "hosts=web1,web2,web3"


@pytest.mark.parametrize(
    ("line", "status", "told"),
    [
        (
            "-H web1,web2,web3 deploy --tag 4",
            0,
            [
                f"started web 4 task=deploy {ABC}",
                f"finished web 4 task=deploy {ABC} ok=web1,web2,web3 failed= pending=",
            ],
        ),
        ("deploy", 0, ["started web 1 task=deploy", "finished web 1 task=deploy"]),
        (
            "-H web1,web2,web3 fail-on web2",
            3,
            [
                f"started web 1 task=fail-on {ABC}",
                "failed web 1 task=fail-on reason=error error=UnexpectedExit exitCode=3 host=web2 "
                f"{ABC} ok=web1 failed=web2 pending=web3",
            ],
        ),
        (
            "-H web1,web2,web3 fail-on web3 --how raise",
            1,
            [
                f"started web 1 task=fail-on {ABC}",
                "failed web 1 task=fail-on reason=error error=RuntimeError exitCode=1 host=web3 "
                f"{ABC} ok=web1,web2 failed=web3 pending=",
            ],
        ),
        *(
            (
                f"-H web1,web2,web3 fail-on web1 --how {how}",
                0,
                [
                    f"started web 1 task=fail-on {ABC}",
                    f"failed web 1 task=fail-on reason=incomplete exitCode=0 {ABC} ok=web1 failed= pending=web2,web3",
                ],
            )
            for how in ("Exit", "sys.exit")
        ),
        (
            "-H web1,web2,web3 fail-on web3 --how Exit",
            0,
            [
                f"started web 1 task=fail-on {ABC}",
                f"finished web 1 task=fail-on {ABC} ok=web1,web2,web3 failed= pending=",
            ],
        ),
        (
            "-H web1,web2,web3 judge web2",
            0,
            [
                f"started web 1 task=judge {ABC}",
                f"failed web 1 task=judge reason=error host=web2 {ABC} ok=web1,web3 failed=web2 pending=",
            ],
        ),
        (
            "with-hosts",
            0,
            [
                "started web 1 task=with-hosts hosts=web2,web1",
                "finished web 1 task=with-hosts hosts=web2,web1 ok=web2,web1 failed= pending=",
            ],
        ),
        # The command line wins over hosts=; a host that is named twice is gone to twice.
        (
            "-H deploy@web3,web3 with-hosts",
            0,
            [
                "started web 1 task=with-hosts hosts=web3",
                "finished web 1 task=with-hosts hosts=web3 ok=web3 failed= pending=",
            ],
        ),
        (
            "-H web1,web1 fail-on web1 --how Exit",
            0,
            [
                "started web 1 task=fail-on hosts=web1",
                "failed web 1 task=fail-on reason=incomplete exitCode=0 hosts=web1 ok= failed= pending=web1",
            ],
        ),
        (
            "-H web1:1,web1:2 with-hosts",
            0,
            [
                "started web 1 task=with-hosts hosts=web1:1,web1:2",
                "finished web 1 task=with-hosts hosts=web1:1,web1:2 ok=web1:1,web1:2 failed= pending=",
            ],
        ),
        # fab never takes a second call for the same.
        (
            "-H web1 judge web9 judge web9",
            0,
            [
                "started web 1 task=judge hosts=web1",
                "finished web 1 task=judge hosts=web1 ok=web1 failed= pending=",
            ]
            * 2,
        ),
        # A pre task with hosts of its own: they are not those of the deployment that it lies in.
        (
            "-H web1,web2 warmed",
            0,
            [
                "started cache 2 task=warm hosts=web3",
                "finished cache 2 task=warm hosts=web3 ok=web3 failed= pending=",
                "started web 1 task=warmed hosts=web1,web2",
                "finished web 1 task=warmed hosts=web1,web2 ok=web1,web2 failed= pending=",
            ],
        ),
        (
            "-H web1,web2 stacked",
            0,
            [
                "started one 1 task=stacked hosts=web1,web2",
                "finished one 1 task=stacked hosts=web1,web2 ok=web1,web2 failed= pending=",
                "started two 2 task=stacked hosts=web1,web2",
                "finished two 2 task=stacked hosts=web1,web2 ok=web1,web2 failed= pending=",
            ],
        ),
        (
            "threads",
            1,
            [
                "started web 1 task=threads",
                "failed web 1 task=threads reason=error error=GroupException exitCode=1 "
                "hosts=web1,web3,web2 ok=web1,web3 failed=web2 pending=",
            ],
        ),
        (
            "in-series",
            1,
            [
                "started web 1 task=in-series",
                "failed web 1 task=in-series reason=error error=GroupException exitCode=1 "
                f"{ABC} ok=web1 failed=web2,web3 pending=",
            ],
        ),
        (
            "recorded",
            0,
            [
                "started web 1 task=recorded",
                "finished web 1 task=recorded hosts=web1,web3,web2 ok=web1,web3,web2 failed= pending=",
            ],
        ),
        (
            "as-function",
            9,
            [
                "started web 1 task=as-function",
                "failed web 1 task=as-function reason=error error=UnexpectedExit exitCode=9 host=web3 "
                f"{ABC} ok=web1,web2 failed=web3 pending=",
            ],
        ),
        (
            "-H web1,web2,web3 said",
            0,
            [
                f"started web 1 task=said {ABC}",
                f"finished web 1 task=said {ABC} ok=web1,web3 failed=web2 pending=",
            ],
        ),
        (
            "self-calling",
            0,
            [
                "started web 1 task=self-calling",
                "finished web 1 task=self-calling hosts=web1,web2 ok=web1,web2 failed= pending=",
            ],
        ),
        ("-H web1,web2,web3 -- true", 0, []),
        ("-H web1 deploy -- true", 1, []),
    ],
)
def test_one_deployment_for_all_hosts(project: Fab, line: str, status: int, told: list[str]) -> None:
    ran = project.fab(line)
    if "threads" in line or "recorded" in line:
        # A group's result has no order.
        ran = Ran(ran.status, ran.out, ran.err, [one.replace("web3,web1", "web1,web3") for one in ran.told])
    assert (ran.status, ran.told) == (status, told)
    assert b"hunter2" not in project.kept()
    assert not any(b"hunter2" in request.body for request in project.server.requests)


FAB_OF_ONES_OWN = """
    import sys
    from fabric import Config, Executor
    from fabric.main import Fab
    program = Fab(name="tool", executor_class=Executor, config_class=Config)
    program.run(["tool", *sys.argv[1:]])
    """


def test_a_fab_of_ones_own_tells_one_deployment_for_all_hosts(project: Fab, hosts: SSHHosts) -> None:
    project.write(tool_py=FAB_OF_ONES_OWN)
    line = ("--ssh-config", str(hosts.config), "-H", "web1,web2", "deploy")
    ran = project.run("python", "tool.py", *line)
    assert (ran.status, ran.err) == (0, "")
    assert ran.told == project.run("fab", *line).told != []


@pytest.mark.parametrize(
    "install",
    ["import ld_deploy_hooks.invoke; ld_deploy_hooks.invoke.install(program)", "import ld_deploy_hooks.fabric"],
    ids=["the install of Invoke's room", "none"],
)
def test_a_fab_that_is_made_first_keeps_its_hosts(project: Fab, hosts: SSHHosts, install: str) -> None:
    ending = "program = Fab(name='tool', executor_class=Executor, config_class=Config)"
    project.write(tool_py=FAB_OF_ONES_OWN.replace("program = Fab", f"{ending}\n    {install}\n    _ = Fab"))
    line = ("--ssh-config", str(hosts.config), "-H", "web1,web2", "deploy")
    ran = project.run("python", "tool.py", *line)
    assert (ran.status, ran.err) == (0, "")
    assert ran.told == project.run("fab", *line).told != []


def test_the_ssh_configuration_is_read_once(project: Fab) -> None:
    """Fabric's own way to copy a configuration reads it again, and then offers every key once more."""
    assert project.fab("-H web1,web2 keys keys").status == 0


@pytest.mark.parametrize(
    ("line", "error", "host"),
    [
        ("-H 127.0.0.1:9 deploy", "NoValidConnectionsError", "127.0.0.1"),
        ("-H nobody.invalid deploy", "gaierror", "nobody.invalid"),
        ("-H a:b deploy", "ValueError", "a:b"),
    ],
)
def test_a_host_that_cannot_be_reached(project: Fab, line: str, error: str, host: str) -> None:
    ran = project.fab(line)
    assert (ran.status, ran.told) == (
        1,
        [
            f"started web 1 task=deploy hosts={host}",
            f"failed web 1 task=deploy reason=error error={error} exitCode=1 host={host} "
            f"hosts={host} ok= failed={host} pending=",
        ],
    )


def test_a_host_that_does_not_let_us_in(project: Fab, hosts: SSHHosts, tmp_path: Path) -> None:
    config = tmp_path / "ssh_config"
    config.write_text(
        f"Host web1\n  HostName 127.0.0.1\n  Port {hosts['web1'].port}\n  User deploy\n  IdentitiesOnly yes\n"
    )
    project.write(
        fabric_yaml="{connect_kwargs: {password: hunter2, allow_agent: false, look_for_keys: false}}",
    )
    ran = project.run("fab", "--ssh-config", str(config), "-H", "web1", "deploy")
    assert ran.status == 1
    start, end = ran.told
    assert start == "started web 1 task=deploy hosts=web1"
    assert end in [
        f"failed web 1 task=deploy reason=error error={error} exitCode=1 host=web1 hosts=web1 ok= failed=web1 pending="
        for error in ("AuthenticationException", "BadAuthenticationType")
    ]
    assert b"hunter2" not in project.kept()
    assert not any(b"hunter2" in request.body for request in project.server.requests)


@pytest.mark.parametrize("flag", ["--prompt-for-login-password", "--prompt-for-sudo-password"])
def test_a_password_that_is_typed_is_kept_nowhere(project: Fab, flag: str) -> None:
    ran = project.fab(f"{flag} -H web1 shown deploy", typed="correct horse\n")
    assert ran.status == 0
    assert ran.out.splitlines()[0] == "correct horse"
    assert len(ran.told) == 2
    assert b"correct" not in project.kept()
    assert not any(b"correct" in request.body for request in project.server.requests)
    assert "correct" not in ran.err


MAPPED = """
    from fabric import task
    from ld_deploy_hooks import current_deployment

    @task
    def build(c):
        print("inside", current_deployment() is not None)

    @task(pre=[build])
    def deploy(c):
        print("deploy")
    """


@pytest.mark.parametrize(
    "executor", ["ld_deploy_hooks.fabric.Executor", "ld_deploy_hooks.invoke.Executor", "mine.Executor"]
)
def test_mapped_tasks(project: Fab, executor: str) -> None:
    project.write(
        fabfile_py=MAPPED,
        fabric_yaml=f"""
        tasks: {{executor_class: {executor}}}
        ld_deploy_hooks: {{tasks: {{deploy: {{application_key: web, version: '1'}}}}}}
        """,
        mine_py="""
        import fabric
        from ld_deploy_hooks.fabric import Deploying

        class Executor(Deploying, fabric.Executor):
            pass
        """,
    )
    ran = project.run("fab", "-H", "a,b", "deploy")
    assert (ran.status, ran.out, ran.err) == (0, "inside True\ndeploy\ndeploy\n", "")
    assert ran.told == [
        "started web 1 task=deploy hosts=a,b",
        "finished web 1 task=deploy hosts=a,b ok=a,b failed= pending=",
    ]


def test_another_executor_in_the_file(project: Fab) -> None:
    project.write(fabric_yaml="{tasks: {executor_class: fabric.executor.Executor}}")
    ran = project.run("fab", "-H", "web1,web2", "judge", "web9")
    pair = "{} web 1 task=judge{}"
    assert ran.told == [
        one
        for host in ("web1", "web2")
        for one in (
            pair.format("started", ""),
            pair.format("finished", f" hosts={host} ok={host} failed= pending="),
        )
    ]
    assert ran.err.count("tasks: executor_class: is fabric.executor.Executor") == ran.err.count("\n") == 1


@pytest.mark.parametrize(
    "line", ["--list", "-l -F json", "--help deploy", "--complete -- fab de", "--dry -H web1 deploy"]
)
def test_what_tells_nothing(project: Fab, line: str) -> None:
    ran = project.fab(line)
    assert (ran.status, ran.told, project.server.requests, project.outbox.exists()) == (0, [], [], False)


def test_a_connection_made_by_hand_under_dry(project: Fab) -> None:
    """It knows nothing of ``--dry``; whoever wrote ``--dry`` still does not want anything told."""
    project.write(
        fabfile_py="""
        from fabric import Connection, task
        from ld_deploy_hooks import deployment

        @task
        def deploy(c):
            roll(Connection("web1"))

        @deployment("web", version="1")
        def roll(c):
            print("rolled")
        """
    )
    assert project.fab("--dry deploy").told == []
    assert len(project.fab("deploy").told) == 2
