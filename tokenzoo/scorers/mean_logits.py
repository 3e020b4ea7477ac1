"""FoPru's significance, as in its code: means of the attention before the softmax."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.precision import precise
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Scorer


@dataclass(frozen=True)
class MeanLogits(Scorer):
    """Mean logit that a token receives or emits, whichever varies more in the image.

    The logits are q_i k_j, mean over the heads, without prefix tokens. Their means are inner products with
    a mean key or query, so no map of all pairs is made. With equal variances, the emitted one is used.
    """

    needs = frozenset({"queries", "keys"})

    def score(self, evidence: Evidence) -> Tensor:
        """Return scores `[b, n]`; NaN for tokens that are not finite; these do not affect others."""
        query, key = precise(evidence.queries), precise(evidence.keys)
        known = (query + key).sum((1, 3)).isfinite()  # [b, n]
        kept = known[:, None, :, None]
        query, key = query.where(kept, 0), key.where(kept, 0)
        count = known.sum(-1).clamp_min(1)[:, None, None, None]

        def means(one: Tensor, other: Tensor) -> Tensor:
            centre = other.sum(2, keepdim=True) / count  # [b, h, 1, d]
            return (one * centre).sum(-1).mean(1)  # [b, n]

        received, emitted = means(key, query), means(query, key)
        more = _spread(received, known) > _spread(emitted, known)
        return torch.where(more, received, emitted).masked_fill(~known, torch.nan)


def _spread(values: Tensor, known: Tensor) -> Tensor:
    """Return the variance of the finite `values [b, n]`: `[b, 1]`."""
    count = known.sum(-1, keepdim=True).clamp_min(1)
    mean = values.where(known, 0).sum(-1, keepdim=True) / count
    return (values - mean).square().where(known, 0).sum(-1, keepdim=True) / count
