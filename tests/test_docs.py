"""The documents: what they show runs, what they say is so."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs.macos
import platformdirs.unix
import platformdirs.windows
import pytest

from ld_deploy_hooks.cli import main
from ld_deploy_hooks.testing import FakeLaunchDarkly

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DELIVERY = ROOT / "docs" / "delivery.md"
USERS = [README, *sorted((ROOT / "docs").glob("*.md"))]
ALL = [*USERS, *sorted((ROOT / "examples").rglob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]
CLI = ROOT / "docs" / "cli.md"
FAULTS = ROOT / "benchmarks" / "faults.py"
TOKEN = "api-token-of-the-docs"
FRAGMENT = "<!-- fragment -->"

# What the blocks call and leave to the reader.
HELPERS = "def migrate(): pass\n\n\ndef switch(): pass\n\n\n"

needs_invoke = pytest.mark.skipif(importlib.util.find_spec("invoke") is None, reason="Invoke is not installed")
needs_fabric = pytest.mark.skipif(importlib.util.find_spec("fabric") is None, reason="Fabric is not installed")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


class Block(NamedTuple):
    """A fenced block of a document."""

    file: Path
    line: int
    language: str
    text: str
    fragment: bool


def blocks_of(file: Path) -> Iterator[Block]:
    """Yield every fenced block of a document; a fragment is one with the mark right before it."""
    lines = file.read_text(encoding="utf-8").split("\n")
    opened: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if opened is None:
            opened = number
            continue
        before = next((text for text in reversed(lines[:opened]) if text), "")
        text = "\n".join([*lines[opened + 1 : number], ""])
        yield Block(file, opened + 1, lines[opened][3:].strip(), text, before == FRAGMENT)
        opened = None
    assert opened is None, f"{file}: the block of line {opened} has no end"


def tables_of(file: Path) -> dict[str, list[list[str]]]:
    """Return every table of a document by the text of its first heading cell, each a list of rows of cells."""
    tables: dict[str, list[list[str]]] = {}
    for text in re.findall(r"(?m)(?:^\|.*\|$\n)+", file.read_text(encoding="utf-8")):
        head, _, *rows = ([cell.strip() for cell in line[1:-1].split(" | ")] for line in text.strip().split("\n"))
        tables[head[0]] = [head, *rows]
    return tables


BLOCKS = [block for file in USERS for block in blocks_of(file)]


def blocks(language: str, which: Callable[[str], bool] = lambda _: True) -> list[Any]:
    """Return the blocks that are run, as parameters."""
    return [
        pytest.param(block, id=f"{block.file.name}:{block.line}")
        for block in BLOCKS
        if block.language == language and not block.fragment and which(block.text)
    ]


def name_of(text: str) -> str | None:
    """Return the name of the file that a block is, if it says so."""
    found = re.match(r"# ([a-z_]+\.(?:py|sh|yaml))\n", text)
    return found[1] if found else None


def is_tasks(text: str) -> bool:
    return "@task" in text and not name_of(text)


def is_plugin(text: str) -> bool:
    return "@hookimpl" in text


def is_test(text: str) -> bool:
    return "def test_" in text


def is_script(text: str) -> bool:
    return not (name_of(text) or is_tasks(text) or is_plugin(text) or is_test(text))


# -- running them -----------------------------------------------------------------------------------------------------


@pytest.fixture
def launchdarkly() -> Iterator[FakeLaunchDarkly]:
    with FakeLaunchDarkly(TOKEN) as server:
        yield server


@pytest.fixture
def env(child_env: dict[str, str], tmp_path: Path, launchdarkly: FakeLaunchDarkly) -> dict[str, str]:
    """The environment of a reader who has set what the README names, and has `ld-deploy` and `make` on PATH."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in {
        "ld-deploy": f'exec "{sys.executable}" -m ld_deploy_hooks "$@"',
        "make": 'echo "make $*"',
        "python": f'exec "{sys.executable}" "$@"',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    return child_env | {
        "PATH": f"{programs}{os.pathsep}{child_env['PATH']}",
        "LD_BASE_URI": launchdarkly.base_uri,
        "LD_ACCESS_TOKEN": TOKEN,
        "LD_PROJECT": "default",
        "LD_ENVIRONMENT": "production",
        "LD_DEPLOY_FLUSH_TIMEOUT": "20",
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the blocks' files are."""
    folder = tmp_path / "deploy"
    folder.mkdir()
    return folder


@pytest.fixture
def run(env: dict[str, str], folder: Path) -> Run:
    """Return a function that runs a command as the reader would; it takes more environment by keyword."""

    def run(*command: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        program = shutil.which(command[0], path=env["PATH"])
        assert program is not None, f"{command[0]} is not on PATH"
        return subprocess.run(
            [program, *map(str, command[1:])],
            env=env | more,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def told(events: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Return what was told: of which application and version, in order."""
    return [(event["applicationKey"], event["version"], event["eventType"]) for event in events]


def assert_well(done: subprocess.CompletedProcess[str]) -> None:
    """Check that a deploy ended well, and that this package said nothing but what `console` says."""
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if not line.startswith("ld-deploy: ")] == []


@pytest.mark.parametrize("block", blocks("python", is_script))
def test_python_runs_and_is_told(block: Block, run: Run, folder: Path, launchdarkly: FakeLaunchDarkly) -> None:
    (folder / "deploy.py").write_text(HELPERS + block.text)
    assert_well(run("python", "deploy.py"))
    started = sorted(one[:2] for one in told(launchdarkly.events) if one[2] == "started")
    ended = sorted(one[:2] for one in told(launchdarkly.events) if one[2] in ("finished", "failed"))
    assert started == ended != []


def test_the_first_block_sends_what_the_readme_shows(run: Run, folder: Path, launchdarkly: FakeLaunchDarkly) -> None:
    mine = [block for block in BLOCKS if block.file == README]
    (folder / "deploy.py").write_text(HELPERS + next(block.text for block in mine if block.language == "python"))
    assert_well(run("python", "deploy.py"))
    shown = [json.loads(block.text) for block in mine if block.language == "json"]
    assert list(map(same_every_time, shown)) == list(map(same_every_time, launchdarkly.events))


def same_every_time(event: Mapping[str, Any]) -> list[Any]:
    """Return an event as ordered pairs, without what differs each time."""
    metadata = {
        name: type(value) if name in ("durationMs", "eventId") else value
        for name, value in event["eventMetadata"].items()
    }
    differs = {"eventMetadata": sorted(metadata.items(), key=str), "eventTime": type(event["eventTime"])}
    return list({**event, **differs}.items())


@needs_invoke
@pytest.mark.parametrize("block", blocks("python", is_tasks))
def test_tasks_run_under_invoke_and_are_told(
    block: Block, run: Run, folder: Path, launchdarkly: FakeLaunchDarkly
) -> None:
    (folder / "tasks.py").write_text(block.text)
    (folder / "release").write_text('#!/bin/sh\necho "release $*"\n')
    (folder / "release").chmod(0o755)
    done = run("inv", "deploy", "--tag", "v1.2.3")
    assert_well(done)
    assert done.stdout == "make site\nrelease v1.2.3\n"
    assert told(launchdarkly.events) == [("billing-service", "v1.2.3", kind) for kind in ("started", "finished")]


@pytest.mark.parametrize("block", blocks("python", is_plugin))
def test_plugins_are_called(block: Block, run: Run, folder: Path, env: dict[str, str]) -> None:
    (folder / "someone.py").write_text(block.text)
    (folder / "deploy.py").write_text(
        "from ld_deploy_hooks import deployment\n"
        "with deployment('billing-service', version='a90a8a2') as d:\n"
        "    d.mark_failed('health check')\n"
    )
    path = os.pathsep.join(filter(None, (str(folder), env.get("PYTHONPATH"))))
    done = run("python", "deploy.py", LD_DEPLOY_PLUGINS="someone", PYTHONPATH=path)
    assert_well(done)
    if block.file == README:
        assert done.stdout == "call somebody: billing-service error\n"


@pytest.mark.parametrize("block", blocks("python", is_test))
def test_tests_pass_and_tell_nobody(block: Block, run: Run, folder: Path, launchdarkly: FakeLaunchDarkly) -> None:
    (folder / "test_deploy.py").write_text(block.text)
    done = run("python", "-m", "pytest", "-p", "ld_deploy_hooks.pytest_plugin", "--strict-markers", "test_deploy.py")
    assert done.returncode == 0, done.stdout
    if "unittest" in block.text:
        done = run("python", "-m", "unittest", "test_deploy")
        assert done.returncode == 0, done.stderr
    assert launchdarkly.requests == []


def test_every_block_says_what_it_is() -> None:
    known = {"text", "console", "groovy", "json", "python", "sh", "toml", "yaml"}
    assert {block.language for block in BLOCKS} <= known
    for block in BLOCKS:
        if block.language == "json":
            json.loads(block.text)


def is_checked(block: Block) -> bool:
    """Whether a test runs a block, or compares it with what is so; the README's commands are run by `.ci/run`."""
    if block.language in ("python", "console", "json") or block.file == CLI or name_of(block.text):
        return True
    recipe = any(mark in block.text for mark in ("executor_class", "runs-on", "after_script:", "post {"))
    return recipe or (block.language == "sh" and block.file == README and ".venv" in block.text)


def test_every_block_is_run_or_says_that_it_is_a_fragment() -> None:
    assert [f"{block.file.name}:{block.line}" for block in BLOCKS if not block.fragment and not is_checked(block)] == []


def test_yaml_can_be_read() -> None:
    yaml = pytest.importorskip("invoke.vendor.yaml")
    texts = [block.text for block in BLOCKS if block.language == "yaml"]
    assert len(texts) >= 3
    for text in texts:
        assert isinstance(yaml.safe_load(text), dict)


@needs_invoke
@pytest.mark.parametrize("block", blocks("yaml", lambda text: "executor_class" in text))
def test_tasks_are_deployments_by_yaml(block: Block, run: Run, folder: Path, launchdarkly: FakeLaunchDarkly) -> None:
    (folder / "invoke.yaml").write_text(block.text)
    (folder / "tasks.py").write_text(
        textwrap.dedent(
            """
            from invoke import Collection, task

            @task
            def deploy(c):
                print("deploying")

            @task
            def site(c):
                print("releasing")

            namespace = Collection(deploy, Collection("release", site))
            """
        )
    )
    assert_well(run("inv", "deploy", "release.site", LD_DEPLOY_VERSION="a90a8a2"))
    kinds = {event["applicationKey"]: event.get("applicationKind") for event in launchdarkly.events}
    assert kinds == {"billing-service": None, "web": "browser"}
    for application in kinds:
        assert [kind for key, _, kind in told(launchdarkly.events) if key == application] == ["started", "finished"]


def alike(text: str, base_uri: str) -> str:
    """Return output without what differs from run to run and from shell to shell."""
    text = re.sub(r"(?m)^.*\bKilled\b.*$", "Killed", text.replace(base_uri, "https://app.launchdarkly.com"))
    text = re.sub(r"\S+/outbox\.db", "OUTBOX", text)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "WHEN", text)
    return re.sub(r"\d+\.\d s", "0.0 s", text)


@pytest.mark.skipif(os.name != "posix", reason="the blocks are for a POSIX shell")
@pytest.mark.parametrize(
    "file", [file for file in USERS if any(block.language == "console" for block in blocks_of(file))]
)
def test_console_shows_what_happens(file: Path, run: Run, folder: Path, launchdarkly: FakeLaunchDarkly) -> None:
    for block in blocks_of(file):
        if block.fragment:
            continue
        name = name_of(block.text)
        if name:
            (folder / name).write_text(block.text)
        if block.language == "console":
            for command, output in re.findall(r"(?m)^\$ (.*)\n((?:(?!\$ ).*\n)*)", block.text):
                done = run("sh", "-c", f"({command}\n) 2>&1")
                # What comes from the log and what from the program itself has no order.
                said = sorted(alike(done.stdout + done.stderr, launchdarkly.base_uri).splitlines())
                assert said == sorted(alike(output, launchdarkly.base_uri).splitlines()), command


# What runs a file without naming it.
_READ_BY = {"tasks.py": "$ inv ", "fabfile.py": "$ fab "}


def test_files_that_blocks_name_are_used_by_a_console() -> None:
    for block in BLOCKS:
        if (name := name_of(block.text)) and not block.fragment:
            command = _READ_BY.get(name, name)
            assert any(
                command in other.text for other in BLOCKS if other.file == block.file and other.language == "console"
            )


# -- what they refer to -----------------------------------------------------------------------------------------------


def anchors_of(file: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"(?m)^#+ (.*)$", re.sub(r"(?ms)^```.*?^```$", "", file.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", ALL, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_somewhere(file: Path) -> None:
    text = re.sub(r"(?ms)^```.*?^```$", "", file.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if not re.match(r"[a-z]+:", link):
            path, _, anchor = link.partition("#")
            target = file.parent / path if path else file
            assert target.exists(), link
            assert not anchor or anchor in anchors_of(target), link


@pytest.mark.parametrize("file", [README, ROOT / "docs" / "settings.md"], ids=lambda file: file.name)
def test_the_settings_are_those_of_the_table(file: Path) -> None:
    from ld_deploy_hooks._settings import VARIABLES

    _, *rows = tables_of(file)["field"]
    assert {field.strip("`").replace(" ", "_"): variable.strip("`") for field, variable, *_ in rows} == VARIABLES


def usage(capsys: pytest.CaptureFixture[str], command: str) -> str:
    """Return how `ld-deploy` says that a command is used."""
    with pytest.raises(SystemExit, match=r"^0$"):
        main([command, "--help"])
    said = capsys.readouterr().out
    return re.sub(r"\s+", " ", said.partition("\n\n")[0]).removeprefix("usage: ").replace(" [-h]", "")


def test_commands_are_used_as_their_help_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    _, *rows = tables_of(DELIVERY)["command"]
    documented = {row[0].strip("`") for row in rows}
    assert documented == {usage(capsys, command) for command in ("flush", "status", "retry")}


def help_of(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """Return the help of `ld-deploy`, or of one of its commands, in one line: how it is wrapped differs by Python."""
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*command, "--help"])
    return " ".join(capsys.readouterr().out.split())


def test_the_help_is_the_one_that_is_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    whole, *each = (" ".join(block.text.split()) for block in BLOCKS if block.file == CLI)
    commands = re.findall(r"(?m)^## (\w+)$", CLI.read_text(encoding="utf-8"))
    assert whole == help_of(capsys)
    assert dict(zip(commands, each, strict=True)) == {command: help_of(capsys, command) for command in commands}
    assert commands == re.findall(r"(?m)^    (\w+) ", next(blocks_of(CLI)).text)


@pytest.mark.parametrize("file", USERS, ids=lambda file: file.name)
def test_commands_that_are_named_exist(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    text = re.sub(r"(?m)^\|.*$", "", file.read_text(encoding="utf-8"))
    for command, rest in re.findall(r"(?:`|\$ |run: |- |sh ')ld-deploy ([a-z]+)([^`\n|']*)", text):
        for option in re.findall(r"--[a-z-]+", rest):
            assert f"[{option}" in usage(capsys, command)


# A way to each exit status that the table names: with these options and settings.
_EXITS: dict[tuple[str, int], tuple[list[str], dict[str, str]]] = {
    ("flush", 0): ([], {}),
    ("flush", 1): ([], {"LD_ACCESS_TOKEN": "api-wrong"}),
    ("flush", 2): (["--timeout", "soon"], {}),
    ("status", 0): ([], {}),
    ("status", 2): ([], {"LD_DEPLOY_DISABLED": "1"}),
    ("retry", 0): ([], {}),
    ("retry", 2): ([], {"LD_DEPLOY_OUTBOX": "/dev/null"}),
}


def test_every_exit_status_of_the_table_is_tried() -> None:
    head, *rows = tables_of(DELIVERY)["exit status"]
    documented = {
        (command, int(row[0]))
        for row in rows
        for cell, commands in zip(row[1:], head[1:], strict=True)
        for command in re.findall(r"`([a-z]+)`", commands)
        if cell
    }
    assert documented == set(_EXITS)


@pytest.mark.parametrize(("command", "status"), _EXITS)
def test_exit_statuses_are_those_of_the_table(command: str, status: int, run: Run, folder: Path) -> None:
    (folder / "deploy.py").write_text(
        "from ld_deploy_hooks import deployment\nwith deployment('web', version='a90a8a2'): pass\n"
    )
    assert run("python", "deploy.py", LD_ACCESS_TOKEN="").returncode == 0
    options, settings = _EXITS[command, status]
    done = run("ld-deploy", command, *options, **settings)
    assert done.returncode == status, done.stderr
    assert (done.stderr == "") == (status == 0)


def test_status_prints_the_object_that_is_described(run: Run) -> None:
    done = run("ld-deploy", "status", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    (described,) = re.findall(r"(?s)`status --json` prints one object: (.*?)\n\n", DELIVERY.read_text(encoding="utf-8"))
    assert set(re.findall("`([a-z_]+)`", described)) - {"state", "events"} == set(json.loads(done.stdout))


def texts_of_the_package() -> list[str]:
    """Return every piece of text in the source, as it is between what is put into it."""
    return [
        node.value
        for path in (ROOT / "ld_deploy_hooks").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def test_lines_of_the_log_are_those_that_the_package_writes() -> None:
    written = texts_of_the_package()
    _, *rows = tables_of(DELIVERY)["line"]
    for line, _ in rows:
        for part in re.split("…|: |; ", line.strip("`")):
            assert any(part.strip(" .") in text for text in written), f"nothing in the package says {part!r}"


def constants_of_the_package(name: str) -> set[float]:
    """Return the numbers that are called so at the top of a module."""
    found: set[float] = set()
    for path in (ROOT / "ld_deploy_hooks").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
                module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                found.add(getattr(importlib.import_module(module), name))
    return found


@pytest.mark.parametrize(
    ("said", "name", "unit"),
    [
        ("one of which comes every ([0-9]+) seconds", "HEARTBEAT", 1),
        ("nothing was heard for ([0-9]+) minutes", "_TIME_TO_LIVE", 60),
        ("waited for ([0-9]+) days", "_GIVE_UP_AFTER", 86_400_000),
        ("the oldest above ([0-9,]+)", "_GIVE_UP_ABOVE", 1),
        ("are kept for ([0-9]+) days", "_HISTORY", 86_400_000),
        ("SIGTERM or SIGHUP . at most ([0-9]+) seconds", "_SIGNAL", 1),
        ("starts, or ends . some milliseconds; at most ([0-9]+) second ", "_DURABLE", 1),
        ("`ld-deploy flush` . at most ([0-9]+) seconds", "_TIMEOUT", 1),
    ],
)
def test_numbers_are_those_of_the_package(said: str, name: str, unit: int) -> None:
    found = re.search(said, DELIVERY.read_text(encoding="utf-8").replace("\n", " "))
    assert found, said
    assert constants_of_the_package(name) == {int(found[1].replace(",", "")) * unit}


def test_statuses_are_treated_as_the_text_says() -> None:
    from ld_deploy_hooks._launchdarkly._answers import outcome_of

    text = DELIVERY.read_text(encoding="utf-8").replace("\n", " ")
    retry, rejected, stop = (
        {int(number) for number in re.findall("[0-9]{3}", part)}
        for part in re.findall(r"busy \((.*?)\).*?never be accepted \((.*?)\).*?Any other answer \((.*?)\)", text)[0]
    )
    by_outcome: dict[str, set[int]] = {}
    for status in range(200, 500):
        by_outcome.setdefault(str(outcome_of(status)), set()).add(status)
    assert (by_outcome["accepted"], by_outcome["retry"], by_outcome["rejected"]) == ({201}, retry, rejected)
    assert stop <= by_outcome["stop"]
    assert {str(outcome_of(status)) for status in range(500, 600)} == {"retry"}


def test_the_time_to_wait_is_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from ld_deploy_hooks._settings import resolve

    found = re.search("`flush_timeout` is ([0-9]+) seconds, and ([0-9]+) on a CI", DELIVERY.read_text(encoding="utf-8"))
    assert found
    assert resolve().flush_timeout == int(found[1])
    monkeypatch.setenv("CI", "true")
    assert resolve().flush_timeout == int(found[2])


def test_the_outbox_is_where_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {system: re.findall("`([^`]+)`", cell)[0] for system, cell in tables_of(DELIVERY)["system"][1:]}
    monkeypatch.delenv("XDG_STATE_HOME")
    name, author = "ld-deploy-hooks", False
    unix = Path(platformdirs.unix.Unix(name, author).user_state_dir)
    assert Path(paths["Linux"]).expanduser() == unix / "outbox.db"
    mac = Path(platformdirs.macos.MacOS(name, author).user_state_dir)
    assert Path(paths["macOS"]).expanduser() == mac / "outbox.db"
    assert paths["Windows"] == rf"%LOCALAPPDATA%\{name}\outbox.db"
    if sys.platform in ("linux", "darwin"):
        from ld_deploy_hooks._settings import resolve

        assert resolve().outbox == (unix if sys.platform == "linux" else mac) / "outbox.db"


@pytest.mark.skipif(os.name != "posix", reason="Windows has other permissions")
def test_only_the_user_can_read_the_outbox(run: Run, folder: Path) -> None:
    place = folder / "kept" / "outbox.db"
    (folder / "deploy.py").write_text(
        textwrap.dedent(
            """
            import os
            from pathlib import Path
            from ld_deploy_hooks import deployment

            os.umask(0)
            with deployment("web", version="a90a8a2"):
                for path in sorted(Path("kept").rglob("*")):
                    print(path.name, path.is_dir(), oct(path.stat().st_mode))
                    if path.is_file():
                        assert os.environ["LD_ACCESS_TOKEN"].encode() not in path.read_bytes()
            """
        )
    )
    done = run("python", "deploy.py", LD_DEPLOY_OUTBOX=str(place))
    assert_well(done)
    seen = {name: (is_folder, mode) for name, is_folder, mode in map(str.split, done.stdout.splitlines())}
    named = {"outbox.db"} | set(re.findall(r"`(outbox\.db[^`]*)`", DELIVERY.read_text(encoding="utf-8")))
    assert named <= set(seen)
    assert len(seen) == len(named) + 1  # the lock of the process
    for is_folder, mode in seen.values():
        assert stat.S_IMODE(int(mode, 8)) == (0o700 if is_folder == "True" else 0o600)
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700


# -- the recipes ------------------------------------------------------------------------------------------------------


def workflow() -> list[dict[str, Any]]:
    """Return the steps of the recipe for GitHub Actions."""
    yaml = pytest.importorskip("invoke.vendor.yaml")
    texts = [block.text for block in BLOCKS if block.language == "yaml" and "runs-on" in block.text]
    steps: list[dict[str, Any]] = yaml.safe_load(texts[0])["jobs"]["deploy"]["steps"]
    return steps


def test_recipes_recover_whatever_came_before() -> None:
    yaml = pytest.importorskip("invoke.vendor.yaml")
    last = workflow()[-1]
    assert (last["if"], last["continue-on-error"]) == ("always()", True)
    (gitlab,) = (yaml.safe_load(block.text) for block in BLOCKS if "after_script:" in block.text)
    assert gitlab["deploy"]["after_script"] == [last["run"]] == ["ld-deploy flush --recover"]
    (jenkins,) = (block.text for block in BLOCKS if block.language == "groovy")
    assert re.search(r"post \{\s+always \{\s+sh 'ld-deploy flush --recover \|\| true'", jenkins)


@needs_fabric
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_a_cancelled_step_tells_its_end_itself(
    env: dict[str, str], run: Run, folder: Path, launchdarkly: FakeLaunchDarkly
) -> None:
    steps = workflow()
    (deploy,) = (step["run"] for step in steps if step.get("name") == "Deploy")
    (folder / "fabfile.py").write_text(
        textwrap.dedent(
            """
            from fabric import task
            from ld_deploy_hooks import deployment

            @task
            @deployment("billing-service", version="a90a8a2")
            def deploy(c):
                c.run("touch working; sleep 30")
            """
        )
    )
    (folder / "step.sh").write_text(deploy)
    # As GitHub runs a step; and as it signals one: its first process alone.
    step = subprocess.Popen(
        ["bash", "-e", "step.sh"], env=env, cwd=folder, stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 20
        while not (folder / "working").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        step.send_signal(signal.SIGTERM)
        assert step.wait(timeout=20) == -signal.SIGTERM
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(step.pid, signal.SIGKILL)
        step.wait()
    assert run("bash", "-e", "-c", steps[-1]["run"]).returncode == 0
    assert [event["eventMetadata"].get("reason") for event in launchdarkly.events] == [None, "cancelled"]


# -- the benchmark ----------------------------------------------------------------------------------------------------


def benchmark() -> dict[str, Any]:
    """Return what is in the benchmark."""
    spec = importlib.util.spec_from_file_location("faults_of_the_benchmark", FAULTS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return vars(module)


def test_the_figures_are_those_of_the_benchmark() -> None:
    measured = benchmark()
    head, *rows = tables_of(DELIVERY)["fault"]
    assert head[1:] == [client.name for client in measured["CLIENTS"].values()]
    assert [row[0] for row in rows] == [fault.name for fault in measured["FAULTS"].values()]


def test_the_benchmark_can_be_repeated(child_env: dict[str, str], tmp_path: Path) -> None:
    options = ["--runs", "1", "--fault", "refused", "--client", "none", "--client", "ours"]
    done = subprocess.run(
        [sys.executable, FAULTS, *options], env=child_env, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0].startswith(time.strftime("%Y-"))
    (row,) = (line for line in said if line.startswith("| connection refused"))
    assert re.fullmatch(r"\| connection refused \| [0-9.]+ s \| [0-9.]+ s, by the next run \|", row)
    assert list(Path(child_env["TMPDIR"]).iterdir()) == []
