"""``ld-deploy doctor``, as real processes: what it says, that it changes nothing, and that no token is in it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_kit import PLAIN, TOKEN, Deploys, Ended, deploys_fixture  # noqa: F401
from fault_server import FaultServer, answer, garbage

from ld_deploy_hooks.testing import FakeLaunchDarkly

# The form of LaunchDarkly's keys.
KEY = "api-01234567-89ab-cdef-0123-456789abcdef"
NOBODY = 65534
AWAY = "http://127.0.0.1:9"
# Blocks every built-in plugin.
NONE = "no:ci,no:console,no:git,no:opentelemetry"
PLUGIN = """
from ld_deploy_hooks import hookimpl

@hookimpl
def ld_deploy_provide_defaults(settings):
    {body}
"""


def doctor(deploys: Deploys, *arguments: str) -> Ended:
    """Run it; whatever it is asked, no token is in what it prints."""
    ended = deploys.command("doctor", *arguments)
    shown = ended.stdout + ended.stderr
    for secret in (deploys.env.get("LD_ACCESS_TOKEN", TOKEN), TOKEN, KEY):
        assert secret not in shown
    return ended


def findings(deploys: Deploys, *arguments: str) -> tuple[int, list[tuple[str, str, str]]]:
    """Return the exit status, and what it finds: level, what it is about, and the message."""
    ended = doctor(deploys, "--json", *arguments)
    assert ended.stderr == ""
    report = json.loads(ended.stdout)
    assert report["ok"] is (ended.status == 0)
    return ended.status, [tuple(finding.values()) for finding in report["findings"]]


def only(found: list[tuple[str, str, str]], level: str) -> tuple[str, str]:
    """Return the one finding of ``level``: what it is about, and the message."""
    (one,) = [(about, message) for found_level, about, message in found if found_level == level]
    return one


@pytest.fixture(autouse=True)
def _settled(deploys: Deploys) -> None:
    deploys.set(LD_DEPLOY_APPLICATION_KEY="billing", LD_DEPLOY_VERSION="v1", LD_DEPLOY_FLUSH_TIMEOUT="0.2")
    deploys.set(LD_BASE_URI=AWAY, LD_DEPLOY_PLUGINS=NONE)


def test_every_setting_with_its_value_and_its_source(deploys: Deploys) -> None:
    (deploys.folder / "pyproject.toml").write_text("[tool.ld-deploy-hooks]\napplication_name = 'Billing'\n")
    ended = doctor(deploys)
    assert (ended.status, ended.stderr) == (0, "")
    heading, *rest = ended.stdout.splitlines()
    assert heading.split() == ["setting", "value", "from"]
    rows = {line.split()[0]: line.split(maxsplit=1)[1].split("  ") for line in rest[:17]}
    rows = {name: [part.strip() for part in parts if part.strip()] for name, parts in rows.items()}
    assert rows == {
        "access_token": ["api-****", "LD_ACCESS_TOKEN"],
        "base_uri": [AWAY, "LD_BASE_URI"],
        "project_key": ["default", "LD_PROJECT"],
        "environment_key": ["production", "LD_ENVIRONMENT"],
        "application_key": ["billing", "LD_DEPLOY_APPLICATION_KEY"],
        "version": ["v1", "LD_DEPLOY_VERSION"],
        "application_name": ["Billing", str(deploys.folder / "pyproject.toml")],
        "application_kind": ["-", "not set"],
        "version_name": ["-", "not set"],
        "api_version": ["beta", "default"],
        "outbox": [str(deploys.outbox), "LD_DEPLOY_OUTBOX"],
        "flush_timeout": ["0.2 s", "LD_DEPLOY_FLUSH_TIMEOUT"],
        "strict": ["off", "default"],
        "disabled": ["off", "default"],
        "dry_run": ["off", "default"],
        "plugins": [NONE.replace(",", ", "), "LD_DEPLOY_PLUGINS"],
        "plugin_autoload": ["on", "default"],
    }
    assert rest[17:] == [
        "plugins loaded: none (`ld-deploy plugins` says more)",
        "Nothing here keeps deployments from being told.",
    ]


def test_as_json(deploys: Deploys) -> None:
    report = json.loads(doctor(deploys, "--json").stdout)
    assert report.keys() == {"ok", "settings", "host_configuration", "plugins", "identity", "findings"}
    assert (report["host_configuration"], report["identity"], report["findings"]) == (None, None, [])
    settings = report["settings"]
    assert settings["access_token"] == {"value": "api-****", "source": "LD_ACCESS_TOKEN"}
    assert settings["flush_timeout"] == {"value": 0.2, "source": "LD_DEPLOY_FLUSH_TIMEOUT"}
    assert settings["strict"] == {"value": False, "source": "default"}
    assert settings["plugins"]["value"] == NONE.split(",")


@pytest.mark.parametrize(
    ("variable", "level"),
    [
        ("LD_ACCESS_TOKEN", "fault"),
        ("LD_PROJECT", "fault"),
        ("LD_ENVIRONMENT", "fault"),
        ("LD_DEPLOY_APPLICATION_KEY", "note"),
        ("LD_DEPLOY_VERSION", "note"),
    ],
)
def test_what_is_missing(deploys: Deploys, variable: str, level: str) -> None:
    del deploys.env[variable]
    status, found = findings(deploys)
    assert status == (level == "fault")
    field, message = only(found, level)
    assert field in variable.lower() + "_key"
    assert f"{field} is not set" in message
    assert variable in message
    assert ("left to the deploy code" in message) == (level == "note")
    assert len(found) == 1


@pytest.mark.parametrize(
    ("variables", "level", "about", "says"),
    [
        ({"LD_ACCESS_TOKEN": "sdk-123456"}, "fault", "access_token", "is an SDK key"),
        ({"LD_ACCESS_TOKEN": "mob-123456"}, "fault", "access_token", "is a mobile key"),
        ({"LD_ACCESS_TOKEN": "Bearer api-123456"}, "fault", "access_token", "begins with 'Bearer '"),
        ({"LD_BASE_URI": "http://example.org"}, "fault", "base_uri", "would show the token to the network"),
        ({"LD_BASE_URI": f"https://user:{KEY}@example.org"}, "fault", "base_uri", "leave out what stands before the @"),
        ({"LD_BASE_URI": "https://app.launchdarkly.us"}, "warning", "base_uri", "without engineering insights"),
        ({"LD_BASE_URI": "https://app.eu.launchdarkly.com"}, "warning", "base_uri", "without engineering insights"),
        ({"LD_DEPLOY_VERSION": "feature/x y"}, "warning", "version", "'feature-x-y' is told"),
        ({"LD_DEPLOY_VERSION": "///"}, "fault", "version", "not told"),
        ({"LD_DEPLOY_APPLICATION_KIND": "toaster"}, "warning", "application_kind", "'toaster'"),
        ({"LD_DEPLOY_APPLICATION_KIND": "toaster", "LD_DEPLOY_STRICT": "1"}, "fault", "application_kind", "'toaster'"),
        ({"LD_DEPLOY_DISABLED": "1"}, "fault", "disabled", "disabled is on (from LD_DEPLOY_DISABLED)"),
        ({"LD_DEPLOY_DRY_RUN": "yes"}, "fault", "dry_run", "dry_run is on (from LD_DEPLOY_DRY_RUN)"),
        ({"PYTEST_VERSION": "9"}, "fault", "disabled", "disabled is on (from pytest is running)"),
    ],
)
def test_what_is_wrong(deploys: Deploys, variables: dict[str, str], level: str, about: str, says: str) -> None:
    deploys.set(**variables)
    status, found = findings(deploys)
    assert status == (level == "fault")
    said_of, message = only(found, level)
    assert said_of == about
    assert says in message
    shown = doctor(deploys)
    assert shown.status == status
    assert f"{level}: {message}" in shown.stdout


@pytest.mark.parametrize("rich", [True, False], ids=["rich", "no rich"])
def test_a_table_shows_values_as_they_are_and_sends_no_terminal_anything(deploys: Deploys, rich: bool) -> None:
    deploys.set(LD_DEPLOY_APPLICATION_NAME="[red]:warning:\x1b]0;mine\x07")
    if rich:
        deploys.set(FORCE_COLOR="1", TERM="xterm", COLUMNS="250")
    ended = doctor(deploys)
    assert ended.status == 0
    assert "\x07" not in ended.stdout
    assert ("\x1b[" in ended.stdout) == rich
    assert "[red]:warning:?]0;mine?" in ended.stdout
    assert "api-****" in ended.stdout


def test_the_kind_of_a_token_is_all_that_is_shown(deploys: Deploys) -> None:
    for token, shown in (("sdk-abcdefgh", "sdk-****"), ("0123456789", "****"), ("a" * 40, "****"), (KEY, "api-****")):
        deploys.set(LD_ACCESS_TOKEN=token)
        assert json.loads(doctor(deploys, "--json").stdout)["settings"]["access_token"]["value"] == shown


def test_a_token_that_lies_in_the_wrong_variable(deploys: Deploys) -> None:
    deploys.set(LD_PROJECT=TOKEN, LD_DEPLOY_APPLICATION_NAME=KEY, LD_DEPLOY_PLUGINS=f"{NONE},{KEY}")
    settings = json.loads(doctor(deploys, "--json").stdout)["settings"]
    assert settings["project_key"]["value"] == "[redacted]"
    assert settings["application_name"]["value"] == "api-****"
    assert doctor(deploys).status == 0


# -- the outbox -------------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return everything below ``folder`` but what the kit itself writes there."""
    return {
        str(path.relative_to(folder)): (path.read_bytes() if path.is_file() else b"", path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
        if not path.name.startswith(("mark", "ready", "stdout", "stderr"))
    }


@pytest.mark.parametrize("deployed", [False, True])
def test_nothing_is_made_or_changed(deploys: Deploys, deployed: bool) -> None:
    if deployed:
        deploys.run(PLAIN)
    places = [deploys.folder, Path(deploys.env["HOME"]), Path(deploys.env["XDG_STATE_HOME"])]
    before = [contents(place) for place in places]
    assert doctor(deploys).status == 0
    assert doctor(deploys, "--json").status == 0
    assert [contents(place) for place in places] == before
    assert deploys.outbox.exists() == deployed


def test_what_waits_was_rejected_and_is_open(deploys: Deploys) -> None:
    with FaultServer(answer(400)) as server:
        deploys.set(LD_BASE_URI=server.base_uri, LD_DEPLOY_FLUSH_TIMEOUT="20")
        deploys.run(PLAIN, "v1")
    deploys.set(LD_BASE_URI=AWAY, LD_DEPLOY_FLUSH_TIMEOUT="0.2")
    deploys.run(PLAIN, "v2")
    deploys.set(LD_BASE_URI="http://127.0.0.1:10")
    deploys.run("deployment('billing', version=sys.argv[1]).__enter__()\nos.kill(os.getpid(), signal.SIGKILL)\n", "v3")
    before = contents(deploys.outbox.parent)
    status, found = findings(deploys)
    assert status == 0
    rejected, elsewhere, waits, open_ = found
    assert rejected[:2] == elsewhere[:2] == ("warning", "outbox")
    assert waits[:2] == open_[:2] == ("note", "outbox")
    assert rejected[2].startswith("2 event(s) were rejected: `ld-deploy status` says why")
    assert elsewhere[2].startswith(f"2 event(s) wait for {AWAY}, not for http://127.0.0.1:10: set LD_BASE_URI")
    assert waits[2].startswith("1 event(s) wait for http://127.0.0.1:10: `ld-deploy flush`")
    assert open_[2].startswith("1 deployment(s) are open")
    after = contents(deploys.outbox.parent)
    # What SQLite shares between those who look is no part of what is kept, and a killed process has left it there.
    assert {name: kept for name, kept in after.items() if "-shm" not in name} == {
        name: kept for name, kept in before.items() if "-shm" not in name
    }
    assert after.keys() == before.keys()


def test_another_process_that_holds_the_outbox_is_not_waited_for(deploys: Deploys) -> None:
    deploys.run(PLAIN)
    with contextlib.closing(sqlite3.connect(deploys.outbox, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        status, found = findings(deploys)
        assert time.monotonic() - began < 4
        other.execute("ROLLBACK")
    assert (status, found[0][2][:19]) == (0, "2 event(s) wait for")


def test_a_deploy_under_way_is_not_disturbed(deploys: Deploys) -> None:
    running = deploys.start("with deployment('billing'):\n    ready()\n    time.sleep(60)").until_ready()
    status, found = findings(deploys)
    assert (status, [message[:15] for _, _, message in found]) == (0, ["1 event(s) wait", "1 deployment(s)"])
    running.send(signal.SIGTERM).ends()
    assert json.loads(deploys.command("status", "--json").stdout)["deployments"][0]["state"] == "failed"


def _newer(path: Path) -> None:
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE deployments (id)")
        connection.execute(f"PRAGMA application_id = {0x4C444448}")
        connection.execute("PRAGMA user_version = 99")
        connection.commit()


def _damaged(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"garbage" * 1000)


def _log_without_a_file(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    Path(f"{path}-wal").write_bytes(b"something")


def _folder_is_a_file(path: Path) -> None:
    path.parent.touch()


def _is_a_folder(path: Path) -> None:
    path.mkdir(parents=True)


def _is_a_link(path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to("elsewhere.db")


def _owners_are_a_file(path: Path) -> None:
    path.parent.mkdir()
    path.with_name(f"{path.name}.owners").touch()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_owners_are_a_file, "outbox.db.owners is no folder. Move it away"),
        (_newer, "a newer ld-deploy-hooks wrote it"),
        (_damaged, "it is damaged (SQLITE_CORRUPT). The next deployment moves it aside"),
        (_log_without_a_file, "it is damaged (SQLITE_CORRUPT)"),
        (_folder_is_a_file, "its folder is no folder"),
        (_is_a_folder, "it is not a file"),
        (_is_a_link, "it is a symbolic link"),
    ],
)
def test_an_outbox_that_cannot_be_used(deploys: Deploys, make: Callable[[Path], None], says: str) -> None:
    make(deploys.outbox)
    before = contents(deploys.folder)
    status, found = findings(deploys)
    assert status == 1
    about, message = only(found, "fault")
    assert about == "outbox"
    assert message.startswith(f"The outbox {deploys.outbox} cannot be used: ")
    assert says in message
    assert contents(deploys.folder) == before


def test_an_empty_file_is_an_outbox_in_which_nothing_is_yet(deploys: Deploys) -> None:
    deploys.outbox.parent.mkdir()
    deploys.outbox.touch()
    assert findings(deploys) == (0, [])
    assert deploys.outbox.stat().st_size == 0


AS_NOBODY = f"""
import importlib.metadata, os, sys
from ld_deploy_hooks.cli import main
# All is imported as root: nobody may not be able to read where it comes from.
main(["doctor", "--json"])
print("nobody")
sys.stdout.flush()
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
os.environ["HOME"], os.environ["LD_DEPLOY_OUTBOX"] = sys.argv[1:]
sys.exit(main(["doctor", "--json"]))
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """Return nobody's home folder, in a place that nobody can reach."""
    if sys.platform == "win32" or os.geteuid() != 0:
        pytest.skip("only root can act as another user")
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    (folder / "home").mkdir()
    os.chown(folder / "home", NOBODY, NOBODY)
    yield folder / "home"
    shutil.rmtree(folder)


@pytest.mark.skipif(not Path("/proc/self/mounts").exists(), reason="Linux")
def test_an_outbox_where_no_file_can_be_made(deploys: Deploys) -> None:
    deploys.set(LD_DEPLOY_OUTBOX="/proc/somewhere/else/outbox.db")
    status, found = findings(deploys)
    assert status == 1
    about, message = only(found, "fault")
    assert about == "outbox"
    assert message.startswith("The outbox /proc/somewhere/else/outbox.db cannot be used: ")
    ended = deploys.command("status")
    assert (ended.status, ended.lines) == (2, [f"ld-deploy: {message}"])


@pytest.mark.parametrize("where", ["a" * 300, f"{'a' * 300}/outbox.db", "looks/outbox.db"])
def test_an_outbox_path_that_nobody_can_make(deploys: Deploys, where: str) -> None:
    (deploys.folder / "looks").symlink_to("looks")
    deploys.set(LD_DEPLOY_OUTBOX=str(deploys.folder / where))
    status, found = findings(deploys)
    assert status == 1
    assert "cannot be used" in only(found, "fault")[1]


@pytest.mark.parametrize("left", ["folder", "file", "log", "owners", "nothing"])
def test_what_sudo_has_left_to_root(
    deploys: Deploys, home: Path, run_python: Callable[..., subprocess.CompletedProcess[str]], left: str
) -> None:
    outbox = home / "state" / "outbox.db"
    deploys.set(LD_DEPLOY_OUTBOX=str(outbox))
    if left != "nothing":
        deploys.run(PLAIN)
        suspect = {"folder": outbox.parent, "file": outbox}.get(left) or outbox.with_name(
            {"log": "outbox.db-wal", "owners": "outbox.db.owners"}[left]
        )
        if left == "log":
            suspect.touch(mode=0o600)
        for path in (outbox.parent, *outbox.parent.iterdir()):
            if path != suspect:
                os.chown(path, NOBODY, NOBODY)
    del deploys.env["LD_DEPLOY_OUTBOX"]
    done = run_python(AS_NOBODY, str(home), str(outbox), env=deploys.env)
    report: dict[str, Any] = json.loads(done.stdout.partition("nobody\n")[2])
    faults = [finding["message"] for finding in report["findings"] if finding["level"] == "fault"]
    if left == "nothing":
        assert (done.returncode, faults) == (0, [])
        assert not outbox.parent.exists()
        return
    assert done.returncode == 1
    (message,) = faults
    assert f"{suspect} belongs to root, not to nobody" in message
    assert "sudo chown" in message


def test_another_users_folder_is_not_trusted_though_it_can_be_written(deploys: Deploys, home: Path) -> None:
    deploys.set(LD_DEPLOY_OUTBOX=str(home / "outbox.db"))
    status, found = findings(deploys)
    assert status == 1
    assert f"{home} belongs to nobody, not to root. Run without sudo" in only(found, "fault")[1]


def test_a_folder_that_may_not_be_written(
    deploys: Deploys, home: Path, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    home.chmod(0o500)
    del deploys.env["LD_DEPLOY_OUTBOX"]
    done = run_python(AS_NOBODY, str(home), str(home / "a" / "b" / "outbox.db"), env=deploys.env)
    assert done.returncode == 1
    assert "permission denied (EACCES)" in done.stdout.partition("nobody\n")[2]
    assert list(home.iterdir()) == []


# -- Invoke's and Fabric's configuration ------------------------------------------------------------------------------

INV, FAB = "ld_deploy_hooks.invoke.Executor", "ld_deploy_hooks.fabric.Executor"
MAPPED = "ld_deploy_hooks: {tasks: {deploy: {application_key: web}}}\n"
# A file that would show that it was run.
TASKS = "from pathlib import Path\nPath('ran').touch()\ndef deploy(c): pass\n"


def executor(name: str) -> str:
    return f"tasks: {{executor_class: {name}}}\n"


@pytest.mark.parametrize(
    ("tasks", "file", "text", "level", "says"),
    [
        ("tasks.py", "invoke.yaml", executor(INV), None, ""),
        ("fabfile.py", "fabric.yaml", executor(FAB) + MAPPED, None, ""),
        ("tasks/__init__.py", "invoke.yml", executor(INV), None, ""),
        ("tasks.py", "invoke.yaml", executor("mine.Executor"), "warning", "not told as one deployment. Write"),
        ("tasks.py", "invoke.json", json.dumps({"tasks": {"executor_class": "mine.E"}}), "warning", "is mine.E, so"),
        ("tasks.py", "invoke.yaml", executor("mine.E") + MAPPED, "fault", "names is not told, and tasks.py tells noth"),
        ("tasks.py", "invoke.yaml", executor("invoke.E") + MAPPED, "fault", "which tells no deployment"),
        ("tasks.py", "invoke.yaml", "", "note", "names no executor"),
        ("fabfile.py", "fabric.yaml", executor(INV), None, ""),
        ("tasks.py", "invoke.yaml", executor(FAB), "fault", "inv ends with an error before the first task"),
        ("tasks.py", "invoke.yaml", executor("nowhere.E"), "fault", "no module 'nowhere' is found for it: inv ends"),
        ("tasks.py", "invoke.yaml", executor("mine.deeper.E"), "fault", "no module 'mine.deeper' is found"),
        ("tasks.py", "invoke.yaml", executor("ld_deploy_hooks.invoke.Runner"), "fault", "there is no such executor"),
        ("tasks.py", "invoke.yaml", executor("Executor"), "fault", "which is no dotted name of a class"),
        ("tasks.py", "invoke.yaml", executor("sys.E"), "warning", "not told as one deployment"),
        ("tasks.py", "invoke.yaml", executor("invoke.executor.E"), "warning", "not told as one deployment"),
        ("tasks.py", "invoke.yaml", "tasks: [", "fault", "it is no configuration (ParserError). inv ends"),
        ("tasks.py", "invoke.yaml", executor(INV) + "ld_deploy_hooks: 3", "warning", "is no mapping"),
        # Not read by whoever would be started here.
        ("fabfile.py", "invoke.yaml", executor("mine.E"), None, ""),
        ("other.py", "invoke.yaml", executor("mine.E"), None, ""),
        ("tasks.py", "invoke.py", TASKS, None, ""),
    ],
)  # fmt: skip
def test_another_executor_in_the_way(
    deploys: Deploys, tasks: str, file: str, text: str, level: str | None, says: str
) -> None:
    (deploys.folder / "tasks").mkdir()
    (deploys.folder / tasks).write_text(TASKS)
    (deploys.folder / "mine.py").write_text(TASKS)
    (deploys.folder / file).write_text(text)
    # As the console script does, not with the working folder among the places of modules.
    deploys.set(PYTHONSAFEPATH="1")
    status, found = findings(deploys)
    assert status == (level == "fault")
    assert [found_level for found_level, _, _ in found] == ([level] if level else [])
    assert says in "".join(message for _, _, message in found)
    if level == "fault":
        assert found[0][2].endswith((f" Write {INV}.", " Mend it."))
    assert not (deploys.folder / "ran").exists()


DECORATED = "from ld_deploy_hooks import deployment\n" + TASKS
IMPORTS = "from others import deploy\n"


@pytest.mark.parametrize("named", ["", executor("mine.E"), executor("json.E")], ids=["none", "mine", "json"])
@pytest.mark.parametrize(
    ("tasks", "mine", "elsewhere", "certain"),
    [
        (TASKS, TASKS, "", True),
        ("from fabric import task\nimport os.path, invoke\n" + TASKS, "class E: pass", "", True),
        (DECORATED, TASKS, "", False),
        (IMPORTS, TASKS, "", False),
        ("from . import deploy", TASKS, "", False),
        ("import others.tasks  # deploy", TASKS, "", False),
        ("deploy = __import__('others').deploy", TASKS, "", False),
        ("deploy: no python", TASKS, "", False),
        (TASKS, TASKS, ".invoke.yaml", False),
        (TASKS, TASKS, "INVOKE_TASKS_EXECUTOR_CLASS", False),
        (TASKS, DECORATED, "", None),
        (TASKS, IMPORTS, "", None),
    ],
)
def test_tasks_that_no_executor_tells(
    deploys: Deploys, named: str, tasks: str, mine: str, elsewhere: str, certain: bool | None
) -> None:
    (deploys.folder / "tasks.py").write_text(tasks)
    (deploys.folder / "mine.py").write_text(mine)
    (deploys.folder / "invoke.yaml").write_text(named + MAPPED)
    if elsewhere.startswith("."):
        (Path(deploys.env["HOME"]) / elsewhere).touch()
    elif elsewhere:
        deploys.set(**{elsewhere: INV})
    status, found = findings(deploys)
    # What an executor's module says counts for that one.
    is_fault = "mine" not in named if certain is None else certain
    assert status == is_fault
    _, message = only(found, "fault" if is_fault else "warning")
    assert ("not told, since no executor is named" in message) == (is_fault and not named)
    assert not (deploys.folder / "ran").exists()


def test_where_something_may_be_wrong_no_more_is_claimed_than_is_known(deploys: Deploys) -> None:
    (deploys.folder / "tasks.py").write_text(TASKS)
    (deploys.folder / "invoke.yaml").write_text(entries("{deplyo: {application_key: web}}"))
    ended = doctor(deploys)
    assert ended.status == 0
    assert "Nothing here keeps" not in ended.stdout
    assert ended.stdout.endswith("is known that keeps every deployment from being told, but see the warnings above.\n")


def entries(text: str) -> str:
    return f"{executor(INV)}ld_deploy_hooks: {{tasks: {text}}}\n"


@pytest.mark.parametrize(
    ("text", "level", "says"),
    [
        (entries("{deploy: {application_key: web, metadata: {a: b}, pre_and_post: false}, 'release.*': }"), None, ""),
        (entries("{on: {application_key: web}}"), "fault", "True is the name of no task"),
        (entries("{2024: {application_key: web}}"), "fault", "2024 is a number, at which Invoke ends"),
        (entries("{deploy: {application_key: web, disabled: true}}"), "fault", "deploy: disabled is on, so the task"),
        (entries("{deploy: {application_key: web, dry_run: true}}"), "fault", "deploy: dry_run is on, so the task"),
        (entries("[deploy]"), "fault", "tasks: is no mapping, so no task is a deployment by it"),
        (entries("{deploy: web}"), "fault", "tasks: deploy: is no mapping, so the task is not told"),
        (entries("{deploy: {aplication_key: web}}"), "warning", "aplication_key ("),
        (entries("{deploy: {application_kind: toaster}}"), "warning", "application_kind ("),
        (entries("{deploy: {environment_key: [a, b]}}"), "fault", "environment_key ("),
        (entries("{deploy: {metadata: text}}"), "warning", "deploy: deployment(metadata=...) takes a mapping"),
        (entries("{deploy: {pre_and_post: 1}}"), "warning", "deploy: deployment(pre_and_post=...) takes True or False"),
        (entries("{deplyo: {application_key: web}}"), "warning", "deplyo is nowhere in tasks.py"),
        ("run: {dry: true}\n" + executor(INV), "fault", "makes every inv a dry run"),
        ("run: {dry: false}\n" + executor(INV), None, ""),
    ],
)
def test_what_the_hosts_configuration_says_of_tasks(deploys: Deploys, text: str, level: str | None, says: str) -> None:
    del deploys.env["LD_ENVIRONMENT"]
    (deploys.folder / "pyproject.toml").write_text("[tool.ld-deploy-hooks]\nenvironment_key = 'production'\n")
    (deploys.folder / "tasks.py").write_text(TASKS)
    (deploys.folder / "invoke.yaml").write_text(text)
    status, found = findings(deploys)
    assert status == (level == "fault")
    assert [found_level for found_level, _, _ in found] == ([level] if level else [])
    assert says in "".join(message for _, _, message in found)
    assert not (deploys.folder / "ran").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("", "For the tasks beside "),
        (", environment_key: production, disabled: true", "disabled is on in "),
        (", environment_key: production", None),
    ],
)
def test_each_host_has_its_own_configuration(deploys: Deploys, more: str, says: str | None) -> None:
    del deploys.env["LD_ENVIRONMENT"]
    for tasks, file, named, own in (
        ("tasks.py", "invoke.yaml", INV, ", environment_key: production"),
        ("fabfile.py", "fabric.yaml", FAB, more),
    ):
        (deploys.folder / tasks).write_text(TASKS)
        section = f"ld_deploy_hooks: {{tasks: {{deploy: {{application_key: web}}}}{own}}}\n"
        (deploys.folder / file).write_text(executor(named) + section)
    status, found = findings(deploys)
    assert status == (says is not None), found
    faults = [message for level, _, message in found if level == "fault"]
    assert [says is not None and says in message for message in faults] == ([True] if says else [])


@pytest.mark.parametrize(
    ("text", "more", "level"),
    [
        ("{deploy: {version: a}}", {}, "fault"),
        ("{deploy: }", {}, "fault"),
        ("{deploy: {application_key: web}}", {}, None),
        ("{deploy: }, application_key: web", {}, None),
        ("{deploy: }, plugins: mine", {}, "warning"),
        ("{deploy: }", {"deployhooks.py": ""}, "warning"),
        ("{deploy: }", {"tasks.py": "from ld_deploy_hooks import deployment\ndef deploy(c): pass\n"}, "warning"),
        ("{deploy: }", {"pyproject.toml": "[tool.ld-deploy-hooks]\napplication_key = 'web'\n"}, None),
    ],
)
def test_the_application_of_a_task_that_is_named(
    deploys: Deploys, text: str, more: dict[str, str], level: str | None
) -> None:
    del deploys.env["LD_DEPLOY_APPLICATION_KEY"]
    for name, content in ({"tasks.py": TASKS, "invoke.yaml": entries(text)} | more).items():
        (deploys.folder / name).write_text(content)
    status, found = findings(deploys)
    assert status == (level == "fault")
    said = [found_level for found_level, _, message in found if "deploy: application_key is not set" in message]
    assert said == ([level] if level else [])


@pytest.mark.parametrize(
    ("tasks", "text"),
    [
        ("tasks/__init__.py", b""),
        ("tasks.py", b"from others import *"),
        ("tasks.py", "# -*- coding: latin-1 é".encode("latin-1")),
    ],
    ids=["package", "star", "latin-1"],
)
def test_names_of_tasks_that_cannot_be_looked_for(deploys: Deploys, tasks: str, text: bytes) -> None:
    (deploys.folder / "tasks").mkdir()
    (deploys.folder / tasks).write_bytes(text)
    (deploys.folder / "invoke.yaml").write_text(entries("{deploy: {application_key: web}}"))
    assert findings(deploys) == (0, [])


def test_what_is_wrong_elsewhere_is_not_said_of_each_task(deploys: Deploys) -> None:
    deploys.set(LD_ACCESS_TOKEN="sdk-123456")
    (deploys.folder / "tasks.py").write_text(TASKS)
    (deploys.folder / "invoke.yaml").write_text(entries("{deploy: {application_key: web}}"))
    _, found = findings(deploys)
    assert [about for _, about, _ in found] == ["access_token"]


@pytest.mark.parametrize(
    ("tasks", "variable", "value", "dry"),
    [
        ("tasks.py", "INVOKE_RUN_DRY", "1", True),
        ("tasks.py", "INVOKE_RUN_DRY", "0", False),
        ("tasks.py", "FABRIC_RUN_DRY", "1", False),
        ("fabfile.py", "FABRIC_RUN_DRY", "false", True),
        ("other.py", "INVOKE_RUN_DRY", "1", False),
    ],
)
def test_a_host_that_the_environment_makes_run_dry(
    deploys: Deploys, tasks: str, variable: str, value: str, dry: bool
) -> None:
    (deploys.folder / tasks).write_text(TASKS)
    deploys.set(**{variable: value})
    status, found = findings(deploys)
    assert (status, [about for _, about, _ in found]) == ((1, ["dry_run"]) if dry else (0, []))
    assert all(message.startswith(f"{variable} makes every") for _, _, message in found)


def test_tasks_are_looked_for_in_the_folders_above(deploys: Deploys) -> None:
    del deploys.env["LD_PROJECT"]
    below = deploys.folder / "some" / "where"
    below.mkdir(parents=True)
    (deploys.folder / "tasks.py").write_text(TASKS)
    (deploys.folder / "invoke.yaml").write_text(f"{executor(INV)}ld_deploy_hooks: {{project_key: p}}\n")
    # It lies beside no tasks, so that nobody reads it.
    (below / "invoke.yaml").write_text(executor(FAB))
    ended = deploys.command("doctor", "--json", cwd=below)
    report = json.loads(ended.stdout)
    assert (ended.status, report["host_configuration"]) == (0, str(deploys.folder / "invoke.yaml"))
    assert report["settings"]["project_key"]["value"] == "p"
    (below.parent / "tasks.py").touch()
    assert json.loads(deploys.command("doctor", "--json", cwd=below).stdout)["host_configuration"] is None


BROKEN = ["- a", "3", "tasks: 3", "tasks: [", "a: &a [*a]", "\x00", "ld_deploy_hooks: [1]", "run: 3", "a: !!python/x b"]


@pytest.mark.parametrize("text", [*BROKEN, "tasks: {executor_class: [1]}", "[" * 5000], ids=lambda text: text[:20])
def test_a_broken_configuration_is_a_finding(deploys: Deploys, text: str) -> None:
    (deploys.folder / "tasks.py").touch()
    (deploys.folder / "invoke.yaml").write_text(text)
    assert findings(deploys)[1]


@pytest.mark.parametrize(("tasks", "file"), [("tasks.py", "invoke.yaml"), ("fabfile.py", "fabric.yml")])
@pytest.mark.parametrize("text", ["a: [", "tasks: 3", "- a"])
def test_a_configuration_that_ends_its_host_is_a_fault(deploys: Deploys, tasks: str, file: str, text: str) -> None:
    (deploys.folder / tasks).touch()
    (deploys.folder / file).write_text(text)
    status, found = findings(deploys)
    assert status == 1
    assert f"{deploys.folder / file} cannot be read: it is no configuration" in only(found, "fault")[1]


def test_settings_of_the_hosts_configuration(deploys: Deploys) -> None:
    del deploys.env["LD_PROJECT"], deploys.env["LD_DEPLOY_PLUGINS"]
    (deploys.folder / "tasks.py").touch()
    (deploys.folder / "fabfile.py").touch()
    for file, name in (("invoke.yaml", INV), ("fabric.yaml", FAB)):
        (deploys.folder / file).write_text(
            f"{executor(name)}ld_deploy_hooks: {{project_key: of {file}, environment_key: e, plugins: nowhere}}"
        )
    ended = doctor(deploys, "--json")
    report = json.loads(ended.stdout)
    assert (ended.status, report["host_configuration"]) == (0, str(deploys.folder / "invoke.yaml"))
    assert report["settings"]["project_key"] == {
        "value": "of invoke.yaml",
        "source": str(deploys.folder / "invoke.yaml"),
    }
    assert report["settings"]["environment_key"]["source"] == "LD_ENVIRONMENT"
    assert report["settings"]["plugins"] == {"value": [], "source": "default"}
    messages = [finding["message"] for finding in report["findings"]]
    assert {finding["level"] for finding in report["findings"]} == {"note"}
    assert f"{deploys.folder / 'fabric.yaml'} has settings too; shown are those of" in "".join(messages)
    assert len([message for message in messages if "counts for its host alone" in message]) == 2


def test_without_invoke_its_configuration_is_not_read_and_that_is_said(deploys: Deploys) -> None:
    blocker = deploys.folder / "blocker"
    blocker.mkdir()
    (blocker / "invoke.py").write_text("raise ImportError\n")
    deploys.set(PYTHONPATH=os.pathsep.join([str(blocker), deploys.env.get("PYTHONPATH", "")]))
    (deploys.folder / "tasks.py").touch()
    (deploys.folder / "invoke.yaml").write_text(executor("mine.E"))
    status, found = findings(deploys)
    assert status == 0
    assert "was not read: Invoke is not installed" in only(found, "warning")[1]


@pytest.mark.parametrize("kind", ["foreign", "pipe", "gone"])
def test_a_configuration_that_is_not_this_users_is_not_read(deploys: Deploys, kind: str) -> None:
    (deploys.folder / "tasks.py").touch()
    path = deploys.folder / "invoke.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "gone":
        path.symlink_to("nowhere")
    else:
        if os.geteuid() != 0:
            pytest.skip("only root can give files away")
        path.write_text(executor(FAB))
        os.chown(path, NOBODY, NOBODY)
    status, found = findings(deploys)
    assert status == 0
    says = {"foreign": f"belongs to user id {NOBODY}", "pipe": "no regular file", "gone": "FileNotFoundError"}[kind]
    assert f"{path} was not read: " in only(found, "warning")[1]
    assert says in only(found, "warning")[1]


def test_a_working_directory_that_is_gone(deploys: Deploys) -> None:
    gone = deploys.folder / "gone"
    gone.mkdir()
    source = "import os, sys\nos.rmdir(os.getcwd())\nfrom ld_deploy_hooks.cli import main\nsys.exit(main(['doctor']))"
    path = deploys.folder / "source.py"
    path.write_text(source)
    done = subprocess.run(
        [sys.executable, str(path)], env=deploys.env, cwd=gone, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Nothing here keeps deployments from being told." in done.stdout


# -- plugins ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (f"raise ValueError({KEY!r})", "Plugin mine (setting plugins) is not loaded: ValueError"),
        (PLUGIN.format(body="1 / 0"), "ld_deploy_provide_defaults raised ZeroDivisionError"),
        (PLUGIN.format(body="return {'colour': 'red'}"), "colour (plugin mine) is no setting"),
    ],
)
def test_plugins_that_go_wrong(deploys: Deploys, source: str, says: str) -> None:
    (deploys.folder / "mine.py").write_text(source)
    deploys.set(LD_DEPLOY_PLUGINS=f"{NONE},mine")
    status, found = findings(deploys)
    assert status == 0
    assert says in only(found, "warning")[1]


def test_what_plugins_print_is_no_part_of_it(deploys: Deploys) -> None:
    del deploys.env["LD_ENVIRONMENT"]
    body = "print('asked'); return {'environment_key': 'staging'}"
    (deploys.folder / "mine.py").write_text(f"print('loaded')\n{PLUGIN.format(body=body)}")
    deploys.set(LD_DEPLOY_PLUGINS=f"{NONE},mine")
    ended = doctor(deploys, "--json")
    assert (ended.status, ended.lines) == (0, ["loaded", "asked"])
    assert json.loads(ended.stdout)["settings"]["environment_key"]["value"] == "staging"


def test_a_deployhooks_file_is_not_loaded_and_that_is_said(deploys: Deploys) -> None:
    (deploys.folder / "deployhooks.py").write_text(TASKS)
    status, found = findings(deploys)
    assert status == 0
    assert f"{deploys.folder / 'deployhooks.py'} is not loaded here" in only(found, "note")[1]
    assert not (deploys.folder / "ran").exists()


def test_plugins_defaults_count_and_say_so(deploys: Deploys) -> None:
    del deploys.env["LD_ENVIRONMENT"]
    (deploys.folder / "mine.py").write_text(PLUGIN.format(body="return {'environment_key': 'staging'}"))
    deploys.set(LD_DEPLOY_PLUGINS=f"{NONE},mine")
    report = json.loads(doctor(deploys, "--json").stdout)
    assert (report["ok"], report["plugins"]) == (True, ["mine"])
    assert report["settings"]["environment_key"] == {"value": "staging", "source": "plugin mine"}


# -- online -----------------------------------------------------------------------------------------------------------


def test_online_says_who_the_token_is(deploys: Deploys) -> None:
    with FakeLaunchDarkly(token=TOKEN) as fake:
        deploys.set(LD_BASE_URI=fake.base_uri)
        assert doctor(deploys).status == 0
        assert fake.requests == [], "nobody is asked without being told to"
        ended = doctor(deploys, "--online")
        assert ended.status == 0
        assert (
            f"note: {fake.base_uri} knows the token: service token 'fake-token' of account 'fake-account'"
            in ended.stdout
        )
        assert json.loads(doctor(deploys, "--online", "--json").stdout)["identity"]["tokenId"] == "fake-token-id"
        assert {(one.method, one.path) for one in fake.requests} == {("GET", "/api/v2/caller-identity")}


def test_online_shows_nothing_of_the_token_even_if_the_service_does(deploys: Deploys) -> None:
    identity = json.dumps({"tokenName": TOKEN, "accountId": "7\x1b[2J" + "x" * 9999, "memberId": KEY}).encode()
    with FaultServer(answer(200, {}, identity)) as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        ended = doctor(deploys, "--online")
        assert ended.status == 0
        assert "personal token '[redacted]' of account '7\\x1b[2Jxxx" in ended.stdout
        assert "x" * 120 not in ended.stdout
        assert doctor(deploys, "--online", "--json").status == 0


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (answer(401), "answered 401: the access token is wrong"),
        (answer(403), "answered 403"),
        (answer(200, {}, b"[]"), "did not answer as LaunchDarkly does"),
        (garbage, "No answer from 127.0.0.1"),
    ],
    ids=["401", "403", "no object", "garbage"],
)
def test_online_says_why_it_was_refused(deploys: Deploys, step: Any, says: str) -> None:
    with FaultServer(step) as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        status, found = findings(deploys, "--online")
        assert server.posts
    assert status == 1
    about, message = only(found, "fault")
    assert about == "online"
    assert says in message


def test_online_without_a_token_asks_nobody(deploys: Deploys) -> None:
    with FaultServer() as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        del deploys.env["LD_ACCESS_TOKEN"]
        status, found = findings(deploys, "--online")
        assert server.posts == 0
    assert status == 1
    assert "was not asked" in only(found, "note")[1]


def test_online_gives_the_token_to_no_address_out_of_a_file_that_lies_there(deploys: Deploys) -> None:
    with FaultServer() as server:
        del deploys.env["LD_BASE_URI"]
        (deploys.folder / "tasks.py").touch()
        text = f"{executor(INV)}ld_deploy_hooks: {{base_uri: '{server.base_uri}'}}\n"
        (deploys.folder / "invoke.yaml").write_text(text)
        status, found = findings(deploys, "--online")
        assert server.posts == 0
    assert status == 0
    assert f"Set LD_BASE_URI={server.base_uri} to have it asked" in only(found, "warning")[1]


@pytest.mark.parametrize("command", ["doctor", "verify", "plugins"])
def test_help_tells_the_exit_statuses(deploys: Deploys, command: str) -> None:
    ended = deploys.command(command, "--help")
    assert ended.status == 0
    assert "\nExit status: 0 " in ended.stdout
    assert command in deploys.command("--help").stdout
