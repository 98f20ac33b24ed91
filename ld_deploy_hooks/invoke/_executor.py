"""The executor: which calls belong to which deployment."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from invoke.config import Config, merge_dicts
from invoke.context import Context
from invoke.executor import Executor as InvokeExecutor
from invoke.program import Program
from invoke.tasks import Call as InvokeCall

from ld_deploy_hooks._decorator import marks_of
from ld_deploy_hooks._deployment import Block, Call, deployment
from ld_deploy_hooks._door import host_room
from ld_deploy_hooks._errors import SettingsError
from ld_deploy_hooks._log import internal_fault, say_once
from ld_deploy_hooks._mapping import mapped
from ld_deploy_hooks._steps import Group, Step, Steps
from ld_deploy_hooks.invoke._configuration import section, surroundings
from ld_deploy_hooks.invoke._running import at_work, programs, running_program

__all__ = ["Deploying", "Executor", "add_kind", "deploying", "install"]


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
        before = self._steps, self._expanding
        self._steps, self._expanding = Steps(), ()
        at_work.append(self)
        try:
            with self._steps:
                return super().execute(*tasks)  # type: ignore[misc]
        finally:
            # Not pop(): executors may be at work in several threads.
            del at_work[next(at for at in reversed(range(len(at_work))) if at_work[at] is self)]
            self._steps, self._expanding = before

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
        said = merge_dicts(section(self.collection.configuration(path)), section(self.config))
        entry = mapped(said, self._names_of(call)) if "tasks" in said else None
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
        # What the program has of its own, not its arguments: another's `--hosts` may be anything.
        program = running_program() if cls is Executor and core else None
        if program is not None:
            own = deploying(program.executor_class)
            if own is not cls and any(own is ready for _, _, ready in _kinds):
                return own(collection, config, core)
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


def install(program: Program | None = None) -> None:
    """Make a program tell deployments, as ``tasks: executor_class:`` in its configuration would.

    It is called by itself when a task is decorated while ``inv`` or ``fab`` loads it; doing it twice is the same.

    Args:
        program: a program of your own; None means those of ``inv`` and ``fab`` in this process.
    """
    for one in [program] if program is not None else programs():
        one.executor_class = deploying(one.executor_class)


def deploying(executor: Any) -> Any:
    """Return ``executor`` with :class:`Deploying` mixed in; as it is when it is no class that can be derived from."""
    if not isinstance(executor, type) or issubclass(executor, Deploying):
        return executor
    # Fabric's room, if Fabric is loaded, knows its own kind.
    host_room()
    for kind, mixin, ready in _kinds:
        if issubclass(executor, kind):
            return ready if executor is kind else types.new_class(executor.__name__, (mixin, executor))
    return executor


# (an executor, the mix-in for it and what is derived from it, the two together); the most derived first.
_kinds: list[tuple[Any, Any, Any]] = [(InvokeExecutor, Deploying, Executor)]


def add_kind(executor: Any, mixin: Any, ready: Any) -> None:
    """Let :func:`deploying` know the executor of another host, which is derived from Invoke's."""
    _kinds.insert(0, (executor, mixin, ready))
