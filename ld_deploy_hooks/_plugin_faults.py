"""What can be wrong with a plugin: how its functions are written, what they raise, what they answer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any

from ld_deploy_hooks import hookspecs
from ld_deploy_hooks._records import DeploymentEvent

__all__ = [
    "HOOKS",
    "NonsenseError",
    "answer_of",
    "fault_of",
    "looks_like_a_hook",
    "read_event",
    "read_mapping",
    "where_raised",
]

_HERE = Path(__file__).parent
_PREFIX = "ld_deploy_"

# Every hook and the names of its arguments.
HOOKS: Mapping[str, Sequence[str]] = {
    name: tuple(inspect.signature(spec).parameters)
    for name, spec in vars(hookspecs).items()
    if name.startswith(_PREFIX)
}


class NonsenseError(Exception):
    """An answer cannot be used; the text says why, in our own words, to be read after the hook's name."""


def looks_like_a_hook(name: str) -> bool:
    """Whether whoever wrote a function called ``name`` meant it as a hook."""
    return name.startswith(_PREFIX)


def fault_of(name: str, function: Callable[..., object], options: Mapping[str, Any] | None) -> str | None:
    """Return why ``function`` is never called, in words to be read after the plugin's name; None if it is no fault.

    Args:
        name: what the plugin calls it.
        options: what ``@hookimpl`` noted, None if it is not marked.
    """
    if options is None or isinstance(function, partial):
        # Python takes a partial for a function from 3.14 on only, and pluggy from 1.7 on never.
        return _unmarked(name, function)
    hook = options["specname"] or name
    if hook not in HOOKS:
        # An optional one is for another release of this package.
        return None if options["optionalhook"] else _unknown(hook)
    wrong = None
    if options["wrapper"] or options["hookwrapper"]:
        wrong = "it is a wrapper, and there is nothing to wrap: each plugin is called alone"
    elif kind := _never_run(function):
        wrong = f"it is {kind}, whose body nobody would run: make it a plain function"
    for argument in inspect.signature(function).parameters.values():
        if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD, argument.KEYWORD_ONLY):
            wrong = wrong or f"its argument {argument.name} cannot be given by position"
        elif argument.name not in HOOKS[hook]:
            wrong = wrong or f"the hook has no argument {argument.name}"
        elif argument.default is not argument.empty:
            wrong = wrong or f"its argument {argument.name} has a default, which releases of pluggy treat differently"
    if wrong is None:
        return None
    return f"{hook} is never called: {wrong}. Write it as {_signature(hook)}, with all arguments or some."


def _never_run(function: Callable[..., object]) -> str | None:
    """Return what kind of function merely makes an object when it is called; None for a plain one."""
    if inspect.iscoroutinefunction(function):
        return "a coroutine function (async def)"
    if inspect.isasyncgenfunction(function):
        return "an asynchronous generator function (async def with yield)"
    return "a generator function (it has a yield)" if inspect.isgeneratorfunction(function) else None


def _unmarked(name: str, function: object) -> str | None:
    if not callable(function) or function is getattr(hookspecs, name, None):
        return None
    is_function = inspect.isroutine(function) and not isinstance(function, partial)
    if name not in HOOKS:
        return _unknown(name) if is_function else None
    if not is_function:
        return f"{name} is a {type(function).__name__} and is never called. Write a function, with @hookimpl above it."
    return f"{name} is not marked and is never called. Write @hookimpl above it (from ld_deploy_hooks import hookimpl)."


def _unknown(hook: str) -> str:
    from difflib import get_close_matches

    nearest = get_close_matches(hook, HOOKS, n=1, cutoff=0)[0]
    return f"{hook} is no hook and is never called. Did you mean {_signature(nearest)}?"


def _signature(hook: str) -> str:
    return f"{hook}({', '.join(HOOKS[hook])})"


def answer_of(function: Callable[..., object], *arguments: object) -> object:
    """Return what ``function`` answers.

    Raises:
        NonsenseError: a coroutine or a generator, whose body nobody runs. :func:`fault_of` does not see them where a
            plain function around the hook makes them.
    """
    answer: Any = function(*arguments)
    if inspect.iscoroutine(answer) or inspect.isgenerator(answer) or inspect.isasyncgen(answer):
        if inspect.iscoroutine(answer):
            answer.close()  # one that is merely dropped warns on stderr
        raise NonsenseError(f"returned a {type(answer).__name__}, whose body is never run: make it a plain function")
    return answer


def read_mapping(answer: object) -> dict[str, Any]:
    """Return a copy of ``answer``: a mapping of the plugin's own could raise when it is read later.

    Raises:
        NonsenseError: it is no mapping of strings.
    """
    if not isinstance(answer, Mapping):
        raise NonsenseError(f"returned a {type(answer).__name__}, not a mapping")
    copy = {_plain(key): _plain(value) for key, value in dict(answer).items()}
    if not all(type(key) is str for key in copy):
        raise NonsenseError("returned a mapping whose keys are not all strings")
    return copy


def _plain(value: object) -> Any:
    """Return the text that a subclass of str is; its own methods are the plugin's code, and run later."""
    return str.__str__(value) if issubclass(type(value), str) else value


def read_event(before: DeploymentEvent, answer: object) -> DeploymentEvent:
    """Return ``answer``, what a plugin made of the event ``before``.

    Raises:
        NonsenseError: it is no event, or what must stay has changed.
    """
    if not isinstance(answer, DeploymentEvent):
        raise NonsenseError(f"returned a {type(answer).__name__}, not a DeploymentEvent")
    # Made anew, so that what was put past its checks is found here.
    answer = DeploymentEvent(**{field.name: getattr(answer, field.name) for field in fields(DeploymentEvent)})
    fixed = _what_stays(answer)
    changed = [name for name, value in _what_stays(before).items() if fixed[name] != value]
    if changed:
        raise NonsenseError(f"changed {' and '.join(changed)}, which must stay (dataclasses.replace keeps all else)")
    return answer


def _what_stays(event: DeploymentEvent) -> dict[str, object]:
    return {
        "eventType": event.event_type,
        "eventTime": event.event_time,
        "the identity": event.identity,
        "eventId in eventMetadata": event.event_metadata.get("eventId"),
    }


def where_raised(error: BaseException) -> str:
    """Return the type of ``error``, and the plugin's file and line; never the text, which may hold secrets."""
    steps = [(code.co_filename, line) for code, line in _steps(error)]
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        steps.append((error.filename, error.lineno))
    for file, line in steps:
        if Path(file).parent != _HERE and "importlib" not in file:
            return f"{type(error).__name__} ({Path(file).name}, line {line})"
    return type(error).__name__


def _steps(error: BaseException) -> Iterator[tuple[CodeType, int]]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame.f_code, trace.tb_lineno
        trace = trace.tb_next
