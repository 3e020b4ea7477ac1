"""The parts, and what each promises. Every method of the zoo is a choice of these.

    Schedule   how many tokens stay after this site?            pure arithmetic on shapes
    Matcher    who stays, who joins whom?                       -> a TokenMap
        Bipartite    one pair score decides both: the best pairs join
        SelectAssign a Selector says who stays, an Assigner where the others go
    Scorer     one number per token; HIGH means keep
    PairScorer one number per pair; HIGH means merge
    Merger     the plan applied to the tokens                   -> fewer Tokens
    Adapter    where the sites of a model are, and what they show

ToMe = PairScorer(cosine of keys) -> Bipartite -> weighted mean, a little in every block. VisPruner =
Scorer(CLS attention) -> SelectAssign(half by score, half by diversity; drop the rest), once, at the end.

The rules that hold for every part:

- It is a frozen dataclass (or a `torch.nn.Module`, when it learns) whose options are keyword arguments
  with defaults; wrong options raise `BadArgumentError` when it is made, not when it runs.
- It sees patch tokens only: no CLS, no registers, nothing that the caller protects.
- Shapes are static: no `.item()`, no `nonzero()`, no boolean indexing. What must not be chosen is not
  gathered; it is never multiplied by a mask or set to -inf.
- Each image is treated as if it were alone in the batch.
- Ties go to the lower index; a token with NaN features scores lowest and never raises.
- `needs` names the evidence that it reads: "keys", "cls_attention", "cls_attention@-2" (another
  layer's), "grid", ... A need that is not met is an error before anything runs.

Letters in shapes: b batch, h heads, n tokens, m tokens kept, p candidates, c channels, d head width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from tokenzoo._core.kinds import NonNegative
from tokenzoo._core.options import check_fields, check_when_made
from tokenzoo._core.precision import comparable, precise
from tokenzoo.affinity import Affinity
from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import Evidence
from tokenzoo.token_map import TokenMap
from tokenzoo.tokens import Tokens, shape_of

Fewest = Callable[[int], int]


class Part:
    """What all parts share: the evidence they need, and options that are what their annotations say."""

    needs: frozenset[str] = frozenset()

    differentiable: bool = False
    """Whether its scores carry gradients (a learned part); otherwise they are computed without."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check the options of this kind of part before its own `__post_init__` or `__init__` runs."""
        super().__init_subclass__(**kwargs)
        check_when_made(cls)

    def __post_init__(self) -> None:
        """Check the options: see `tokenzoo._core.options`.

        Raises:
            BadArgumentError: one is not what its annotation says.
        """
        check_fields(self)

    def require(self, *names: str) -> None:
        """Declare needs that depend on the options; for `__post_init__` of a frozen dataclass."""
        object.__setattr__(self, "needs", self.needs | set(names))


def walk(part: object) -> Iterator[Part]:
    """Yield a part and all the parts inside it, in the order of their fields."""
    if isinstance(part, Part):
        yield part
    if isinstance(part, tuple | list):
        for item in cast("tuple[object, ...]", part):
            yield from walk(item)
    elif is_dataclass(part) and not isinstance(part, type):
        for field in fields(part):
            yield from walk(getattr(part, field.name))


def needs_of(part: object) -> frozenset[str]:
    """All the evidence that a part and the parts inside it need."""
    return frozenset[str]().union(*(inner.needs for inner in walk(part)))


class Scorer(Part, ABC):
    """One number per token; a HIGH score means KEEP."""

    @abstractmethod
    def score(self, evidence: Evidence) -> Tensor:
        """Score the tokens: `[b, n]`, float32 or better."""

    def discount(self, lam: float, on: Literal["source", "target", "both"] = "both") -> Discount:
        """exp(-lam * score), a factor for pair scores: the more worth keeping, the less worth merging."""
        return Discount(self, lam, on)

    def normalized(self, how: Literal["minmax", "rank", "zscore"] = "minmax") -> Normalized:
        """The score on a scale of its own image, so that it can be added to other scores."""
        return Normalized(self, how)

    def __mul__(self, other: object) -> Any:
        """Scores have no common scale: say how they combine."""
        if isinstance(other, PairScorer | Discount):
            raise BadArgumentError(
                f"{type(self).__name__} * {type(other).__name__}: a high token score means keep, a high "
                f"pair score means merge; write {type(other).__name__} * "
                f"{type(self).__name__}(...).discount(lam)"
            )
        raise self._bare("*", other)

    def __add__(self, other: object) -> Any:
        """As `__mul__`."""
        raise self._bare("+", other)

    def __sub__(self, other: object) -> Any:
        """As `__mul__`."""
        raise self._bare("-", other)

    __rmul__ = __mul__
    __radd__ = __add__
    __rsub__ = __sub__

    def _bare(self, sign: str, other: object) -> BadArgumentError:
        return BadArgumentError(
            f"{type(self).__name__} {sign} {other!r}: take .normalized('minmax') of a score first, then "
            "weigh it by a number and add others"
        )


def token_scores(scorer: Scorer, evidence: Evidence) -> Tensor:
    """The scores of a scorer, `[b, n]`: float32, or float64 where the features are.

    Raises:
        BadArgumentError: it gives something else.
    """
    scores = scorer.score(evidence)
    wanted = tuple(evidence.x.shape[:2])
    if shape_of(scores) != wanted:
        raise BadArgumentError(
            f"{scorer!r} gives scores of shape {shape_of(scores)}; a scorer gives one number per token, "
            f"here a tensor {list(wanted)}"
        )
    return scores.to(torch.promote_types(evidence.x.dtype, torch.float32))


class PairScorer(Part, ABC):
    """One number per pair of tokens; a HIGH score means MERGE."""

    @abstractmethod
    def score(self, evidence: Evidence) -> Affinity:
        """Score all pairs, as factors (see `Affinity`)."""

    def __mul__(self, other: object) -> Discounted:
        """Discount the score of a pair by scores of its tokens."""
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
        """The factor of each token, `[b, n]`, positive."""
        return (-self.lam * precise(token_scores(self.scorer, evidence))).exp()


@dataclass(frozen=True)
class Discounted(PairScorer):
    """A pair score times the discounts of the two tokens."""

    pairs: PairScorer
    by: Discount

    def score(self, evidence: Evidence) -> Affinity:
        """The pair score, with the factors as weights of sources and targets."""
        return self.pairs.score(evidence).weighted(self.by.weight(evidence), self.by.on)


@dataclass(frozen=True)
class Normalized(Scorer):
    """A token score on a scale of its own image; made by `Scorer.normalized`."""

    scorer: Scorer
    how: Literal["minmax", "rank", "zscore"] = "minmax"
    weight: float = 1.0

    def score(self, evidence: Evidence) -> Tensor:
        """`weight` times the score: in [0, 1] ("minmax", "rank") or with mean 0 and variance 1."""
        raw = token_scores(self.scorer, evidence)
        known = raw.isfinite()
        # What is not finite takes the place of the lowest, and has no part in the scale.
        low = raw.where(known, torch.inf).amin(-1, keepdim=True)
        high = raw.where(known, -torch.inf).amax(-1, keepdim=True)
        raw = raw.where(known, low)
        tiny = 1e-12
        if self.how == "zscore":
            count = known.sum(-1, keepdim=True).clamp_min(1)
            mean = raw.where(known, 0).sum(-1, keepdim=True) / count
            centred = raw - mean
            variance = centred.square().where(known, 0).sum(-1, keepdim=True) / count
            score = centred / (variance.sqrt() + tiny)
        elif self.how == "rank":
            # How many are lower: equal ones are equal. searchsorted wants its input in one piece.
            seen = comparable(raw).contiguous()
            lower = torch.searchsorted(seen.sort(dim=-1).values, seen)
            score = lower.to(raw.dtype) / max(1, raw.shape[-1] - 1)
        else:
            score = (raw - low) / (high - low + tiny)
        # Just below the lowest of the others, so that it stays the lowest in a sum, too.
        return self.weight * (score - (~known).to(score.dtype) * 1e-3)

    def __mul__(self, other: object) -> Any:
        """Weigh this score by a number."""
        if isinstance(other, int | float) and not isinstance(other, bool):
            return Normalized(self.scorer, self.how, self.weight * other)
        return super().__mul__(other)

    __rmul__ = __mul__

    def __add__(self, other: object) -> Any:
        """Add another normalised score."""
        return Sum((self,)) + other


@dataclass(frozen=True)
class Sum(Scorer):
    """A sum of normalised token scores."""

    terms: tuple[Normalized, ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise BadArgumentError("terms=(); it is a tuple of one or more normalised scores")

    def score(self, evidence: Evidence) -> Tensor:
        """Add the terms up, `[b, n]`."""
        first, *others = (term.score(evidence) for term in self.terms)
        return sum(others, first)

    def __add__(self, other: object) -> Any:
        """Add another normalised score."""
        if isinstance(other, Normalized):
            return Sum((*self.terms, other))
        if isinstance(other, Sum):
            return Sum((*self.terms, *other.terms))
        return super().__add__(other)


class Selector(Part, ABC):
    """Who stays, out of a pool of tokens whose order means something."""

    @property
    def ragged(self) -> bool:
        """Whether how many stay comes from the data; the k that are asked for are then the most."""
        return False

    def lengths(self, evidence: Evidence, pool: Tensor, k: int) -> Tensor | None:
        """How many of the k that `select` chooses are to stay, the first ones: `[b]`, at most k.

        None: all of them. Only a ragged selector says something else.
        """
        del evidence, pool, k
        return None

    def groups(self, k: int) -> tuple[int, ...]:
        """Sizes of the groups that k kept tokens come in; an assigner can speak of one of them."""
        return (k,)

    @abstractmethod
    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose k tokens of `pool [b, p]`.

        Returns:
            `(kept [b, k], rest [b, p - k])`: token indices; together they are the pool. The order of
            both is the selector's statement, and the next selector's input.
        """


class Assigner(Part, ABC):
    """Where the tokens that do not stay go."""

    extra: int = 0
    """How many new tokens, standing for no input token, are appended to the kept ones."""

    @abstractmethod
    def assign(
        self, evidence: Evidence, kept: Tensor, rest: Tensor, groups: tuple[int, ...]
    ) -> Tensor:
        """Give each of `rest [b, p - k]` a slot in `kept [b, k]` (the new tokens come after them).

        Returns:
            `[b, p - k]` slots, -1: dropped.
        """


class Matcher(Part, ABC):
    """Who stays, and who joins whom."""

    @property
    def ragged(self) -> bool:
        """Whether how many tokens stay comes from the data; only such a matcher is asked to keep all."""
        return False

    @abstractmethod
    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        """Reduce n tokens to exactly `keep`; `fewest(n) <= keep <= n`."""

    @abstractmethod
    def fewest(self, tokens: int, prefix: int = 0) -> int:
        """The least that can stay of `tokens` at one site: (n + 1) // 2 for pairs, 1 for a selection."""


class Merger(Part, ABC):
    """The arithmetic: a plan, applied to tokens."""

    conserves: frozenset[str] = frozenset({"mass"})
    """What is kept when nothing is dropped: "mass" (its sum), "sum" (the sum of mass * features)."""

    @abstractmethod
    def merge(self, tokens: Tokens, plan: TokenMap, evidence: Evidence) -> Tokens:
        """Apply `plan` (n -> m) to tokens with features `[b, n, c]`; returns m tokens."""


class Schedule(Part, ABC):
    """How many tokens stay after each site; a function of counts alone, known before anything runs."""

    uses_keep: bool = True
    """False for a schedule that fixes the removals itself (ToMe's r): then `keep` is not consulted."""

    @abstractmethod
    def counts(self, tokens: int, sites: int, keep: int, fewest: Fewest) -> tuple[int, ...]:
        """Patch tokens after each of the `sites` sites (a site may remove none).

        Args:
            tokens: patch tokens before the first site.
            sites: number of sites, usually the blocks of the tower.
            keep: patch tokens wanted after the last site.
            fewest: the least that can stay at one site of so many tokens.

        Raises:
            BudgetError: all sites together cannot reach `keep`; names the fewest.
            BadArgumentError: the schedule does not fit this number of sites.
        """
