"""The table of the settings: how each is called, read, and what follows where it cannot be used."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from ld_deploy_hooks._records import APPLICATION_KINDS
from ld_deploy_hooks._settings._checks import DEFAULT, LAUNCHDARKLY, UNTOLD, WAITING, Problem
from ld_deploy_hooks._settings._values import (
    UNUSABLE_URI,
    Secret,
    read_header,
    read_kind,
    read_names,
    read_path,
    read_seconds,
    read_switch,
    read_text,
    read_token,
)

REQUIRED = ("project_key", "environment_key", "application_key", "version")


class Field(NamedTuple):
    """How a field is read. ``then`` and ``otherwise``: what follows where it was set and cannot be used."""

    variable: str
    read: Callable[[object], object]
    then: str
    types: tuple[type, ...] = (str,)
    default: object = None
    otherwise: object = None


_LEFT_OUT = "it is left out"
_ON = "it counts as on, nothing is sent"
_LONELY = "no plugin is loaded by itself"

FIELDS: Mapping[str, Field] = {
    "access_token": Field("LD_ACCESS_TOKEN", read_token, WAITING, (str, Secret)),
    "base_uri": Field("LD_BASE_URI", read_text, WAITING, default=LAUNCHDARKLY, otherwise=UNUSABLE_URI),
    "project_key": Field("LD_PROJECT", read_text, UNTOLD),
    "environment_key": Field("LD_ENVIRONMENT", read_text, UNTOLD),
    "application_key": Field("LD_DEPLOY_APPLICATION_KEY", read_text, UNTOLD),
    "version": Field("LD_DEPLOY_VERSION", read_text, UNTOLD),
    "application_name": Field("LD_DEPLOY_APPLICATION_NAME", read_text, _LEFT_OUT),
    "application_kind": Field("LD_DEPLOY_APPLICATION_KIND", read_kind, _LEFT_OUT),
    "version_name": Field("LD_DEPLOY_VERSION_NAME", read_text, _LEFT_OUT),
    "api_version": Field("LD_DEPLOY_API_VERSION", read_header, DEFAULT, default="beta"),
    "outbox": Field("LD_DEPLOY_OUTBOX", read_path, DEFAULT, (str, os.PathLike)),
    "flush_timeout": Field("LD_DEPLOY_FLUSH_TIMEOUT", read_seconds, DEFAULT, (int, float)),
    "strict": Field("LD_DEPLOY_STRICT", read_switch, "it counts as off", (bool,), False, False),
    "disabled": Field("LD_DEPLOY_DISABLED", read_switch, _ON, (bool,), False, True),
    "dry_run": Field("LD_DEPLOY_DRY_RUN", read_switch, _ON, (bool,), False, True),
    "plugins": Field("LD_DEPLOY_PLUGINS", read_names, "none is loaded or blocked by name", (str, list, tuple), ()),
    "plugin_autoload": Field("LD_DEPLOY_DISABLE_PLUGIN_AUTOLOAD", read_switch, _LONELY, (bool,), True, False),
}

VARIABLES: Mapping[str, str] = MappingProxyType({name: field.variable for name, field in FIELDS.items()})


def check_argument_types(**fields: object) -> None:
    """Check what was written in code, where it was written; None means not set.

    Raises:
        TypeError: a value is of a wrong type, or a keyword is no setting.
        ValueError: ``application_kind`` is none of LaunchDarkly's.
    """
    for name, value in fields.items():
        if name not in FIELDS:
            raise TypeError(f"{name!r} is no setting: {nearest(name)}")
        types = FIELDS[name].types
        if value is None:
            continue
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            wanted = " or ".join(kind.__name__ for kind in types)
            raise TypeError(f"{name} must be of type {wanted}, not {type(value).__name__}")
        if isinstance(value, (list, tuple)) and not all(isinstance(item, str) for item in value):
            raise TypeError(f"{name} must hold names, each of type str")
        if name == "application_kind" and value not in APPLICATION_KINDS:
            raise ValueError(f"application_kind must be one of {', '.join(APPLICATION_KINDS)}, not {value!r}")


def nearest(name: object) -> str:
    import difflib

    near = difflib.get_close_matches(str(name), FIELDS, n=1)
    return f"did you mean {near[0]}?" if near else f"what can be set is {', '.join(FIELDS)}"


def missing(name: str) -> Problem:
    ways = (
        f"{name}=... in code, {VARIABLES[name]} in the environment, {name} under ld_deploy_hooks: in invoke.yaml or "
        f"fabric.yaml, {name} under [tool.ld-deploy-hooks] in pyproject.toml, or a plugin's ld_deploy_provide_defaults"
    )
    return Problem(name, f"{name} is not set: {UNTOLD}; set it by one of {ways}", fault=True, missing=True)
