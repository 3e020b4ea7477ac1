"""EvoPrune without fused attention: importance from the whole attention map in memory.

It selects the same tokens as `evoprune`; its row shows the cost of the map.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from tokenzoo.attention import SeenAttention
from tokenzoo.errors import AttachError
from tokenzoo.evidence import Evidence
from tokenzoo.matchers import Bipartite, Protect
from tokenzoo.parts import Scorer
from tokenzoo.recipe import Recipe
from tokenzoo.zoo import Method, build

WRITTEN_OUT = "evoprune, map written out"


@dataclass(frozen=True)
class WholeMap(Scorer):
    """The column means of softmax(q k^T), with all of its `[b, h, n, n]` values in memory."""

    needs = frozenset({"attention"})

    def score(self, evidence: Evidence) -> Tensor:
        """Score `[b, n]`.

        Raises:
            AttachError: the attention is over a packed sequence.
        """
        seen = evidence.attention
        if type(seen) is not SeenAttention:
            raise AttachError(
                "the map is written out for a batch of images alone: this tower packs them into a sequence"
            )
        logits = (seen.query.float() * seen.scale) @ seen.key.float().transpose(-1, -2)
        for bias in (seen.bias, None if seen.key_bias is None else seen.key_bias[:, None, None]):
            if bias is not None:
                logits = logits + bias.float()
        return torch.softmax(logits, -1).mean((1, 2))[:, seen.prefix :]


def unfused(keep: int | float) -> Method:
    """Return the recipe `evoprune` with `WholeMap` as its scorer."""
    recipe = build("evoprune", keep=keep).recipe
    (step,) = recipe.steps
    match = cast("Bipartite", step.matcher)
    protect = replace(cast("Protect", match.protect), scorer=WholeMap())
    step = replace(step, matcher=replace(match, protect=protect))
    proportional = recipe.proportional_attention
    return Method(Recipe(step, keep=keep, proportional_attention=proportional))
