"""Whose code reads the tokens after the blocks: the library's, whose pooling is known, or the user's.

A mean in the user's code counts a merged token once, however many tokens it stands for.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import partial
from types import MethodType
from typing import Any

# Wrappers of these libraries call what they wrap; "tokenzoo_adapters": a recipe is attached already.
TRUSTED = frozenset({"tokenzoo_adapters", "accelerate", "torch"})


def own_code(model: Any, library: str, names: Iterable[str]) -> str:
    """Why a model must be given all its tokens: a method of this name is not its library's.

    Args:
        model: of a class of the library, or of a subclass.
        library: the first part of its modules' names ("timm").
        names: methods that read tokens.

    Returns:
        "" if all are the library's, or there are none of these names.
    """
    for name in names:
        found: Any = getattr(model, "__dict__", {}).get(name)
        where = f"set on this very {type(model).__name__}"
        if found is None:
            owner = next((kind for kind in type(model).__mro__ if name in vars(kind)), None)
            if owner is None:
                continue
            found, where = vars(owner)[name], f"of {owner.__module__}.{owner.__qualname__}"
        if _library(found) not in (TRUSTED | {library}):
            return (
                f"its {name} ({where}) is not {library}'s, and a mean that it takes would count a merged "
                "token once, however many it stands for"
            )
    return ""


def _library(method: Any) -> str:
    """The top-level package in which a method is defined."""
    method = inspect.unwrap(method)
    if isinstance(method, partial):
        method = method.func
    if isinstance(method, MethodType):
        method = inspect.unwrap(method.__func__)
    return str(getattr(method, "__module__", "")).partition(".")[0]
