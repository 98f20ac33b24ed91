"""``deployment(...)``: the context manager and decorator, and how blocks join."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from ld_deploy_hooks._decorator import decorate
from ld_deploy_hooks._door import Surroundings, host_room
from ld_deploy_hooks._fields import Fields
from ld_deploy_hooks._log import internal_fault
from ld_deploy_hooks._verdicts import Verdict, plain_verdict
from ld_deploy_hooks._waiting import asyncio_task, wait, wait_async

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ld_deploy_hooks._handle import Deployment
    from ld_deploy_hooks._records import Identity
    from ld_deploy_hooks._settings import Settings

__all__ = ["Block", "Bound", "Call", "Entry", "begun", "bind", "current_deployment", "deployment", "flush", "leave"]

F = TypeVar("F", bound=Callable[..., Any])
StringField = str | Callable[..., str | None] | None
MappingField = Mapping[str, Any] | Callable[..., Mapping[str, Any] | None] | None


@dataclass(kw_only=True)
class Call:
    """What a block is entered with.

    Attributes:
        args: positional arguments of the function or task, which callable fields are asked with.
        kwargs: its keyword arguments.
        task: its name; None in a plain ``with``.
        surroundings: what the host says of this place.
        hosts: the hosts that it is going to.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    task: str | None = None
    surroundings: Surroundings = field(default_factory=Surroundings)
    hosts: tuple[str, ...] = ()

    @classmethod
    def of(cls, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], **more: Any) -> Call:
        """Return the call of ``function``, its defaults filled in: callable fields see every argument by its place."""
        try:
            bound = inspect.signature(function).bind(*args, **kwargs)
        except (TypeError, ValueError):
            # The call itself is about to raise just that, and better.
            return cls(args=args, kwargs=kwargs, **more)
        bound.apply_defaults()
        return cls(args=bound.args, kwargs=bound.kwargs, **more)

    def is_like(self, other: Call) -> bool:
        """Whether ``other`` calls the same function with the same arguments, its context aside."""
        try:
            mine, others = self._without_context(), other._without_context()
            return (
                self.task is not None
                and self.task == other.task
                and bool(mine == others and self.kwargs == other.kwargs)
            )
        except Exception:
            # Arguments that cannot be compared: not known to be the same.
            return False

    def _without_context(self) -> tuple[Any, ...]:
        return self.args[1:] if self.surroundings.context_given else self.args


class Entry:
    """One block that somebody is inside of: who opened a run, or who joined it."""

    def __init__(self, block: Block, call: Call, deployment: Deployment, *, joined: bool) -> None:
        self.block = block
        self.call = call
        self.deployment = deployment
        # The run that this entry opened, if it did; a pending one may find another open when it starts, and join it.
        self._opened = None if joined else deployment._run
        self._where = (threading.get_ident(), asyncio_task())
        if self._opened is not None:
            self._opened.opened_in = self._where
        _entries.set((*_entries.get(), self))
        block.inside.append(self)

    def note_host(self, host: str, error: BaseException | None, *, failed: bool = False) -> None:
        """Note how a call on ``host`` fared: by the exception that left it, or by what its result means."""
        run = self.deployment._run
        if failed or _verdict(error).failed:
            run.host_failed(host, error)
        else:
            run.host_succeeded(host)

    def leave(self, error: BaseException | None) -> Future[bool] | None:
        """Leave the block, once, on the way out that ``error`` says; the future is done when the end is durable."""
        if self not in self.block.inside:
            return None
        self.block.inside.remove(self)
        _entries.set(tuple(entry for entry in _entries.get() if entry is not self))
        run = self.deployment._run
        return run.leave(_verdict(error), error, opener=self._opened is run, inner=run.opened_in == self._where)


@dataclass(eq=False)
class Bound:
    """A call that the executor is about to make, of a task whose deployment it has opened already.

    Attributes:
        entry: the executor's own.
        failed: set when the task's ``success`` says that its result means failure.
    """

    entry: Entry
    failed: bool = False


# An entry is taken out, never reset by its token: ``async with`` in a fixture leaves in another context than it entered.
_entries: ContextVar[tuple[Entry, ...]] = ContextVar("ld_deploy_hooks_entries", default=())
_bound: ContextVar[Bound | None] = ContextVar("ld_deploy_hooks_bound", default=None)


def bind(bound: Bound | None) -> None:
    """Say which call comes next: the task's own block then takes part in it without asking its fields again."""
    _bound.set(bound)


def leave(entry: Entry | None, error: BaseException | None) -> Future[bool] | None:
    """Leave ``entry``; no fault of ours reaches the deploy."""
    try:
        return entry.leave(error) if entry is not None else None
    except Exception as fault:
        internal_fault("Ending a deployment", fault)
        return None


class Block:
    """What ``deployment(...)`` returns: a context manager, an async one, a decorator.

    It carries no run: each entry and each call makes a new one, or joins the one that is open.
    """

    def __init__(
        self, fields: Fields, *, pre_and_post: bool, autostart: bool, success: Callable[[Any], object] | None
    ) -> None:
        self.pre_and_post = pre_and_post
        # Who is inside: how an exit finds its entry when its context has no trace of it.
        self.inside: list[Entry] = []
        self._fields = fields
        self._autostart = autostart
        self._success = success

    @overload
    def __call__(self, function: F, /) -> F: ...

    @overload
    def __call__(self, function: Any, /) -> Any: ...

    def __call__(self, function: Any, /) -> Any:
        return decorate(self, function)

    def __enter__(self) -> Deployment:
        return begun(self._enter_here())

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> Literal[False]:
        wait(leave(self._innermost(), error))
        return False

    async def __aenter__(self) -> Deployment:
        return await begun_async(self._enter_here())

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> Literal[False]:
        await wait_async(leave(self._innermost(), error))
        return False

    def around(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Around:
        """Return the context manager of one call of a decorated function or task."""
        return Around(self, function, args, kwargs)

    def enter(self, call: Call) -> Entry:
        """Open a run, or join the one of the same identity that is open.

        Raises:
            SettingsError: a setting is missing or cannot be used, and ``strict`` is on.
        """
        from ld_deploy_hooks._handle import Deployment
        from ld_deploy_hooks._run import Plan

        for entry in reversed(_entries.get()):
            # A task that calls itself on every node's connection is one deployment, and asks nothing again.
            if entry.block is self and entry.call.is_like(call) and (again := self.join(entry, call)) is not None:
                return again
        outer = _outer()

        def settle() -> Settings:
            settings, metadata, plan.event_metadata = self._fields.settle(
                args=call.args, kwargs=call.kwargs, outer=outer, surroundings=call.surroundings
            )
            for key, value in metadata.items():
                plan.metadata.setdefault(key, value)
            return settings

        plan = Plan(settle=settle, task=call.task, metadata=self._fields.fixed_metadata(), hosts=call.hosts)
        deployment = Deployment(plan)
        entry = Entry(self, call, deployment, joined=False)
        if self._autostart:
            try:
                entry.deployment = deployment._run.start().handle
            except BaseException as error:
                leave(entry, error)
                raise
        return entry

    def join(self, entry: Entry, call: Call) -> Entry | None:
        """Take part in the deployment of ``entry`` without asking for any field; None if it has ended."""
        return Entry(self, call, entry.deployment, joined=True) if entry.deployment._run.join() else None

    def succeeded(self, result: Any) -> bool:
        """Whether what the function returned means success, by the user's ``success``."""
        try:
            return self._success is None or bool(self._success(result))
        except Exception as error:
            internal_fault("Asking the function given as success=", error)
            return True

    def __copy__(self) -> Block:
        return self

    def __deepcopy__(self, memo: object) -> Block:
        # Invoke deep-copies the tasks of a module's namespace, and with them the mark that says which block is theirs.
        return self

    def _enter_here(self) -> Entry:
        if self._success is not None:
            raise TypeError(
                "success= judges what a function returns; in a `with` block call d.mark_failed('why') instead"
            )
        return self.enter(Call(surroundings=_surroundings(())))

    def _innermost(self) -> Entry | None:
        mine = [entry for entry in _entries.get() if entry in self.inside]
        return (mine or self.inside or [None])[-1]  # type: ignore[list-item]


class Around:
    """The context manager of one call of a decorated function or task, sync or async.

    Attributes:
        result: what the function returned.
    """

    def __init__(
        self, block: Block, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.result: Any = None
        self._block = block
        self._function = function
        self._args = args
        self._kwargs = kwargs
        self._bound: Bound | None = None
        self._host: str | None = None

    def __enter__(self) -> Around:
        self._entry = self._enter()
        begun(self._entry)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> Literal[False]:
        wait(self._leave(error))
        return False

    async def __aenter__(self) -> Around:
        self._entry = self._enter()
        await begun_async(self._entry)
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> Literal[False]:
        await wait_async(self._leave(error))
        return False

    def _enter(self) -> Entry:
        room = host_room()
        call = Call.of(
            self._function,
            self._args,
            self._kwargs,
            task=self._function.__name__,
            surroundings=_surroundings(self._args),
        )
        bound = _bound.get()
        if bound is not None and bound.entry.block is self._block:
            _bound.set(None)
            self._bound = bound
            entry = self._block.join(bound.entry, call)
            if entry is not None:
                return entry
        if room is not None:
            room.notice_missing_executor()
            self._host = room.host_of(self._args)
        return self._block.enter(call)

    def _leave(self, error: BaseException | None) -> Future[bool] | None:
        failed = error is None and not self._block.succeeded(self.result)
        if failed:
            self._entry.deployment._run.mark(Verdict(failed=True, reason="error"))
        if self._bound is not None:
            self._bound.failed = failed
        elif self._host is not None:
            self._entry.note_host(self._host, error, failed=failed)
        return leave(self._entry, error)


def begun(entry: Entry) -> Deployment:
    """Wait until the start that ``entry`` takes part in is on disk."""
    try:
        wait(entry.deployment._run.on_disk)
    except BaseException as error:
        # Ctrl-C in that wait: the block is never entered, and nobody else would leave it.
        leave(entry, error)
        raise
    return entry.deployment


async def begun_async(entry: Entry) -> Deployment:
    try:
        await wait_async(entry.deployment._run.on_disk)
    except BaseException as error:
        leave(entry, error)
        raise
    return entry.deployment


def _surroundings(arguments: tuple[Any, ...]) -> Surroundings:
    room = host_room()
    try:
        return room.surroundings(arguments) if room is not None else Surroundings()
    except Exception as error:
        internal_fault("Reading the host's configuration", error)
        return Surroundings()


def _verdict(error: BaseException | None) -> Verdict:
    room = host_room() if error is not None else None
    try:
        verdict = room.verdict(error) if room is not None and error is not None else None
    except Exception as fault:
        internal_fault("Judging an exception", fault)
        verdict = None
    return verdict or plain_verdict(error)


def _outer() -> tuple[Identity, Settings | None] | None:
    """Return what a deployment that is entered here lies in."""
    from ld_deploy_hooks._run import parent_identity

    outer = current_deployment()
    if outer is not None and outer.identity is not None:
        return outer.identity, outer._run.settings
    parent = parent_identity()
    return (parent, None) if parent is not None else None


def current_deployment() -> Deployment | None:
    """Return the deployment that this code runs in: the context's own, else the only one open in this process, else None."""
    entries = _entries.get()
    if entries:
        return entries[-1].deployment
    from ld_deploy_hooks._run import only_run

    run = only_run()
    return run.handle if run is not None else None


def flush(timeout: float | None = None) -> bool:
    """Send what waits in the outbox, what earlier runs left there too; for processes that go on long after a deployment.

    Args:
        timeout: seconds to wait at most; None takes the setting ``flush_timeout``.

    Returns:
        Whether nothing is left for the service and outbox of the settings.
    """
    from ld_deploy_hooks._reporter import flush_all, reporter_for
    from ld_deploy_hooks._settings import resolve

    try:
        settings = resolve()
        if settings.silent:
            return True
        reporter_for(settings)
        return flush_all(settings.flush_timeout if timeout is None else timeout)
    except Exception as error:
        internal_fault("Sending what waits", error)
        return False


@overload
def deployment(function: F, /) -> F: ...


@overload
def deployment(
    application_key: str | None = None,
    *,
    version: StringField = None,
    environment_key: StringField = None,
    project_key: StringField = None,
    application_name: StringField = None,
    application_kind: StringField = None,
    version_name: StringField = None,
    metadata: MappingField = None,
    event_metadata: MappingField = None,
    pre_and_post: bool = True,
    autostart: bool = True,
    success: Callable[[Any], object] | None = None,
) -> Block: ...


@overload
def deployment(
    *,
    application_key: Callable[..., str | None],
    version: StringField = None,
    environment_key: StringField = None,
    project_key: StringField = None,
    application_name: StringField = None,
    application_kind: StringField = None,
    version_name: StringField = None,
    metadata: MappingField = None,
    event_metadata: MappingField = None,
    pre_and_post: bool = True,
    autostart: bool = True,
    success: Callable[[Any], object] | None = None,
) -> Block: ...


def deployment(
    function_or_key: Any = None,
    /,
    *,
    application_key: Any = None,
    version: Any = None,
    environment_key: Any = None,
    project_key: Any = None,
    application_name: Any = None,
    application_kind: Any = None,
    version_name: Any = None,
    metadata: Any = None,
    event_metadata: Any = None,
    pre_and_post: bool = True,
    autostart: bool = True,
    success: Callable[[Any], object] | None = None,
) -> Any:
    """Tell LaunchDarkly about a deployment: ``started`` on entry, ``finished`` or ``failed`` on exit.

    A context manager (``with`` and ``async with``) and a decorator for functions, coroutine functions and the tasks of Invoke and
    Fabric; bare ``@deployment`` works too. A field that is left open comes from the deployment around this one, the environment, the
    host's configuration, ``pyproject.toml`` or a plugin. Every field may be a callable: it is asked once, when the deployment starts,
    with the arguments of the function or task. (``application_key`` then by keyword.)

    Args:
        function_or_key: the application key; or the function or task to decorate.
        application_key: the application, as LaunchDarkly knows it.
        version: what is deployed: letters, digits, ``.``, ``-``, ``_``; best the commit's SHA or tag, never a timestamp.
        environment_key: LaunchDarkly environment.
        project_key: LaunchDarkly project.
        application_name: how the application is displayed.
        application_kind: ``server``, ``browser`` or ``mobile``.
        version_name: how the version is displayed.
        metadata: deploymentMetadata; the only metadata that LaunchDarkly reads back.
        event_metadata: eventMetadata of the started event.
        pre_and_post: of a task: whether its pre and post tasks are part of the deployment.
        autostart: False tells nothing until ``start()`` is called on the deployment.
        success: of a function or task: is asked with its result; a falsy answer means failed.

    Raises:
        TypeError: a value of a wrong type, or something that cannot be decorated; where it is written.
        ValueError: an application_kind outside its list.
        SettingsError: on entry, and only with ``strict``: a setting is missing or cannot be used.
    """
    function = None
    if callable(function_or_key):
        function = function_or_key
    elif function_or_key is not None:
        if application_key is not None:
            raise TypeError("deployment() got application_key twice: by position and by name")
        application_key = function_or_key
    if success is not None and not callable(success):
        raise TypeError(f"deployment(success=...) takes a callable, not {type(success).__name__}")
    values = {
        "application_key": application_key,
        "version": version,
        "environment_key": environment_key,
        "project_key": project_key,
        "application_name": application_name,
        "application_kind": application_kind,
        "version_name": version_name,
    }
    fields = Fields(values, metadata, event_metadata)
    block = Block(fields, pre_and_post=pre_and_post, autostart=autostart, success=success)
    return block if function is None else block(function)
