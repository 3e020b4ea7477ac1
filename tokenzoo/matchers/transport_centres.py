"""Learned centres, to which optimal transport spreads the tokens (Sinkhorn)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from tokenzoo._core.kinds import Count, Positive
from tokenzoo.learned import SoftMatcher, Start, Starts


@dataclass(frozen=True)
class TransportCentres(SoftMatcher):
    """Spread the tokens over m learned centres, every token and every centre with its share.

    A few rounds of Sinkhorn's algorithm make of the cosines a plan whose rows are alike and whose
    columns add up to 1.

    Args:
        seed: of the first values.
        temperature: by which the cosines are divided; at 1 every output is near the mean of all tokens.
        rounds: how many.
        unit_values: sum features of length 1 instead of the features themselves.
    """

    temperature: Positive = 0.03
    rounds: Count = 3
    unit_values: bool = False

    def starts(self, width: int, keep: int) -> Starts:
        """Return a centre for each output."""
        return {"centres": Start((keep, width), std=1.0)}

    def assign(self, x: Tensor, known: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the transport plan, and the features."""
        features = _unit(x)
        scores = features @ _unit(weights["centres"]).mT / self.temperature  # [b, n, m]
        n, m = scores.shape[1:]
        each = -math.log(n + m)  # of every token and every centre
        columns = scores.new_zeros(scores.shape[0], 1, m)
        rows = columns
        for _ in range(self.rounds):
            rows = (each - (scores + columns).logsumexp(2, keepdim=True)).where(known, -1e4)
            columns = each - (scores + rows).logsumexp(1, keepdim=True)
        plan = (scores + rows + columns - each).exp()
        return plan, features if self.unit_values else x


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors, dim=-1)
