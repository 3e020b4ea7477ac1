"""The registry of the built-in recipes, which the decorator `register_recipe` fills."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from tokenzoo.errors import PluginError
from tokenzoo.recipe import Recipe

_F = TypeVar("_F", bound=Callable[..., Recipe])

_registered: dict[str, Callable[..., Any]] = {}


def register_recipe(function: _F) -> _F:
    """Register a recipe of this package under the name of its function.

    A plugin does not need it: its recipes come by the hook `tokenzoo_recipes`.

    Raises:
        PluginError: another module has registered a recipe of that name.
    """
    known = _registered.get(function.__name__)
    if known is not None and known.__module__ != function.__module__:
        raise PluginError(
            f"the recipe {function.__name__!r} of {function.__module__} has the name of a recipe of "
            f"{known.__module__}: rename the function"
        )
    _registered[function.__name__] = function
    return function


def registered_recipes() -> dict[str, Callable[..., Any]]:
    """The recipes registered so far, by name; in the order of their files, whichever was imported first."""
    return dict(sorted(_registered.items(), key=lambda item: (item[1].__module__, item[0])))
