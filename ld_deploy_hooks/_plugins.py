"""The plugins of this process: found, checked, and called one at a time, so that none can harm another or the deploy.

Importing this room loads pluggy: import it when a deployment starts, not before.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from inspect import isroutine
from itertools import chain
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple, TypeVar

import pluggy

from ld_deploy_hooks import _deployhooks, hookspecs
from ld_deploy_hooks._clock import monotonic
from ld_deploy_hooks._entry_points import entry_points
from ld_deploy_hooks._errors import DropEvent
from ld_deploy_hooks._outside import is_from_outside
from ld_deploy_hooks._own import own
from ld_deploy_hooks._plugin_faults import (
    HOOKS,
    NonsenseError,
    answer_of,
    fault_of,
    looks_like_a_hook,
    read_event,
    read_mapping,
    where_raised,
)
from ld_deploy_hooks._records import DeploymentEvent, DeploymentRecord
from ld_deploy_hooks._tells import Tells

__all__ = ["BUILT_IN", "PluginInfo", "Plugins"]

T = TypeVar("T")

_ASKS = {"ld_deploy_provide_defaults", "ld_deploy_add_metadata", "ld_deploy_modify_event"}
BUILT_IN = ("ci", "git", "console", "opentelemetry")
_BUILT_IN = "built-in"  # the origin of our own
_SLOW = 0.2  # seconds of an ask after which it is said, for the deploy waits for it


class PluginInfo(NamedTuple):
    """A plugin that is loaded.

    Attributes:
        name: what ``no:NAME`` blocks it by.
        origin: where it came from, in words.
        hooks: the names of the hooks that it implements, in alphabetical order.
    """

    name: str
    origin: str
    hooks: list[str]


class _Manager(pluggy.PluginManager):
    """Registers what of a plugin can be called; ``faults`` says why the rest cannot."""

    def __init__(self) -> None:
        super().__init__(hookspecs.PROJECT_NAME)
        self.faults: list[str] = []
        self.add_hookspecs(hookspecs)

    def parse_hookimpl_opts(self, plugin: object, name: str) -> pluggy.HookimplOpts | None:
        """Return the options of ``name`` if it is an implementation that can be called."""
        try:
            if isinstance(plugin, ModuleType) and not isroutine(vars(plugin).get(name)) and not looks_like_a_hook(name):
                # Pluggy comes to the same, and looks at each name of a module for so long that the deploy feels it.
                return None
            options = super().parse_hookimpl_opts(plugin, name)
            if options is None and not looks_like_a_hook(name):
                return None
            function = getattr(plugin, name)
        except Exception:  # a property of the plugin's (pluggy before 1.7 reads every one), or an object's __class__
            return None
        fault = fault_of(name, function, options)
        if fault is None:
            return options
        self.faults.append(fault)
        return None

    def implementations(self, hook: str) -> list[pluggy.HookImpl]:
        """Return the implementations of ``hook``, the one to call first at the front."""
        caller: pluggy.HookCaller = getattr(self.hook, hook)
        return caller.get_hookimpls()[::-1]


class Plugins:
    """The plugins that are loaded, and one method for each hook.

    Asks (imperative) call plugins here and now and return what they answer. Tells (past tense) are handed to threads
    and return at once. Whatever a plugin does, neither raises, but for :exc:`DropEvent` where it says so, and for
    Ctrl-C and what a signal handler raises while a plugin is asked in the main thread.
    """

    def __init__(self) -> None:
        self._manager = _Manager()
        self._origins: dict[str, str] = {}
        self._tells = Tells()
        self._slow: set[tuple[str, str]] = set()

    @classmethod
    def load(
        cls,
        *,
        names: Sequence[str] = (),
        autoload: bool = True,
        builtin: Sequence[str] = BUILT_IN,
        directory: Path | None = None,
    ) -> Plugins:
        """Return the plugins that the settings ask for; what cannot be loaded is a line, and the others are loaded.

        Called first: ``deployhooks.py``, then ``names`` in their order, entry points by name, ``builtin`` in its order.

        Args:
            names: the setting ``plugins``: modules to load; ``no:NAME`` blocks a plugin, wherever it comes from.
            autoload: whether entry points of the group ``ld_deploy_hooks`` are loaded.
            builtin: modules in ``ld_deploy_hooks.plugins``; what is written here is the plugin's name.
            directory: where a ``deployhooks.py`` may lie (plugin name ``deployhooks``); None: nowhere.
        """
        plugins = cls()
        wanted = [name for name in names if not name.startswith("no:")]
        for blocked in set(names).difference(wanted):
            plugins._manager.set_blocked(blocked.removeprefix("no:").strip())
        # Pluggy calls first what was registered last.
        for name in reversed(builtin):
            plugins._load(name, _BUILT_IN, partial(importlib.import_module, f"ld_deploy_hooks.plugins.{name}"))
        if autoload:
            points = entry_points(hookspecs.PROJECT_NAME, plugins._tells.say)
            for point, package in sorted(points, key=lambda each: each[0].name, reverse=True):
                plugins._load(point.name, f"entry point {point.name} = {point.value} of {package}", point.load)
        for name in reversed(wanted):
            plugins._load(name, "setting plugins", partial(importlib.import_module, name))
        if directory is not None:
            path = directory / _deployhooks.FILE
            plugins._load(path.stem, str(path), partial(_deployhooks.load, directory))
        return plugins

    def register(self, plugin: object, name: str, origin: str) -> None:
        """Add ``plugin``, a module or any object with functions marked by ``hookimpl``; it is called first.

        Args:
            plugin: skipped if it is registered already, or if its name is blocked or taken.
            name: what ``no:NAME`` blocks it by.
            origin: where it came from, in words.
        """
        if self._manager.is_blocked(name):
            return
        same = self._manager.get_name(plugin)
        if same is not None:
            if self._manager.get_plugin(same) is not plugin:
                self._tells.say(
                    f"Plugin {name} ({origin}) is not loaded: it compares equal to {same} ({self._origins[same]}), and "
                    "pluggy takes the two for one. Make them compare by identity (a dataclass with eq=False)."
                )
            return
        if self._manager.has_plugin(name):
            self._tells.say(
                f"Plugin {name} ({origin}) is not loaded: its name is taken by another one ({self._origins[name]}). "
                f"Rename it, or block both with LD_DEPLOY_PLUGINS=no:{name}."
            )
            return
        self._manager.faults.clear()
        self._origins[name] = origin
        self._manager.register(plugin, name)
        for fault in self._manager.faults:
            self._tells.say(f"Plugin {name} ({origin}): {fault}")
        if not self._manager.faults and not self._manager.get_hookcallers(plugin):
            self._tells.say(f"Plugin {name} ({origin}) implements no hook: mark its functions with @hookimpl.")

    def _load(self, name: str, origin: str, load: Callable[[], object]) -> None:
        if self._manager.is_blocked(name):
            return
        try:
            plugin = load()
            if plugin is not None:
                self.register(plugin, name, origin)
        except _deployhooks.RefusedError as refusal:
            self._tells.say(f"Plugin {name} ({origin}) is not loaded: {refusal}.")
        except BaseException as error:
            if is_from_outside(error):
                raise
            self._tells.say(
                f"Plugin {name} ({origin}) is not loaded: {where_raised(error)}. Everything else goes on. Import it in "
                f"a Python shell to see more, or block it with LD_DEPLOY_PLUGINS=no:{name}."
            )

    def plugins(self) -> list[PluginInfo]:
        """Return what is loaded, the plugin that is called first at the front."""
        hooks: dict[str, list[str]] = {name: [] for name in reversed(self._origins)}
        for hook in sorted(HOOKS):
            for name in {implementation.plugin_name for implementation in self._manager.implementations(hook)}:
                hooks[name].append(hook)
        return [PluginInfo(name, self._origins[name], hooks[name]) for name in hooks]

    # -- asks ---------------------------------------------------------------------------------------------------------

    def provide_defaults(self, settings: hookspecs.SettingsView) -> list[tuple[str, Mapping[str, Any]]]:
        """Return (plugin name, what it provides), the plugin whose values win at the front.

        Each sees what those before it have provided: it need not look for that.
        """
        answers: list[tuple[str, Mapping[str, Any]]] = []
        for implementation in self._manager.implementations("ld_deploy_provide_defaults"):
            arguments = {"settings": settings}
            answer = self._ask(implementation, "ld_deploy_provide_defaults", arguments, read_mapping)
            if answer is not None:
                answers.append((implementation.plugin_name, answer))
                open_fields = [name for name, value in vars(settings).items() if value is None]
                found = {name: answer.get(name) for name in open_fields}
                texts = {name: text for name, text in found.items() if type(text) is str and text.strip()}
                settings = replace(settings, **texts)
        return answers

    def add_metadata(self, record: DeploymentRecord) -> dict[str, Any]:
        """Return what plugins add to the deploymentMetadata; of one key the plugin that is called first wins."""
        hook = "ld_deploy_add_metadata"
        merged: dict[str, Any] = {}
        for implementation in self._manager.implementations(hook):
            merged = {**(self._ask(implementation, hook, {"deployment": record}, read_mapping) or {}), **merged}
        return merged

    def modify_event(self, event: DeploymentEvent) -> DeploymentEvent:
        """Return what plugins make of ``event``, each of what the one before made of it.

        Raises:
            DropEvent: a plugin will not have it told. Never for an end: there it is refused with a line.
        """
        hook = "ld_deploy_modify_event"
        for implementation in self._manager.implementations(hook):
            try:
                answer = self._ask(implementation, hook, {"event": event}, partial(read_event, event), DropEvent)
            except DropEvent:
                if not event.event_type.is_end:
                    raise
                self._tells.say(
                    f"Plugin {implementation.plugin_name}: {hook} wanted to drop the {event.event_type} event of "
                    f"{event.application_key}. It is told all the same, or LaunchDarkly would show the deployment as "
                    "in progress for ever. Drop the started event instead."
                )
            else:
                event = event if answer is None else answer
        return event

    def _ask(
        self,
        implementation: pluggy.HookImpl,
        hook: str,
        arguments: Mapping[str, object],
        read: Callable[[object], T],
        *passed_on: type[Exception],
    ) -> T | None:
        begun = monotonic()
        try:
            answer = self._call(implementation, own(arguments))
            return None if answer is None else read(answer)
        except passed_on:
            raise
        except BaseException as error:
            if is_from_outside(error):
                raise
            self._complain(implementation, hook, error)
            return None
        finally:
            took, which = monotonic() - begun, (implementation.plugin_name, hook)
            if took > _SLOW and which not in self._slow:
                self._slow.add(which)
                self._tells.say(
                    f"Plugin {implementation.plugin_name}: {hook} took {took:.1f} s, and the deploy waited for it. "
                    "Move slow work into a tell such as ld_deploy_started, which runs beside the deploy."
                )

    # -- tells --------------------------------------------------------------------------------------------------------

    def started(self, record: DeploymentRecord) -> None:
        """Tell that a deployment has started."""
        self._tell("ld_deploy_started", deployment=record)
        # Who hears of the end alone may do so at exit, where no thread can be started any more.
        for implementation in chain.from_iterable(map(self._manager.implementations, HOOKS.keys() - _ASKS)):
            self._tells.begin(self._listener(implementation))

    def finished(self, record: DeploymentRecord) -> None:
        """Tell that a deployment has ended well."""
        self._tell("ld_deploy_finished", deployment=record)

    def failed(self, record: DeploymentRecord, error: BaseException | None) -> None:
        """Tell that a deployment has failed; ``error`` is what left it, if anything did."""
        self._tell("ld_deploy_failed", deployment=record, error=error)

    def custom(self, record: DeploymentRecord, metadata: Mapping[str, Any]) -> None:
        """Tell an event that the deploy code has made."""
        self._tell("ld_deploy_custom", deployment=record, metadata=MappingProxyType(dict(metadata)))

    def event_delivered(self, event: DeploymentEvent) -> None:
        """Tell that LaunchDarkly has accepted an event."""
        self._tell("ld_deploy_event_delivered", event=event)

    def event_rejected(self, event: DeploymentEvent, line: str) -> None:
        """Tell that an event is refused for good; ``line`` says why."""
        self._tell("ld_deploy_event_rejected", event=event, error=line)

    def flush(self, timeout: float, *, say: bool = False) -> bool:
        """Wait until everything told so far is done, at most ``timeout`` seconds; False if that was not enough.

        Args:
            timeout: in seconds.
            say: whether a line names what that was not enough for.
        """
        return self._tells.flush(timeout, say=say)

    def close(self) -> None:
        """Tell nothing more; a last line names what is still under way, and goes on in silence."""
        self._tells.close()

    def _tell(self, hook: str, **arguments: object) -> None:
        for implementation in self._manager.implementations(hook):
            call = partial(self._tell_one, implementation, hook, own(arguments))
            self._tells.tell(self._listener(implementation), implementation.plugin_name, hook, call)

    def _listener(self, implementation: pluggy.HookImpl) -> str:
        # Ours are quick, and share a thread: even the start of one is felt by the deploy.
        name = implementation.plugin_name
        return "the built-in plugins" if self._origins[name] == _BUILT_IN else f"plugin {name}"

    def _tell_one(self, implementation: pluggy.HookImpl, hook: str, arguments: Mapping[str, object]) -> None:
        try:
            self._call(implementation, arguments)
        except BaseException as error:
            self._complain(implementation, hook, error)

    def _call(self, implementation: pluggy.HookImpl, arguments: Mapping[str, object]) -> object:
        """Call one implementation alone, as pluggy would: with wrappers and defaults refused there is no more to it."""
        return answer_of(implementation.function, *(arguments[name] for name in implementation.argnames))

    def _complain(self, implementation: pluggy.HookImpl, hook: str, error: BaseException) -> None:
        if isinstance(error, NonsenseError):
            what = f"{error}; its answer is ignored"
        else:
            what = f"raised {where_raised(error)}; everything else goes on"
        name = implementation.plugin_name
        self._tells.say(f"Plugin {name}: {hook} {what}. Mend it, or block the plugin with LD_DEPLOY_PLUGINS=no:{name}.")
