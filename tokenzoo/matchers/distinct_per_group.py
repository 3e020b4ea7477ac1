"""Groups of tokens by principal components, and the distinct ones of each group (PruneSID)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.kinds import NonNegative, Share
from tokenzoo._core.precision import comparable, precise
from tokenzoo._core.sorting import (
    choose,
    descending,
    first_highest,
    first_of,
    ordered,
    place_in_group,
    places,
)
from tokenzoo._core.validation import floor_share
from tokenzoo.evidence import Evidence
from tokenzoo.kernels.suppression import suppressed
from tokenzoo.parts import PairScorer, Scorer, Selector, token_scores
from tokenzoo.token_map import take

PASSES, TURNS = 2, 20
"""Multiplications with all tokens, and with the components alone, towards the principal ones."""


@dataclass(frozen=True)
class DistinctPerGroup(Selector):
    """Keep the best distinct tokens of every group of tokens that vary alike.

    The groups are the `components` * k principal components, at least one; a token belongs to the one in
    which it weighs most. In a group, tokens are taken in the order of their scores; one that is more alike
    to a taken one than `threshold` * k times the mean over all pairs is suppressed. The best token of every
    group stays, and of the others as many of each group as are in proportion to those not suppressed
    there (Webster's rounding); suppressed ones come last, by their scores.

    Args:
        scorer: a high score means keep.
        pairs: a high score means alike; the components are those of `x`.
        components: components for each kept token, rounded down.
        threshold: similarity for each kept token, in units of the mean similarity.
    """

    scorer: Scorer
    pairs: PairScorer
    components: Share = 0.25
    threshold: NonNegative = 1 / 32

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose k tokens: the best of every group first."""
        if k == 0:
            return pool[:, :0], pool
        p = pool.shape[1]
        pairs = self.pairs.score(evidence).at(pool, pool)
        scores = take(token_scores(self.scorer, evidence), pool)
        known = scores.isfinite() & pairs.diagonal().isfinite()  # [b, p]
        order = descending(scores.where(known, -torch.inf))
        alike = pairs.dense().nan_to_num(nan=0.0)  # [b, p, p]
        group = principal(take(evidence.x, pool), max(1, floor_share(self.components, k)))
        sums = alike.sum((1, 2)) - alike.diagonal(dim1=1, dim2=2).sum(-1)  # [b]
        limit = comparable(self.threshold * k * sums / max(1, p * (p - 1)))[:, None, None]
        near = (comparable(alike) > limit) & (group[..., None] == group[:, None])
        near = near.gather(1, order[..., None].expand(-1, -1, p))
        near = near.gather(2, order[:, None].expand(-1, p, -1))
        gone = torch.zeros_like(known).scatter(1, order, suppressed(near))
        place = places(order)
        turn = place_in_group(group, places(ordered(gone.long() * p + place)))
        left = torch.zeros_like(place).scatter_add(1, group, (~gone & known).long())
        share = (turn - 0.5) / take(left, group).clamp_min(1)
        share = torch.where(gone, p + place, share)
        first = (turn > 0).long()
        kept = first_of(k, (~known).long(), first, places(ordered(share)))
        return choose(pool, kept)


def principal(x: Tensor, groups: int) -> Tensor:
    """Return for each token the principal component of the image in which it weighs most.

    The features are squashed to (0, 1), and the mean of each token's channels is subtracted. What varies
    are the channels: a component is a vector of one weight per token.

    Args:
        x: `[b, n, c]`; a token that is not finite counts as 0.
        groups: number of components.

    Returns:
        `[b, n]`, from 0 to `groups` - 1.
    """
    x = torch.sigmoid(precise(x))
    x = (x - x.mean(-1, keepdim=True)).nan_to_num(nan=0.0)  # [b, n, c]
    n, c = x.shape[1:]
    q = min(groups, n, c)
    basis = _start(c, q, x)
    for _ in range(PASSES):
        basis = _orthonormal(x.mT @ (x @ basis))  # [b, c, q]
    weight = x @ basis  # [b, n, q]
    square = weight.mT @ weight  # [b, q, q]
    turn = torch.eye(q, dtype=x.dtype, device=x.device).expand_as(square)
    for _ in range(TURNS):
        turn = _orthonormal(square @ turn)
    weight = weight @ turn
    length = weight.square().sum(1, keepdim=True).sqrt()  # [b, 1, q]
    # A component of rounding errors has a length, too: it must not become that of a token.
    least = length.amax(-1, keepdim=True) * 1e-4
    return first_highest(comparable((weight / length.clamp_min(least + 1e-30)).abs()))


def _orthonormal(vectors: Tensor) -> Tensor:
    """Return an orthonormal basis of the columns of `vectors [b, m, q]`, in their order."""
    return torch.linalg.qr(vectors).Q  # pyright: ignore


def _start(c: int, q: int, like: Tensor) -> Tensor:
    """Return a basis `[b, c, q]` to start from, without a generator and the same for all images."""
    row = torch.arange(c, dtype=like.dtype, device=like.device)[:, None]
    column = torch.arange(1, q + 1, dtype=like.dtype, device=like.device)
    # Cosines of incommensurable frequencies are as independent as random numbers.
    return torch.cos(row * column.sqrt() + column).expand(len(like), c, q)
