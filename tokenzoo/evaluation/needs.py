"""Libraries of the extra `eval`, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tokenzoo.errors import MissingDependencyError


def need(module: str) -> Any:
    """Import a module of the extra `eval`.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{module} is not installed: pip install 'tokenzoo[eval]'"
        ) from error
