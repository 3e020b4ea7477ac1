"""Pooling of timm's models by mass: a mean by mass, log mass in attention pooling.

timm pools in a method, not in a module, so the method is replaced on the instance (`common.patching`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from tokenzoo.errors import AttachError
from tokenzoo.hooks import Tap, reduced_tokens
from tokenzoo_adapters.common import feature_maps as maps
from tokenzoo_adapters.common.patching import put, remove
from tokenzoo_adapters.common.pooling import pooled, state_of


def install(model: Any, proportional: bool, prefix: int) -> Callable[[], None]:
    """Make the pooling of a model count masses, and its feature maps refuse fewer tokens.

    Args:
        model: of timm.
        proportional: whether attention pooling gets log mass.
        prefix: tokens before the patches, declared ones included.

    Returns:
        An uninstaller.
    """
    mine: dict[str, Any] = {"forward_intermediates": partial(_intermediates, model)}
    if hasattr(model, "get_intermediate_layers"):
        more = prefix - int(model.num_prefix_tokens)
        mine["get_intermediate_layers"] = partial(_layers, model, more)
    if hasattr(model, "pool"):
        mine["pool"] = partial(_pool, model, proportional=proportional)
    else:
        mine["forward_head"] = partial(_head, model)
    put(model, mine)
    return partial(remove, model, tuple(mine))


def _pool(
    model: Any, x: Tensor, pool_type: str | None = None, *, proportional: bool = False
) -> Tensor:
    """The `pool` of VisionTransformer and Eva."""
    state = state_of(x)
    original = cast("Any", type(model)).pool  # the class's own, not the one put on the instance
    if model.attn_pool is not None:
        _same_device(model, x)
    if state.mass is None:
        return original(model, x, pool_type)
    x = reduced_tokens(x, state)
    if model.attn_pool is not None:
        if not proportional:
            return original(model, x, pool_type)
        # Eva's attention always pools the prefix tokens too.
        start = 0 if getattr(model, "pool_include_prefix", True) else int(model.num_prefix_tokens)
        tap = Tap(0, state.mass[:, start:].log())
        with tap:
            found = original(model, x, pool_type)
        if len(tap.seen) != 1:
            raise AttachError(
                f"{len(tap.seen)} fused attention calls in the pooling; one is expected"
            )
        return found
    kind = model.global_pool if pool_type is None else pool_type
    start = 0 if getattr(model, "pool_include_prefix", False) else int(model.num_prefix_tokens)
    found = pooled(x, state.mass, start, kind)
    return original(model, x, pool_type) if found is None else found


def _head(model: Any, x: Tensor, *args: Any, **options: Any) -> Tensor:
    """The `forward_head` of models without `pool`, given one token that is the mean by mass."""
    state = state_of(x)
    _same_device(model, x)
    original = cast("Any", type(model)).forward_head
    if state.mass is not None:
        x = reduced_tokens(x, state)
        p = int(model.num_prefix_tokens)
        found = pooled(x, state.mass, p, model.global_pool)
        if found is not None:
            x = torch.cat([x[:, :p], found[:, None]], 1)  # [b, p + 1, c]
    return original(model, x, *args, **options)


def _same_device(model: Any, x: Tensor) -> None:
    """Raise in a replica of nn.DataParallel, where a method of the instance runs the original's weights."""
    parameter = next(model.parameters(), x)
    if parameter.device.type == x.device.type and parameter.device != x.device:
        raise AttachError(
            f"the model is on {parameter.device} and its input on {x.device}: a replica of nn.DataParallel "
            ""
            "cannot have its own pooling; use DistributedDataParallel, one process per device"
        )


def _intermediates(model: Any, x: Tensor, *args: Any, **options: Any) -> Any:
    """Timm's `forward_intermediates`."""
    _same_device(model, x)
    return maps.forward_intermediates(model, int(model.embed_dim), x, *args, **options)


def _layers(model: Any, more: int, x: Tensor, *args: Any, **options: Any) -> Any:
    """Timm's `get_intermediate_layers`; `more` declared tokens come before the patches."""
    _same_device(model, x)
    features: Any = cast("Any", type(model)).get_intermediate_layers(model, x, *args, **options)
    rows, columns = model.patch_embed.dynamic_feat_size(x.shape[-2:])
    return maps.whole(features, more + rows * columns)
