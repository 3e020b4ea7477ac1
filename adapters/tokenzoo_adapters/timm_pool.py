"""How timm's models pool their tokens, with masses: a mean by mass, log mass in an attention that pools.

timm pools in a method, not in a module, so a `functools.partial` of a function of this module is put on the
instance: copied and pickled with the model, it is the copy's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from tokenzoo.errors import AttachError
from tokenzoo.runtime import passes
from tokenzoo.runtime.passes import Pass
from tokenzoo.runtime.splice import LOST
from tokenzoo.runtime.tap import Tap


def install(model: Any, proportional: bool) -> Callable[[], None]:
    """Make the pooling of a model count masses, and its maps refuse fewer tokens; returns the undoing."""
    mine: dict[str, Any] = {"forward_intermediates": partial(_intermediates, model)}
    if hasattr(model, "pool"):
        mine["pool"] = partial(_pool, model, proportional=proportional)
    else:
        mine["forward_head"] = partial(_head, model)
    put(model, mine)
    return partial(remove, model, tuple(mine))


def put(module: Any, values: Mapping[str, Any]) -> None:
    """Set attributes of an instance."""
    for name, value in values.items():
        setattr(module, name, value)


def remove(module: Any, names: tuple[str, ...]) -> None:
    """Delete attributes of an instance, so that those of its class are seen again; twice is once."""
    for name in names:
        vars(module).pop(name, None)


def _pool(
    model: Any, x: Tensor, pool_type: str | None = None, *, proportional: bool = False
) -> Tensor:
    """The `pool` of VisionTransformer and Eva."""
    state = _state(x)
    original = cast("Any", type(model)).pool  # the class's own, not the one put on the instance
    if model.attn_pool is not None:
        _same_device(model, x)
    if state.mass is None:
        return original(model, x, pool_type)
    x = passes.few(x, state)
    if model.attn_pool is not None:
        if not proportional:
            return original(model, x, pool_type)
        # Eva's attention always pools the prefix tokens too.
        start = 0 if getattr(model, "pool_include_prefix", True) else int(model.num_prefix_tokens)
        tap = Tap(0, state.mass[:, start:].log())
        with tap:
            pooled = original(model, x, pool_type)
        if len(tap.seen) != 1:
            raise AttachError(
                f"{len(tap.seen)} fused attention calls in the pooling; one is expected"
            )
        return pooled
    kind = model.global_pool if pool_type is None else pool_type
    start = 0 if getattr(model, "pool_include_prefix", False) else int(model.num_prefix_tokens)
    pooled = _mean(x, state.mass, start, kind)
    return original(model, x, pool_type) if pooled is None else pooled


def _head(model: Any, x: Tensor, *args: Any, **options: Any) -> Tensor:
    """The `forward_head` of models without `pool`: it is shown the one token that its mean should be."""
    state = _state(x)
    _same_device(model, x)
    original = cast("Any", type(model)).forward_head
    if state.mass is not None:
        x = passes.few(x, state)
        p = int(model.num_prefix_tokens)
        pooled = _mean(x, state.mass, p, model.global_pool)
        if pooled is not None:
            x = torch.cat([x[:, :p], pooled[:, None]], 1)  # [b, p + 1, c]
    return original(model, x, *args, **options)


def _mean(x: Tensor, mass: Tensor, start: int, kind: str) -> Tensor | None:
    """The pooled tokens `[b, c]` where a mean is part of it, otherwise None."""
    if kind not in ("avg", "avgmax"):
        return None
    weight = mass[:, start:].to(x.dtype)
    patches = x[:, start:]  # [b, n, c]
    mean = (patches * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)
    if kind == "avg":
        return mean
    real = patches.masked_fill(weight[..., None] == 0, -torch.inf)  # what has no mass only pads
    return 0.5 * (mean + real.amax(1))


def _state(x: Tensor) -> Pass:
    state = passes.of(x)
    if state is None:
        raise AttachError(LOST.format(where="the pooling"))
    return state


def _same_device(model: Any, x: Tensor) -> None:
    """Raise in a replica of nn.DataParallel: what is on the instance would run the original's weights."""
    parameter = next(model.parameters(), x)
    if parameter.device.type == x.device.type and parameter.device != x.device:
        raise AttachError(
            f"the model is on {parameter.device} and its input on {x.device}: a replica of nn.DataParallel "
            "cannot have a pooling of its own; use DistributedDataParallel, one process per device"
        )


def _intermediates(model: Any, x: Tensor, *args: Any, **options: Any) -> Any:
    """Timm's `forward_intermediates`, whose reshape to the grid may fit fewer tokens by accident."""
    _same_device(model, x)
    original = cast("Any", type(model)).forward_intermediates
    try:
        result: Any = original(model, x, *args, **options)
    except RuntimeError as error:
        if "is invalid for input of size" in str(error):  # a reshape to the grid
            raise AttachError(MAPS) from error
        raise
    found: Any = result["image_intermediates"] if hasattr(result, "keys") else result
    features: Any = found if hasattr(found, "append") else found[1]  # beside the last features
    for item in features:
        y: Any = item if torch.is_tensor(item) else item[0]  # (patches, prefix)
        if y.ndim == 4 and y.shape[1] != model.embed_dim:  # [b, c, rows, columns]
            raise AttachError(MAPS)
    return result


MAPS = (
    "forward_intermediates cannot make maps of the grid's size: fewer tokens are left; attach with "
    "restore=True, or take output_fmt='NLC', or blocks before the first reduction"
)
