"""What a plugin is given is its own: nothing that it does to it reaches the deploy, its events, or another plugin."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from types import BuiltinFunctionType, GetSetDescriptorType, MappingProxyType, MemberDescriptorType
from typing import TypeVar

from ld_deploy_hooks._metadata import jsonable
from ld_deploy_hooks._records import DeploymentEvent, DeploymentRecord

__all__ = ["own"]

E = TypeVar("E", bound=BaseException)

_NOT_SET = object()


def own(arguments: Mapping[str, object]) -> dict[str, object]:
    """Return the arguments of a hook as one plugin may have them: metadata and exceptions are copies."""
    return {name: _own(value) for name, value in arguments.items()}


def _own(value: object) -> object:
    if isinstance(value, DeploymentEvent):
        return replace(
            value,
            event_metadata=jsonable(value.event_metadata),
            deployment_metadata=jsonable(value.deployment_metadata),
        )
    if isinstance(value, DeploymentRecord):
        return replace(value, metadata=jsonable(value.metadata))
    if isinstance(value, MappingProxyType):
        return MappingProxyType(jsonable(value))
    if isinstance(value, BaseException):
        # Not the exception itself: a plugin that raises it would write its own frames into the deploy's traceback,
        # and its ``__context__``, while the deploy's thread does the same.
        return _twin_of(value)
    return value


def _twin_of(error: E) -> E:
    """Return an exception like ``error``, made by no code of its class; ``error`` itself where there is no way."""
    kind = type(error)
    # The nearest one that is written in C: it alone knows how to make an empty one.
    base: type = kind
    while not isinstance(vars(base).get("__new__"), BuiltinFunctionType):
        assert base.__base__ is not None
        base = base.__base__
    try:
        twin: E = vars(base)["__new__"](kind, *error.args)
    except (TypeError, ValueError):  # an exception group, whose arguments count, and somebody has changed them
        return error
    for base in reversed(kind.__mro__):
        for name, field in list(vars(base).items()):
            if isinstance(field, (GetSetDescriptorType, MemberDescriptorType)) and name != "__dict__":
                # Not set at all is not the same as None; and some can only be read.
                had = _read(field, error)
                if had is not _NOT_SET and had is not _read(field, twin):
                    with suppress(AttributeError, TypeError):
                        field.__set__(twin, had)
    # Once more, as __cause__ sets it, too; and past a __setattr__ of the class.
    vars(BaseException)["__suppress_context__"].__set__(twin, error.__suppress_context__)
    vars(twin).update(vars(error))
    if isinstance(notes := vars(twin).get("__notes__"), list):
        vars(twin)["__notes__"] = list(notes)
    return twin


def _read(field: GetSetDescriptorType | MemberDescriptorType, error: BaseException) -> object:
    try:
        return field.__get__(error)
    except AttributeError:
        return _NOT_SET
