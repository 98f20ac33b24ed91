"""What of Invoke runs in this process: an executor, or a program that loads its tasks."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from invoke.config import DataProxy
from invoke.executor import Executor
from invoke.program import Program

from ld_deploy_hooks._log import say_once

__all__ = [
    "at_work",
    "folder_of_tasks",
    "notice_missing_executor",
    "programs",
    "running_config",
    "running_program",
]

# Executors of ours that are at work in this process, the innermost last. No ContextVar: a thread that a task starts is
# at work under the same executor.
at_work: list[Any] = []
# Who runs is found where it runs: a program keeps its configuration when it is done, and one of the user's own is
# registered nowhere.
_RUNS = (Executor.execute.__code__, Program.run.__code__)


def programs() -> list[Any]:
    """Return the programs ``inv`` and ``fab``, as far as they are loaded, and one that loads tasks in this thread."""
    modules = (sys.modules.get(name) for name in ("invoke.main", "fabric.main"))
    loaded = (getattr(module, "program", None) for module in modules)
    return [program for program in (*loaded, running_program()) if program is not None]


def _running() -> Any:
    """Return the executor at work, or the program that runs; None in plain Python."""
    return at_work[-1] if at_work else _found_from(sys._getframe(1)) or _found_elsewhere()


def _found_from(frame: FrameType | None) -> Any:
    while frame is not None:
        owner = frame.f_locals.get("self") if frame.f_code in _RUNS else None
        if isinstance(getattr(owner, "config", None), DataProxy):
            return owner
        frame = frame.f_back
    return None


def running_program() -> Program | None:
    """Return the program that runs in this thread, the innermost if there are several."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self") if frame.f_code is Program.run.__code__ else None
        if isinstance(owner, Program):
            return owner
        frame = frame.f_back
    return None


def _found_elsewhere() -> Any:
    """Return who runs in another thread: a task may have started this one."""
    frames = sys._current_frames()
    # A frame that holds itself holds the deploy's as well, and keeps them from closing what they have until the garbage
    # collector comes by.
    del frames[threading.get_ident()]
    return next(filter(None, map(_found_from, frames.values())), None)


def running_config() -> Any:
    """Return the configuration of what runs; None in plain Python."""
    return getattr(_running(), "config", None)


def folder_of_tasks() -> Path | None:
    """Return the folder that ``tasks.py``, or the package in its place, was found in; None without one."""
    folder = getattr(getattr(_running(), "collection", None), "loaded_from", None)
    return Path(folder).absolute() if isinstance(folder, str) else None


def notice_missing_executor() -> None:
    """Say once that ours is not the executor, where that makes a difference."""
    if at_work:
        return
    config = running_config()
    named = config.tasks.executor_class if config is not None else None
    program = running_program()
    if isinstance(named, str):
        say_once(
            f"tasks: executor_class: is {named}, so pre and post tasks and hosts are not told as one deployment: every "
            "call of the task is one. Derive that class from ld_deploy_hooks.invoke.Deploying as well, or set "
            "ld_deploy_hooks.invoke.Executor (ld_deploy_hooks.fabric.Executor under fab) in its place."
        )
    elif program is not None and _goes_further(program):
        executor = program.executor_class
        name = getattr(executor, "__qualname__", type(executor).__qualname__)
        step = "Derive it from invoke.Executor and ld_deploy_hooks.invoke.Deploying."
        if hasattr(executor, "keeps_hands_off"):
            step = "It is ours, but execute() of that program makes another one: let that use program.executor_class."
        elif isinstance(executor, type) and issubclass(executor, Executor):
            step = "Call ld_deploy_hooks.invoke.install(program) before program.run()."
        say_once(
            f"{name} is the executor of the program {program.name}, so pre and post tasks and hosts are not told as "
            f"one deployment: every call of the task is one. {step}"
        )


def _goes_further(program: Any) -> bool:
    """Whether what ``program`` executes is more than one call of each task."""
    hosts = program.core[0].args.get("hosts")
    names = [context.name for context in program.tasks] or [program.collection.default]
    tasks = [program.collection[name] for name in names]
    return bool(hosts is not None and hosts.value) or any(
        task.pre or task.post or getattr(task, "hosts", None) for task in tasks
    )
