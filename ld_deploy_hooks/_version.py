"""The one place of the version; setup.cfg reads it too. importlib.metadata would cost every deploy 47 ms."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
