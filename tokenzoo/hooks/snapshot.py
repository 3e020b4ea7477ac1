"""What the modules of a model were before attach, so that an attach that fails leaves nothing.

An adapter hands out what undoes its changes after it has made them. An interrupt (Ctrl-C) in between would
lose it, so the way back does not rely on it: hooks and attributes are compared with what was there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

# Weights and submodules are no business of an attachment, and their devices may change in a pass.
_CONTENTS = frozenset({"_parameters", "_buffers", "_modules"})


def snapshot(model: nn.Module) -> Callable[[], None]:
    """Remember the hooks and attributes of all modules of a model and of their configurations.

    Returns:
        The function that puts them back; it is idempotent.
    """
    owners: dict[int, Any] = {}
    for module in model.modules():
        owners[id(module)] = module
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            owners[id(config)] = config
    before = [(owner, _values(owner), _hooks(owner)) for owner in owners.values()]
    return partial(_put_back, before)


def _own(owner: Any) -> dict[str, Any]:
    return owner.__dict__


def _values(owner: Any) -> dict[str, Any]:
    return {name: value for name, value in _own(owner).items() if name not in _CONTENTS}


def _hooks(owner: Any) -> dict[str, dict[Any, Any]]:
    """The contents of the dictionaries of hooks, which stay the same objects."""
    found = _own(owner).items()
    return {name: dict(value) for name, value in found if _holds_hooks(owner, name, value)}


def _holds_hooks(owner: Any, name: str, value: Any) -> bool:
    return isinstance(owner, nn.Module) and "_hooks" in name and isinstance(value, dict)


def _put_back(before: list[tuple[Any, dict[str, Any], dict[str, dict[Any, Any]]]]) -> None:
    for owner, values, hooks in before:
        own = _own(owner)
        for name in own.keys() - values.keys() - _CONTENTS:
            own.pop(name, None)
        own.update(values)
        for name, content in hooks.items():
            if dict(own[name]) != content:
                own[name].clear()
                own[name].update(content)
