"""``deployhooks.py`` is loaded from beside what the user has chosen to run, and from nowhere else."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
import textwrap
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts_kit import Project, Ran

from ld_deploy_hooks._deployhooks import load

needs_fabric = pytest.mark.skipif(importlib.util.find_spec("fabric") is None, reason="Fabric is not installed")
needs_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
SAFE = sys.version_info >= (3, 11)  # -P came with it
NOBODY = 65534

HOOKS = """
from ld_deploy_hooks import hookimpl

@hookimpl
def ld_deploy_add_metadata(deployment):
    return {{"hooks": "{}"}}
"""
DEPLOY = """
from ld_deploy_hooks import deployment

with deployment("web", version="1"):
    pass
"""
TASKS = """
from invoke import task
from ld_deploy_hooks import deployment

@task
@deployment("web", version="1")
def deploy(c):
    pass
"""


@pytest.fixture
def project(tmp_path: Path, child_env: dict[str, str]) -> Iterator[Project]:
    """A working directory that has a ``deployhooks.py`` of its own, which says ``cwd``."""
    with Project(tmp_path, child_env) as project:
        hooks(project.folder, "cwd")
        yield project


def hooks(folder: Path, label: str) -> None:
    """Put a ``deployhooks.py`` into ``folder``: it adds ``label`` to the metadata."""
    Project.write_all(folder, {"deployhooks.py": HOOKS.format(label)})


def loaded(ran: Ran) -> str | None:
    """Return which ``deployhooks.py`` took part in the only deployment, which ended well."""
    assert (ran.status, ran.err) == (0, "")
    started, finished = ran.told
    assert started.startswith("started web 1")
    assert finished.startswith("finished web 1")
    said = {word.partition("=")[2] for event in ran.told for word in event.split() if word.startswith("hooks=")}
    assert len(said) <= 1
    return said.pop() if said else None


# -- scripts ----------------------------------------------------------------------------------------------------------


def test_it_lies_beside_the_script_wherever_that_is_run_from(project: Project, tmp_path: Path) -> None:
    Project.write_all(tmp_path / "tool", {"deploy.py": DEPLOY})
    script = str(tmp_path / "tool" / "deploy.py")
    assert loaded(project.run("python", script)) is None
    hooks(tmp_path / "tool", "tool")
    assert loaded(project.run("python", script)) == "tool"
    assert loaded(project.run("python", "../tool/deploy.py")) == "tool"
    assert sorted(path.name for path in (tmp_path / "tool").iterdir()) == ["deploy.py", "deployhooks.py"]


def test_a_link_to_a_script_counts_as_the_script(project: Project, tmp_path: Path) -> None:
    Project.write_all(tmp_path / "tool", {"deploy.py": DEPLOY})
    hooks(tmp_path / "tool", "tool")
    (project.folder / "deploy").symlink_to(tmp_path / "tool" / "deploy.py")
    assert loaded(project.run("python", "deploy")) == "tool"


def test_a_folder_that_is_run_has_its_own(project: Project, tmp_path: Path) -> None:
    Project.write_all(tmp_path / "tool", {"__main__.py": DEPLOY})
    hooks(tmp_path / "tool", "tool")
    assert loaded(project.run("python", str(tmp_path / "tool"))) == "tool"


def test_a_script_that_goes_elsewhere_keeps_its_own(project: Project, tmp_path: Path) -> None:
    Project.write_all(tmp_path / "tool", {"deploy.py": f"import os\nos.chdir({str(tmp_path)!r})\n{DEPLOY}"})
    hooks(tmp_path, "elsewhere")
    hooks(tmp_path / "tool", "tool")
    assert loaded(project.run("python", "../tool/deploy.py")) == "tool"


@pytest.mark.parametrize(
    "command",
    [
        ["-c", DEPLOY],
        ["-m", "deploy"],
        ["-I", "deploy.py"],
        pytest.param(["-P", "deploy.py"], marks=pytest.mark.skipif(not SAFE, reason="no -P here")),
    ],
    ids=lambda command: command[0],
)
def test_a_file_that_merely_lies_in_the_working_directory_is_not_loaded(command: list[str], project: Project) -> None:
    # -I passes over PYTHONPATH, too.
    paths = project.env({}).get("PYTHONPATH", "").split(os.pathsep)
    insert = f"import sys\nsys.path[:0] = {[path for path in paths if path]!r}\n"
    project.write(deploy_py=insert + textwrap.dedent(DEPLOY))
    assert loaded(project.run("python", *command)) is None


@pytest.mark.skipif(not SAFE, reason="no such variable here")
def test_the_variable_for_safe_paths_counts_as_well(project: Project) -> None:
    project.write(deploy_py=DEPLOY)
    assert loaded(project.run("python", "deploy.py")) == "cwd"
    assert loaded(project.run("python", "deploy.py", PYTHONSAFEPATH="1")) is None


@pytest.mark.parametrize("command", ["python <deploy.py", "python - <deploy.py", "cat deploy.py | python /dev/stdin"])
def test_a_program_from_stdin_has_none(command: str, project: Project) -> None:
    project.write(deploy_py=DEPLOY)
    assert loaded(project.run("sh", "-c", command)) is None


def test_beside_an_installed_program_there_is_none(project: Project, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, symlinks=True)
    site = [project.env({}).get("PYTHONPATH", ""), sysconfig.get_path("purelib")]
    program = home / "bin" / "site-deploy"
    program.write_text(f"#!{home}/bin/python\n{DEPLOY}")
    program.chmod(0o755)
    hooks(home / "bin", "bin")
    # As pipx has it: a link in a folder of its own.
    hooks(tmp_path / "links", "links")
    (tmp_path / "links" / "site-deploy").symlink_to(program)
    for path in (program, tmp_path / "links" / "site-deploy"):
        assert loaded(project.run("sh", "-c", str(path), PYTHONPATH=os.pathsep.join(filter(None, site)))) is None


def test_a_main_module_that_looks_like_nothing_known_is_said_and_the_deploy_is_told(project: Project) -> None:
    project.write(deploy_py=f"import sys\nsys.modules['__main__'].__spec__ = 'odd'\n{DEPLOY}")
    done = project.run("python", "deploy.py")
    assert done.status == 0
    assert [event.split()[0] for event in done.told] == ["started", "finished"]
    (line,) = done.err.splitlines()
    assert line.startswith("Looking for deployhooks.py failed with AttributeError")


def test_ld_deploy_has_none(project: Project) -> None:
    project.write(deployhooks_py="print('loaded')", deploy_py=DEPLOY)
    # Nobody can send without a token: there is something left to do.
    assert "loaded" in project.run("python", "deploy.py", LD_ACCESS_TOKEN="").out
    done = project.run("python", "-m", "ld_deploy_hooks", "flush", LD_DEPLOY_PLUGINS="no:git")
    assert (done.status, done.out) == (0, f"2 event(s) delivered to {project.server.base_uri}\n")


# -- hosts ------------------------------------------------------------------------------------------------------------

HOSTS = ["inv", pytest.param("fab", marks=needs_fabric)]


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> str:
    """The program of a host."""
    return str(request.param)


def tasks_in(folder: Path, host: str, name: str | None = None) -> None:
    """Put tasks into ``folder``, under the host's own name for them if ``name`` is None."""
    name = name or ("tasks" if host == "inv" else "fabfile")
    text = TASKS if host == "inv" else TASKS.replace("from invoke", "from fabric")
    Project.write_all(folder, {f"{name}.py": text})


def test_it_lies_beside_the_tasks_which_may_be_further_up(host: str, project: Project, tmp_path: Path) -> None:
    tasks_in(tmp_path, host)
    assert loaded(project.run(host, "deploy")) is None
    hooks(tmp_path, "tasks")
    assert loaded(project.run(host, "deploy")) == "tasks"


def test_it_lies_beside_another_collection(host: str, project: Project) -> None:
    tasks_in(project.folder, host, "other")
    assert loaded(project.run(host, "-c", "other", "deploy")) == "cwd"


@pytest.mark.parametrize("root", ["{}", "../else"], ids=["absolute", "relative"])
def test_it_lies_where_the_search_begins(root: str, host: str, project: Project, tmp_path: Path) -> None:
    tasks_in(project.folder, host)
    tasks_in(tmp_path / "else", host)
    hooks(tmp_path / "else", "else")
    assert loaded(project.run(host, "-r", root.format(tmp_path / "else"), "deploy")) == "else"
    assert loaded(project.run(host, "--search-root", str(tmp_path / "else"), "deploy")) == "else"


def test_it_lies_beside_a_package_of_tasks(host: str, project: Project, tmp_path: Path) -> None:
    tasks_in(tmp_path / ("tasks" if host == "inv" else "fabfile"), host, "__init__")
    hooks(tmp_path, "beside-the-package")
    assert loaded(project.run(host, "deploy")) == "beside-the-package"


def test_a_configuration_file_elsewhere_changes_nothing(host: str, project: Project, tmp_path: Path) -> None:
    tasks_in(project.folder, host)
    Project.write_all(tmp_path / "conf", {"run.yaml": "ld_deploy_hooks: {application_name: Web}"})
    hooks(tmp_path / "conf", "conf")
    assert loaded(project.run(host, "-f", str(tmp_path / "conf" / "run.yaml"), "deploy")) == "cwd"


def test_a_module_that_is_run_is_a_host_too(project: Project, tmp_path: Path) -> None:
    tasks_in(tmp_path / "else", "inv")
    hooks(tmp_path / "else", "else")
    assert loaded(project.run("python", "-m", "invoke", "-r", str(tmp_path / "else"), "deploy")) == "else"


def test_a_task_that_only_yaml_makes_a_deployment_has_it_as_well(host: str, project: Project) -> None:
    tasks_in(project.folder, host)
    name = "tasks" if host == "inv" else "fabfile"
    text = (project.folder / f"{name}.py").read_text().replace('@deployment("web", version="1")\n', "")
    (project.folder / f"{name}.py").write_text(text)
    room = "invoke" if host == "inv" else "fabric"
    settings = f"""
        tasks:
          executor_class: ld_deploy_hooks.{room}.Executor
        ld_deploy_hooks:
          tasks:
            deploy: {{application_key: web, version: "1"}}
        """
    Project.write_all(project.folder, {f"{room}.yaml": settings})
    assert loaded(project.run(host, "deploy")) == "cwd"


def test_every_folder_of_tasks_in_one_process_has_its_own(project: Project, tmp_path: Path) -> None:
    for name in ("a", "b"):
        tasks_in(tmp_path / name, "inv")
        Project.write_all(tmp_path / name, {"tasks.py": TASKS.replace('"web"', f'"{name}"')})
        hooks(tmp_path / name, f"of-{name}")
    script = DEPLOY + textwrap.dedent(
        """
        from invoke.main import program

        for root in ("../a", "../b", "../a"):
            program.run(["inv", "-r", root, "deploy"], exit=False)
        """
    )
    project.write(deploy_py=script + DEPLOY.replace('"1"', '"2"'))
    done = project.run("python", "deploy.py")
    assert (done.status, done.err) == (0, "")
    said = sorted({(event.split()[1], event.split()[2], event.split()[-1].partition("=")[2]) for event in done.told})
    assert said == [("a", "1", "of-a"), ("b", "1", "of-b"), ("web", "1", "cwd"), ("web", "2", "cwd")]


def test_flush_inside_a_task_goes_by_the_host_s_configuration(project: Project) -> None:
    project.write(deploy_py=DEPLOY)
    assert project.run("python", "deploy.py", LD_ACCESS_TOKEN="").told == []
    project.write(
        tasks_py="""
            from invoke import task
            from ld_deploy_hooks import flush

            @task
            def send(c):
                print(flush(20))
            """,
        invoke_yaml=f"ld_deploy_hooks: {{access_token: {project.env({})['LD_ACCESS_TOKEN']}}}",
    )
    done = project.run("inv", "--dry", "send", LD_ACCESS_TOKEN="")
    assert (done.out, done.told) == ("True\n", [])
    done = project.run("inv", "send", LD_ACCESS_TOKEN="")
    assert (done.out, [event.split()[0] for event in done.told]) == ("True\n", ["started", "finished"])


# -- whose it is ------------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("which", ["the file", "a link to a file of ours"])
def test_a_file_of_somebody_else_is_not_loaded_and_said(which: str, project: Project, tmp_path: Path) -> None:
    project.write(deploy_py=DEPLOY)
    path = project.folder / "deployhooks.py"
    if which != "the file":
        path.rename(tmp_path / "ours.py")
        path.symlink_to(tmp_path / "ours.py")
    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    done = project.run("python", "deploy.py")
    assert done.status == 0
    assert [event.split()[0] for event in done.told] == ["started", "finished"]
    assert "hooks=" not in "".join(done.told)
    (line,) = done.err.splitlines()
    assert line == (
        f"Plugin deployhooks ({path}) is not loaded: it belongs to user id {NOBODY}, neither to this user nor to root. "
        "chown it, or name its module in LD_DEPLOY_PLUGINS."
    )


@needs_root
def test_root_s_file_is_loaded_by_everybody(project: Project) -> None:
    project.write(deployhooks_py="print('loaded')")
    # All that is imported later is not for that user to read.
    child = f"""
        import importlib.util, os
        from pathlib import Path
        from ld_deploy_hooks._deployhooks import load
        os.seteuid({NOBODY})
        load(Path(os.curdir))
        """
    project.write(child_py=child)
    assert project.run("python", "child.py").out == "loaded\n"


def test_a_compiled_file_beside_it_is_neither_read_nor_written(tmp_path: Path) -> None:
    import py_compile

    path = tmp_path / "deployhooks.py"
    path.write_text("answer = 'somebody else'")
    status = path.stat()
    py_compile.compile(str(path))
    path.write_text("answer = 'what we read'")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    compiled = {file: file.read_bytes() for file in (tmp_path / "__pycache__").iterdir()}
    try:
        module = load(tmp_path)
        assert module is not None
        assert module.answer == "what we read"
        assert load(tmp_path) is module
    finally:
        del sys.modules["_ld_deploy_hooks_file"]
    assert {file: file.read_bytes() for file in (tmp_path / "__pycache__").iterdir()} == compiled


@pytest.mark.parametrize("what", ["a folder", "a pipe"])
def test_what_is_no_file_is_passed_over(what: str, tmp_path: Path) -> None:
    if what == "a folder":
        (tmp_path / "deployhooks.py").mkdir()
    else:
        os.mkfifo(tmp_path / "deployhooks.py")
    assert load(tmp_path) is None
