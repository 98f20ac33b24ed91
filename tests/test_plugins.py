"""Plugins: found wherever they come from, checked, called one at a time, and harmless whatever they do."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import logging
import os
import re
import signal
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ld_deploy_hooks import hookspecs
from ld_deploy_hooks._errors import DropEvent
from ld_deploy_hooks._plugins import Plugins
from ld_deploy_hooks._records import DeploymentEvent, DeploymentRecord, EventType, Identity
from ld_deploy_hooks._tells import Tells
from ld_deploy_hooks.hookspecs import SettingsView, hookimpl

IDENTITY = Identity("default", "production", "billing-service", "a90a8a2")
RECORD = DeploymentRecord(id="one", identity=IDENTITY, state="started", started_at=1_700_000_000_000)
SETTINGS = SettingsView(environment_key="production")
SECRET = "s3cret"

# DESIGN.md, "Hooks".
HOOKS = {
    "ld_deploy_provide_defaults": ("settings",),
    "ld_deploy_add_metadata": ("deployment",),
    "ld_deploy_modify_event": ("event",),
    "ld_deploy_started": ("deployment",),
    "ld_deploy_finished": ("deployment",),
    "ld_deploy_failed": ("deployment", "error"),
    "ld_deploy_custom": ("deployment", "metadata"),
    "ld_deploy_event_delivered": ("event",),
    "ld_deploy_event_rejected": ("event", "error"),
}
CALLS: dict[str, Callable[[Plugins], object]] = {
    "ld_deploy_provide_defaults": lambda plugins: plugins.provide_defaults(SETTINGS),
    "ld_deploy_add_metadata": lambda plugins: plugins.add_metadata(RECORD),
    "ld_deploy_modify_event": lambda plugins: plugins.modify_event(event()),
    "ld_deploy_started": lambda plugins: plugins.started(RECORD),
    "ld_deploy_finished": lambda plugins: plugins.finished(RECORD),
    "ld_deploy_failed": lambda plugins: plugins.failed(RECORD, None),
    "ld_deploy_custom": lambda plugins: plugins.custom(RECORD, {}),
    "ld_deploy_event_delivered": lambda plugins: plugins.event_delivered(event()),
    "ld_deploy_event_rejected": lambda plugins: plugins.event_rejected(event(), "400"),
}
ASKS, TELLS = list(HOOKS)[:3], list(HOOKS)[3:]


class Own(BaseException):
    """An exception that no ``except Exception`` sees."""


def event(kind: str = "started", **metadata: Any) -> DeploymentEvent:
    return DeploymentEvent(
        event_type=EventType(kind),
        event_time=1_700_000_000_000,
        event_metadata={"eventId": "e-1", **metadata},
        **IDENTITY._asdict(),
    )


def implement(hook: str, body: Callable[..., Any], **options: Any) -> SimpleNamespace:
    """Return a plugin whose only hook runs ``body`` with the hook's arguments."""
    scope = {"body": body}
    names = ", ".join(HOOKS[hook])
    exec(f"def {hook}({names}): return body({names})", scope)
    return SimpleNamespace(**{hook: hookimpl(**options)(scope[hook])})


def raising(error: BaseException) -> Callable[..., Any]:
    def body(*arguments: object) -> None:
        raise error

    return body


def soon(condition: Callable[[], Any]) -> bool:
    deadline = time.monotonic() + 5
    while not (answer := condition()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return bool(answer)


# Threads of tells that tests of other rooms have left: daemons, and no matter of ours.
_earlier: list[threading.Thread] = []


def tell_threads() -> list[threading.Thread]:
    running = [thread for thread in threading.enumerate() if thread.name == "ld-deploy-tells"]
    return [thread for thread in running if thread not in _earlier]


@pytest.fixture(autouse=True)
def _only_own_threads() -> Iterator[None]:
    _earlier.extend(tell_threads())
    yield
    _earlier.clear()


Make = Callable[..., Plugins]


@pytest.fixture
def make() -> Iterator[Make]:
    """Return a function that makes Plugins of plugin objects (p0, p1, …: the last is called first) or by ``load``."""
    made = []

    def make(*plugins: object, **load: Any) -> Plugins:
        all_of_them = Plugins.load(**{"autoload": False, "builtin": (), **load}) if load else Plugins()
        made.append(all_of_them)
        for number, plugin in enumerate(plugins):
            all_of_them.register(plugin, f"p{number}", "this test")
        return all_of_them

    yield make
    for plugins in made:
        plugins.close()
    assert soon(lambda: not tell_threads()), "the thread of tells outlives close()"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return a function that gives the lines for users so far; none of them may hold the secret."""

    def lines() -> list[str]:
        said = [record.getMessage() for record in caplog.records if record.name == "ld_deploy_hooks"]
        assert not [line for line in said if SECRET in line or "\n" in line]
        assert not [record for record in caplog.records if record.exc_info]
        return said

    return lines


Lines = Callable[[], list[str]]


# -- specifications ---------------------------------------------------------------------------------------------------


def test_the_hooks_are_those_of_the_design() -> None:
    specs = {name: spec for name, spec in vars(hookspecs).items() if name.startswith("ld_deploy_")}
    assert {name: tuple(inspect.signature(spec).parameters) for name, spec in specs.items()} == HOOKS
    assert all(hasattr(spec, "ld_deploy_hooks_spec") for spec in specs.values())
    assert set(HOOKS) < set(hookspecs.__all__)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_says_what_a_plugin_must_know_and_shows_an_example_that_fits(
    hook: str, make: Make, lines: Lines
) -> None:
    text = inspect.getdoc(getattr(hookspecs, hook)) or ""
    assert "\nWhen: " in text
    assert "\nReturns:\n" in text
    assert "xception in it: a line" in text
    for argument in HOOKS[hook]:
        assert re.search(rf"^    {argument}: ", text, re.MULTILINE), f"{argument} is not explained"
    example = textwrap.dedent(text.partition("::\n\n")[2])
    assert 3 <= len(example.splitlines()) <= 6
    scope: dict[str, Any] = {"hookimpl": hookimpl}
    exec(example, scope)
    plugins = make(SimpleNamespace(**{hook: scope[hook]}))
    assert [plugin.hooks for plugin in plugins.plugins()] == [[hook]]
    assert lines() == []


# -- finding plugins --------------------------------------------------------------------------------------------------

NAMING = """
from ld_deploy_hooks.hookspecs import hookimpl
@hookimpl
def ld_deploy_provide_defaults(settings):
    return {{"version": "{}"}}
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder that modules and distributions can be installed into."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", "").startswith(str(tmp_path)):
            del sys.modules[name]


def install(site: Path, name: str, *points: str, module: str | None = None, source: str | None = None) -> None:
    """Install a distribution ``name`` with entry points into ``site``, and its module."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(("[ld_deploy_hooks]", *points)))
    if module is not None:
        (site / f"{module}.py").write_text(NAMING.format(module) if source is None else source)


def test_plugins_come_from_everywhere_and_the_nearest_one_is_called_first(
    site: Path, tmp_path: Path, make: Make, lines: Lines
) -> None:
    install(site, "dist-b", "eb = eb", module="eb")
    install(site, "dist-a", "ea = ea", module="ea")
    for name in ("na", "nb"):
        (site / f"{name}.py").write_text(NAMING.format(name))
    path = tmp_path / "deployhooks.py"
    path.write_text(NAMING.format("deployhooks"))
    plugins = make(names=("na", "nb"), autoload=True, builtin=("console",), directory=tmp_path)

    answers = plugins.provide_defaults(SETTINGS)

    assert answers == [(name, {"version": name}) for name in ("deployhooks", "na", "nb", "ea", "eb")]
    assert [(plugin.name, plugin.origin) for plugin in plugins.plugins()] == [
        ("deployhooks", str(path)),
        ("na", "setting plugins"),
        ("nb", "setting plugins"),
        ("ea", "entry point ea = ea of dist-a"),
        ("eb", "entry point eb = eb of dist-b"),
        ("console", "built-in"),
    ]
    assert plugins.plugins()[-1].hooks == ["ld_deploy_failed", "ld_deploy_finished", "ld_deploy_started"]
    assert lines() == []


def test_built_in_plugins_are_called_in_the_order_in_which_they_are_named(site: Path, make: Make, lines: Lines) -> None:
    import ld_deploy_hooks.plugins as package

    for name in ("ba", "bb"):
        (site / f"{name}.py").write_text(NAMING.format(name))
    package.__path__.append(str(site))
    try:
        plugins = make(builtin=("bb", "no_such_plugin", "ba"))
    finally:
        package.__path__.remove(str(site))
    assert [name for name, _ in plugins.provide_defaults(SETTINGS)] == ["bb", "ba"]
    (line,) = lines()
    assert "Plugin no_such_plugin (built-in) is not loaded: ModuleNotFoundError." in line


def test_entry_points_are_left_alone_without_autoload(site: Path, make: Make) -> None:
    install(site, "dist-a", "ea = ea", module="ea")
    assert make(autoload=False, names=()).plugins() == []
    assert "ea" not in sys.modules


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        (f"raise ValueError('{SECRET}')", "ValueError (broken.py, line 1)"),
        (f"\nimport no_such_module_{SECRET}", "ModuleNotFoundError (broken.py, line 2)"),
        (f"x = '{SECRET}'\n(", "SyntaxError (broken.py, line 2)"),
        ("import sys\nsys.exit(3)", "SystemExit (broken.py, line 2)"),
        ("raise BaseException", "BaseException (broken.py, line 1)"),
        ("raise GeneratorExit", "GeneratorExit (broken.py, line 1)"),
    ],
)
@pytest.mark.parametrize("way", ["entry point", "setting plugins", "deployhooks"])
def test_a_broken_plugin_is_one_line_and_takes_no_other_with_it(
    way: str, source: str, kind: str, site: Path, tmp_path: Path, make: Make, lines: Lines
) -> None:
    install(site, "dist-a", "ea = ea", module="ea")
    install(site, "dist-z", "ez = ez", module="ez")
    load: dict[str, Any] = {"autoload": True}
    if way == "entry point":
        install(site, "dist-m", "em = broken", module="broken", source=source)
        which = "Plugin em (entry point em = broken of dist-m)"
    elif way == "setting plugins":
        (site / "broken.py").write_text(source)
        load["names"] = ("broken",)
        which = "Plugin broken (setting plugins)"
    else:
        (tmp_path / "deployhooks.py").write_text(source)
        load["directory"] = tmp_path
        which = f"Plugin deployhooks ({tmp_path / 'deployhooks.py'})"
        kind = kind.replace("broken.py", "deployhooks.py")

    plugins = make(**load)

    assert [name for name, _ in plugins.provide_defaults(SETTINGS)] == ["ea", "ez"]
    (line,) = lines()
    assert line.startswith(f"{which} is not loaded: {kind}. ")
    assert "LD_DEPLOY_PLUGINS=no:" in line
    assert "_ld_deploy_hooks_file" not in sys.modules


def test_an_entry_point_that_leads_nowhere_is_one_line(site: Path, make: Make, lines: Lines) -> None:
    install(site, "dist-a", "gone = ea:missing", "here = ea", module="ea")
    assert [plugin.name for plugin in make(autoload=True).plugins()] == ["here"]
    (line,) = lines()
    assert line.startswith("Plugin gone (entry point gone = ea:missing of dist-a) is not loaded: AttributeError. ")


def test_a_package_whose_entry_points_cannot_be_read_takes_no_other_with_it(
    site: Path, make: Make, lines: Lines
) -> None:
    install(site, "dist-a", "ea = ea", module="ea")
    install(site, "dist-m", "a line without a sign")
    install(site, "dist-z", "ez = ez", module="ez")
    (site / "dist_z-1.0.dist-info" / "entry_points.txt").write_bytes(b"[ld_deploy_hooks]\nez = \xff")
    (site / "dist_m-1.0.dist-info" / "RECORD").write_text("")
    assert [plugin.name for plugin in make(autoload=True).plugins()] == ["ea"]
    said = lines()
    assert [line for line in said if line.startswith("The entry points of dist-m cannot be read: ")]
    assert [line for line in said if line.startswith("The entry points of an installed package cannot be read: ")]
    assert len(said) == 2


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("console", "ld_deploy_hooks.plugins.console"),
        ("ea", "a_module"),
        ("na", "na"),
        ("deployhooks", "_ld_deploy_hooks_file"),
    ],
)
def test_a_blocked_plugin_is_not_even_imported(
    name: str, module: str, site: Path, tmp_path: Path, make: Make, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "dist-a", "ea = a_module", module="a_module")
    (site / "na.py").write_text(NAMING.format("na"))
    (tmp_path / "deployhooks.py").write_text(NAMING.format("deployhooks"))
    monkeypatch.delitem(sys.modules, module, raising=False)
    wanted: dict[str, Any] = {"autoload": True, "builtin": ("console",), "directory": tmp_path}

    blocked = make(names=("na", f"no:{name}"), **wanted)

    assert [plugin.name for plugin in blocked.plugins()] == [
        other for other in ("deployhooks", "na", "ea", "console") if other != name
    ]
    assert module not in sys.modules
    assert lines() == []
    monkeypatch.delitem(sys.modules, "_ld_deploy_hooks_file", raising=False)


def test_deployhooks_is_loaded_by_its_path_alone(tmp_path: Path, make: Make, lines: Lines) -> None:
    source = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass C:\n    x: int\n"
    (tmp_path / "deployhooks.py").write_text(source + NAMING.format("of the file"))
    path = list(sys.path)
    plugins = make(directory=tmp_path)
    assert plugins.provide_defaults(SETTINGS) == [("deployhooks", {"version": "of the file"})]
    assert sys.path == path
    assert "deployhooks" not in sys.modules
    assert lines() == []
    del sys.modules["_ld_deploy_hooks_file"]


def test_a_folder_without_deployhooks_is_nothing_to_talk_about(tmp_path: Path, make: Make, lines: Lines) -> None:
    assert make(directory=tmp_path).plugins() == []
    assert lines() == []


def test_a_plugin_that_comes_twice_is_loaded_once(site: Path, make: Make, lines: Lines) -> None:
    install(site, "dist-a", "ea = ea", module="ea")
    assert [plugin.name for plugin in make(names=("ea", "ea"), autoload=True).plugins()] == ["ea"]
    assert lines() == []


def test_plugins_that_compare_equal_are_one_and_said(site: Path, make: Make, lines: Lines) -> None:
    install(site, "dist-a", "first = alike:first", "second = alike:second", module="ea")
    (site / "alike.py").write_text(
        "from dataclasses import dataclass\nfrom ld_deploy_hooks import hookimpl\n"
        "@dataclass\nclass Plugin:\n    where: str = 'here'\n    @hookimpl\n"
        "    def ld_deploy_started(self, deployment): pass\n"
        "first, second = Plugin(), Plugin()\n"
    )
    assert [plugin.name for plugin in make(autoload=True).plugins()] == ["second"]
    (line,) = lines()
    assert "first (entry point first = alike:first of dist-a) is not loaded: it compares equal to second" in line


@pytest.mark.parametrize(("name", "again"), [("dist-a", "dist-a"), ("dist-a", "Dist_A"), ("Dist.a", "dist--a")])
def test_of_a_package_that_is_there_twice_the_first_counts(
    name: str, again: str, site: Path, tmp_path: Path, make: Make, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = tmp_path / "behind"
    behind.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(behind)])
    install(site, name, "ea = ea", "gone = nowhere", module="ea")
    install(behind, again, "ea = ea", "gone = nowhere", "old = old", module="old")
    install(behind, "dist-ab", "other = other", module="other")
    assert [plugin.name for plugin in make(autoload=True).plugins()] == ["ea", "other"]
    (line,) = lines()
    assert line.startswith(f"Plugin gone (entry point gone = nowhere of {name}) is not loaded: ModuleNotFoundError")


def test_a_name_that_is_taken_is_said(site: Path, make: Make, lines: Lines) -> None:
    install(site, "dist-a", "console = ea", module="ea")
    plugins = make(autoload=True, builtin=("console",))
    assert [plugin.origin for plugin in plugins.plugins()] == ["built-in"]
    (line,) = lines()
    assert line.startswith("Plugin console (entry point console = ea of dist-a) is not loaded: its name is taken")


def test_ctrl_c_while_plugins_are_loaded_is_the_users(site: Path, make: Make, lines: Lines) -> None:
    (site / "interrupted.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        make(names=("interrupted",))
    assert lines() == []


def test_what_plugins_need_seldom_is_loaded_when_it_is_needed(run_python: Any) -> None:
    done = run_python(
        "import sys; import pluggy, inspect; before = set(sys.modules); import ld_deploy_hooks._plugins\n"
        "seldom = {'difflib', 'importlib.metadata', 'ld_deploy_hooks.plugins.console'}\n"
        "print(sorted(seldom & (set(sys.modules) - before)))"
    )
    assert done.stdout == "[]\n", done.stderr


# -- checking plugins -------------------------------------------------------------------------------------------------


class Sound:
    """The rest of every plugin that has a fault."""

    @hookimpl
    def ld_deploy_add_metadata(self, deployment: DeploymentRecord) -> Mapping[str, Any]:
        return {"sound": deployment.id}


class Misspelt(Sound):
    @hookimpl
    def ld_deploy_start(self, deployment: object) -> None: ...


class MisspeltAndUnmarked(Sound):
    def ld_deploy_event_deliverd(self, event: object) -> None: ...


class Unmarked(Sound):
    def ld_deploy_started(self, deployment: object) -> None: ...


class WithoutPrefix(Sound):
    @hookimpl
    def finished(self, deployment: object) -> None: ...


class MisspeltSpecname(Sound):
    @hookimpl(specname="ld_deploy_strated")
    def begin(self, deployment: object) -> None: ...


class UnknownArgument(Sound):
    @hookimpl
    def ld_deploy_failed(self, deployment: object, exception: object) -> None: ...


class DefaultArgument(Sound):
    @hookimpl
    def ld_deploy_failed(self, deployment: object, error: object = SECRET) -> None: ...


class KeywordOnly(Sound):
    @hookimpl
    def ld_deploy_failed(self, *, deployment: object) -> None: ...


class Everything(Sound):
    @hookimpl
    def ld_deploy_failed(self, **arguments: object) -> None: ...


class Wrapper(Sound):
    @hookimpl(wrapper=True)
    def ld_deploy_modify_event(self, event: object) -> Iterator[None]:
        yield


class OldWrapper(Sound):
    @hookimpl(hookwrapper=True)
    def ld_deploy_modify_event(self, event: object) -> Iterator[None]:
        yield


class Coroutine(Sound):
    @hookimpl
    async def ld_deploy_started(self, deployment: object) -> None: ...


class Generator(Sound):
    @hookimpl
    def ld_deploy_started(self, deployment: object) -> Iterator[None]:
        yield


class AsyncGenerator(Sound):
    @hookimpl
    async def ld_deploy_started(self, deployment: object) -> Any:
        yield


def report(team: str, deployment: object, error: object) -> None: ...


class LaterPartial(functools.partial[None]):
    """One that ``inspect`` takes for a function, as it does every one from Python 3.14 on."""

    def __get__(self, instance: object, owner: type | None = None) -> LaterPartial:
        return self


class Reporter:
    def __call__(self, deployment: object, error: object) -> None: ...


class Partial(Sound):
    def __init__(self) -> None:
        self.ld_deploy_failed = hookimpl(functools.partial(report, "payments"))


class PartialOfLaterPython(Sound):
    def __init__(self) -> None:
        self.ld_deploy_failed = hookimpl(LaterPartial(report, "payments"))


class UnmarkedPartial(Sound):
    def __init__(self) -> None:
        self.ld_deploy_failed = functools.partial(report, "payments")


class CallableObject(Sound):
    def __init__(self) -> None:
        self.ld_deploy_failed = hookimpl(Reporter())


@pytest.mark.parametrize(
    ("plugin", "wanted"),
    [
        (Partial, ["ld_deploy_failed is a partial and is never called", "Write a function", "@hookimpl"]),
        (PartialOfLaterPython, ["ld_deploy_failed is a LaterPartial and is never called", "Write a function"]),
        (UnmarkedPartial, ["ld_deploy_failed is a partial and is never called", "Write a function", "@hookimpl"]),
        (CallableObject, ["ld_deploy_failed is a Reporter and is never called", "Write a function", "@hookimpl"]),
        (Coroutine, ["ld_deploy_started is never called: it is a coroutine function", "make it a plain function"]),
        (Generator, ["ld_deploy_started is never called: it is a generator function", "make it a plain function"]),
        (AsyncGenerator, ["never called: it is an asynchronous generator", "make it a plain function"]),
        (Misspelt, ["ld_deploy_start is no hook", "Did you mean ld_deploy_started(deployment)?"]),
        (
            MisspeltAndUnmarked,
            ["ld_deploy_event_deliverd is no hook", "Did you mean ld_deploy_event_delivered(event)?"],
        ),
        (Unmarked, ["ld_deploy_started is not marked", "@hookimpl"]),
        (WithoutPrefix, ["finished is no hook", "Did you mean ld_deploy_finished(deployment)?"]),
        (MisspeltSpecname, ["ld_deploy_strated is no hook", "Did you mean ld_deploy_started(deployment)?"]),
        (UnknownArgument, ["no argument exception.", "ld_deploy_failed(deployment, error)"]),
        (DefaultArgument, ["argument error has a default", "ld_deploy_failed(deployment, error)"]),
        (KeywordOnly, ["argument deployment cannot be given", "ld_deploy_failed(deployment, error)"]),
        (Everything, ["argument arguments cannot be given", "ld_deploy_failed(deployment, error)"]),
        (Wrapper, ["ld_deploy_modify_event is never called: it is a wrapper"]),
        (OldWrapper, ["ld_deploy_modify_event is never called: it is a wrapper"]),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_function_that_cannot_be_called_is_one_line_and_the_plugins_other_hooks_count(
    plugin: type[Sound], wanted: list[str], make: Make, lines: Lines
) -> None:
    plugins = make(plugin())
    assert plugins.add_metadata(RECORD) == {"sound": "one"}
    plugins.register(Sound(), "p1", "this test")
    (line,) = lines()
    assert line.startswith("Plugin p0 (this test): ")
    assert not [words for words in wanted if words not in line]
    for call in CALLS.values():
        call(plugins)
    assert plugins.flush(5)
    assert lines() == [line]
    assert [plugin.hooks for plugin in plugins.plugins()] == [["ld_deploy_add_metadata"]] * 2


class Odd(Sound):
    """Nothing here is a fault."""

    ld_deploy_team = "payments"

    @property
    def moody(self) -> None:
        raise ValueError(SECRET)

    @property
    def ld_deploy_moody(self) -> None:
        raise ValueError(SECRET)

    @hookimpl(optionalhook=True)
    def ld_deploy_of_the_next_release(self, deployment: object) -> None: ...

    ld_deploy_started = staticmethod(hookspecs.ld_deploy_started)


def test_what_merely_looks_odd_is_no_fault(make: Make, lines: Lines) -> None:
    assert make(Odd()).add_metadata(RECORD) == {"sound": "one"}
    assert lines() == []


def test_a_module_without_any_hook_is_said(make: Make, lines: Lines) -> None:
    assert make(SimpleNamespace(setup=print)).plugins()[0].hooks == []
    assert lines() == ["Plugin p0 (this test) implements no hook: mark its functions with @hookimpl."]


# -- order ------------------------------------------------------------------------------------------------------------


def test_every_hook_is_called_with_what_it_says_in_the_order_of_events(make: Make, lines: Lines) -> None:
    calls: list[tuple[Any, ...]] = []
    every = SimpleNamespace()
    for hook in HOOKS:
        vars(every).update(vars(implement(hook, lambda *given, hook=hook: calls.append((hook, *given)))))
    plugins = make(every)
    failure, first, last = ValueError(SECRET), event("started"), event("failed")

    assert plugins.provide_defaults(SETTINGS) == []
    assert plugins.add_metadata(RECORD) == {}
    assert plugins.modify_event(first) is first
    plugins.started(RECORD)
    plugins.custom(RECORD, {"step": "migrated"})
    assert plugins.flush(5)
    assert plugins.modify_event(last) is last
    plugins.failed(RECORD, failure)
    plugins.finished(RECORD)
    plugins.event_delivered(first)
    plugins.event_rejected(last, "400: no")
    assert plugins.flush(5)

    (twin,) = [call[2] for call in calls if call[0] == "ld_deploy_failed"]
    assert (type(twin), twin.args) == (ValueError, failure.args)
    assert calls == [
        ("ld_deploy_provide_defaults", SETTINGS),
        ("ld_deploy_add_metadata", RECORD),
        ("ld_deploy_modify_event", first),
        ("ld_deploy_started", RECORD),
        ("ld_deploy_custom", RECORD, {"step": "migrated"}),
        ("ld_deploy_modify_event", last),
        ("ld_deploy_failed", RECORD, twin),
        ("ld_deploy_finished", RECORD),
        ("ld_deploy_event_delivered", first),
        ("ld_deploy_event_rejected", last, "400: no"),
    ]
    assert lines() == []


def test_tryfirst_and_trylast_are_respected(make: Make) -> None:
    hook = "ld_deploy_add_metadata"
    calls: list[str] = []
    options: list[dict[str, Any]] = [{"tryfirst": True}, {}, {"trylast": True}, {}]
    plugins = make(*(implement(hook, lambda *_, n=n: calls.append(f"p{n}"), **o) for n, o in enumerate(options)))
    CALLS[hook](plugins)
    assert plugins.flush(5)
    assert calls == ["p0", "p3", "p1", "p2"]


def test_two_functions_of_one_plugin_for_one_hook_are_called_apart(make: Make, lines: Lines) -> None:
    class Twice:
        @hookimpl(specname="ld_deploy_add_metadata")
        def one(self, deployment: object) -> None:
            raise ValueError

        @hookimpl(specname="ld_deploy_add_metadata")
        def two(self) -> dict[str, int]:
            return {"two": 2}

    assert make(Twice()).add_metadata(RECORD) == {"two": 2}
    assert len(lines()) == 1


def test_a_plugin_sees_what_those_before_it_have_provided(make: Make, lines: Lines) -> None:
    seen: list[SettingsView] = []

    def plugin(answer: object) -> SimpleNamespace:
        def body(settings: SettingsView) -> object:
            seen.append(settings)
            return answer

        return implement("ld_deploy_provide_defaults", body)

    # The last one is asked first.
    given = {"version": "1", "environment_key": "test", "strict": True}
    make(plugin(None), plugin(given), plugin({"version": " ", "application_key": 7})).provide_defaults(SETTINGS)
    assert seen == [SETTINGS, SETTINGS, replace(SETTINGS, version="1")]
    assert lines() == []


def test_a_plugin_that_writes_into_an_event_changes_it_for_nobody(make: Make, lines: Lines) -> None:
    seen: list[object] = []

    def spoil(event: DeploymentEvent) -> None:
        seen.append(event.event_metadata["nested"]["x"])
        event.event_metadata["nested"]["x"] = "spoilt"

    first = event(nested={"x": "mine"})
    plugins = make(*[implement("ld_deploy_modify_event", spoil)] * 2)
    assert plugins.modify_event(first) is first
    assert first.event_metadata["nested"] == {"x": "mine"}
    plugins = make(*(implement("ld_deploy_event_delivered", spoil) for _ in range(3)))
    plugins.event_delivered(first)
    assert plugins.flush(5)
    assert set(seen) == {"mine"}
    assert lines() == []


def test_of_one_key_the_plugin_that_is_called_first_wins(make: Make) -> None:
    answers = ({"a": 0, "b": 0}, {"b": 1, "c": 1})
    plugins = make(*(implement("ld_deploy_add_metadata", lambda _, a=answer: a) for answer in answers))
    assert plugins.add_metadata(RECORD) == {"a": 0, "b": 1, "c": 1}


# -- isolation --------------------------------------------------------------------------------------------------------

ERRORS = [ValueError, SystemExit, GeneratorExit, asyncio.CancelledError, RecursionError, DropEvent, Own]


@pytest.mark.parametrize(
    ("hook", "error"),
    [pair for pair in product(HOOKS, ERRORS) if pair != ("ld_deploy_modify_event", DropEvent)],
)
def test_a_hook_that_raises_is_one_line_and_stops_nothing(
    hook: str, error: type[BaseException], make: Make, lines: Lines
) -> None:
    called: list[str] = []
    plugins = make(
        implement(hook, lambda *_: called.append("p0")),
        implement(hook, raising(error(SECRET))),
        implement(hook, lambda *_: called.append("p2")),
    )
    CALLS[hook](plugins)
    assert plugins.flush(5)
    assert called == ["p2", "p0"] if hook in ASKS else set(called) == {"p0", "p2"}
    (line,) = lines()
    assert line.startswith(f"Plugin p1: {hook} raised {error.__name__} (<string>, line 1); ")
    assert "LD_DEPLOY_PLUGINS=no:p1" in line


def test_ctrl_c_while_a_plugin_is_asked_is_the_users(make: Make, lines: Lines) -> None:
    plugins = make(implement("ld_deploy_add_metadata", raising(KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        plugins.add_metadata(RECORD)
    assert lines() == []


@pytest.mark.parametrize("hook", [ASKS[0], TELLS[0]])
def test_a_keyboard_interrupt_in_another_thread_is_the_plugins_own(hook: str, make: Make, lines: Lines) -> None:
    plugins = make(implement(hook, raising(KeyboardInterrupt())))
    other = threading.Thread(target=CALLS[hook], args=(plugins,))
    other.start()
    other.join()
    assert plugins.flush(5)
    (line,) = lines()
    assert line.startswith(f"Plugin p0: {hook} raised KeyboardInterrupt ")


def test_what_a_signal_handler_raises_while_a_plugin_is_asked_is_the_deploys(make: Make, lines: Lines) -> None:
    def handler(number: int, frame: object) -> None:
        sys.exit(7)

    def body(_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    plugins = make(implement("ld_deploy_add_metadata", body))
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(SystemExit) as caught:
            plugins.add_metadata(RECORD)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 7
    assert lines() == []


class Treacherous(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise ValueError(SECRET)

    def __iter__(self) -> Iterator[str]:
        return iter(("a",))

    def __len__(self) -> int:
        return 1


async def coroutine() -> None: ...


def generator() -> Iterator[None]:
    yield


async def async_generator() -> Any:
    yield


@pytest.mark.parametrize(
    ("hook", "answer", "words"),
    [
        ("ld_deploy_provide_defaults", lambda: [("version", "1")], "returned a list, not a mapping"),
        ("ld_deploy_add_metadata", lambda: SECRET, "returned a str, not a mapping"),
        ("ld_deploy_add_metadata", lambda: {1: "one"}, "returned a mapping whose keys are not all strings"),
        ("ld_deploy_add_metadata", Treacherous, "raised ValueError"),
        ("ld_deploy_modify_event", lambda: {"eventType": "started"}, "returned a dict, not a DeploymentEvent"),
        ("ld_deploy_modify_event", lambda: False, "returned a bool, not a DeploymentEvent"),
        ("ld_deploy_add_metadata", coroutine, "returned a coroutine, whose body"),
        ("ld_deploy_started", coroutine, "returned a coroutine, whose body"),
        ("ld_deploy_started", generator, "returned a generator, whose body"),
        ("ld_deploy_started", async_generator, "returned a async_generator, whose body"),
    ],
)
def test_an_answer_that_is_nonsense_is_one_line_and_ignored(
    hook: str, answer: Callable[[], object], words: str, make: Make, lines: Lines
) -> None:
    sound = make(implement(hook, lambda *_: None))
    odd = make(implement(hook, lambda *_: answer()))
    expected = CALLS[hook](sound)
    assert CALLS[hook](odd) == expected
    assert odd.flush(5)
    gc.collect()  # a coroutine that is merely dropped warns here, and a warning fails the test
    (line,) = lines()
    assert line.startswith(f"Plugin p0: {hook} {words}")


def test_a_slow_ask_is_said_once_for_each_plugin_and_hook(make: Make, lines: Lines) -> None:
    def slow(*_: object) -> None:
        time.sleep(0.25)

    asks = SimpleNamespace(
        **vars(implement("ld_deploy_add_metadata", slow)), **vars(implement("ld_deploy_modify_event", slow))
    )
    plugins = make(asks, implement("ld_deploy_started", slow))
    plugins.add_metadata(RECORD)
    plugins.add_metadata(RECORD)
    plugins.modify_event(event())
    plugins.started(RECORD)
    assert plugins.flush(5)
    for hook, line in zip(("ld_deploy_add_metadata", "ld_deploy_modify_event"), lines(), strict=True):
        assert re.match(rf"Plugin p0: {hook} took \d\.\d s, and the deploy waited for it\. ", line)


# -- events -----------------------------------------------------------------------------------------------------------


def tagging(tag: str) -> SimpleNamespace:
    def body(event: DeploymentEvent) -> DeploymentEvent:
        tags = [*event.event_metadata.get("tags", ()), tag]
        return replace(event, event_metadata={**event.event_metadata, "tags": tags})

    return implement("ld_deploy_modify_event", body)


def test_each_plugin_modifies_what_the_one_before_made(make: Make, lines: Lines) -> None:
    plugins = make(tagging("p0"), implement("ld_deploy_modify_event", lambda _: None), tagging("p2"))
    assert plugins.modify_event(event()).event_metadata["tags"] == ["p2", "p0"]
    assert lines() == []


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"event_type": "finished"}, "eventType"),
        ({"event_time": 1}, "eventTime"),
        ({"version": "other"}, "the identity"),
        ({"environment_key": "test"}, "the identity"),
        ({"event_metadata": {"eventId": "e-2"}}, "eventId in eventMetadata"),
        ({"event_metadata": {"team": "payments"}}, "eventId in eventMetadata"),
        ({"event_time": 1, "version": "other"}, "eventTime and the identity"),
    ],
)
def test_what_must_stay_stays(change: dict[str, Any], what: str, make: Make, lines: Lines) -> None:
    plugins = make(tagging("p0"), implement("ld_deploy_modify_event", lambda event: replace(event, **change)))
    assert plugins.modify_event(event()) == event(tags=["p0"])
    (line,) = lines()
    assert line.startswith(f"Plugin p1: ld_deploy_modify_event changed {what}, which must stay")


@pytest.mark.parametrize("kind", ["started", "custom"])
def test_an_event_is_dropped_without_asking_further_plugins(kind: str, make: Make, lines: Lines) -> None:
    asked: list[object] = []
    plugins = make(
        implement("ld_deploy_modify_event", asked.append), implement("ld_deploy_modify_event", raising(DropEvent()))
    )
    with pytest.raises(DropEvent):
        plugins.modify_event(event(kind))
    assert asked == []
    assert lines() == []


@pytest.mark.parametrize("kind", ["finished", "failed"])
def test_an_end_cannot_be_dropped(kind: str, make: Make, lines: Lines) -> None:
    plugins = make(tagging("p0"), implement("ld_deploy_modify_event", raising(DropEvent())), tagging("p2"))
    assert plugins.modify_event(event(kind)) == event(kind, tags=["p2", "p0"])
    (line,) = lines()
    assert line.startswith(f"Plugin p1: ld_deploy_modify_event wanted to drop the {kind} event of billing-service. ")


# -- tells ------------------------------------------------------------------------------------------------------------


class Gate:
    """A plugin that hangs in ``ld_deploy_started`` until it is let go, and notes what it is told."""

    def __init__(self, after: Callable[[], None] = lambda: None) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self.told: list[str] = []
        self.after = after

    @hookimpl
    def ld_deploy_started(self, deployment: DeploymentRecord) -> None:
        self.reached.set()
        assert self.go.wait(10)
        self.told.append("started")
        self.after()

    @hookimpl
    def ld_deploy_finished(self, deployment: DeploymentRecord) -> None:
        self.told.append("finished")


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.go.set()


def test_a_tell_that_hangs_delays_nothing_but_later_tells_of_its_plugin(gate: Gate, make: Make) -> None:
    plugins = make(gate, implement("ld_deploy_add_metadata", lambda _: {"a": 1}))
    begun = time.monotonic()
    plugins.started(RECORD)
    plugins.finished(RECORD)
    assert plugins.add_metadata(RECORD) == {"a": 1}
    assert gate.reached.wait(5)
    assert gate.told == []
    assert not plugins.flush(0.05)
    assert not plugins.flush(0)
    assert time.monotonic() - begun < 2
    gate.go.set()
    assert plugins.flush(5)
    assert gate.told == ["started", "finished"]


def test_a_plugin_that_hangs_eats_no_tells_of_others_and_is_named(gate: Gate, make: Make, lines: Lines) -> None:
    told: list[str] = []
    other = [implement(hook, lambda *_, hook=hook: told.append(hook)) for hook in TELLS]
    plugins = make(*other[:2], gate, *other[2:])
    plugins.started(RECORD)
    for hook in TELLS:
        CALLS[hook](plugins)
    assert not plugins.flush(0.05)
    assert lines() == []
    assert soon(lambda: sorted(told) == sorted([*TELLS, "ld_deploy_started"]))
    for _ in range(2):  # of one call it is said once
        assert not plugins.flush(0.05, say=True)
    plugins.close()
    (line,) = lines()
    assert line.startswith("Plugin p2: ld_deploy_started did not return")
    assert "2 later tell(s) were not made" in line
    gate.go.set()


def test_who_closes_in_time_hears_of_no_plugin(make: Make, lines: Lines) -> None:
    plugins = make(implement("ld_deploy_started", lambda _: None))
    for _ in range(20):
        plugins.started(RECORD)
    assert plugins.flush(5, say=True)
    plugins.close()
    assert lines() == []


def test_a_tell_that_returns_as_the_process_ends_is_not_taken_for_one_that_hangs(make: Make, lines: Lines) -> None:
    def body(_: object) -> None:
        reached.set()
        while not plugins._tells.closed:
            time.sleep(0.001)

    reached = threading.Event()
    plugins = make(implement("ld_deploy_started", body))
    plugins.started(RECORD)
    assert reached.wait(5)
    plugins.close()
    assert lines() == []


def test_who_hears_of_the_end_alone_has_a_thread_from_the_start_on(make: Make) -> None:
    ask = implement("ld_deploy_modify_event", lambda _: None)
    plugins = make(ask, *(implement(hook, lambda *_: None) for hook in TELLS if hook != "ld_deploy_started"))
    plugins.started(RECORD)
    threads = tell_threads()
    assert len(threads) == len(TELLS) - 1
    plugins.event_delivered(event())
    assert plugins.flush(5)
    assert tell_threads() == threads


def test_built_in_plugins_share_a_thread(make: Make) -> None:
    plugins = make(builtin=("git", "console"))
    plugins.started(RECORD)
    assert plugins.flush(5)
    assert len(tell_threads()) == 1


def test_all_tells_of_a_plugin_run_in_one_thread_that_begins_with_the_first(make: Make) -> None:
    where: list[threading.Thread] = []
    plugins = make(implement("ld_deploy_started", lambda _: where.append(threading.current_thread())))
    for hook in set(HOOKS) - {"ld_deploy_started"}:
        CALLS[hook](plugins)
    assert plugins.flush(5)
    assert tell_threads() == []
    for _ in range(3):
        plugins.started(RECORD)
    assert plugins.flush(5)
    assert where == tell_threads() * 3
    assert where[0].daemon


def test_many_threads_tell_at_once_and_nothing_is_lost_or_out_of_order(make: Make) -> None:
    told: list[str] = []
    plugins = make(implement("ld_deploy_event_rejected", lambda _, error: told.append(error)))
    interval = sys.getswitchinterval()
    start = threading.Barrier(8, action=lambda: sys.setswitchinterval(1e-6), timeout=30)

    def tell(who: int) -> None:
        start.wait()
        for number in range(50):
            plugins.event_rejected(event(), f"{who} {number}")

    threads = [threading.Thread(target=tell, args=(who,)) for who in range(8)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert plugins.flush(5)
    assert len(tell_threads()) == 1
    for who in range(8):
        assert [line for line in told if line.startswith(f"{who} ")] == [f"{who} {number}" for number in range(50)]


def test_a_flush_inside_a_tell_does_not_wait_for_itself(make: Make) -> None:
    answers: list[object] = []
    plugins = make(implement("ld_deploy_started", lambda _: answers.append(plugins.flush(60))))
    plugins.started(RECORD)
    assert plugins.flush(5)
    assert answers == [False]


def test_metadata_of_a_custom_event_is_what_it_was_and_read_only(gate: Gate, make: Make, lines: Lines) -> None:
    def spoil(_: object, metadata: Any) -> None:
        seen.append(dict(metadata))
        metadata["step"] = "spoilt"

    seen: list[dict[str, Any]] = []
    plugins = make(gate, implement("ld_deploy_custom", spoil))
    metadata = {"step": "migrated"}
    plugins.started(RECORD)
    plugins.custom(RECORD, metadata)
    metadata["step"] = "later"
    gate.go.set()
    assert plugins.flush(5)
    assert seen == [{"step": "migrated"}]
    assert metadata == {"step": "later"}
    assert "raised TypeError" in lines()[0]


def test_an_error_that_was_told_is_kept_alive_by_nobody(make: Make) -> None:
    plugins = make(implement("ld_deploy_failed", lambda *_: None))
    error = Own()
    gone = weakref.ref(error)
    plugins.failed(RECORD, error)
    assert plugins.flush(5)
    del error
    assert soon(lambda: gone() is None)


def test_after_close_nothing_is_told_and_nothing_logged(make: Make, lines: Lines) -> None:
    gate = Gate(after=raising(ValueError()))
    plugins = make(gate, implement("ld_deploy_add_metadata", raising(ValueError())))
    plugins.started(RECORD)
    plugins.finished(RECORD)
    assert gate.reached.wait(5)
    plugins.close()
    plugins.finished(RECORD)
    assert plugins.flush(5)
    gate.go.set()
    assert soon(lambda: not tell_threads())
    assert gate.told == ["started"]
    assert plugins.add_metadata(RECORD) == {}
    plugins.close()
    (line,) = lines()
    assert line.startswith("Plugin p0: ld_deploy_started did not return")
    assert "1 later tell(s)" in line


def test_after_close_nothing_is_kept(make: Make) -> None:
    plugins = make(implement("ld_deploy_failed", lambda *_: None))
    plugins.close()
    error = Own()
    gone = weakref.ref(error)
    plugins.failed(RECORD, error)
    del error
    assert gone() is None
    assert tell_threads() == []


class Slow(logging.Handler):
    """A handler that takes its time to write a line."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.writing, self.go, self.written = threading.Event(), threading.Event(), threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.writing.set()
        self.go.wait(self.seconds)
        self.written.set()


@pytest.mark.parametrize(("seconds", "waits"), [(0.2, True), (10, False)])
def test_close_waits_a_moment_for_the_line_that_is_being_written(seconds: float, waits: bool, make: Make) -> None:
    plugins = make(implement("ld_deploy_started", raising(ValueError())))
    handler = Slow(seconds)
    logger = logging.getLogger("ld_deploy_hooks")
    logger.addHandler(handler)
    try:
        plugins.started(RECORD)
        assert handler.writing.wait(5)
        begun = time.monotonic()
        plugins.close()
        assert time.monotonic() - begun < 2
        assert handler.written.is_set() is waits
    finally:
        handler.go.set()
        logger.removeHandler(handler)


def test_a_call_that_fails_outside_of_every_plugin_stops_no_later_one(lines: Lines) -> None:
    tells, done = Tells(), threading.Event()
    tells.tell("plugin a", "a", "ld_deploy_started", raising(Own(SECRET)))
    tells.tell("plugin a", "a", "ld_deploy_started", done.set)
    assert done.wait(5)
    tells.close()
    assert soon(lambda: not tell_threads())
    (line,) = lines()
    assert line.startswith("A tell failed with Own outside of a plugin")


# -- processes --------------------------------------------------------------------------------------------------------

CHILD = """
import os, sys, threading, time
from ld_deploy_hooks._plugins import Plugins
from ld_deploy_hooks._records import DeploymentRecord, Identity
from ld_deploy_hooks.hookspecs import hookimpl

RECORD = DeploymentRecord(id="one", identity=Identity("p", "e", "a", "v"), state="started")

class Plugin:
    def __init__(self, body): self.body = body
    @hookimpl
    def ld_deploy_started(self, deployment): self.body()

def plugins_of(body):
    plugins = Plugins()
    plugins.register(Plugin(body), "plugin", "this test")
    return plugins
"""


def test_where_no_thread_can_start_tells_are_skipped_and_said_once(run_python: Any) -> None:
    done = run_python(
        CHILD
        + "plugins = plugins_of(lambda: print('told'))\n"
        + "threading.stack_size(1 << 46)\n"  # more than there is to map: pthread_create fails as at a limit
        + "import weakref\n"
        + "from dataclasses import replace\n"
        + "first = replace(RECORD, id='first')\n"
        + "gone = weakref.ref(first)\n"
        + "plugins.started(first)\n"
        + "del first\n"
        + "for _ in range(3): plugins.started(RECORD)\n"
        + "print(plugins.flush(60), gone() is None)\n"
    )
    assert done.stdout == "True True\n"
    assert done.stderr.startswith("No thread could be started to tell plugin plugin what happens")
    assert len(done.stderr.splitlines()) == 1


def test_a_plugin_that_sleeps_does_not_hold_the_process_up(run_python: Any) -> None:
    begun = time.monotonic()
    done = run_python(
        CHILD
        + "plugins = plugins_of(lambda: time.sleep(60))\n"
        + "plugins.started(RECORD)\nplugins.started(RECORD)\n"
        + "print(plugins.flush(0.1))\nplugins.close()\n"
    )
    assert (done.returncode, done.stdout) == (0, "False\n")
    assert done.stderr.count("Plugin plugin: ld_deploy_started did not return") == 1
    assert time.monotonic() - begun < 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_a_thread_of_its_own_and_none_of_the_parents_tells(run_python: Any) -> None:
    # The parent's thread hangs in a tell, with another one waiting, and holds every lock while it forks.
    done = run_python(
        CHILD
        + textwrap.dedent(
            """
            import warnings
            warnings.simplefilter("ignore")
            reached, go = threading.Event(), threading.Event()
            parent = os.getpid()
            def body():
                if os.getpid() == parent:
                    reached.set()
                    (listener,) = plugins._tells._listeners.values()
                    with plugins._tells._speaking, listener._starting:
                        go.wait(10)
                os.write(1, b"parent\\n" if os.getpid() == parent else b"child\\n")
                raise ValueError
            plugins = plugins_of(body)
            dropped = Plugins()
            del dropped
            plugins.started(RECORD)
            plugins.started(RECORD)
            reached.wait(10)
            for _ in range(3):
                pid = os.fork()
                if not pid:
                    plugins._tells.say("child")
                    plugins.started(RECORD)
                    os._exit(0 if plugins.flush(10) else 1)
                assert os.waitpid(pid, 0)[1] == 0
            go.set()
            assert plugins.flush(10)
            """
        )
    )
    assert (done.returncode, done.stdout.split()) == (0, ["child"] * 3 + ["parent"] * 2), done.stderr
    assert len(done.stderr.splitlines()) == 3 * 2 + 2


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no such signal here")
def test_a_signal_handler_may_say_what_is_wrong_in_the_middle_of_another_line(run_python: Any) -> None:
    done = run_python(
        CHILD
        + textwrap.dedent(
            """
            import logging, signal
            class Interrupted(logging.Handler):
                def emit(self, record):
                    said.append(record.getMessage())
                    if len(said) == 1:
                        os.kill(os.getpid(), signal.SIGALRM)
            said = []
            logging.getLogger("ld_deploy_hooks").addHandler(Interrupted())
            plugins = plugins_of(None)
            threading.stack_size(1 << 46)
            signal.signal(signal.SIGALRM, lambda number, frame: plugins.started(RECORD))
            plugins._tells.say("first")
            print(*(line.split()[0] for line in said))
            """
        ),
        timeout=10,
    )
    assert done.stdout == "first No\n", done.stderr


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer here")
def test_a_signal_handler_may_tell_and_flush_whatever_it_interrupts(run_python: Any) -> None:
    done = run_python(
        CHILD
        + textwrap.dedent(
            """
            import signal
            told, handed_over, interrupts = [], 0, 0
            def handler(number, frame):
                global handed_over, interrupts
                interrupts += 1
                handed_over += 1
                plugins.started(RECORD)
                plugins.flush(0.05)  # in vain where it has interrupted the start of the thread itself
                signal.setitimer(signal.ITIMER_REAL, 0.0003 + interrupts % 7 / 10_000)
            every = [plugins_of(lambda: told.append(1))]
            plugins = every[0]
            signal.signal(signal.SIGALRM, handler)
            signal.setitimer(signal.ITIMER_REAL, 0.001)
            deadline = time.monotonic() + 10
            while interrupts < 200 and time.monotonic() < deadline:
                every.append(plugins_of(lambda: told.append(1)))
                plugins = every[-1]
                for _ in range(5):
                    handed_over += 1
                    plugins.started(RECORD)
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            print(interrupts >= 200, all(plugins.flush(5) for plugins in every), len(told) == handed_over)
            """
        )
    )
    assert (done.returncode, done.stdout) == (0, "True True True\n"), done.stderr
