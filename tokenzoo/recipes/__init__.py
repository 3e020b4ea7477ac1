"""The built-in recipes: one function per method, each only a choice of parts and numbers.

Every file here is imported at the first look-up of a name, and `@register_recipe` registers its functions.
A new method is a new file; no other file lists it.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from tokenzoo.hookspecs import hookimpl

from .registry import register_recipe as register_recipe
from .registry import registered_recipes


@hookimpl
def tokenzoo_recipes() -> Mapping[str, Callable[..., Any]]:
    """The built-in recipes, by name."""
    for file in iter_modules(__path__, f"{__name__}."):
        import_module(file.name)
    return registered_recipes()
