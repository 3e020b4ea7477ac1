"""Greedy maximum coverage: the tokens that together stand for all tokens, and for a text (SCOPE, MMTok)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.kinds import NonNegative, Positive
from tokenzoo._core.one_space import check_one_space, products
from tokenzoo._core.precision import summable
from tokenzoo._core.sorting import choose
from tokenzoo.evidence import Evidence
from tokenzoo.kernels.best_match import in_cache
from tokenzoo.kernels.choice import plain
from tokenzoo.kernels.greedy_coverage import greedy_coverage
from tokenzoo.parts import PairScorer, Scorer, Selector, token_scores
from tokenzoo.token_map import take
from tokenzoo.tokens import unit

CACHED = 2**16
"""Scores that are worked on together on the CPU: half a MiB."""


@dataclass(frozen=True)
class MaxCoverage(Selector):
    """Keep tokens one by one, each with the largest gain in coverage.

    A set of tokens covers a token by its highest score with one of the set, or by 0 if that is negative.
    The coverage is the mean over all tokens of the pool, plus, if wanted, that over the text. Its gains
    only fall as the set grows (it is submodular), so the greedy set reaches at least 1 - 1/e of the best
    possible coverage.

    Args:
        pairs: how well a token (the target) covers another one (the source), at most 1.
        saliency: the gain of a token is multiplied by its score, which must not be negative, to `power`.
        power: of the saliency; 0: it does not count.
        temperature: scores are softmax(score / temperature) over the tokens that can be chosen; None: they
            are as they are.
        text: weight of the coverage of the text embeddings: the cosine of a token and an embedding.
        text_temperature: as `temperature`, for the text.
    """

    pairs: PairScorer
    saliency: Scorer | None = None
    power: NonNegative = 1.0
    temperature: Positive | None = None
    text: NonNegative = 0.0
    text_temperature: Positive | None = None

    def __post_init__(self) -> None:
        if self.text:
            self.require("text")

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose k tokens, in the order of choice; a prefix is the choice for a smaller k."""
        if k == 0:
            return pool[:, :0], pool
        pairs = self.pairs.score(evidence).at(pool, pool)
        scores = pairs.dense()  # [b, p, p]
        known = scores.diagonal(dim1=1, dim2=2).isfinite()  # [b, p]
        weight = torch.ones_like(scores[:, 0])
        if self.saliency is not None:
            saliency = take(token_scores(self.saliency, evidence), pool).to(weight.dtype)
            known = known & saliency.isfinite()
            weight = saliency.where(known, 0).clamp_min(0).pow(self.power)
        cover = _of_tokens(scores, self.temperature)
        if self.text:
            cover = torch.cat([cover, self._text(evidence, pool).to(cover.dtype)], 1)
        return choose(pool, greedy_coverage(cover, weight, ~known, k))

    def _text(self, evidence: Evidence, pool: Tensor) -> Tensor:
        """Return how well each token of the pool covers each text embedding: `[b, t, p]`."""
        x, text = take(evidence.x, pool), evidence.text
        check_one_space(x, text)
        real = text.isfinite().all(-1)  # [b, t]
        if evidence.text_mask is not None:
            real = real & evidence.text_mask
        cosine = products(unit(text), unit(x)).where(real[..., None], torch.nan)  # [b, t, p]
        weight = self.text / real.sum(-1).clamp_min(1)[:, None, None]
        return _shares(cosine, self.text_temperature, weight)


def _of_tokens(scores: Tensor, temperature: float | None) -> Tensor:
    """Return the coverages of `scores [b, p, p]`, which are overwritten: their parts in a mean."""
    weight = 1 / scores.shape[1]
    if not in_cache(scores) or plain(scores):
        return _shares(scores, temperature, weight)
    step = max(1, CACHED // scores[:, 0].numel())
    for start in range(0, scores.shape[1], step):
        rows = scores[:, start : start + step]
        shares = _shares(rows, temperature, weight)
        if shares is not rows:
            rows.copy_(shares)
    return scores


def _shares(scores: Tensor, temperature: float | None, weight: float | Tensor) -> Tensor:
    """Return coverages, >= 0, of `scores [b, r, p]`, which are overwritten; what is NaN covers nothing.

    Args:
        scores: `[b, r, p]`.
        temperature: of a softmax over the columns; None: scores are coverages.
        weight: of a row.
    """
    if temperature is not None:
        scores = scores.div_(temperature).masked_fill_(scores.isnan(), -torch.inf).softmax(-1)
    # In place: fresh memory would cost more than the arithmetic.
    return summable(scores.nan_to_num_(nan=0.0).clamp_min_(0).mul_(weight))
