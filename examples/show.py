"""Show the examples: real releases, told to a stand-in for LaunchDarkly and read back from it.

::

    python examples/show.py

Everything is on this machine: the stand-in, web servers, and three SSH servers. It needs the ``test`` extra, but no
account and no settings, and leaves nothing behind. The exit status is 0 when all went as announced, else 1.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import requests
from loopback import SSHHosts, WebServer

from ld_deploy_hooks.testing import FakeLaunchDarkly

EXAMPLES = Path(__file__).resolve().parent
TOKEN = "api-made-up-for-the-show"
PROJECT, ENVIRONMENT = "paper-planes", "production"
HOSTS = ("web1", "web2", "web3")
# The variables that the examples' processes get from whoever runs the show: no LD_*, no CI system's, no proxy.
# Coverage goes on in them.
KEPT = ("COVERAGE_FILE", "COVERAGE_PROCESS_START", "LANG", "LC_ALL", "PATH", "TMPDIR", "VIRTUAL_ENV")
# Seconds for one command; far more than it takes.
PATIENCE = 60.0


class Told(NamedTuple):
    """A deployment as it reads back."""

    application: str
    version: str
    environment: str
    status: str
    hosts: str = "-"


@dataclass
class Step:
    """A command of the show, and what it is going to do.

    Attributes:
        about: said before it.
        example: the folder that it is run in.
        command: the command.
        exit_status: of the command.
        told: the deployment that it tells.
    """

    about: str
    example: str
    command: Sequence[str]
    exit_status: int
    told: Told


class Stage:
    """Everything that the examples need.

    Args:
        stack: closes it all.
    """

    def __init__(self, stack: ExitStack) -> None:
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ld-deploy-show-"))).resolve()
        self.launchdarkly = stack.enter_context(FakeLaunchDarkly(TOKEN))
        self.hosts = stack.enter_context(SSHHosts(self.folder, HOSTS))
        served = {name: self.folder / name / "current" for name in ("plain", "invoke")}
        served |= {name: self.hosts[name].home / "docs" / "current" for name in HOSTS}
        self.web = {name: stack.enter_context(WebServer(folder)) for name, folder in served.items()}
        for name in HOSTS:
            self.hosts[name].environment["PORT"] = str(self.web[name].port)

    @property
    def environment(self) -> dict[str, str]:
        """What the examples' processes see."""
        python_path = os.environ.get("PYTHONPATH", "")
        return {
            **{name: os.environ[name] for name in KEPT if name in os.environ},
            "HOME": str(self.folder),
            "PYTHONUNBUFFERED": "1",
            # They run in other folders.
            "PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, python_path.split(os.pathsep)))),
            "LD_BASE_URI": self.launchdarkly.base_uri,
            "LD_ACCESS_TOKEN": TOKEN,
            "LD_PROJECT": PROJECT,
            "LD_ENVIRONMENT": ENVIRONMENT,
            "LD_DEPLOY_OUTBOX": str(self.folder / "outbox.db"),
            # Seconds: also on a slow machine a command ends only when its deployment can be read back.
            "LD_DEPLOY_FLUSH_TIMEOUT": "10",
            "INVOKE_SITE_BUILD": str(self.folder / "build"),
            "INVOKE_SITE_ROOT": str(self.folder / "invoke"),
            "INVOKE_SITE_URL": self.web["invoke"].url,
            "FABRIC_SITE_BUILD": str(self.folder / "build"),
        }

    def steps(self) -> list[Step]:
        """Return the show."""
        plain = ("--root", str(self.folder / "plain"), "--url", self.web["plain"].url)
        fab = (*program("fab", "fabric"), "--ssh-config", str(self.hosts.config), "-H", ",".join(HOSTS), "deploy")
        return [
            Step(
                "Plain Python.",
                "plain",
                (sys.executable, "deploy.py", "1.0.0", *plain),
                0,
                Told("docs-site", "1.0.0", ENVIRONMENT, "finished"),
            ),
            Step(
                "Invoke: a task with its pre and post tasks is one deployment.",
                "invoke",
                (*program("inv", "invoke"), "deploy", "--tag", "1.1.0"),
                0,
                Told("docs-intranet", "1.1.0", ENVIRONMENT, "finished"),
            ),
            Step(
                "Fabric: so is a task on three hosts.",
                "fabric",
                (*fab, "--tag", "2.0.0"),
                0,
                Told("docs-web", "2.0.0", ENVIRONMENT, "finished", "succeeded: web1 web2 web3"),
            ),
            Step(
                "Fabric again, but now the web server of web2 is set up wrongly: it serves the folder that `current` "
                "leads to now, and goes on with 2.0.0 whatever is released.",
                "fabric",
                (*fab, "--tag", "2.1.0"),
                1,
                Told("docs-web", "2.1.0", ENVIRONMENT, "failed", "succeeded: web1, failed: web2, pending: web3"),
            ),
        ]

    def before(self, step: Step) -> None:
        """Make what goes wrong in ``step`` go wrong."""
        if step.exit_status:
            self.web["web2"].folder = self.web["web2"].folder.resolve()

    def read_back(self) -> list[dict[str, Any]]:
        """Return the deployments, the first one first."""
        with requests.Session() as session:
            # No proxy, and no ~/.netrc, whose entry would replace the header.
            session.trust_env = False
            answer = session.get(
                f"{self.launchdarkly.base_uri}/api/v2/engineering-insights/deployments",
                params={"projectKey": PROJECT, "environmentKey": ENVIRONMENT},
                headers={"Authorization": TOKEN, "LD-API-Version": "beta"},
                timeout=5,
            )
        answer.raise_for_status()
        items: list[dict[str, Any]] = answer.json()["items"]
        return items[::-1]


def program(script: str, module: str) -> tuple[str, ...]:
    """Return how a program of this environment is run."""
    beside = Path(sys.executable).with_name(script)
    return (str(beside),) if beside.exists() else (sys.executable, "-m", module)


def told(item: dict[str, Any]) -> Told:
    """Return what one item of the service says."""
    metadata = item.get("metadata", {})
    fared = ((word, metadata.get(f"hosts{word.capitalize()}")) for word in ("succeeded", "failed", "pending"))
    hosts = ", ".join(f"{word}: {' '.join(names)}" for word, names in fared if names)
    return Told(
        item["applicationKey"], item["applicationVersion"], item["environmentKey"], item["status"], hosts or "-"
    )


def table(items: Sequence[dict[str, Any]]) -> str:
    """Return the deployments as a table."""
    rows = [("APPLICATION", "VERSION", "ENVIRONMENT", "STATUS", "DURATION", "HOSTS")]
    for item in items:
        duration = f"{item['durationMs'] // 100 / 10} s" if "durationMs" in item else "-"
        rows.append((*told(item)[:4], duration, told(item).hosts))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def run(step: Step, stage: Stage) -> list[str]:
    """Run one command of the show, and return what did not go as announced."""
    shown = " ".join([Path(step.command[0]).name, *step.command[1:]]).replace(str(stage.folder), "$SHOW")
    print(f"\n{textwrap.fill(step.about, 100)}\n\nexamples/{step.example}$ {shown}", flush=True)
    stage.before(step)
    done = subprocess.run(
        step.command,
        cwd=EXAMPLES / step.example,
        env=stage.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    print(f"{textwrap.indent(done.stdout, '  ')}  (exit status {done.returncode})", flush=True)
    if done.returncode == step.exit_status:
        return []
    return [f"{shown}: announced was exit status {step.exit_status}, not {done.returncode}"]


def main() -> int:
    """Run the show; the answer is the exit status."""
    with ExitStack() as stack:
        stage = Stage(stack)
        print(f"LaunchDarkly's stand-in: {stage.launchdarkly.base_uri}; SSH servers: {', '.join(HOSTS)}", flush=True)
        steps = stage.steps()
        faults = [fault for step in steps for fault in run(step, stage)]
        items = stage.read_back()
    print(f"\nThe deployments, read back:\n\n{table(items)}\n")
    announced = [step.told for step in steps]
    if (seen := [told(item) for item in items]) != announced:
        faults.append(f"announced were the deployments {announced}, not {seen}")
    print("\n".join(faults) or "All as announced.")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
