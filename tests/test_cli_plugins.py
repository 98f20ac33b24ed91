"""``ld-deploy plugins``, as real processes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from fault_kit import TOKEN, Deploys, Ended, deploys_fixture  # noqa: F401

KEY = "api-01234567-89ab-cdef-0123-456789abcdef"
# Blocks every built-in plugin.
NONE = "no:ci,no:console,no:git,no:opentelemetry"
MINE = """
from ld_deploy_hooks import hookimpl

@hookimpl
def ld_deploy_started(deployment):
    pass

@hookimpl
def ld_deploy_failed(deployment, error):
    pass
"""


def plugins(deploys: Deploys, *arguments: str) -> Ended:
    """Run it; whatever it is asked, no token is in what it prints."""
    ended = deploys.command("plugins", *arguments)
    assert TOKEN not in ended.stdout + ended.stderr
    assert KEY not in ended.stdout + ended.stderr
    assert ended.stderr == ""
    return ended


@pytest.fixture(autouse=True)
def _none_of_the_machines(deploys: Deploys) -> None:
    deploys.set(LD_DEPLOY_PLUGINS="mine", LD_DEPLOY_DISABLE_PLUGIN_AUTOLOAD="1")
    (deploys.folder / "mine.py").write_text(MINE)


def test_each_with_where_it_came_from_and_its_hooks(deploys: Deploys) -> None:
    ended = plugins(deploys)
    assert ended.status == 0
    heading, mine, *builtin, rest = ended.stdout.splitlines()
    assert heading.split() == ["plugin", "came", "from", "hooks"]
    assert mine.split(maxsplit=3) == ["mine", "setting", "plugins", "ld_deploy_failed, ld_deploy_started"]
    assert [line.split()[1] for line in builtin] == ["built-in"] * len(builtin)
    assert [line.split()[0] for line in builtin][:3] == ["ci", "git", "console"]
    assert rest == "entry points are not loaded (by LD_DEPLOY_DISABLE_PLUGIN_AUTOLOAD)"


def test_as_json_and_in_the_order_in_which_they_are_called(deploys: Deploys) -> None:
    (deploys.folder / "second.py").write_text(MINE)
    deploys.set(LD_DEPLOY_PLUGINS=f"mine,{NONE},second")
    ended = plugins(deploys, "--json")
    assert ended.status == 0
    hooks = ["ld_deploy_failed", "ld_deploy_started"]
    assert json.loads(ended.stdout) == {
        "host_configuration": None,
        "plugins": [{"name": name, "origin": "setting plugins", "hooks": hooks} for name in ("mine", "second")],
        "blocked": ["ci", "console", "git", "opentelemetry"],
        "autoload": False,
        "problems": [],
    }


def test_what_plugins_print_is_no_part_of_it(deploys: Deploys) -> None:
    (deploys.folder / "mine.py").write_text(f"print('loaded')\n{MINE}")
    (deploys.folder / "tasks.py").touch()
    (deploys.folder / "deployhooks.py").write_text(f"print('{{')\n{MINE}")
    ended = deploys.command("plugins", "--json")
    assert (ended.status, ended.lines) == (0, ["loaded", "{"])
    assert [plugin["name"] for plugin in json.loads(ended.stdout)["plugins"]][:2] == ["deployhooks", "mine"]
    shown = deploys.command("plugins")
    assert shown.stdout.startswith("plugin ")
    assert (shown.status, shown.lines) == (0, ended.lines)


def test_entry_points(deploys: Deploys) -> None:
    del deploys.env["LD_DEPLOY_DISABLE_PLUGIN_AUTOLOAD"]
    deploys.set(LD_DEPLOY_PLUGINS=NONE)
    site = deploys.folder / "site" / "theirs-1.0.dist-info"
    site.mkdir(parents=True)
    (site / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (site / "entry_points.txt").write_text("[ld_deploy_hooks]\nshout = theirs\nbroken = nowhere.at_all\n")
    (site.parent / "theirs.py").write_text(MINE)
    deploys.set(PYTHONPATH=os.pathsep.join([str(site.parent), deploys.env.get("PYTHONPATH", "")]))
    report = json.loads(plugins(deploys, "--json").stdout)
    assert "entry points are not loaded" not in plugins(deploys).stdout
    assert ("shout", "entry point shout = theirs of theirs") in [
        (plugin["name"], plugin["origin"]) for plugin in report["plugins"]
    ]
    assert report["autoload"] is True
    (problem,) = report["problems"]
    assert problem.startswith("Plugin broken (entry point broken = nowhere.at_all of theirs) is not loaded: Module")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (f"raise ValueError({KEY!r})", "Plugin mine (setting plugins) is not loaded: ValueError (mine.py, line 1)"),
        ("import sys\nsys.exit(3)", "Plugin mine (setting plugins) is not loaded: SystemExit"),
        ("def ld_deploy_start(deployment): pass", "ld_deploy_start is no hook and is never called"),
        ("", "implements no hook"),
    ],
)
def test_what_cannot_be_loaded_or_is_never_called(deploys: Deploys, source: str, says: str) -> None:
    (deploys.folder / "mine.py").write_text(source)
    ended = plugins(deploys)
    assert ended.status == 1
    (problem,) = [line for line in ended.stdout.splitlines() if line.startswith("problem: ")]
    assert says in problem
    assert len(json.loads(plugins(deploys, "--json").stdout)["problems"]) == 1


def test_a_token_that_lies_in_the_wrong_variable(deploys: Deploys) -> None:
    deploys.set(LD_DEPLOY_PLUGINS=f"{KEY},no:{TOKEN}")
    ended = plugins(deploys)
    assert ended.status == 1
    assert "problem: Plugin api-**** (setting plugins) is not loaded" in ended.stdout
    assert plugins(deploys, "--json").status == 1


def test_none_at_all_and_which_are_blocked(deploys: Deploys) -> None:
    deploys.set(LD_DEPLOY_PLUGINS=f"{NONE}, no:mine, mine")
    ended = plugins(deploys)
    assert ended.status == 0
    blocked = ("ci", "console", "git", "mine", "opentelemetry")
    assert ended.stdout.splitlines()[:6] == [
        "no plugin is loaded",
        *(f"{name} is blocked (by no:{name} in LD_DEPLOY_PLUGINS)" for name in blocked),
    ]


@pytest.mark.parametrize("switch", ["disabled", "dry_run"])
def test_switched_off(deploys: Deploys, switch: str) -> None:
    deploys.set(**{f"LD_DEPLOY_{switch.upper()}": "1"})
    ended = plugins(deploys)
    assert ended.status == 0
    assert f"a deploy loads none of them now: {switch} is on (from LD_DEPLOY_{switch.upper()})" in ended.stdout
    assert "mine" in ended.stdout


def test_a_switch_that_cannot_be_used(deploys: Deploys) -> None:
    deploys.set(LD_DEPLOY_DISABLE_PLUGIN_AUTOLOAD="perhaps")
    ended = plugins(deploys)
    assert ended.status == 1
    assert "problem: plugin_autoload (LD_DEPLOY_DISABLE_PLUGIN_AUTOLOAD) is neither on nor off" in ended.stdout


# -- what inv and fab would load --------------------------------------------------------------------------------------

NOBODY = 65534


@pytest.fixture
def below(deploys: Deploys) -> Path:
    """Return a folder in which modules are looked for, below that with the tasks."""
    (deploys.folder / "mine.py").rename(deploys.folder / "beside.py")
    del deploys.env["LD_DEPLOY_PLUGINS"]
    folder = deploys.folder / "below"
    folder.mkdir()
    return folder


def loaded_below(deploys: Deploys, below: Path) -> tuple[int, dict[str, str], list[str]]:
    """Return the exit status, where each plugin that is not built in came from, and the problems."""
    ended = deploys.command("plugins", "--json", cwd=below)
    report = json.loads(ended.stdout)
    assert not (deploys.folder / "ran").exists()
    origins = {each["name"]: each["origin"] for each in report["plugins"] if each["origin"] != "built-in"}
    return ended.status, origins, report["problems"]


@pytest.mark.parametrize(
    ("tasks", "file"),
    [("tasks.py", "invoke.yaml"), ("fabfile.py", "fabric.yml"), ("tasks/__init__.py", "invoke.json")],
)
def test_what_a_host_would_load(deploys: Deploys, below: Path, tasks: str, file: str) -> None:
    (deploys.folder / "tasks").mkdir()
    (deploys.folder / tasks).write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    (deploys.folder / "deployhooks.py").write_text(MINE)
    (below / "deployhooks.py").write_text("1 / 0")
    configuration = {"ld_deploy_hooks": {"plugins": ["beside", "no:git"], "project_key": "p"}}
    (deploys.folder / file).write_text(json.dumps(configuration))
    own = str(deploys.folder / "deployhooks.py")
    assert loaded_below(deploys, below) == (0, {"deployhooks": own, "beside": "setting plugins"}, [])
    shown = deploys.command("plugins", cwd=below).stdout.splitlines()
    assert f"settings of {deploys.folder / file} count here" in shown
    assert f"git is blocked (by no:git in {deploys.folder / file})" in shown


def test_a_file_beside_no_tasks_is_not_loaded(deploys: Deploys, below: Path) -> None:
    (below / "deployhooks.py").write_text("1 / 0")
    (below / "invoke.yaml").write_text("ld_deploy_hooks: {plugins: [nowhere]}")
    assert loaded_below(deploys, below) == (0, {}, [])


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("deployhooks.py", MINE.replace("started", "startd"), "ld_deploy_startd is no hook and is never called"),
        ("deployhooks.py", "1 / 0", "is not loaded: ZeroDivisionError (deployhooks.py, line 1)"),
        ("invoke.yaml", "ld_deploy_hooks: {plugins: [nowhere]}", "Plugin nowhere (setting plugins) is not loaded"),
        ("invoke.yaml", "ld_deploy_hooks: {plugins: {a: b}}", "plugins ("),
        ("invoke.yaml", "ld_deploy_hooks: [plugins]", "is no mapping"),
        ("invoke.yaml", "a: [", "it is no configuration (ParserError)"),
    ],
)
def test_what_is_wrong_with_what_a_host_would_load(
    deploys: Deploys, below: Path, file: str, text: str, says: str
) -> None:
    (deploys.folder / "tasks.py").touch()
    (deploys.folder / file).write_text(text)
    status, _, problems = loaded_below(deploys, below)
    assert status == 1
    assert [says in problem for problem in problems] == [True]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_what_is_anybodys_is_not_loaded(deploys: Deploys, below: Path) -> None:
    (deploys.folder / "tasks.py").touch()
    ran = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"
    for name, text in (("deployhooks.py", ran), ("invoke.yaml", "ld_deploy_hooks: {plugins: [beside]}")):
        (deploys.folder / name).write_text(text)
        os.chown(deploys.folder / name, NOBODY, NOBODY)
    status, origins, problems = loaded_below(deploys, below)
    assert (status, origins) == (1, {})
    assert [f"belongs to user id {NOBODY}" in problem for problem in problems] == [True, True]
    # Nor is a module looked for beside tasks that are anybody's.
    deploys.set(LD_DEPLOY_PLUGINS="beside")
    (deploys.folder / "beside.py").write_text(ran)
    os.chown(deploys.folder / "tasks.py", NOBODY, NOBODY)
    assert loaded_below(deploys, below)[:2] == (1, {})


def test_in_a_working_directory_that_is_gone(deploys: Deploys, below: Path) -> None:
    source = "import os, sys\nos.rmdir(os.getcwd())\nfrom ld_deploy_hooks.cli import main\nsys.exit(main(['plugins']))"
    (deploys.folder / "source.py").write_text(source)
    ended = deploys.start_program(sys.executable, str(deploys.folder / "source.py"), cwd=below).ends()
    assert (ended.status, ended.stderr) == (0, "")


def test_nothing_is_made(deploys: Deploys) -> None:
    plugins(deploys)
    assert not deploys.outbox.parent.exists()
