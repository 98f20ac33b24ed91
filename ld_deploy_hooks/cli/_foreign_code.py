"""Whether a module surely has nothing to do with deployments. It is read, and never run."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

__all__ = ["is_foreign", "tells_nothing"]

_LIBRARIES = sys.stdlib_module_names | {"invoke", "fabric"}
# What a module has in it that tells deployments, or that may load any other one.
_TELLTALES = ("deployment", "ld_deploy_hooks", "importlib", "__import__", "exec(")


def is_foreign(module: str) -> bool:
    """Whether a module, given by its dotted name, is the standard library's or a host's own."""
    return module.partition(".")[0] in _LIBRARIES


def tells_nothing(path: Path) -> bool:
    """Whether the module in this file surely tells no deployment; False wherever reading it does not tell."""
    try:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
    except (OSError, ValueError, SyntaxError, RecursionError):
        return False
    if any(telltale in text for telltale in _TELLTALES):
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and not all(is_foreign(name.name) for name in node.names):
            return False
        if isinstance(node, ast.ImportFrom) and (node.level or not is_foreign(node.module or "")):
            return False
    return True
