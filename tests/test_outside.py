"""What a signal handler of the deploy's raises is the deploy's own, wherever in our code it strikes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest
from fault_kit import Deploys, deploys_fixture  # noqa: F401
from fault_server import FaultServer, told
from outbox_kit import held

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGALRM")


@pytest.fixture
def server(deploys: Deploys) -> Iterator[FaultServer]:
    with FaultServer() as server:
        deploys.set(LD_BASE_URI=server.base_uri)
        yield server


# Each handler lets a Timeout out, and has a shape of its own.
HANDLERS = {
    "a function": "def handler(number, frame): raise Timeout",
    "any arguments": "def handler(*args): raise Timeout",
    "a partial": "import functools\ndef raises(what, number, frame): raise what\n"
    "handler = functools.partial(raises, Timeout)",
    "an object": "class Handler:\n    def __call__(self, number, frame): raise Timeout\nhandler = Handler()",
    "a method": "class Handler:\n    def on(self, number, frame): raise Timeout\nhandler = Handler().on",
    "another one in its place": "def handler(number, frame):\n    signal.signal(number, signal.SIG_IGN)\n"
    "    raise Timeout",
}
# A deploy that is in our code when the signal comes: `asks()` raises it.
PLACES = {
    "a field": "with deployment('billing', version=asks): pass",
    "the judgement of a result": "deployment('billing', version='v1', success=asks)(lambda: 1)()",
    "defaults": "with deployment('billing', version='v1'): pass",
    "metadata": "with deployment('billing', version='v1'): pass",
    "the started event": "with deployment('billing', version='v1'): pass",
    "the custom event": "with deployment('billing', version='v1') as d: d.custom(step=1)",
    "the end": "with deployment('billing', version='v1'): pass",
    "the user's metadata": "with deployment('billing', version='v1', metadata=Asks()): pass",
    "metadata of a custom event": "with deployment('billing', version='v1') as d: d.custom({'deep': [Asks()]})",
}
HOOKS = {
    "defaults": "def ld_deploy_provide_defaults(settings): asks()",
    "metadata": "def ld_deploy_add_metadata(deployment): asks()",
    "the started event": "def ld_deploy_modify_event(event): event.event_type == 'started' and asks()",
    "the custom event": "def ld_deploy_modify_event(event): event.event_type == 'custom' and asks()",
    "the end": "def ld_deploy_modify_event(event): event.event_type == 'finished' and asks()",
}
# What arrives of the deployment, if anything does.
TOLD = {
    "the judgement of a result": {"v1": ["started", "failed"]},
    "the custom event": {"v1": ["started", "failed"]},
    "metadata of a custom event": {"v1": ["started", "failed"]},
    "the end": {"v1": ["started", "finished"]},
}

SOURCE = """
class Timeout(Exception): pass
{handler}
signal.signal(signal.{signal}, handler)

def asks(*args):
    os.kill(os.getpid(), signal.{signal})
    return "v1"

class Asks(__import__("collections").abc.Mapping):
    def __len__(self): return 1
    def __getitem__(self, key): return 1
    def __iter__(self): return iter([asks()])

try:
    {deploy}
except Timeout:
    print("out of time")
leave()
"""


def deploy(deploys: Deploys, place: str, handler: str, name: str) -> tuple[str, str]:
    hook = HOOKS.get(place)
    if hook is not None:
        text = f"from __main__ import asks\nfrom ld_deploy_hooks import hookimpl\n@hookimpl\n{hook}\n"
        (deploys.folder / "deployhooks.py").write_text(text)
    ended = deploys.run(SOURCE.format(handler=HANDLERS[handler], signal=name, deploy=PLACES[place]))
    assert ended.status == 0, ended.stderr
    return ended.stdout, ended.stderr


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["SIGALRM", "SIGTERM"])
def test_it_leaves_whatever_is_asked(deploys: Deploys, server: FaultServer, place: str, name: str) -> None:
    out, err = deploy(deploys, place, "a function", name)
    assert (out, err) == ("out of time\n", "")
    assert told(server.events) == TOLD.get(place, {})


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("name", ["SIGALRM", "SIGTERM"])
def test_it_is_known_whatever_its_handler_is(deploys: Deploys, server: FaultServer, handler: str, name: str) -> None:
    out, err = deploy(deploys, "the custom event", handler, name)
    assert (out, err) == ("out of time\n", "")
    assert told(server.events) == {"v1": ["started", "failed"]}


def test_it_leaves_the_wait_for_the_disk(deploys: Deploys, server: FaultServer) -> None:
    deploys.run("with deployment('billing', version='v0'): pass")
    running = deploys.start(
        """
def handler(number, frame): raise TimeoutError
signal.signal(signal.SIGALRM, handler)
ready()
while not os.path.exists("held"): time.sleep(0.01)
signal.setitimer(signal.ITIMER_REAL, 0.3)
try:
    with deployment("billing", version="v1"):
        print("inside")
except TimeoutError:
    print("out of time")
leave()
"""
    ).until_ready()
    with held(deploys.outbox):
        (deploys.folder / "held").touch()
        ended = running.ends()
    assert (ended.status, ended.stdout) == (0, "out of time\n")
    deploys.next_run()
    assert told(server.events)["v1"] == ["started", "failed"]


def test_sigterm_while_a_plugin_is_asked_about_the_end_tells_that_end_at_once(
    deploys: Deploys, server: FaultServer
) -> None:
    (deploys.folder / "deployhooks.py").write_text(
        "import os, signal, time\nfrom ld_deploy_hooks import hookimpl\n"
        "@hookimpl\n"
        "def ld_deploy_modify_event(event):\n"
        "    if event.event_type == 'finished':\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(30)\n"
    )
    ended = deploys.run("with deployment('billing', version='v1'): pass")
    assert ended.status == -signal.SIGTERM
    assert told(server.events) == {"v1": ["started", "finished"]}
