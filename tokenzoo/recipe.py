"""A recipe: parts, their stages, and the tokens to keep. It is frozen data.

Recipe(
Step(Stage.BLOCK, Skip(), Bipartite(Similarity("keys")), WeightedMean()),
keep=0.25,
)
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from tokenzoo._core.options import check_fields
from tokenzoo._core.quoting import quote
from tokenzoo._core.validation import check_count, check_flag, check_kind, is_kind
from tokenzoo.budget import TokenBudget, resolve_keep
from tokenzoo.errors import BadArgumentError, BudgetError
from tokenzoo.parts import Index, Matcher, Merger, Restorer, Schedule, needs_of, walk
from tokenzoo.stage import Stage as Stage

DEEPEST = 10_000
"""Blocks of the deepest tower that is planned."""


@dataclass(frozen=True, repr=False)
class Step:
    """One reduction: a stage and the parts that work there.

    Args:
        stage: position in the pipeline.
        schedule: how many tokens stay after each site of the stage.
        matcher: which tokens stay, and which of the others join them.
        merger: the arithmetic.
        positions: in a language model, whether kept tokens keep their positions ("keep") or are renumbered
            ("compact").
        prefix: whether prefix tokens are kept after this step ("keep") or end here ("drop").
        restorer: at the blocks alone: gives all tokens back after the last block, so that whatever reads
            the tower finds as many as in the bare model. None: those that are left leave the tower.
        attended: at the blocks alone: in the attention of how many blocks, from the one that removes them
            on, the removed tokens still take part. 1: in that block's; 0: not even there, they are removed
            as they enter it. More than 1 needs a restorer, which gives them features.

    Attributes:
        needs: the evidence that its parts need.
        learns: whether the scores of a part carry gradients.
    """

    stage: Stage
    schedule: Schedule
    matcher: Matcher
    merger: Merger
    positions: Literal["keep", "compact"] = "keep"
    prefix: Literal["keep", "drop"] = "keep"
    restorer: Restorer | None = None
    attended: Index = 1
    needs: frozenset[str] = field(init=False, repr=False, compare=False)
    learns: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.stage.name != "block" and (self.restorer is not None or self.attended != 1):
            raise BadArgumentError(
                f"restorer={self.restorer!r}, attended={self.attended} at {self.stage!r}: only blocks "
                "remove tokens that can come back or attend: Stage.BLOCK"
            )
        if self.attended > 1 and self.restorer is None:
            raise BadArgumentError(
                f"attended={self.attended} without a restorer: in later blocks removed tokens need "
                "features: pass one, NeighbourUpdate(...) or CopyBack(), or attended=1"
            )
        self.merger.check_matcher(self.matcher)
        # Computed once: every site of a forward pass reads them.
        parts = (self.matcher, self.merger, self.restorer)
        object.__setattr__(self, "needs", needs_of(parts))
        object.__setattr__(self, "learns", any(part.differentiable for part in walk(parts)))

    def __repr__(self) -> str:
        """Return code that builds it; the options of few steps are shown where they are set."""
        rare = {"restorer": None, "attended": 1}
        shown = {one.name: getattr(self, one.name) for one in fields(self) if one.repr}
        said = (f"{k}={v!r}" for k, v in shown.items() if k not in rare or v != rare[k])
        return f"Step({', '.join(said)})"

    def counts(self, tokens: int, sites: int, keep: int, prefix: int = 0) -> tuple[int, ...]:
        """Return the patch tokens after each site; see `Schedule.counts`."""

        def fewest(n: int) -> int:
            return self.matcher.min_tokens(n, prefix)

        counts = self.schedule.counts(tokens, sites, keep, fewest)
        whole = is_kind(counts, tuple) and all(type(count) is int for count in counts)
        falling = whole and sorted((tokens, *counts, 1), reverse=True) == [tokens, *counts, 1]
        if not falling or len(counts) != sites:
            raise BadArgumentError(
                f"{self.schedule!r} returns counts={counts!r} for {tokens} tokens and {sites} sites; it "
                f"must be a tuple of {sites} ints from {tokens} down to 1, non-increasing"
            )
        return counts


@dataclass(frozen=True, init=False, repr=False)
class Recipe:
    """Steps in the order of their stages, and how many patch tokens they leave.

    Args:
        steps: see `Step`.
        keep: patch tokens of one image to keep: an int is a count, a float a fraction of them. None only
            where every schedule fixes its removals itself (ToMe's r), or where `flops` is given.
        flops: instead of keep: the largest share of the blocks' operations (`TokenBudget.flops`) that may
            be left. The largest keep within it is used; it depends on the tower.
        proportional_attention: whether, from the first merge on, the log mass of each key's token is added
            to the logits (ToMe, equation 1).

    Raises:
        BadArgumentError: no steps, steps out of order, a bad keep or flops, or both.
    """

    steps: tuple[Step, ...]
    keep: int | float | None
    flops: float | None
    proportional_attention: bool

    def __init__(
        self,
        *steps: Step,
        keep: int | float | None = 0.25,
        flops: float | None = None,
        proportional_attention: bool = False,
    ) -> None:
        for step in steps:
            if not is_kind(step, Step):
                raise BadArgumentError(f"Recipe({quote(step)}): Recipe takes one or more Step(...)")
        orders = [step.stage.order for step in steps]
        if not steps or orders != sorted(orders) or len(set(orders)) < len(orders):
            raise BadArgumentError(
                f"steps at {[step.stage for step in steps]}; a recipe has one or more, each at a later "
                f"stage than the one before: {', '.join(Stage.NAMES)}"
            )
        check_flag("proportional_attention", proportional_attention)
        if flops is not None:
            _check_flops(flops, keep, steps)
        elif keep is not None:
            resolve_keep(keep, 1)
        elif any(step.schedule.uses_keep for step in steps):
            raise BadArgumentError(
                "keep=None; pass a count or a fraction of the patch tokens to keep"
            )
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "keep", keep)
        object.__setattr__(self, "flops", flops)
        object.__setattr__(self, "proportional_attention", proportional_attention)

    def __repr__(self) -> str:
        options = f"keep={self.keep!r}, proportional_attention={self.proportional_attention!r}"
        if self.flops is not None:
            options = f"keep=None, flops={self.flops!r}, {options.partition(', ')[2]}"
        return f"Recipe({', '.join(map(repr, self.steps))}, {options})"

    @property
    def needs(self) -> frozenset[str]:
        """The evidence that its parts need."""
        return frozenset[str]().union(*(step.needs for step in self.steps))

    @property
    def all_back(self) -> bool:
        """Whether all tokens that the blocks remove are back when something reads the tower."""
        step = self.step_at(Stage.BLOCK)
        restored = step is not None and step.restorer is not None
        return restored and self.step_at(Stage.FEATURES) is None

    def step_at(self, stage: Stage) -> Step | None:
        """Return the step at this stage (of any layer), or None."""
        check_kind("stage", stage, Stage)
        return next((step for step in self.steps if step.stage.name == stage.name), None)

    def wanted(self, tokens: int) -> int:
        """Return the number of patch tokens that `keep` means.

        Raises:
            BadArgumentError: the recipe has flops= instead, which depends on the tower.
        """
        if self.flops is not None:
            raise BadArgumentError(
                f"flops={self.flops!r} is a budget for the blocks of a tower; tensors alone have none: "
                "pass keep="
            )
        return tokens if self.keep is None else resolve_keep(self.keep, tokens)

    def budget(
        self,
        tokens: int,
        depth: int,
        *,
        prefix: int = 0,
        width: int = 768,
        hidden: int = 0,
        patches: int = 1,
        reach: tuple[int, ...] = (),
    ) -> TokenBudget:
        """Compute the patch tokens at every point of a tower from shapes alone.

        Args:
            tokens: patch tokens of one image.
            depth: blocks of the tower whose result is read.
            prefix: CLS and register tokens.
            width: channels of a token, for the count of operations.
            hidden: width of the MLP; 0: four times `width`.
            patches: how many patches make one token; `width` and `hidden` are then a patch's.
            reach: for each block, the number of tokens of the full image that one token attends to; 0: all;
                (): all, in every block.

        Raises:
            BudgetError: `keep` (or `flops`) cannot be reached; names the fewest.
        """
        check_count("tokens", tokens)
        if check_count("depth", depth) > DEEPEST:
            raise BadArgumentError(f"depth={depth}; it must be an int >= 1, at most {DEEPEST}")
        check_count("prefix", prefix, least=0)
        check_count("width", width)
        if type(hidden) is not int or hidden != 0:
            check_count("hidden", hidden)
        tower = _Tower(tokens, depth, prefix, width, hidden or 4 * width, patches, reach)
        if self.flops is None:
            return self._budget(tower, self.wanted(tokens))
        return self._affordable(tower, self.flops)

    def _affordable(self, tower: _Tower, flops: float) -> TokenBudget:
        """Return the budget of the largest keep that costs at most `flops`."""
        cheapest = 1.0
        # From the top: more tokens do not always cost more (other sites may be at their limit).
        for keep in range(tower.tokens, 0, -1):
            try:
                budget = self._budget(tower, keep)
            except BudgetError:
                break
            if budget.flops <= flops:
                return budget
            cheapest = min(cheapest, budget.flops)
        raise BudgetError(
            f"flops={flops!r} is out of reach for {tower.tokens} patch tokens and {tower.depth} blocks: "
            f"at the minimum of tokens, {cheapest:.3f} of the operations are left. Pass flops of that or "
            "more, or choose a schedule that starts earlier"
        )

    def _budget(self, tower: _Tower, keep: int) -> TokenBudget:
        """Return the budget for this keep."""
        tokens, depth, prefix = tower.tokens, tower.depth, tower.prefix
        at = entering = features = tokens
        blocks = (tokens,) * depth
        projected: int | None = None
        layers: list[tuple[int | None, int]] = []
        seen: tuple[int, ...] = ()
        for step in self.steps:
            stage = step.stage.name
            if stage == "frames":  # it leaves as many tokens of each frame that is left
                continue
            counts = step.counts(at, depth if stage == "block" else 1, keep, prefix)
            if stage == "block":
                blocks, seen = counts, _attended(at, counts, step.attended)
            if step.restorer is None:
                at = counts[-1]
            if stage in ("image", "embedded"):
                entering, blocks = at, (at,) * depth
            if stage == "llm":
                layers.append((step.stage.layer, at))
            elif stage == "projected":
                projected = at
            else:
                features = at
        return TokenBudget(
            tokens=tokens,
            entering=entering,
            blocks=blocks,
            attended=seen,
            features=features,
            projected=projected,
            layers=tuple(layers),
            prefix=prefix,
            width=tower.width,
            hidden=tower.hidden,
            patches=tower.patches,
            reach=tower.reach,
        )


def _attended(tokens: int, counts: tuple[int, ...], blocks: int) -> tuple[int, ...]:
    """Return the tokens in the attention of each block, if removed ones take part in so many blocks.

    Args:
        tokens: before the first block.
        counts: after each block.
        blocks: see `Step.attended`; for 1, (): those that enter the block.
    """
    if blocks == 1:
        return ()
    # What enters block i has lost what was removed in the blocks up to i - blocks.
    return tuple(tokens if i < blocks else counts[i - blocks] for i in range(len(counts)))


@dataclass(frozen=True)
class _Tower:
    """The shape of a tower; see `Recipe.budget`."""

    tokens: int
    depth: int
    prefix: int
    width: int
    hidden: int
    patches: int
    reach: tuple[int, ...]


def _check_flops(flops: object, keep: object, steps: tuple[Step, ...]) -> None:
    """Raise unless flops= is in (0, 1], keep= is None and all schedules use keep."""
    if isinstance(flops, bool) or not isinstance(flops, int | float) or not 0 < flops <= 1:
        raise BadArgumentError(
            f"flops={quote(flops)}; it must be a share of the blocks' operations: a number in (0, 1]"
        )
    if keep is not None:
        raise BadArgumentError(
            f"flops={flops!r} and keep={quote(keep)}; pass one of them: Recipe(..., keep=None, flops=0.5)"
        )
    if not all(step.schedule.uses_keep for step in steps):
        raise BadArgumentError(
            f"flops={flops!r} with a schedule that fixes its removals itself: leave flops= out"
        )
