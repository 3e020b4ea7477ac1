"""A mean of tokens by mass, for the pooling of all adapters."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenzoo.errors import AttachError
from tokenzoo.hooks import LOST, ReductionState, get_state


def state_of(x: Tensor) -> ReductionState:
    """The state of the tokens that a pooling reads.

    Raises:
        AttachError: they carry none, or not all blocks of the plan have run.
    """
    state = get_state(x)
    if state is None:
        cut = "; blocks that were cut after the recipe was attached"
        raise AttachError(LOST.format(where="the pooling") + cut)
    if state.stopped:
        raise AttachError(
            f"{len(state.fired)} of {len(state.bucket.counts)} blocks ran before the pooling: blocks "
            "were cut after the recipe was attached; detach, and attach again"
        )
    return state


def mean(x: Tensor, mass: Tensor, start: int) -> Tensor:
    """The mean of the tokens of `x [b, n, c]` from `start` on, by mass `[b, n]`: `[b, c]`."""
    weight = mass[:, start:].to(x.dtype)
    return (x[:, start:] * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)


def pooled(x: Tensor, mass: Tensor, start: int, kind: str) -> Tensor | None:
    """The pooling by mass of a `kind` with a mean ("avg", "avgmax"): `[b, c]`; None for any other kind."""
    if kind not in ("avg", "avgmax"):
        return None
    average = mean(x, mass, start)
    if kind == "avg":
        return average
    only_pads = (mass[:, start:] == 0)[..., None]
    return 0.5 * (average + x[:, start:].masked_fill(only_pads, -torch.inf).amax(1))
