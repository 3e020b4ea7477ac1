"""Sites of a few tokens, and parts that read their scores off the features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenzoo import Affinity, Evidence, PairScorer, Scorer


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def site(x: Tensor, **shown: Any) -> Evidence:
    """The evidence of tokens of mass 1."""
    return Evidence(x, mass=torch.ones(x.shape[:2]), **shown)


def scores(*values: float) -> Evidence:
    """Tokens of one image with these scores, for `Given`."""
    return site(torch.tensor(values, dtype=torch.float32)[None, :, None])


def pool_of(evidence: Evidence) -> Tensor:
    """All of its tokens."""
    b, n = evidence.x.shape[:2]
    return torch.arange(n).expand(b, n)


@dataclass(frozen=True)
class Given(Scorer):
    """The first channel is the score."""

    def score(self, evidence: Evidence) -> Tensor:
        return evidence.x[..., 0]


@dataclass(frozen=True)
class GivenPairs(PairScorer):
    """x is the table of the pair scores, `[b, n, n]`."""

    def score(self, evidence: Evidence) -> Affinity:
        n = evidence.x.shape[1]
        return Affinity(evidence.x, torch.eye(n, dtype=evidence.x.dtype).expand_as(evidence.x))
