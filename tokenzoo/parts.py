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

This module also has the checks of options for authors of parts: `check_count`, `check_number`,
`check_positive`, `check_finite`, `check_fraction`, `check_choice`, `check_flag` and `check_kind`, called in
`__post_init__`; and the annotations that are checked without a call: `Count`, `Index`, `Positive`,
`NonNegative`, `Share`, `Annotated[int, Range(2, 8)]`, `Annotated[str, OneOf("x", "keys")]`.

Letters in shapes: b batch, h heads, n tokens, m tokens kept, p candidates, c channels, d head width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from tokenzoo._core.kinds import Count as Count
from tokenzoo._core.kinds import Index as Index
from tokenzoo._core.kinds import NonNegative as NonNegative
from tokenzoo._core.kinds import OneOf as OneOf
from tokenzoo._core.kinds import Positive as Positive
from tokenzoo._core.kinds import Range as Range
from tokenzoo._core.kinds import Share as Share
from tokenzoo._core.part import Part as Part
from tokenzoo._core.part import needs_of as needs_of
from tokenzoo._core.part import walk as walk
from tokenzoo._core.spread import Fewest as Fewest
from tokenzoo._core.validation import check_choice as check_choice
from tokenzoo._core.validation import check_count as check_count
from tokenzoo._core.validation import check_finite as check_finite
from tokenzoo._core.validation import check_flag as check_flag
from tokenzoo._core.validation import check_fraction as check_fraction
from tokenzoo._core.validation import check_kind as check_kind
from tokenzoo._core.validation import check_number as check_number
from tokenzoo._core.validation import check_positive as check_positive
from tokenzoo.evidence import Evidence
from tokenzoo.scoring import Discount as Discount
from tokenzoo.scoring import Discounted as Discounted
from tokenzoo.scoring import Normalized as Normalized
from tokenzoo.scoring import PairScorer as PairScorer
from tokenzoo.scoring import Scorer as Scorer
from tokenzoo.scoring import Sum as Sum
from tokenzoo.scoring import token_scores as token_scores
from tokenzoo.token_map import TokenMap
from tokenzoo.tokens import Tokens


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
