"""What is built and installed: the sdist, the wheel, its metadata, and the package away from its source tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable, Iterable
from configparser import ConfigParser
from email.message import Message
from email.parser import Parser
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import ld_deploy_hooks
from ld_deploy_hooks.testing import FakeLaunchDarkly

ROOT = Path(__file__).resolve().parent.parent
VERSION = "0.1.0"
NAME = f"ld_deploy_hooks-{VERSION}"
WHEEL = f"{NAME}-py3-none-any.whl"

# The two shell blocks that the README begins with; `.ci/run` runs the second as it stands there.
COMMANDS = [
    "python3 -m venv .venv && .venv/bin/pip install --quiet '.[test]' && .venv/bin/python examples/show.py",
    "python3 -m venv .venv && .venv/bin/pip install --quiet --editable '.[test]' && .venv/bin/python -m pytest",
]

# Entry points by group. What does not exist yet is not declared: a later room adds its line here and in setup.cfg.
ENTRY_POINTS = {
    "console_scripts": {"ld-deploy": "ld_deploy_hooks.cli:main"},
    "pytest11": {"ld_deploy_hooks.pytest_plugin": "ld_deploy_hooks.pytest_plugin"},
}

REQUIRES = {
    "": ["platformdirs>=3", "pluggy>=1.5", "requests>=2.28", 'tomli>=2; python_version < "3.11"'],
    "cli": ["rich>=13"],
    "fabric": ["fabric>=3.0,<4", "invoke>=2.0,<3"],
    "invoke": ["invoke>=2.0"],
    "opentelemetry": ["opentelemetry-api>=1.20"],
}

# Rooms that need more than the package requires.
WITH_AN_EXTRA = {"fabric", "invoke", "pytest_plugin"}

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """Run a program and return its stdout; all that it says is shown if it fails."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def rooms() -> list[str]:
    """Return the dotted name below the package of every module in the source tree."""
    files = (path.relative_to(ROOT / "ld_deploy_hooks") for path in (ROOT / "ld_deploy_hooks").rglob("*.py"))
    return sorted(".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with a fresh sdist and the wheel that was built from it; the source tree stays as it is."""
    tree, dist = tmp_path_factory.mktemp("source") / "tree", tmp_path_factory.mktemp("dist")
    # A build leaves folders in its tree, and what lies in them from another day would come into the wheel.
    ours = shutil.ignore_patterns(".git", ".tox", ".venv*", ".*_cache", "*.egg-info", "build", "dist", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=ours)
    # Without isolation: setuptools is in the test extra, and nothing has to be fetched.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, cwd=tree)
    return dist


@pytest.fixture(scope="module")
def files_of_wheel(built: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(built / WHEEL) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist()}


@pytest.fixture(scope="module")
def described(files_of_wheel: dict[str, bytes]) -> Message:
    return Parser().parsestr(files_of_wheel[f"{NAME}.dist-info/METADATA"].decode())


def test_the_wheel_holds_the_package_and_nothing_else(files_of_wheel: dict[str, bytes]) -> None:
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "ld_deploy_hooks").rglob("*.py") if path.is_file()} | {
        "ld_deploy_hooks/py.typed"
    }
    described = {"LICENSE", "METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt"}
    # Where the license lies is up to setuptools.
    assert {name.replace("/licenses/", "/") for name in files_of_wheel} == package | {
        f"{NAME}.dist-info/{name}" for name in described
    }


def test_the_sdist_holds_all_that_the_source_tree_is_worked_with(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        files = {name.partition("/")[2] for name in sdist.getnames()}
    tree = {
        path.relative_to(ROOT)
        for folder in ("benchmarks", "docs", "examples", "ld_deploy_hooks", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
    }
    expected = {str(path) for path in tree if not any(part.startswith((".", "__pycache__")) for part in path.parts)}
    expected |= {".ci/run", "CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.cfg"}
    assert expected - files == set()
    assert {name for name in files if name.endswith(".pyc") or ".venv" in name} == set()


def test_the_metadata_says_what_the_package_is(described: Message) -> None:
    assert described["Name"] == "ld-deploy-hooks"
    assert described["Version"] == VERSION == ld_deploy_hooks.__version__
    assert described["Requires-Python"] == ">=3.10"
    assert (described["License-Expression"] or described["License"]) == "Apache-2.0"
    assert described.get_all("License-File") == ["LICENSE"]
    assert described["Description-Content-Type"] == "text/markdown"
    assert described.get_payload().strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()


def test_every_supported_python_is_a_classifier(described: Message) -> None:
    said = {line.rpartition(" ")[2] for line in described.get_all("Classifier", []) if re.search(r":: 3\.\d+$", line)}
    assert said == {"3.10", "3.11", "3.12", "3.13", "3.14"}
    assert "Typing :: Typed" in described.get_all("Classifier", [])


def by_extra(lines: Iterable[str]) -> dict[str, set[str]]:
    """Return the requirements of each extra, "" for those of the package itself, in one spelling."""
    found: dict[str, set[str]] = {}
    for line in lines:
        requirement = Requirement(line)
        extra = re.search(r'extra == "(.+?)"', str(requirement.marker or ""))
        if extra:
            requirement.marker = None
        found.setdefault(extra[1] if extra else "", set()).add(str(requirement))
    return found


def test_the_requirements_are_pinned(described: Message) -> None:
    found = by_extra(described.get_all("Requires-Dist", []))
    assert set(described.get_all("Provides-Extra", [])) == {*REQUIRES, "test"} - {""}
    for extra, lines in REQUIRES.items():
        assert found[extra] == {str(Requirement(line)) for line in lines}, extra


def test_no_extra_brings_fabric_together_with_invoke_3(described: Message) -> None:
    with_fabric = 0
    for lines in by_extra(described.get_all("Requires-Dist", [])).values():
        requirements = {requirement.name: requirement for requirement in map(Requirement, lines)}
        if "fabric" in requirements:
            with_fabric += 1
            assert not requirements["invoke"].specifier.contains("3.0.3")
            assert requirements["invoke"].specifier.contains("2.0.0")
    assert with_fabric == 2  # fabric and test


def test_the_entry_points_are_pinned(files_of_wheel: dict[str, bytes]) -> None:
    parser = ConfigParser()
    parser.read_string(files_of_wheel[f"{NAME}.dist-info/entry_points.txt"].decode())
    assert {group: dict(parser[group]) for group in parser.sections()} == ENTRY_POINTS


def required_by(names: Iterable[str], seen: set[str]) -> set[str]:
    """Return the names of the installed distributions that these requirements need, theirs too."""
    for requirement in map(Requirement, names):
        if requirement.name not in seen and (not requirement.marker or requirement.marker.evaluate({"extra": ""})):
            seen.add(requirement.name)
            required_by(distribution(requirement.name).requires or [], seen)
    return seen


@pytest.fixture(scope="module")
def fresh_python(built: Path, described: Message, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of a fresh environment that has the wheel and what it requires, and nothing else.

    What it requires is linked from where these tests run: nothing is fetched, and what setup.cfg does not name is not
    there.
    """
    home = tmp_path_factory.mktemp("fresh")
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip())
    for name in required_by(described.get_all("Requires-Dist", []), set()):
        needed = distribution(name)
        for first in {file.parts[0] for file in needed.files or []} - {"..", "__pycache__"}:
            (site / first).symlink_to(Path(str(needed.locate_file(first))))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--no-index", "--no-deps", built / WHEEL, cwd=home)
    run(*pip, "check", cwd=home)
    return python


def test_the_wheel_is_complete_away_from_its_source_tree(fresh_python: Path, tmp_path: Path) -> None:
    """Without Invoke, without Fabric: only what ``pip install ld-deploy-hooks`` brings."""
    modules = [room for room in rooms() if room.partition(".")[0] not in WITH_AN_EXTRA and not room.endswith("__")]
    source = (
        "import importlib, sys\n"
        "for missing in ('invoke', 'fabric', 'pytest'):\n"
        "    assert importlib.util.find_spec(missing) is None, missing\n"
        "import ld_deploy_hooks\n"
        "from ld_deploy_hooks import *\n"
        f"for module in {modules!r}:\n"
        "    importlib.import_module(f'ld_deploy_hooks.{module}')\n"
        "assert ld_deploy_hooks.__file__.startswith(sys.prefix), ld_deploy_hooks.__file__\n"
    )
    run(fresh_python, "-I", "-W", "error", "-c", f"import importlib.util\n{source}", cwd=tmp_path)


@pytest.mark.parametrize("command", [["ld-deploy"], ["python", "-I", "-m", "ld_deploy_hooks"]])
def test_the_program_runs_with_the_wheel_alone(fresh_python: Path, tmp_path: Path, command: list[str]) -> None:
    """Without rich too."""
    program, *arguments = command
    said = run(fresh_python.parent / program, *arguments, "--version", cwd=tmp_path)
    assert said == f"ld-deploy-hooks {VERSION}\n"


def test_a_deploy_is_told_with_the_wheel_alone(fresh_python: Path, tmp_path: Path, child_env: dict[str, str]) -> None:
    script = tmp_path / "deploy.py"
    script.write_text(
        "from ld_deploy_hooks import deployment\n"
        "with deployment('billing', version='1', project_key='default', environment_key='test') as d:\n"
        "    print('deploying')\n"
        "print(d.state)\n"
    )
    child_env.pop("PYTHONPATH", None)
    with FakeLaunchDarkly() as server:
        child_env |= {
            "LD_BASE_URI": server.base_uri,
            "LD_ACCESS_TOKEN": "api-test-token",
            "LD_DEPLOY_FLUSH_TIMEOUT": "20",
        }
        done = subprocess.run(
            [str(fresh_python), str(script)], cwd=tmp_path, env=child_env, capture_output=True, text=True, check=False
        )
    assert (done.returncode, done.stdout) == (0, "deploying\nfinished\n"), done.stderr
    assert [event["eventType"] for event in server.events] == ["started", "finished"], done.stderr


def shell_blocks(text: str) -> list[str]:
    """Return what stands in the shell blocks of a page, without the prompts."""
    blocks = re.findall(r"^```(?:sh|shell|bash|console)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [re.sub(r"^\$ ", "", block, flags=re.MULTILINE).strip() for block in blocks]


def test_the_readme_begins_with_the_two_commands() -> None:
    assert shell_blocks((ROOT / "README.md").read_text(encoding="utf-8"))[:2] == COMMANDS


def test_ci_finds_the_readmes_second_command(run_ci: Callable[[str], str]) -> None:
    assert run_ci("--print-test-command").strip() == COMMANDS[1]


@pytest.fixture
def run_ci() -> Callable[[str], str]:
    return lambda option: run("bash", ROOT / ".ci" / "run", option, cwd=Path(os.sep))
