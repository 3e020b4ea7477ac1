"""The abstract parts and their contracts. Every method is a choice of parts.

    Schedule   how many tokens stay after this site?            pure arithmetic on shapes
    Matcher    which tokens stay, which do the others join?     -> a TokenMap
        Bipartite    a pair score decides both: the best pairs merge
        SelectAssign a Selector chooses tokens, an Assigner places the others
    Scorer     one number per token; HIGH means keep
    PairScorer one number per pair; HIGH means merge
    Merger     the token map applied to the tokens              -> fewer Tokens
    Restorer   all tokens again, after the blocks               only where a step has one
    Adapter    the sites of a model, and the evidence they provide

ToMe = PairScorer(cosine of keys) -> Bipartite -> weighted mean, a little in every block. VisPruner =
Scorer(CLS attention) -> SelectAssign(half by score, half by diversity; drop the rest), once, at the end.

The rules that hold for every part:

- It is a frozen dataclass (or a `torch.nn.Module`, when it learns) whose options are keyword arguments
  with defaults; wrong options raise `BadArgumentError` when it is made, not when it runs.
- It sees patch tokens only: no CLS, no registers, no tokens that the caller protects.
- Shapes are static: no `.item()`, no `nonzero()`, no boolean indexing. Excluded tokens are not
  gathered; they are never multiplied by a mask or set to -inf.
- The result of an image does not depend on the rest of the batch.
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
from typing import Any

from torch import Tensor

from tokenzoo._core.kinds import Count as Count
from tokenzoo._core.kinds import Index as Index
from tokenzoo._core.kinds import NonNegative as NonNegative
from tokenzoo._core.kinds import OneOf as OneOf
from tokenzoo._core.kinds import Positive as Positive
from tokenzoo._core.kinds import Range as Range
from tokenzoo._core.kinds import Share as Share
from tokenzoo._core.old_members import OldName, adopt_old_names
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
    """Chooses tokens from an ordered pool."""

    @property
    def ragged(self) -> bool:
        """Whether the count depends on the data; k is then the maximum."""
        return False

    def lengths(self, evidence: Evidence, pool: Tensor, k: int) -> Tensor | None:
        """Return how many of the k tokens of `select`, the first ones, stay: `[b]`, at most k.

        None: all of them, for a selector that is not ragged.
        """
        del evidence, pool, k
        return None

    def groups(self, k: int) -> tuple[int, ...]:
        """Return the sizes of the groups of the k kept tokens; an assigner can choose one of them."""
        return (k,)

    @abstractmethod
    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose k tokens of `pool [b, p]`.

        Returns:
            `(kept [b, k], rest [b, p - k])`: token indices; together they are the pool. Both are ordered,
            and the next selector reads that order.
        """


class Assigner(Part, ABC):
    """Decides which kept tokens the other tokens join."""

    extra: int = 0
    """Number of new tokens, which stand for no input token, appended to the kept ones."""

    @abstractmethod
    def assign(
        self, evidence: Evidence, kept: Tensor, rest: Tensor, groups: tuple[int, ...]
    ) -> Tensor:
        """Give each of `rest [b, p - k]` a slot in `kept [b, k]` (the new tokens come after them).

        Returns:
            `[b, p - k]` slots, -1: dropped.
        """


class Matcher(Part, ABC):
    """Decides which tokens stay, and which of the others join them."""

    fewest = OldName("min_tokens")

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        adopt_old_names(cls, {"fewest": "min_tokens"})

    @property
    def ragged(self) -> bool:
        """Whether the count depends on the data; only such a matcher is called with keep = n."""
        return False

    @abstractmethod
    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        """Reduce n tokens to exactly `keep`; `min_tokens(n) <= keep <= n`."""

    @abstractmethod
    def min_tokens(self, tokens: int, prefix: int = 0) -> int:
        """Return the fewest tokens that can stay at one site: (n + 1) // 2 for pairs, 1 for a selection."""


class Merger(Part, ABC):
    """Computes the output tokens from a token map."""

    conserves: frozenset[str] = frozenset({"mass"})
    """Sums that are conserved if nothing is dropped: "mass", and "sum" (of mass * features)."""

    @abstractmethod
    def merge(self, tokens: Tokens, plan: TokenMap, evidence: Evidence) -> Tokens:
        """Apply the token map `plan` (n -> m) to tokens with features `[b, n, c]`; return m tokens."""

    def check_matcher(self, matcher: Matcher) -> None:
        """Raise a BadArgumentError if this merger does not go with a matcher; by default all do."""
        del matcher


class Restorer(Part, ABC):
    """Gives the removed tokens of a step features again: where they still attend, and after the blocks."""

    def prepare(self, x: Tensor, plan: TokenMap) -> tuple[Tensor, ...]:
        """Compute once, when tokens are removed, what every `restore` needs; without gradients.

        Args:
            x: `[b, n, c]`, all tokens as they entered the block that removes some.
            plan: n -> m; each of the m tokens stands for one of the n.

        Returns:
            Tensors whose first dimension is the batch; () by default.
        """
        del x, plan
        return ()

    @abstractmethod
    def restore(
        self, left: Tensor, x: Tensor, plan: TokenMap, prepared: tuple[Tensor, ...]
    ) -> Tensor:
        """Return all tokens `[b, n, c]`, in the order of `x`.

        Args:
            left: `[b, m, c]`, the tokens that are left, as they are now; each appears unchanged in the
                result, in the place of the token that it stands for (`plan.keep`).
            x: see `prepare`.
            plan: see `prepare`.
            prepared: what `prepare` returned.
        """


class Schedule(Part, ABC):
    """Decides how many tokens stay after each site, from counts alone."""

    uses_keep: bool = True
    """False for a schedule that fixes the removals itself (ToMe's r): then `keep` is not consulted."""

    @abstractmethod
    def counts(self, tokens: int, sites: int, keep: int, fewest: Fewest) -> tuple[int, ...]:
        """Return the patch tokens after each of the `sites` sites (a site can remove none).

        Args:
            tokens: patch tokens before the first site.
            sites: number of sites, usually the blocks of the tower.
            keep: patch tokens wanted after the last site.
            fewest: maps a number of tokens to the fewest that can stay at one site.

        Raises:
            BudgetError: all sites together cannot reach `keep`; names the fewest.
            BadArgumentError: the schedule does not fit this number of sites.
        """
