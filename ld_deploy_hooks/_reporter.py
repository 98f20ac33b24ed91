"""This process's plugins, outboxes and recorders: made at first use, waited for at exit, made anew in a fork."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ld_deploy_hooks._clock import monotonic
from ld_deploy_hooks._door import deployhooks_folder
from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks._exit import at_exit, watch_exit
from ld_deploy_hooks._forking import was_waited_for
from ld_deploy_hooks._future import Future
from ld_deploy_hooks._log import internal_fault, logger
from ld_deploy_hooks._recorder import Recorder
from ld_deploy_hooks._records import DeploymentEvent, DeploymentRecord
from ld_deploy_hooks._settings import Settings
from ld_deploy_hooks._store import Store

if TYPE_CHECKING:
    from ld_deploy_hooks._outbox import Outbox
    from ld_deploy_hooks._plugins import Plugins
    from ld_deploy_hooks._testrun import Recording

__all__ = [
    "Reporter",
    "ask_outbox",
    "close_all",
    "close_plugins_of",
    "end_all",
    "end_late",
    "finish_tells",
    "flush_all",
    "lines_left",
    "plugins_defaults",
    "plugins_for",
    "reporter_for",
    "reporter_of",
]

T = TypeVar("T")

# Seconds that an orderly exit may still take after the flush: for answers to what was sent, and to close the outbox.
_CLOSING = 0.3
# Seconds for each of many, when that time is over, and until as much again is.
_LEAST = 0.02


class Reporter(Protocol):
    """What a run needs of who records its events; each method as that of :class:`Recorder`."""

    plugins: Plugins

    @property
    def holds_in_memory(self) -> bool: ...

    def started(self, event: DeploymentEvent, record: DeploymentRecord) -> Future[Any]: ...

    def ended(self, event: DeploymentEvent, record: DeploymentRecord, error: BaseException | None) -> Future[bool]: ...

    def custom(self, event: DeploymentEvent, record: DeploymentRecord, metadata: Mapping[str, Any]) -> Future[None]: ...

    def cut_off(
        self, deployment_id: str, known: DeploymentEvent, end: Callable[[], tuple[DeploymentEvent, DeploymentRecord]]
    ) -> Future[bool]: ...

    def leave_undone(self) -> None: ...

    def note_signal(self, deployment_id: str, number: int) -> None: ...

    def send(self, timeout: float) -> None: ...


# Held while plugins are loaded, which may themselves come here.
_lock = threading.RLock()
_reporters: dict[tuple[Any, ...], Recorder] = {}
_plugins: dict[tuple[Any, ...], Plugins] = {}
# One connection to each outbox, whatever it is used for: SQLite drops the locks of a file with any of its descriptors.
_stores: dict[Path, Store] = {}
# What a forked child inherits: kept, since closing the parent's connection there would drop the parent's locks.
_inherited: list[Any] = []


def plugins_for(settings: Settings) -> Plugins:
    """Return this process's plugins, loaded at first use; a recording has its own.

    Which those are depends on where it is asked, too: under a host its tasks have a ``deployhooks.py`` of their own.
    """
    directory = deployhooks_folder()
    key = (settings.plugins, settings.plugin_autoload, directory, settings.recording)
    with _lock:
        if key not in _plugins:
            # Here, so that a dry or disabled run does not pay for pluggy.
            from ld_deploy_hooks._plugins import BUILT_IN, Plugins

            # A test may watch what processes are started.
            builtin = [name for name in BUILT_IN if name != "git" or settings.recording is None]
            _plugins[key] = Plugins.load(names=key[0], autoload=key[1], builtin=builtin, directory=directory)
        return _plugins[key]


def plugins_defaults(so_far: Settings) -> list[tuple[str, Mapping[str, Any]]]:
    """Return what plugins provide for settings that nobody has set, by plugin, the one that wins first."""
    from ld_deploy_hooks.hookspecs import SettingsView

    view = {field.name: getattr(so_far, field.name) for field in dataclasses.fields(SettingsView)}
    return plugins_for(so_far).provide_defaults(SettingsView(**view))


def close_plugins_of(recording: Recording) -> None:
    """Close the plugins that were loaded for a recording; they are told nothing more."""
    with _lock:
        theirs = [_plugins.pop(key) for key in list(_plugins) if key[-1] is recording]
    for plugins in theirs:
        plugins.close()


def reporter_of(settings: Settings) -> Reporter:
    """Return who records the events of a run that has these settings: the test's recording, or :func:`reporter_for`.

    Raises:
        RuntimeError: a thread cannot be started.
    """
    if settings.recording is not None:
        reporter: Reporter = settings.recording.reporter(plugins_for(settings))
        return reporter
    return reporter_for(settings)


def reporter_for(settings: Settings) -> Recorder:
    """Return this process's reporter for the outbox, base URI and token of ``settings``.

    Raises:
        RuntimeError: a thread cannot be started.
    """
    global _has_exited
    with _lock:
        # It opens in its own thread, while plugins are loaded in this one.
        _store_for(settings)
    plugins = plugins_for(settings)
    key = (
        settings.outbox,
        settings.base_uri,
        settings.access_token,
        settings.api_version,
        settings.sendable,
        id(plugins),
    )
    with _lock:
        if key not in _reporters:
            _has_exited = _has_exited or not watch_exit()
            _reporters[key] = Recorder(settings, plugins, _store_for(settings))
        return _reporters[key]


def _store_for(settings: Settings) -> Store:
    if settings.outbox not in _stores:
        _stores[settings.outbox] = Store(settings.outbox)
    return _stores[settings.outbox]


def ask_outbox(settings: Settings, question: Callable[[Outbox], T], *, timeout: float | None = None) -> T:
    """Return the answer of the outbox of ``settings``; nothing is sent for it.

    Args:
        settings: name the outbox.
        question: called with the outbox.
        timeout: seconds; None waits as long as the outbox itself does.

    Raises:
        OutboxError: the outbox cannot be used, or does not answer in time.
    """
    with _lock:
        store = _store_for(settings)
    try:
        return store.writer.submit(question).result(timeout)
    except TimeoutError:
        raise OutboxError(
            f"The outbox {settings.outbox} did not answer in time. Another process may hold it (`fuser` tells): try "
            "again later.",
            path=str(settings.outbox),
        ) from None


def is_over(settings: Settings, deployment_id: str, *, timeout: float) -> bool:
    """Return whether a deployment of another process has ended, or never will be told to have: that process is dead.

    False where the outbox of ``settings`` does not know it.

    Args:
        settings: name the outbox.
        deployment_id: the deployment's.
        timeout: seconds.

    Raises:
        OutboxError: the outbox cannot be used, or does not answer in time.
    """
    with _lock:
        store = _store_for(settings)

    def question(box: Outbox) -> bool:
        state, owner = box.state_and_owner(deployment_id) or ("open", store.owner_id)
        return state != "open" or store.is_dead(owner)

    return ask_outbox(settings, question, timeout=timeout)


def flush_all(timeout: float | None = None) -> bool:
    """Wait until every reporter has delivered what it can; True when nothing is left.

    Args:
        timeout: seconds for all of them together; None takes the longest ``flush_timeout`` of their settings.
    """
    _wait_for_all(timeout)
    return not lines_left()


def _wait_for_all(timeout: float | None = None) -> None:
    deadline = _deadline() if timeout is None else monotonic() + timeout
    for reporter in list(_reporters.values()):
        reporter.flush(max(deadline - monotonic(), 0))


def _deadline() -> float:
    """Return until when the process may wait if it ends now."""
    return monotonic() + max((reporter.settings.flush_timeout for reporter in list(_reporters.values())), default=0.0)


# Until when the exit may wait, once it has begun to.
_exit_by: float | None = None


def finish_tells() -> None:
    """Wait at exit for what plugins have been told so far; what :func:`end_all` waits for has the rest of that time."""
    global _exit_by
    _exit_by = _deadline()
    try:
        for plugins in list(_plugins.values()):
            plugins.flush(max(_exit_by - monotonic(), 0))
    except KeyboardInterrupt:
        # As in end_all(): somebody does not want to wait, and the rest of the exit is done all the same.
        _exit_by = monotonic()


def lines_left(*, final: bool = False) -> list[str]:
    """Return what each reporter says of what it could not deliver so far.

    Args:
        final: nothing is sent any more, and what is in memory or not on disk yet is left to the next run.
    """
    reporters = list(_reporters.values())
    deadline = monotonic() + _CLOSING
    if final:
        # All at once: many of them may wait for a service that does not answer.
        for reporter in reporters:
            reporter.rest.stop(_CLOSING)
    lines = [reporter.rest.line(_until(deadline), final=final) for reporter in reporters]
    # Those of several tokens say the same of the same events.
    return list(dict.fromkeys(line for line in lines if line is not None))


def _until(deadline: float) -> float:
    """Return the seconds until then; a moment for each that comes a little later, as long as they are not many."""
    late = monotonic() - deadline
    return -late if late < -_LEAST else _LEAST if late < _CLOSING else 0.0


def close_all() -> None:
    """Close every reporter of this process; a later deployment makes new ones."""
    with _lock:
        reporters, stores = list(_reporters.values()), dict(_stores)
        _reporters.clear()
        _stores.clear()
        for key in [key for key in _plugins if key[-1] is None]:  # a recording closes its own
            del _plugins[key]
    deadline = monotonic() + _CLOSING
    busy = {reporter.settings.outbox for reporter in reporters if not reporter.close(max(deadline - monotonic(), 0))}
    for path, store in stores.items():
        store.close(_until(deadline), quiet=path not in busy)


def end_all() -> None:
    """Wait for what is on its way, within the flush timeout, say what is left, and close every reporter."""
    # Ctrl-C: somebody does not want to wait. What is recorded stays recorded.
    try:
        with suppress(KeyboardInterrupt):
            _wait_for_all(None if _exit_by is None else max(_exit_by - monotonic(), 0))
        with suppress(KeyboardInterrupt):
            for line in lines_left(final=True):
                logger.warning("%s", line)
    except Exception as error:
        internal_fault("Waiting for events at exit", error)
    finally:
        with suppress(KeyboardInterrupt):
            close_all()


_has_exited = False


def _at_exit() -> None:
    global _has_exited, _exit_by
    end_all()
    _has_exited, _exit_by = True, None
    _still_interrupted()


def end_late() -> None:
    """Do what the exit has done already for a deployment that comes after it, in somebody's own atexit callback."""
    if _has_exited:
        end_all()


def _still_interrupted() -> None:
    """Let a process that Ctrl-C ends die of SIGINT all the same.

    Python remembers at its end that a KeyboardInterrupt left the main program, but forgets it when anybody executes
    source text in between, as imports in our threads do (dataclasses, named tuples). This makes it remember.
    """
    if getattr(sys, "last_type", None) is KeyboardInterrupt and not hasattr(sys, "ps1") and not sys.flags.interactive:
        with suppress(KeyboardInterrupt):
            exec("raise KeyboardInterrupt")


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    if was_waited_for():
        for store in _stores.values():
            store.writer.close_inherited()
    _inherited.extend(_reporters.values())
    _reporters.clear()
    _stores.clear()
    _plugins.clear()


at_exit(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
