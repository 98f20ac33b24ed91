"""``deployment(...)``: the context manager and decorator, and how blocks join."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

from ld_deploy_hooks import _clock  # noqa: F401  (bound now: deploy code may patch `time` before it enters a block)
from ld_deploy_hooks._decorator import decorate
from ld_deploy_hooks._door import surroundings_of
from ld_deploy_hooks._entries import (
    Bound,
    Call,
    Entry,
    announced_entries,
    begun,
    begun_async,
    bind,
    current_deployment,
    entries,
    leave,
    outer,
    over,
    over_async,
    unbind,
)
from ld_deploy_hooks._errors import SettingsError
from ld_deploy_hooks._fields import Fields
from ld_deploy_hooks._log import internal_fault
from ld_deploy_hooks._untold import untold
from ld_deploy_hooks._verdicts import check_success, means_success

if TYPE_CHECKING:
    from typing import TypeVar

    from ld_deploy_hooks._handle import Deployment
    from ld_deploy_hooks._settings import Settings

    F = TypeVar("F", bound=Callable[..., Any])

__all__ = [
    "Block",
    "Bound",
    "Call",
    "Entry",
    "begun",
    "bind",
    "current_deployment",
    "deployment",
    "flush",
    "leave",
    "over",
    "unbind",
]

# Seconds: more than threads can wait would raise.
_LONGEST_FLUSH = 86_400.0

StringField = str | Callable[..., str | None] | None
MappingField = Mapping[str, Any] | Callable[..., Mapping[str, Any] | None] | None


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
        self._refuse_success()
        try:
            return begun(self._enter_here(id(sys._getframe(1))))
        except SettingsError:
            raise
        except Exception as error:
            return untold(error)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> Literal[False]:
        over(leave(self._innermost(id(sys._getframe(1))), error))
        return False

    def __aenter__(self) -> Coroutine[Any, Any, Deployment]:
        return self._aenter(id(sys._getframe(1)))

    async def _aenter(self, frame: int) -> Deployment:
        self._refuse_success()
        try:
            return await begun_async(self._enter_here(frame))
        except SettingsError:
            raise
        except Exception as error:
            return untold(error)

    def __aexit__(
        self, kind: object, error: BaseException | None, trace: object
    ) -> Coroutine[Any, Any, Literal[False]]:
        return self._aexit(error, id(sys._getframe(1)))

    async def _aexit(self, error: BaseException | None, frame: int) -> Literal[False]:
        await over_async(leave(self._innermost(frame), error))
        return False

    def enter(self, call: Call, frame: int | None = None) -> Entry:
        """Open a run, or join the one of the same identity that is open.

        Args:
            call: what the block is entered with.
            frame: the id of the frame whose `with` statement it is, if it is one.

        Raises:
            SettingsError: a setting is missing or cannot be used, and ``strict`` is on.
        """
        from ld_deploy_hooks._handle import Deployment
        from ld_deploy_hooks._plan import Plan

        for entry in (*reversed(entries()), *announced_entries(self)):
            # A task that calls itself on every node's connection is one deployment, and asks nothing again.
            if entry.block is self and entry.call.is_like(call) and (again := self.join(entry, call)) is not None:
                return again
        around = outer()

        def settle() -> Settings:
            settings, metadata, plan.event_metadata = self._fields.settle(
                args=call.args, kwargs=call.kwargs, names=call.names, outer=around, surroundings=call.surroundings
            )
            plan.metadata.update({**metadata, **plan.metadata})
            return settings

        plan = Plan(
            settle=settle,
            task=call.task,
            metadata=self._fields.fixed_metadata(),
            hosts=call.hosts,
            autostart=self._autostart,
        )
        deployment = Deployment(plan)
        entry = Entry(self, call, deployment, joined=False, frame=frame)
        if self._autostart:
            try:
                deployment._run.start()
                entry.deployment = deployment._run.handle
            except BaseException as error:
                leave(entry, error)
                raise
        return entry

    def join(self, entry: Entry, call: Call) -> Entry | None:
        """Take part in the deployment of ``entry`` without asking for any field; None if it has ended."""
        return Entry(self, call, entry.deployment, joined=True) if entry.deployment._run.join() else None

    def succeeded(self, result: Any) -> bool:
        """Whether what the function returned means success, by the user's ``success``."""
        return self._success is None or means_success(self._success, result)

    def __copy__(self) -> Block:
        return self

    def __deepcopy__(self, memo: object) -> Block:
        # Invoke deep-copies the tasks of a module's namespace, and with them the mark that says which block is theirs.
        return self

    def _refuse_success(self) -> None:
        if self._success is not None:
            raise TypeError(
                "success= judges what a function returns; in a `with` block call d.mark_failed('why') instead"
            )

    def _enter_here(self, frame: int) -> Entry:
        return self.enter(Call(surroundings=surroundings_of(())), frame)

    def _innermost(self, frame: int) -> Entry | None:
        """Return the entry to leave: that of the same `with` statement, else of this context, else the last."""
        mine = [entry for entry in self.inside if entry.frame == frame]
        mine = mine or [entry for entry in entries() if entry in self.inside] or self.inside
        return mine[-1] if mine else None


def flush(timeout: float | None = None) -> bool:
    """Send what waits in the outbox, what earlier runs left there too; for processes that outlive their deployments.

    Args:
        timeout: seconds to wait at most, and a day at most; None takes the setting ``flush_timeout``.

    Returns:
        Whether nothing is left for the service and outbox of the settings.
    """
    from ld_deploy_hooks._reporter import flush_all, reporter_for
    from ld_deploy_hooks._settings import resolve

    try:
        around = surroundings_of(())
        settings = resolve(host=around.configuration)
        if settings.silent or around.dry:
            return True
        reporter_for(settings)
        return flush_all(settings.flush_timeout if timeout is None else min(timeout, _LONGEST_FLUSH))
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

    A context manager (``with`` and ``async with``) and a decorator for functions, coroutine functions and the tasks of
    Invoke and Fabric; bare ``@deployment`` works too. A field that is left open comes from the deployment around this
    one, the environment, the host's configuration, ``pyproject.toml`` or a plugin. Every field may be a callable: it is
    asked once, when the deployment starts, with the arguments of the function or task. (``application_key`` then by
    keyword.)

    Args:
        function_or_key: the application key; or the function or task to decorate.
        application_key: the application, as LaunchDarkly knows it.
        version: what is deployed: letters, digits, ``.``, ``-``, ``_``; best the commit's SHA or tag, never a time.
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
    for name, switch in (("pre_and_post", pre_and_post), ("autostart", autostart)):
        if not isinstance(switch, bool):
            raise TypeError(f"deployment({name}=...) takes True or False, not {type(switch).__name__}")
    if success is not None:
        check_success(success)
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
