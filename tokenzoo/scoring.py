"""Scores of tokens and of pairs, and how they combine.

Scores have no common scale, so an operator works only where the scale is known: a token score enters a pair
score as `pairs * tokens.discount(lam)`, and token scores add up once they are `.normalized()`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tokenzoo._core.kinds import NonNegative
from tokenzoo._core.normalization import normalized
from tokenzoo._core.part import Part
from tokenzoo._core.precision import precise
from tokenzoo.affinity import Affinity
from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import Evidence
from tokenzoo.tokens import shape_of


class Scorer(Part, ABC):
    """One number per token; a HIGH score means KEEP."""

    @abstractmethod
    def score(self, evidence: Evidence) -> Tensor:
        """Score the tokens: `[b, n]`, float32 or better."""

    def discount(self, lam: float, on: Literal["source", "target", "both"] = "both") -> Discount:
        """Return exp(-lam * score), a factor for pair scores: a high score makes a merge less likely."""
        return Discount(self, lam, on)

    def normalized(self, how: Literal["minmax", "rank", "zscore"] = "minmax") -> Normalized:
        """Return the score normalised per image, so that it can be added to other scores."""
        return Normalized(self, how)

    def __mul__(self, other: object) -> Any:
        if isinstance(other, PairScorer | Discount):
            raise BadArgumentError(
                f"{type(self).__name__} * {type(other).__name__}: a high token score means keep, a high "
                f"pair score means merge; write {type(other).__name__} * "
                f"{type(self).__name__}(...).discount(lam)"
            )
        raise self._refusal("*", other)

    def __add__(self, other: object) -> Any:
        raise self._refusal("+", other)

    def __sub__(self, other: object) -> Any:
        raise self._refusal("-", other)

    __rmul__ = __mul__
    __radd__ = __add__
    __rsub__ = __sub__

    def _refusal(self, sign: str, other: object) -> BadArgumentError:
        return BadArgumentError(
            f"{type(self).__name__} {sign} {other!r}: take .normalized('minmax') of a score first, then "
            "weigh it by a number and add others"
        )


def token_scores(scorer: Scorer, evidence: Evidence) -> Tensor:
    """Run a scorer: scores `[b, n]`, float32, or float64 if the features are.

    Raises:
        BadArgumentError: the scorer returns another shape.
    """
    scores = scorer.score(evidence)
    wanted = tuple(evidence.x.shape[:2])
    if shape_of(scores) != wanted:
        raise BadArgumentError(
            f"{scorer!r} returns scores of shape {shape_of(scores)}; a scorer returns one number per "
            f"token, here a tensor {list(wanted)}"
        )
    return scores.to(torch.promote_types(evidence.x.dtype, torch.float32))


class PairScorer(Part, ABC):
    """One number per pair of tokens; a HIGH score means MERGE."""

    @abstractmethod
    def score(self, evidence: Evidence) -> Affinity:
        """Score all pairs, in factored form (see `Affinity`)."""

    def __mul__(self, other: object) -> Discounted:
        if isinstance(other, Discount):
            return Discounted(self, other)
        hint = ".discount(lam)" if isinstance(other, Scorer) else "a token score's .discount(lam)"
        raise BadArgumentError(
            f"{type(self).__name__} * {other!r}: a high token score means keep, a high pair score "
            f"means merge; multiply by {hint}, which is exp(-lam * score)"
        )

    __rmul__ = __mul__


@dataclass(frozen=True)
class Discount(Part):
    """exp(-lam * score) of a token score; made by `Scorer.discount`."""

    scorer: Scorer
    lam: NonNegative
    on: Literal["source", "target", "both"] = "both"

    def weight(self, evidence: Evidence) -> Tensor:
        """Return the positive factor of each token, `[b, n]`."""
        return (-self.lam * precise(token_scores(self.scorer, evidence))).exp()


@dataclass(frozen=True)
class Discounted(PairScorer):
    """A pair score times the discounts of the two tokens."""

    pairs: PairScorer
    by: Discount

    def score(self, evidence: Evidence) -> Affinity:
        """Weigh the sources and targets of the pair score by the factors."""
        return self.pairs.score(evidence).weighted(self.by.weight(evidence), self.by.on)


@dataclass(frozen=True)
class Normalized(Scorer):
    """A token score normalised per image; made by `Scorer.normalized`."""

    scorer: Scorer
    how: Literal["minmax", "rank", "zscore"] = "minmax"
    weight: float = 1.0

    def score(self, evidence: Evidence) -> Tensor:
        """Return `weight` times the score in [0, 1] ("minmax", "rank") or with mean 0 and variance 1."""
        return self.weight * normalized(token_scores(self.scorer, evidence), self.how)

    def __mul__(self, other: object) -> Any:
        if isinstance(other, int | float) and not isinstance(other, bool):
            return Normalized(self.scorer, self.how, self.weight * other)
        return super().__mul__(other)

    __rmul__ = __mul__

    def __add__(self, other: object) -> Any:
        return Sum((self,)) + other


@dataclass(frozen=True)
class Sum(Scorer):
    """A sum of normalised token scores."""

    terms: tuple[Normalized, ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise BadArgumentError("terms=(); it must be a tuple of one or more normalised scores")

    def score(self, evidence: Evidence) -> Tensor:
        """Return the sum of the terms, `[b, n]`."""
        first, *others = (term.score(evidence) for term in self.terms)
        return sum(others, first)

    def __add__(self, other: object) -> Any:
        if isinstance(other, Normalized):
            return Sum((*self.terms, other))
        if isinstance(other, Sum):
            return Sum((*self.terms, *other.terms))
        return super().__add__(other)
