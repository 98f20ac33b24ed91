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
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

from invoke.config import DataProxy, merge_dicts
from invoke.context import Context
from invoke.exceptions import Exit, UnexpectedExit
from invoke.executor import Executor as InvokeExecutor
from invoke.program import Program
from invoke.tasks import Call as InvokeCall
from invoke.tasks import Task

from ld_deploy_hooks._decorator import mark_of
from ld_deploy_hooks._deployment import Block, Call, deployment
from ld_deploy_hooks._door import Surroundings
from ld_deploy_hooks._errors import SettingsError
from ld_deploy_hooks._log import internal_fault, say_once
from ld_deploy_hooks._mapping import mapped
from ld_deploy_hooks._steps import Group, Step, Steps
from ld_deploy_hooks._verdicts import FINISHED, Verdict, plain_verdict

__all__ = ["Deploying", "Executor", "install"]

_SECTION = "ld_deploy_hooks"
# What ends a command that Ctrl-C was forwarded to: SIGINT, or its shell's 128 + 2.
_INTERRUPTED = (-2, 130)

# The configurations of the executors that are at work in this process, the innermost last. No ContextVar: a thread that a task
# starts is at work under the same executor.
_at_work: list[Any] = []


class Deploying:
    """Mix-in for executors: ``class Executor(Deploying, invoke.Executor)``.

    Each call of the command line whose task is decorated or mapped becomes one deployment, over its pre and post tasks and all its
    hosts. It starts before the first of them and ends when a call of another one begins, or when ``execute`` returns or raises.
    """

    collection: Any
    config: Any
    core: Any
    _steps: Steps | None = None
    _expanding = False

    def execute(self, *tasks: Any) -> Any:
        """Execute ``tasks`` as the executor below does, and end the deployments that they open."""
        before, self._steps = self._steps, Steps()
        _at_work.append(self.config)
        try:
            with self._steps:
                return super().execute(*tasks)  # type: ignore[misc]
        finally:
            _at_work.pop()
            self._steps = before

    def expand_calls(self, calls: Any, *args: Any, **kwargs: Any) -> Any:
        """Expand ``calls`` as the executor below does, but one by one, so that what comes of each is known."""
        expand: Callable[..., list[Any]] = super().expand_calls  # type: ignore[misc]
        if self._steps is None or self._expanding or self.keeps_hands_off() or not calls:
            return expand(calls, *args, **kwargs)
        self._expanding = True
        try:
            expanded = [(call, expand([call], *args, **kwargs)) for call in calls]
        finally:
            self._expanding = False
        steps = [step for direct, its in expanded for step in self._steps_of(direct, its)]
        if any(step.groups for step in steps):
            # The others too: where a call of no deployment begins, the one before it has ended.
            return [self._bound(step) for step in steps]
        return [call for _, its in expanded for call in its]

    def keeps_hands_off(self) -> bool:
        """Whether nothing of this run is a deployment."""
        return False

    def hosts_of(self, calls: list[Any]) -> list[str | None]:
        """Return how the host of each call is told; None for a call without one."""
        return [None] * len(calls)

    def _steps_of(self, direct: Any, calls: list[Any]) -> list[Step]:
        try:
            return self._grouped(direct, calls)
        except TypeError:
            raise
        except Exception as error:
            internal_fault("Looking for deployments among the tasks", error)
            return [Step(call) for call in calls]

    def _grouped(self, direct: Any, calls: list[Any]) -> list[Step]:
        main = direct if isinstance(direct, InvokeCall) else InvokeCall(direct)
        around = self._group(main)
        steps: list[Step] = []
        within: Group | None = None
        for call, host in zip(calls, self.hosts_of(calls), strict=True):
            step = Step(call, main=call.task is main.task, host=host)
            group = around if step.main else None
            if around is not None and (step.main or around.block.pre_and_post):
                step.groups.append(around)
            if not step.main:
                # A pre or post task that is mapped is a deployment of its own; a decorated one opens its own when it runs.
                if not steps or steps[-1].call.task is not call.task:
                    within = self._group(call) if mark_of(call.task, Block) is None else None
                if within is not None:
                    step.groups.append(within)
                    step.main = True
                    group = within
            if group is not None and step.host is not None:
                group.hosts.append(step.host)
            steps.append(step)
        return steps

    def _group(self, call: Any) -> Group | None:
        """Return the deployment that ``call`` is, by its decorator or by the mapping; None if it is none."""
        block = mark_of(call.task, Block)
        if block is not None and inspect.iscoroutinefunction(call.task.body):
            raise TypeError(
                f"The deployment task {call.task.name!r} is an `async def`, which Invoke never awaits: it would not run at all. "
                "Make it a plain function that calls asyncio.run(...)."
            )
        section = merge_dicts(_section(self.collection.configuration(call.called_as)), _section(self.config))
        entry = mapped(section, self._names_of(call)) if "tasks" in section else None
        if block is None and entry is None:
            return None
        return Group(block or _mapped_block(entry or {}), lambda: self._entered_with(call, entry or {}))

    def _names_of(self, call: Any) -> list[str]:
        """Return every name that the call's task has on the command line, the one that it was called by first."""
        names = [call.called_as] if call.called_as else []
        for name, aliases in self.collection.task_names.items():
            if self.collection[name] == call.task:
                names += [name, *aliases]
        return names

    def _entered_with(self, call: Any, entry: Mapping[str, Any]) -> Call:
        """Return the call with a plain Context that carries its own task's configuration: a pre task's context does not."""
        config = self.config.clone()
        config.load_collection(self.collection.configuration(call.called_as))
        config.load_shell_env()
        context = Context(config=config)
        here = surroundings((context,))
        return Call.of(
            call.task.body,
            (context, *call.args),
            call.kwargs,
            task=call.called_as or call.task.name,
            surroundings=replace(here, configuration={**here.configuration, **entry}),
        )

    def _bound(self, step: Step) -> Any:
        """Return a copy of the step's call that says so when it begins: pre tasks' calls are shared by everybody who names them."""
        bound = object.__new__(type(step.call))  # copy.copy recurses for ever, ConnectionCall.clone raises KeyError
        bound.__dict__.update(step.call.__dict__)
        bound.__dict__["make_context"] = functools.partial(self._begin, step)
        return bound

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
        f"{_SECTION}: in the host's configuration is no mapping, so it is passed over. Write `{_SECTION}: {{project_key: ...}}`."
    )
    return {}


def install(program: Program | None = None) -> None:
    """Make a program tell deployments, as ``tasks: executor_class:`` in its configuration would; doing it twice is the same.

    It is called by itself when a task is decorated while ``inv`` or ``fab`` loads it.

    Args:
        program: a program of your own; None means those of ``inv`` and ``fab`` in this process.
    """
    for one in [program] if program is not None else _programs():
        one.executor_class = deploying(one.executor_class)


def deploying(executor: Any) -> Any:
    """Return ``executor`` with :class:`Deploying` mixed in."""
    if issubclass(executor, Deploying):
        return executor
    for kind, mixin, ready in _kinds:
        if issubclass(executor, kind):
            return ready if executor is kind else type(executor.__name__, (mixin, executor), {"__module__": __name__})
    return executor


# (an executor, the mix-in for it and what is derived from it, the two together); the most derived first.
_kinds: list[tuple[Any, Any, Any]] = [(InvokeExecutor, Deploying, Executor)]


def add_kind(executor: Any, mixin: Any, ready: Any) -> None:
    """Let :func:`deploying` know the executor of another host, which is derived from Invoke's."""
    _kinds.insert(0, (executor, mixin, ready))


def _programs() -> list[Any]:
    modules = (sys.modules.get(name) for name in ("invoke.main", "fabric.main"))
    return [program for module in modules if (program := getattr(module, "program", None)) is not None]


def _running_config(arguments: tuple[Any, ...]) -> Any:
    """Return the configuration that counts here: of the Context that was given, the executor at work, the program that runs."""
    if arguments and isinstance(arguments[0], Context):
        return arguments[0].config
    if _at_work:
        return _at_work[-1]
    return next((program.config for program in _programs() if hasattr(program, "config")), None)


def is_task(thing: object) -> bool:
    """Whether ``thing`` is a task."""
    return isinstance(thing, Task)


def wrap_task(task: Any, wrap: Callable[[Any], Any]) -> Any:
    """Return the same task, its body wrapped: a plain function in its place would make the task vanish."""
    task.body = wrap(task.body)
    return task


def surroundings(arguments: tuple[Any, ...]) -> Surroundings:
    """Return the configuration that counts for a block that is entered with ``arguments``, and whether it runs dry."""
    config = _running_config(arguments)
    section = _section(config)
    section.pop("tasks", None)
    return Surroundings(
        configuration=section,
        dry=isinstance(config, DataProxy) and config.run.dry is True,
        context_given=bool(arguments) and isinstance(arguments[0], Context),
    )


def host_of(arguments: tuple[Any, ...]) -> str | None:
    """Return None: a Context of Invoke's is no connection."""
    return None


def verdict(error: BaseException) -> Verdict | None:
    """Return the verdict on an exception of Invoke's; None for any other."""
    name = type(error).__name__
    if isinstance(error, Exit):
        code = error.code
        return FINISHED if code == 0 else Verdict(failed=True, reason="error", error=name, exit_code=code)
    if isinstance(error, UnexpectedExit):
        exited = error.result.exited
        return Verdict(
            failed=True,
            reason="cancelled" if exited in _INTERRUPTED else "error",
            error=name,
            exit_code=exited if isinstance(exited, int) else None,
        )
    if isinstance(error, KeyboardInterrupt) and _at_work:
        return plain_verdict(error, interrupted=1)
    return None


def notice_missing_executor() -> None:
    """Say once that a configuration file names another executor, which leaves ours out."""
    if _at_work:
        return
    config = _running_config(())
    named = config.tasks.executor_class if isinstance(config, DataProxy) else None
    if isinstance(named, str):
        say_once(
            f"tasks: executor_class: is {named}, so pre and post tasks and hosts are not told as one deployment: every call of the "
            "task is one. Derive that class from ld_deploy_hooks.invoke.Deploying as well, or set ld_deploy_hooks.invoke.Executor "
            "(ld_deploy_hooks.fabric.Executor under fab) in its place."
        )
