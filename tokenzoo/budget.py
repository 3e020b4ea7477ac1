"""Token counts at every point of a tower, known before anything runs, and what they cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import groupby

from tokenzoo._core.kinds import INT_END, limits
from tokenzoo._core.quoting import quote
from tokenzoo._core.spread import Fewest as Fewest
from tokenzoo._core.spread import capped as capped
from tokenzoo._core.spread import removals_of as removals_of
from tokenzoo._core.spread import spread as spread
from tokenzoo._core.validation import check_count
from tokenzoo.errors import BadArgumentError


def round_half_up(value: float) -> int:
    """Round to the nearest int, halves up (Python's own `round` takes them to even)."""
    return math.floor(value + 0.5)


def resolve_keep(keep: int | float, tokens: int) -> int:
    """Return how many of `tokens` patch tokens `keep` asks for, from 1 to `tokens`.

    An int is a count; an image with at most that many tokens is left whole. A float is a fraction
    in (0, 1] of the tokens, rounded to the nearest count (halves up), and at least one token.

    Raises:
        BadArgumentError: `keep` is neither, or `tokens` is not an int >= 1.
    """
    check_count("tokens", tokens)
    if isinstance(keep, int) and not isinstance(keep, bool) and 1 <= keep < INT_END:
        return min(keep, tokens)
    if isinstance(keep, float) and 0 < keep <= 1:
        return max(1, round_half_up(tokens * keep))
    raise BadArgumentError(
        f"keep={quote(keep)}; it must be an int >= 1, a count of tokens{limits(keep)}, or a float in (0, "
        "1], a fraction: pass keep=64 for 64 tokens, keep=0.25 for a quarter, keep=1.0 for all"
    )


def block_flops(
    tokens_in: int,
    tokens_out: int,
    width: int,
    hidden: int,
    *,
    patches: int = 1,
    seen: float | None = None,
) -> float:
    """Return the floating-point operations of one transformer block, a multiply-add being two.

    The reduction lies between attention and MLP. Counted are the matrix products: queries, keys,
    values and output (8 T c^2), scores and weighted values (4 T^2 c), and the MLP (4 T' c hidden).
    Where p patches make one token, p T and p T' stand for T and T'.

    Args:
        tokens_in: T, all tokens that the attention sees, prefix tokens included.
        tokens_out: T', all tokens that the MLP sees.
        width: channels c of a token, or of a patch.
        hidden: channels between the two layers of the MLP.
        patches: p, how many patches make one token.
        seen: number of tokens that one token attends to; None: all.
    """
    rows = patches * tokens_in
    attended = rows if seen is None else patches * seen
    projections = 8 * rows * width**2
    attention = 4 * rows * attended * width
    return projections + attention + 4 * patches * tokens_out * width * hidden


@dataclass(frozen=True, kw_only=True)
class TokenBudget:
    """The patch tokens of one image at every point of a model, as they will be.

    Attributes:
        tokens: of the full image.
        entering: tokens that enter the first block; fewer only where a recipe shrinks the image.
        blocks: after each block.
        features: tokens that leave the tower.
        projected: tokens that leave the projector; None if they are not reduced there.
        layers: for each reduction inside the language model, the layer that follows it and the tokens that
            enter that layer.
        prefix: CLS and register tokens, which no count includes.
        width: channels of a token, or of a patch.
        hidden: channels between the two layers of the MLP.
        patches: how many patches make one token (Qwen: 2 x 2).
        reach: for each block, the number of tokens of the full image that one token attends to (a
            window); 0: all; (): all, in every block.
        frames: of the video that this is a frame of; 1: it is an image.
        attended: tokens in the attention of each block, where these are not those that entered it: removed
            ones can still take part; (): they are.
        fewer: for each step that merges frames, the first block with fewer, and how many are left then.
    """

    tokens: int
    entering: int
    blocks: tuple[int, ...]
    features: int
    projected: int | None = None
    layers: tuple[tuple[int | None, int], ...] = ()
    prefix: int = 0
    width: int
    hidden: int
    patches: int = 1
    reach: tuple[int, ...] = ()
    frames: int = 1
    fewer: tuple[tuple[int, int], ...] = ()
    attended: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        counts = ("tokens", "entering", "features", "width", "hidden", "patches")
        for name in (*counts, "frames"):
            check_count(name, getattr(self, name))
        check_count("prefix", self.prefix, least=0)
        for count in self.reach:
            check_count("reach", count, least=0)
        if self.reach and len(self.reach) != len(self.blocks):
            raise BadArgumentError(
                f"reach={self.reach} for {len(self.blocks)} blocks; it must be one number for each, or ()"
            )
        if self.attended and len(self.attended) != len(self.blocks):
            raise BadArgumentError(
                f"attended={self.attended} for {len(self.blocks)} blocks; it must be one number for each, "
                "or ()"
            )
        for name, counts in (
            ("attended", self.attended),
            ("blocks", self.blocks),
            ("projected", (self.projected,)),
            ("layers", tuple(count for _, count in self.layers)),
        ):
            for count in counts:
                if count is not None:
                    check_count(name, count)

    @property
    def visual(self) -> int:
        """Patch tokens that the language model reads."""
        return self.features if self.projected is None else self.projected

    @property
    def llm(self) -> int | None:
        """Patch tokens after the last reduction inside the language model; None: no reduction there."""
        return self.layers[-1][1] if self.layers else None

    @property
    def least(self) -> int:
        """Patch tokens where there are fewest: inside of the tower if all come back after it."""
        return min(self.visual, *self.blocks[-1:], *(count for _, count in self.layers))

    @property
    def flops(self) -> float:
        """The blocks' operations, as a ratio to those of the unreduced tower (see `block_flops`).

        The cost of the reduction itself is not included: this is a lower bound of the relative latency. A
        window is assumed to lose the same share of its tokens as the image. Of a video it is the mean over
        its frames.
        """
        if not self.blocks:
            return 1.0
        depth = len(self.blocks)
        blocks = (self.tokens,) * depth
        whole = replace(self, entering=self.tokens, blocks=blocks, fewer=(), attended=())
        return self.operations / whole.operations

    @property
    def operations(self) -> float:
        """The operations of all blocks for one image or frame, as counted by `block_flops`."""
        before = self.attended or (self.entering, *self.blocks)
        reach = self.reach or (0,) * len(self.blocks)
        each = [*map(self._operations, before, self.blocks, reach)]
        for block, left in reversed(self.fewer):
            each = [*each[:block], sum(each[block:]) * left / self.frames_before(block)]
        return sum(each)

    def frames_before(self, block: int) -> int:
        """Frames of the video that are there before the step at a block."""
        return [self.frames, *(left for at, left in self.fewer if at < block)][-1]

    @property
    def frames_left(self) -> int:
        """Frames of the video that leave the tower."""
        return self.fewer[-1][1] if self.fewer else self.frames

    def _operations(self, before: int, after: int, reach: int) -> float:
        seen = None
        if 0 < reach < self.tokens:
            seen = reach * before / self.tokens + self.prefix
        return block_flops(
            before + self.prefix,
            after + self.prefix,
            self.width,
            self.hidden,
            patches=self.patches,
            seen=seen,
        )

    def __str__(self) -> str:
        """Format the counts, runs of equal ones as `count x blocks`, and the ratio of operations."""
        blocks = _runs(self.blocks)
        prefix = f" + {self.prefix} prefix" if self.prefix else ""
        rows = [
            ("image", f"{self.tokens} patch tokens, {self.entering}{prefix} enter the first block"),
            ("blocks", blocks or "none"),
            ("features", str(self.features)),
            ("operations", f"{self.flops:.3f} of the unreduced tower's"),
        ]
        later = [] if self.projected is None else [("projected", str(self.projected))]
        if self.layers:
            steps = [str(n) if k is None else f"{n} from layer {k} on" for k, n in self.layers]
            later.append(("llm", ", ".join(steps)))
        rows[3:3] = later
        if self.attended:
            rows.insert(2, ("attention", _runs(self.attended)))
        if self.fewer:
            said = ", ".join(f"{left} from block {at} on" for at, left in self.fewer)
            said = f"{self.frames}, {said}"
            rows.insert(1, ("frames", said))
        return "\n".join(f"{name:<10}  {value}" for name, value in rows)


def _runs(counts: tuple[int, ...]) -> str:
    """Return counts as text, runs of equal ones as `count x times`."""
    runs = [(count, len(list(run))) for count, run in groupby(counts)]
    return ", ".join(str(n) if times == 1 else f"{n} x {times}" for n, times in runs)
