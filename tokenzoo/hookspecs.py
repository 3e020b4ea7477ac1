"""The hooks that a plugin can implement: five mappings of names to factories, adapters, a notification.

A plugin is any importable module with an entry point in the group `tokenzoo`, which implements some of the
functions below and marks them with `@tokenzoo.hookimpl`. The built-in parts use the same hooks. Hooks are
called at the first look-up of a name or an adapter, never inside a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pluggy

PROJECT = "tokenzoo"

_F = TypeVar("_F", bound=Callable[..., Any])

_hookspec = pluggy.HookspecMarker(PROJECT)
_hookimpl = pluggy.HookimplMarker(PROJECT)


def hookimpl(function: _F) -> _F:
    """Mark a function of a plugin as an implementation of the hook of the same name."""
    return _hookimpl(function)


@_hookspec
def tokenzoo_scorers() -> Mapping[str, Callable[..., Any]]:
    """Map names to factories of token scorers (`Scorer`) and pair scorers (`PairScorer`)."""
    raise NotImplementedError


@_hookspec
def tokenzoo_matchers() -> Mapping[str, Callable[..., Any]]:
    """Map names to factories of matchers, selectors, assigners, splits and protections."""
    raise NotImplementedError


@_hookspec
def tokenzoo_mergers() -> Mapping[str, Callable[..., Any]]:
    """Map names to factories of mergers and restorers."""
    raise NotImplementedError


@_hookspec
def tokenzoo_schedules() -> Mapping[str, Callable[..., Any]]:
    """Map names to factories of schedules."""
    raise NotImplementedError


@_hookspec
def tokenzoo_recipes() -> Mapping[str, Callable[..., Any]]:
    """Map names to functions with keyword-only options that return a `Recipe`."""
    raise NotImplementedError


@_hookspec(firstresult=True)
def tokenzoo_adapter(model: Any) -> Any:
    """Return an `Adapter` for this model, or None if it is not of a family that the plugin supports.

    Raise `UnsupportedModelError`, with the reason, for a model of that family that cannot be supported.
    """


@_hookspec
def tokenzoo_attached(attached: Any) -> None:
    """Called once after a recipe was attached to a model (`attached.model`, `attached.recipe`)."""
