"""Resolved, frozen settings, each value knowing where it came from.

First that is set wins: argument, the outer deployment's field, environment variable, the host's configuration
(``ld_deploy_hooks:`` in invoke.yaml or fabric.yaml), ``[tool.ld-deploy-hooks]`` in pyproject.toml, plugins' defaults. A
value that was set and cannot be used is not replaced by one from further down: an application that was named badly must
not become another one.

What is wrong is a :class:`Problem`. Only :func:`require` and :func:`check_argument_types` raise.
"""

from __future__ import annotations

from ld_deploy_hooks._settings._checks import Problem
from ld_deploy_hooks._settings._resolving import Settings, require, resolve
from ld_deploy_hooks._settings._table import REQUIRED, VARIABLES, check_argument_types
from ld_deploy_hooks._settings._values import Secret, is_loopback

__all__ = [
    "REQUIRED",
    "VARIABLES",
    "Problem",
    "Secret",
    "Settings",
    "check_argument_types",
    "is_loopback",
    "require",
    "resolve",
]
