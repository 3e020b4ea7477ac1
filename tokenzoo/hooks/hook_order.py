"""Forward hooks that run before all others of their module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


def hook_first(
    module: nn.Module, hook: Callable[..., Any], *, with_kwargs: bool = False
) -> RemovableHandle:
    """Register a forward hook before those that are there; see `register_forward_hook`."""
    handle = module.register_forward_hook(hook, with_kwargs=with_kwargs)
    put_first(module, handle.id)
    return handle


def put_first(module: nn.Module, key: int) -> None:
    """Let the forward hook of a handle (its id) run before the others, those with `prepend=True` too.

    Not by `prepend=True`: it leaves the keys in an order that torch 2.11 misreads when it compiles.
    """
    hooks: dict[int, Any] = cast("Any", module)._forward_hooks
    if torch.compiler.is_dynamo_compiling() or next(iter(hooks), key) == key:
        return
    for other, hook in list(hooks.items()):
        if other != key:
            del hooks[other]
            hooks[other] = hook
