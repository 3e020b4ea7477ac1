"""The zoo: one function per method, each only a choice of parts and numbers.

A public function in a file here that returns a `Recipe` is a recipe, under its own name: a new method is a
new file, and nothing else has to know of it.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import getmembers, isfunction
from pkgutil import iter_modules
from typing import Any

from tokenzoo.hookspecs import hookimpl
from tokenzoo.recipe import Recipe


@hookimpl
def tokenzoo_recipes() -> Mapping[str, Callable[..., Any]]:
    """The built-in recipes."""
    found: dict[str, Callable[..., Any]] = {}
    for file in iter_modules(__path__, f"{__name__}."):
        module = import_module(file.name)
        for name, function in getmembers(module, isfunction):
            own = function.__module__ == module.__name__ and not name.startswith("_")
            if own and function.__annotations__.get("return") in (Recipe, Recipe.__name__):
                found[name] = function
    return found
