"""Objects whose own methods raise wherever they are touched: the deploy's, and those that plugins answer with."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator

import pytest
from fault_kit import Deploys, deploys_fixture  # noqa: F401
from fault_server import FaultServer, told

# As a lazy object of a framework that is not set up; a mapping that exits; text and keys with methods of their own.
ODD = """
import sys
from collections.abc import Mapping

class Lazy:
    def _setup(self): raise RuntimeError("not configured")
    __class__ = property(lambda self: self._setup())

class Exits(Mapping):
    def __getitem__(self, key): sys.exit("no facts")
    def __iter__(self): return iter(["kernel"])
    def __len__(self): return 1

class Text(str):
    def strip(self, *chars): raise RuntimeError
    encode = lower = strip

class Key(str):
    def __eq__(self, other): raise RuntimeError
    __hash__ = str.__hash__

class Number(int):
    __hash__ = None

class Uncopied:
    def __deepcopy__(self, memo): sys.exit("not copied")

def fails(first, second):
    raise OSError
"""
DEPLOYS = {
    "below a lazy object": "with deployment('b', version='v1', metadata=lambda: fails(Lazy(), 1)): print('runs')",
    "below a number without a hash": "with deployment('b', version='v1', metadata=lambda: fails(Number(), 1)):\n"
    "    print('runs')",
    "in the judgement of a result": "@deployment('b', version='v1', success=lambda result: fails(Lazy(), 1))\n"
    "def deploy(): return 'runs'\nprint(deploy())",
    "as metadata": "with deployment('b', version='v1', metadata={'s': Lazy(), 't': Exits(), 'u': Uncopied()}):\n"
    "    print('runs')",
    "as all metadata": "with deployment('b', version='v1', metadata=Exits()): print('runs')",
    "as metadata in the block": "with deployment('b', version='v1') as d:\n"
    "    d.metadata['s'] = Lazy(); d.metadata['t'] = Exits(); print('runs')",
    "as an argument beside Invoke": "import invoke\n@deployment('b', version='v1')\ndef deploy(lazy): print('runs')\n"
    "deploy(Lazy())",
}


@pytest.fixture
def server(deploys: Deploys) -> Iterator[FaultServer]:
    with FaultServer() as server:
        deploys.set(LD_BASE_URI=server.base_uri, PYTHONPATH=os.pathsep.join([str(deploys.folder), *_path(deploys)]))
        (deploys.folder / "odd.py").write_text(ODD)
        yield server


def _path(deploys: Deploys) -> list[str]:
    return [path] if (path := deploys.env.get("PYTHONPATH")) else []


def check(deploys: Deploys, server: FaultServer, source: str, *, lines: int = 0) -> str:
    """Run a deploy that prints `runs`; return what was said, in so many lines at most."""
    if "invoke" in source:
        pytest.importorskip("invoke")
    ended = deploys.run(f"from odd import *\n{source}\nleave(3)")
    assert (ended.status, ended.stdout) == (3, "runs\n"), ended
    assert len(ended.lines) <= lines, ended.stderr
    assert "This is a fault of ld-deploy-hooks" not in ended.stderr
    assert told(server.events) == {"v1": ["started", "finished"]}
    return ended.stderr


@pytest.mark.parametrize("where", DEPLOYS)
def test_an_object_of_the_deploys_is_the_deploys_own_business(
    deploys: Deploys, server: FaultServer, where: str
) -> None:
    said = check(deploys, server, DEPLOYS[where], lines=1)
    assert ("the callable raised OSError" in said) == ("fails" in DEPLOYS[where])


PLUGINS = {
    "added metadata": "def ld_deploy_add_metadata(deployment): return {'facts': Exits(), 'lazy': Lazy()}",
    "metadata of the started event": "def ld_deploy_modify_event(event):\n"
    "    if event.event_type == 'started':\n"
    "        return dataclasses.replace(event, deployment_metadata={'facts': Exits(), 'lazy': Lazy()})",
    "metadata of the end": "def ld_deploy_modify_event(event):\n"
    "    if event.event_type == 'finished':\n"
    "        return dataclasses.replace(event, event_metadata={**event.event_metadata, 'facts': Exits()})",
    "text in place of metadata": "def ld_deploy_modify_event(event):\n"
    "    object.__setattr__(event, 'deployment_metadata', 'text')\n    return event",
    "defaults that are text of its own": "def ld_deploy_provide_defaults(settings):\n"
    "    return {'application_name': Text('Billing')}",
    "defaults that are lazy": "def ld_deploy_provide_defaults(settings): return {'application_name': Lazy()}",
    "defaults under keys of its own": "def ld_deploy_provide_defaults(settings):\n"
    "    return {Key('application_name'): 'Billing', Key('application_kind'): 'server'}",
}
# Those of which a line is due: that it is ignored.
SAID = {
    "text in place of metadata": "Plugin mine: ld_deploy_modify_event raised EventError",
    "defaults that are lazy": "application_name (plugin mine) cannot be read: it is ignored",
}


@pytest.mark.parametrize("answer", PLUGINS)
def test_what_a_plugin_answers_with_reaches_nobody(deploys: Deploys, server: FaultServer, answer: str) -> None:
    head = "import dataclasses\nfrom odd import *\nfrom ld_deploy_hooks import hookimpl\n\nlazy = Lazy()\n\n@hookimpl\n"
    (deploys.folder / "mine.py").write_text(head + textwrap.dedent(PLUGINS[answer]) + "\n")
    deploys.set(LD_DEPLOY_PLUGINS="mine,no:console,no:git")
    said = check(deploys, server, "with deployment('b', version='v1'): print('runs')", lines=2)
    assert SAID.get(answer, "") in said
    assert (answer in SAID) == bool(said)
