"""Random walk over the graph of similar tokens (G-Prune)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from tokenzoo._core.kinds import Positive, Range, Words
from tokenzoo._core.precision import comparable
from tokenzoo.evidence import Evidence, needed
from tokenzoo.parts import Scorer
from tokenzoo.scorers.feature_norm import Space
from tokenzoo.tokens import norm, unit


@dataclass(frozen=True)
class GraphFlow(Scorer):
    """The mass that a random walk has brought to a token, divided by its number of neighbours.

    Two tokens are neighbours if their cosine is at least `threshold`; a token is its own neighbour. A
    step goes from i to j with the probability softmax(cos_ij / temperature) over the neighbours of i. The
    walk starts from the lengths of the tokens.

    Args:
        on: the features: "x", "keys" (mean over heads), "all_keys" or "queries".
        threshold: the least cosine of neighbours.
        temperature: a low one sends nearly all mass to the most similar token.
        steps: number of steps.
    """

    on: Space = "x"
    threshold: Annotated[float, Range(-1, 1)] = 0.5
    temperature: Positive = 0.03
    steps: Annotated[int, Range(1, 1000), Words("an int >= 1, at most 1000")] = 5

    def __post_init__(self) -> None:
        self.require(needed(self.on))

    def score(self, evidence: Evidence) -> Tensor:
        """Return scores `[b, n]`, >= 0; NaN for tokens that are not finite; these do not affect others."""
        features = evidence.features(self.on)
        known = features.sum(-1).isfinite()
        features = features.where(known[..., None], 0)
        chance, degree = self.graph(features)
        flow = norm(features)[:, None]  # [b, 1, n]
        for _ in range(self.steps):
            flow = flow @ chance
        return (flow.squeeze(1) / degree).masked_fill(~known, math.nan)

    def graph(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return step probabilities from i to j `[b, n, n]` and numbers of neighbours `[b, n]`."""
        cosine = unit(features) @ unit(features).mT
        own = torch.eye(cosine.shape[-1], dtype=torch.bool, device=cosine.device)
        near = (comparable(cosine) >= self.threshold) | own
        chance = (cosine / self.temperature).masked_fill(~near, -torch.inf).softmax(-1)
        return chance, near.sum(-1)
