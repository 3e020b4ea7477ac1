"""Libraries of the extras of the evaluation, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tokenzoo.errors import MissingDependencyError


def need(module: str, extra: str = "eval") -> Any:
    """Import a module of an extra.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{module} is not installed: pip install 'tokenzoo[{extra}]'"
        ) from error
