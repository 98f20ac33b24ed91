"""``docs/hooks.md``, the specifications and the tests say the same."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from told import Told, script, settings, told_fixture  # noqa: F401

from ld_deploy_hooks import hookspecs
from ld_deploy_hooks._deployhooks import FILE
from ld_deploy_hooks._plugins import Plugins
from ld_deploy_hooks._settings import VARIABLES
from ld_deploy_hooks.plugins import ci

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
HOOKS = [name for name in hookspecs.__all__ if name.startswith("ld_deploy_")]
SECTIONS = dict(re.findall(r"(?ms)^### `(ld_deploy_\w+)`\n(.*?)(?=^##|\Z)", TEXT))
RECORDS = {record.__name__: record for record in (hookspecs.DeploymentRecord, hookspecs.DeploymentEvent)}
RECORDS["SettingsView"] = hookspecs.SettingsView


def plain(text: str) -> str:
    """Return text without its line breaks and its marks."""
    return re.sub(r"\s+", " ", text.replace("`", "")).strip()


def signature(hook: str) -> str:
    """Return how a hook is written, as ``inspect`` gives it; annotations there are strings."""
    return f"{hook}{inspect.signature(getattr(hookspecs, hook))}".replace("'", "")


def test_every_hook_has_a_section_in_the_order_of_their_calls() -> None:
    in_order = [name for name in vars(hookspecs) if name in HOOKS]
    assert list(SECTIONS) == in_order


@pytest.mark.parametrize("hook", HOOKS)
def test_the_section_of_a_hook_says_what_its_specification_says(hook: str) -> None:
    section, spec = SECTIONS[hook], inspect.getdoc(getattr(hookspecs, hook)) or ""
    first, summary, *_ = section.strip().split("\n\n")
    assert first == f"`{signature(hook)}`"
    assert plain(summary) == plain(spec.partition("\n\n")[0])
    marks = re.findall(r"(?m)^- \*\*(.*?)\*\*", section)
    assert marks[:3] == ["When", "Gets", "Returns"]
    assert marks[-1].lower().endswith("exception in it")
    (when,) = re.findall(r"(?s)\*\*When\*\*: (.*?)\n- ", section)
    specified = plain(re.findall(r"(?s)When: (.*?)\n\n", spec)[0])
    assert plain(when).startswith(specified)
    for argument in inspect.signature(getattr(hookspecs, hook)).parameters:
        assert f"`{argument}`" in section


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_test_named_after_it(hook: str) -> None:
    tree = ast.parse((ROOT / "tests" / "test_hooks.py").read_text(encoding="utf-8"))
    tests = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert [name for name in tests if name.startswith(f"test_{hook}")]


@pytest.mark.parametrize("hook", HOOKS)
def test_the_example_of_a_hook_runs(
    hook: str, told: Told, tmp_path: Path, run_python: Any, child_env: dict[str, str]
) -> None:
    (example,) = re.findall(r"(?s)```python\n(.*?)```", SECTIONS[hook])
    folder = tmp_path / "deploy"
    folder.mkdir()
    # It notes that its hook was called.
    noting = f"\n\ndef noting(*given, hook={hook}):\n    open('called', 'a')\n    return hook(*given)\n"
    names = ", ".join(inspect.signature(_function_of(example, hook)).parameters)
    called = f"\n\n@hookimpl\ndef {hook}({names}):\n    return noting({names})\n"
    (folder / FILE).write_text(example + noting + called)
    source = """
        for key in ("billing", "web"):
            with deployment(key) as d:
                d.custom(step="migrated")
                if key == "web":
                    d.mark_failed("health check")
        """
    (folder / "deploy.py").write_text(script(source))
    told.server.answer_next(400)
    env = child_env | settings(told.server.base_uri, told.outbox)
    done = run_python(folder / "deploy.py", env=env)
    assert done.returncode == 0
    # What is refused is said whatever plugins there are.
    assert [line for line in done.stderr.splitlines() if "lugin" in line] == []
    assert (tmp_path / "called").exists()
    assert len(told.events()) == 5


def _function_of(example: str, hook: str) -> Callable[..., Any]:
    scope: dict[str, Any] = {}
    exec(example, scope)
    function: Callable[..., Any] = scope[hook]
    return function


def test_the_order_of_calls_is_that_of_the_specifications() -> None:
    (shown,) = re.findall(r"(?s)```text\n(ld_deploy_.*?)```", TEXT)
    (specified,) = re.findall(r"(?s)::\n\n(    ld_deploy_provide.*?)\n\n", hookspecs.__doc__ or "")
    assert [line.strip() for line in shown.splitlines()] == [line.strip() for line in specified.splitlines()]


@pytest.mark.parametrize("name", RECORDS)
def test_every_attribute_of_a_record_is_in_its_table_with_its_type_and_unit(name: str) -> None:
    (table,) = re.findall(rf"(?s)\| attribute of a `{name}` \|.*?\n\|[- |]+\|\n(.*?)(?:\n\n|\Z)", TEXT)
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.strip().splitlines()]
    fields = {field.name: str(field.type) for field in dataclasses.fields(RECORDS[name])}
    assert [row[0].strip("`") for row in rows] == list(fields)
    for attribute, kind, text in rows:
        specified = fields[attribute.strip("`")]
        short = {"Mapping[str, Any]": "mapping", "tuple[str, ...]": "tuple of str"}
        assert kind == short.get(specified, specified.replace(" | ", " or "))
        if specified.startswith("int"):
            assert "milliseconds" in text


def test_plugins_are_called_in_the_order_that_is_named() -> None:
    names = [plugin.name for plugin in Plugins.load(autoload=False).plugins()]
    (said,) = re.findall(r"(?s)then entry points by name, then (.*?)\. `@hookimpl", TEXT)
    assert re.findall(r"`(\w+)`", said) == names
    (table,) = re.findall(r"(?s)\| plugin \| what it does \|\n\|[- |]+\|\n(.*?)\n\n", TEXT)
    assert re.findall(r"(?m)^\| `(\w+)` \|", table) == names


def test_ci_knows_the_systems_that_are_named() -> None:
    (named,) = re.findall(r"(?s)by its variables \((.*?)\)", TEXT)
    short = {re.sub(r"[^a-z]|actions|pipelines|ci$", "", name.lower()) for name in named.split(", ")}
    known = {re.sub(r"[^a-z]|actions|pipelines|ci$", "", system.name) for system in ci._SYSTEMS}
    assert short == known
    assert len(known) == 12


def test_the_group_of_the_entry_points_is_the_one_that_is_read() -> None:
    (toml,) = re.findall(r"(?s)```toml\n(.*?)```", TEXT)
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    assert list(tomllib.loads(toml)["project"]["entry-points"]) == [hookspecs.PROJECT_NAME]


def test_the_variables_and_files_that_are_named_exist() -> None:
    named = set(re.findall(r"LD_[A-Z_]+", TEXT))
    assert named == {VARIABLES["plugins"], VARIABLES["plugin_autoload"]}
    assert FILE in TEXT
