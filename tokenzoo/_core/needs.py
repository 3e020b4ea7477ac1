"""Libraries of the extras, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tokenzoo.errors import MissingDependencyError


def need(module: str, extra: str, package: str | None = None) -> Any:
    """Import a module of an extra.

    Args:
        module: its name.
        extra: of tokenzoo, or two of them ("timm,viz").
        package: what is not installed, for the message; None: the module.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{package or module} is not installed: pip install 'tokenzoo[{extra}]'"
        ) from error
