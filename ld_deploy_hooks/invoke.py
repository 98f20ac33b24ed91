"""Invoke: the executor that tells each call of the command line as one deployment, and what else its tasks need.

In ``invoke.yaml``, with no change to any task::

    tasks:
      executor_class: ld_deploy_hooks.invoke.Executor
    ld_deploy_hooks:
      tasks:
        deploy: {application_key: billing-service}
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from invoke.config import Config, DataProxy, merge_dicts
from invoke.context import Context
from invoke.exceptions import Exit, UnexpectedExit
from invoke.executor import Executor as InvokeExecutor
from invoke.program import Program
from invoke.tasks import Call as InvokeCall
from invoke.tasks import Task

from ld_deploy_hooks._decorator import marks_of
from ld_deploy_hooks._deployment import Block, Call, deployment
from ld_deploy_hooks._door import Surroundings, host_room
from ld_deploy_hooks._errors import SettingsError
from ld_deploy_hooks._log import internal_fault, say_once
from ld_deploy_hooks._mapping import mapped
from ld_deploy_hooks._steps import Group, Step, Steps
from ld_deploy_hooks._verdicts import FINISHED, Verdict, exit_code_of, plain_verdict

__all__ = ["Deploying", "Executor", "install"]

_SECTION = "ld_deploy_hooks"
# What ends a command that Ctrl-C was forwarded to: SIGINT, or its shell's 128 + 2.
_INTERRUPTED = (-2, 130)
# Exceptions that were raised while others were handled; where they refer to each other in a circle, looking ends there.
_DEEPEST = 100

# The executors that are at work in this process, the innermost last. No ContextVar: a thread that a task starts is at
# work under the same executor.
_at_work: list[Deploying] = []
# The configuration of the executor that was done last: its program keeps it, but does not run any more.
_done_with: Any = None


class Deploying:
    """Mix-in for executors: ``class Executor(Deploying, invoke.Executor)``.

    Each call of the command line whose task is decorated or mapped becomes one deployment, over its pre and post tasks
    and all its hosts. It starts before the first of them and ends when a call of another one begins, or when
    ``execute`` returns or raises.
    """

    collection: Any
    config: Any
    core: Any
    _steps: Steps | None = None
    # The calls whose pre and post tasks are being looked up, the command line's own first.
    _expanding: tuple[Any, ...] = ()
    # What became of each call, by the id of its copy (which it holds, so that no other object gets that id).
    _followed: dict[int, tuple[Any, Step]]

    def execute(self, *tasks: Any) -> Any:
        """Execute ``tasks`` as the executor below does, and end the deployments that they open."""
        global _done_with
        before = self._steps, self._expanding
        self._steps, self._expanding = Steps(), ()
        _at_work.append(self)
        try:
            with self._steps:
                return super().execute(*tasks)  # type: ignore[misc]
        finally:
            # Not pop(): executors may be at work in several threads.
            del _at_work[next(at for at in reversed(range(len(_at_work))) if _at_work[at] is self)]
            self._steps, self._expanding = before
            _done_with = self.config

    def expand_calls(self, calls: Any, *args: Any, **kwargs: Any) -> Any:
        """Expand ``calls`` as the executor below does, but one by one, so that what comes of each is known."""
        expand: Callable[..., list[Any]] = super().expand_calls  # type: ignore[misc]
        if self._steps is None or not calls or self.keeps_hands_off():
            return expand(calls, *args, **kwargs)
        outer = self._expanding
        if not outer:
            self._followed = {}
        expanded: list[Any] = []
        for call in calls:
            self._expanding = (*outer, call)
            try:
                expanded += self._follow(call, expand([call], *args, **kwargs))
            finally:
                self._expanding = outer
        if outer or any(step.groups for _, step in self._followed.values()):
            # Calls of no deployment too: where one of them begins, the one before it has ended.
            return expanded
        return [self._followed[id(call)][1].call if id(call) in self._followed else call for call in expanded]

    def keeps_hands_off(self) -> bool:
        """Whether nothing of this run is a deployment."""
        return False

    def hosts_of(self, calls: list[Any]) -> list[str | None]:
        """Return how the host of each call is told; None for a call without one."""
        return [None] * len(calls)

    def _follow(self, direct: Any, calls: list[Any]) -> list[Any]:
        """Return ``calls``, which is what became of ``direct``, as copies that say so when they begin."""
        main = direct if isinstance(direct, InvokeCall) else InvokeCall(direct)
        _refuse_what_is_never_awaited(main.task)
        try:
            groups = self._groups(main)
            mine = [call for call in calls if id(call) not in self._followed]
            hosts = dict(zip(map(id, mine), self.hosts_of(mine), strict=True))
            return [self._followed_as(call, main, groups, hosts) for call in calls]
        except Exception as error:
            internal_fault("Looking for deployments among the tasks", error)
            return calls

    def _followed_as(self, call: Any, main: Any, groups: list[Group], hosts: dict[int, str | None]) -> Any:
        bound, step = self._followed.get(id(call), (call, None))
        own = step is None and call.task is main.task
        if step is None:
            step = Step(call, own=groups if own else [], host=hosts[id(call)])
            # copy.copy recurses for ever, ConnectionCall.clone raises KeyError; and the calls of pre tasks are shared
            # by everybody who names them.
            bound = object.__new__(type(call))
            bound.__dict__.update(call.__dict__)
            bound.__dict__["make_context"] = functools.partial(self._begin, step)
            self._followed[id(bound)] = bound, step
        step.groups = [group for group in groups if own or group.block.pre_and_post] + step.groups
        if own and step.host is not None:
            for group in groups:
                group.hosts.append(step.host)
        return bound

    def _groups(self, call: Any) -> list[Group]:
        """Return the deployments that ``call`` is, by its decorators or by the mapping, the outer first."""
        blocks = marks_of(call.task, Block)
        named = self._expanding[0]
        path = named.called_as if isinstance(named, InvokeCall) else None
        section = merge_dicts(_section(self.collection.configuration(path)), _section(self.config))
        entry = mapped(section, self._names_of(call)) if "tasks" in section else None
        if not blocks and entry is not None and _is_never_awaited(call.task):
            say_once(
                f"The task {call.task.name!r}, which ld_deploy_hooks: tasks: names, is an `async def` or a generator: "
                "Invoke never runs its body, so it is not told. Make it a plain function."
            )
            return []
        if not blocks and entry is not None:
            blocks = [_mapped_block(entry)]
        return [Group(block, lambda: self._entered_with(call, path, entry or {})) for block in blocks]

    def _names_of(self, call: Any) -> list[str]:
        """Return every name that the call's task has on the command line, the one that it was called by first."""
        called_as = call.called_as
        if called_as:
            others = (names for names in self._all_names() if called_as in names)
            return [called_as, *next(others, ())]
        # A pre or post task. Not ==, which takes tasks of one name for the same when a decorator of the user's made
        # both bodies; not `is`, since Invoke deep-copies the tasks of a module's namespace.
        body = call.task.body
        names = [name for names in self._all_names() if self.collection[names[0]].body is body for name in names]
        return names or [call.task.name]

    def _all_names(self) -> Iterator[list[str]]:
        return ([name, *aliases] for name, aliases in self.collection.task_names.items())

    def _entered_with(self, call: Any, path: str | None, entry: Mapping[str, Any]) -> Call:
        """Return the call with a plain Context that carries the main call's configuration: a pre task's does not."""
        # Not Fabric's own clone(), which reads the SSH configuration into the original once more.
        config = Config.clone(self.config)
        config.load_collection(self.collection.configuration(path))
        config.load_shell_env()
        context = Context(config=config)
        return Call.of(
            call.task.body,
            (context, *call.args),
            call.kwargs,
            task=call.called_as or call.task.name,
            surroundings=surroundings((context,))._replace(own=entry),
        )

    def _begin(self, step: Step, *args: Any, **kwargs: Any) -> Any:
        try:
            if self._steps is not None:
                self._steps.begin(step)
        except SettingsError:
            raise
        except Exception as error:
            internal_fault("Following the executor", error)
        return step.call.make_context(*args, **kwargs)


class Executor(Deploying, InvokeExecutor):
    """Invoke's executor, telling deployments; for ``tasks: executor_class:`` in ``invoke.yaml``."""

    def __new__(cls, collection: Any, config: Any = None, core: Any = None) -> Any:
        """Return the executor of the host that runs: named in ``fabric.yaml``, Invoke's would not go to any host."""
        if cls is Executor and core and "hosts" in core[0].args:
            host_room()
            ready = _kinds[0][2]
            if ready is not cls:
                return ready(collection, config, core)
        return super().__new__(cls)


def _is_never_awaited(task: Any) -> bool:
    return (
        inspect.iscoroutinefunction(task.body)
        or inspect.isgeneratorfunction(task.body)
        or inspect.isasyncgenfunction(task.body)
    )


def _refuse_what_is_never_awaited(task: Any) -> None:
    if _is_never_awaited(task) and marks_of(task, Block):
        raise TypeError(
            f"The deployment task {task.name!r} is an `async def`, which Invoke never awaits: it would not run at all. "
            "Make it a plain function that calls asyncio.run(...)."
        )


def _mapped_block(entry: Mapping[str, Any]) -> Block:
    options = {name: entry[name] for name in ("metadata", "event_metadata", "pre_and_post") if name in entry}
    try:
        return deployment(**options)
    except TypeError as error:
        say_once(f"ld_deploy_hooks: tasks: in the host's configuration: {error}. These options are passed over.")
        return deployment()


def _plain(value: Any) -> Any:
    if isinstance(value, (DataProxy, Mapping)):
        return {key: _plain(value[key]) for key in value.keys()}  # noqa: SIM118 (a DataProxy iterates, but is no Mapping)
    return value


def _section(config: Any) -> dict[str, Any]:
    """Return what stands under ``ld_deploy_hooks:``."""
    section = config[_SECTION] if isinstance(config, (DataProxy, Mapping)) and _SECTION in config else {}
    if isinstance(section, (DataProxy, Mapping)):
        return cast("dict[str, Any]", _plain(section))
    say_once(
        f"{_SECTION}: in the host's configuration is no mapping, so it is passed over. Write "
        f"`{_SECTION}: {{project_key: ...}}`."
    )
    return {}


def install(program: Program | None = None) -> None:
    """Make a program tell deployments, as ``tasks: executor_class:`` in its configuration would.

    It is called by itself when a task is decorated while ``inv`` or ``fab`` loads it; doing it twice is the same.

    Args:
        program: a program of your own; None means those of ``inv`` and ``fab`` in this process.
    """
    for one in [program] if program is not None else _programs():
        one.executor_class = deploying(one.executor_class)


def deploying(executor: Any) -> Any:
    """Return ``executor`` with :class:`Deploying` mixed in; as it is when it is no class that can be derived from."""
    if not isinstance(executor, type) or issubclass(executor, Deploying):
        return executor
    for kind, mixin, ready in _kinds:
        if issubclass(executor, kind):
            return ready if executor is kind else types.new_class(executor.__name__, (mixin, executor))
    return executor


# (an executor, the mix-in for it and what is derived from it, the two together); the most derived first.
_kinds: list[tuple[Any, Any, Any]] = [(InvokeExecutor, Deploying, Executor)]


def add_kind(executor: Any, mixin: Any, ready: Any) -> None:
    """Let :func:`deploying` know the executor of another host, which is derived from Invoke's."""
    _kinds.insert(0, (executor, mixin, ready))


def _programs() -> list[Any]:
    modules = (sys.modules.get(name) for name in ("invoke.main", "fabric.main"))
    return [program for module in modules if (program := getattr(module, "program", None)) is not None]


def _running() -> Any:
    """Return the executor at work, or the program that runs; None in plain Python."""
    if _at_work:
        return _at_work[-1]
    configs = ((program, getattr(program, "config", None)) for program in _programs())
    return next((one for one, config in configs if isinstance(config, DataProxy) and config is not _done_with), None)


def _running_config() -> Any:
    return getattr(_running(), "config", None)


def is_task(thing: object) -> bool:
    """Whether ``thing`` is a task."""
    return isinstance(thing, Task)


def wrap_task(task: Any, wrap: Callable[[Any], Any]) -> Any:
    """Return the same task, its body wrapped: a plain function in its place would make the task vanish."""
    task.body = wrap(task.body)
    return task


def surroundings(arguments: tuple[Any, ...]) -> Surroundings:
    """Return the configuration that counts for a block that is entered with ``arguments``, and whether it runs dry.

    A Context among them that somebody made by hand knows neither ``--dry`` nor ``-f``: what runs counts too.
    """
    given = arguments[0].config if arguments and isinstance(arguments[0], Context) else None
    running = _running_config()
    section = {**_section(running), **_section(given)}
    section.pop("tasks", None)
    return Surroundings(
        configuration=section,
        dry=any(isinstance(config, DataProxy) and config.run.dry is True for config in (given, running)),
        context_given=given is not None,
    )


def folder_of_tasks() -> Path | None:
    """Return the folder that ``tasks.py``, or the package in its place, was found in; None without one."""
    folder = getattr(getattr(_running(), "collection", None), "loaded_from", None)
    return Path(folder).absolute() if isinstance(folder, str) else None


def host_of(arguments: tuple[Any, ...]) -> str | None:
    """Return None: a Context of Invoke's is no connection."""
    return None


def verdict(error: BaseException) -> Verdict | None:
    """Return the verdict on an exception of Invoke's, or on what Ctrl-C came to; None for any other."""
    name = type(error).__name__
    if isinstance(error, Exit):
        code = exit_code_of(error.code)
        found = FINISHED if code == 0 else Verdict(failed=True, reason="error", error=name, exit_code=code)
    elif isinstance(error, UnexpectedExit):
        exited = error.result.exited
        found = Verdict(
            failed=True,
            reason="cancelled" if exited in _INTERRUPTED else "error",
            error=name,
            exit_code=exited if isinstance(exited, int) else None,
        )
    elif isinstance(error, KeyboardInterrupt) and _running_config() is not None:
        return plain_verdict(error, interrupted=1)
    else:
        found = plain_verdict(error)
    return found._replace(reason="cancelled") if found.failed and _comes_of_interrupt(error) else found


def _comes_of_interrupt(error: BaseException) -> bool:
    """Whether it was raised while Ctrl-C was handled: Invoke forwards that to the command, whose input may be gone."""
    context: BaseException | None = error
    for _ in range(_DEEPEST):
        context = context.__context__ if context is not None else None
        if isinstance(context, KeyboardInterrupt):
            return True
    return False


def notice_missing_executor() -> None:
    """Say once that a configuration file names another executor, which leaves ours out."""
    if _at_work:
        return
    config = _running_config()
    named = config.tasks.executor_class if config is not None else None
    if isinstance(named, str):
        say_once(
            f"tasks: executor_class: is {named}, so pre and post tasks and hosts are not told as one deployment: every "
            "call of the task is one. Derive that class from ld_deploy_hooks.invoke.Deploying as well, or set "
            "ld_deploy_hooks.invoke.Executor (ld_deploy_hooks.fabric.Executor under fab) in its place."
        )
