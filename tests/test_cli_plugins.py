"""``ld-deploy plugins``, as real processes."""

from __future__ import annotations

import json
import os

import pytest
from fault_kit import TOKEN, Deploys, Ended, deploys_fixture  # noqa: F401

KEY = "api-01234567-89ab-cdef-0123-456789abcdef"
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
    heading, mine, console, *rest = ended.stdout.splitlines()
    assert heading.split() == ["plugin", "came", "from", "hooks"]
    assert mine.split(maxsplit=3) == ["mine", "setting", "plugins", "ld_deploy_failed, ld_deploy_started"]
    assert console.split()[:2] == ["console", "built-in"]
    assert rest == ["entry points are not loaded (by LD_DEPLOY_DISABLE_PLUGIN_AUTOLOAD)"]


def test_as_json_and_in_the_order_in_which_they_are_called(deploys: Deploys) -> None:
    (deploys.folder / "second.py").write_text(MINE)
    deploys.set(LD_DEPLOY_PLUGINS="mine,no:console,second")
    ended = plugins(deploys, "--json")
    assert ended.status == 0
    hooks = ["ld_deploy_failed", "ld_deploy_started"]
    assert json.loads(ended.stdout) == {
        "plugins": [{"name": name, "origin": "setting plugins", "hooks": hooks} for name in ("mine", "second")],
        "blocked": ["console"],
        "autoload": False,
        "problems": [],
    }


def test_entry_points(deploys: Deploys) -> None:
    del deploys.env["LD_DEPLOY_DISABLE_PLUGIN_AUTOLOAD"]
    deploys.set(LD_DEPLOY_PLUGINS="no:console")
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
    deploys.set(LD_DEPLOY_PLUGINS="no:console, no:mine, mine")
    ended = plugins(deploys)
    assert ended.status == 0
    assert ended.stdout.splitlines()[:3] == [
        "no plugin is loaded",
        "console is blocked (by no:console in LD_DEPLOY_PLUGINS)",
        "mine is blocked (by no:mine in LD_DEPLOY_PLUGINS)",
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


def test_nothing_is_made(deploys: Deploys) -> None:
    plugins(deploys)
    assert not deploys.outbox.parent.exists()
