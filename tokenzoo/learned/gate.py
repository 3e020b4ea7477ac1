"""Gates: scorers that learn with which probability a token is kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo.evidence import Evidence
from tokenzoo.learned.part import Learned
from tokenzoo.parts import Scorer


@dataclass(frozen=True)
class Gate(Learned, Scorer, ABC):
    """The base of gates: the score is the logit of the probability p that a token is kept.

    It orders tokens as log p does, and does not saturate. In training logistic noise is added, the
    difference of two Gumbel variables: which tokens are highest is then a draw. `StraightThrough` takes the
    gradient back to the gate.
    """

    @abstractmethod
    def logits(self, evidence: Evidence) -> Tensor:
        """Return the logits of "keep" and "drop", `[b, n, 2]`."""

    def score(self, evidence: Evidence) -> Tensor:
        """Return scores `[b, n]`, with noise in training."""
        keep, drop = self.logits(evidence).unbind(-1)
        if not evidence.training:
            return keep - drop
        return keep - drop + torch.rand_like(keep).clamp(1e-6, 1 - 1e-6).logit()

    def probability(self, evidence: Evidence) -> Tensor:
        """Return the probability that each token is kept, `[b, n]`; without noise."""
        return self.logits(evidence).softmax(-1)[..., 0]

    def penalty(self, evidence: Evidence, keep: int) -> Tensor:
        """Return the squared difference of the mean probability and the share that is kept."""
        share = keep / evidence.x.shape[1]
        return (self.probability(evidence).mean(-1) - share).square().mean()
