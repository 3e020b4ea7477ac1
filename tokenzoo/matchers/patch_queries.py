"""Learned queries attend to the tokens: each output is what one query finds (PatchMerger)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from tokenzoo.learned import SoftMatcher, Start, Starts, over_tokens


@dataclass(frozen=True)
class PatchQueries(SoftMatcher):
    """A softmax over the tokens of their normed features' products with m learned queries.

    Args:
        seed: of the first values.
        scaled: divide the products by the root of the width.
        normed_values: sum the normed features instead of the features themselves.
    """

    scaled: bool = False
    normed_values: bool = False

    def starts(self, width: int, keep: int) -> Starts:
        """Return a query for each output, and the norm's gain and shift."""
        queries = Start((keep, width), std=1.0)
        return {"queries": queries, "gain": Start((width,), 1.0), "shift": Start((width,))}

    def assign(self, x: Tensor, known: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the attention of the queries, and the features."""
        c = x.shape[2]
        normed = F.layer_norm(x, (c,), weights["gain"], weights["shift"])
        scale = c**-0.5 if self.scaled else 1.0
        attention = over_tokens(normed @ weights["queries"].mT * scale, known)
        return attention, normed if self.normed_values else x
