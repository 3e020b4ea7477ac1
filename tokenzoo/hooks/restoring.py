"""Removed tokens that come back: after the last block, and in the attention of a few blocks before.

A step with a `Restorer` notes at each reduction what its tokens were (`Removal`). The notes ride with the
state of the pass, the latest last, and are undone in the opposite order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenzoo.evidence import ENTERED, PREVIOUS, Evidence
from tokenzoo.layouts import SizeBucket, TokenLayout
from tokenzoo.layouts.base import masses
from tokenzoo.parts import Restorer
from tokenzoo.token_map import TokenMap, take


@dataclass(frozen=True)
class Removal:
    """One reduction whose tokens come back.

    Attributes:
        restorer: gives them features.
        last: index of the last block in whose attention the removed tokens take part.
        layout: before the reduction.
        plans: of the patch tokens of each bucket; None: nothing was removed there.
        x: of each bucket `[b, n, p * c]`, all patch tokens as they entered the block.
        prepared: of each bucket, what the restorer has prepared.
    """

    restorer: Restorer
    last: int
    layout: TokenLayout
    plans: tuple[TokenMap | None, ...]
    x: tuple[Tensor, ...]
    prepared: tuple[tuple[Tensor, ...], ...]

    @classmethod
    def of(
        cls,
        restorer: Restorer,
        last: int,
        layout: TokenLayout,
        plans: Sequence[TokenMap | None],
        entered: Sequence[Tensor],
    ) -> Removal:
        """Note a reduction.

        Args:
            restorer: see above.
            last: see above.
            layout: see above.
            plans: see above.
            entered: of each bucket `[b, prefix + n, p * c]`, what entered the block.
        """
        x = tuple(part[:, layout.prefix :] for part in entered)
        with torch.no_grad():
            prepared = tuple(
                () if plan is None else restorer.prepare(part, plan)
                for part, plan in zip(x, plans, strict=True)
            )
        bare = layout.with_buckets(replace(one, layers=()) for one in layout.buckets)
        return cls(restorer, last, bare, tuple(plans), x, prepared)

    def put_back(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """All tokens that there were before.

        Args:
            x: those that are left.
            layout: of these.
        """
        p = layout.prefix
        whole: list[Tensor] = []
        for i, part in enumerate(layout.split(x)):
            plan = self.plans[i]
            if plan is not None:
                given = (part[:, p:], self.x[i], plan, self.prepared[i])
                part = torch.cat([part[:, :p], self.restorer.restore(*given)], 1)
            whole.append(part)
        return self.layout.join(whole)

    def take_out(self, x: Tensor) -> list[Tensor]:
        """Of each bucket the tokens that were left, out of all that there were before."""
        return [
            part if plan is None else take(part, plan.after_prefix(self.layout.prefix).sources)
            for part, plan in zip(self.layout.split(x), self.plans, strict=True)
        ]


def put_back(x: Tensor, layout: TokenLayout, removals: Sequence[Removal]) -> Tensor:
    """All tokens that there were before some reductions, one after the other; see `Removal.put_back`."""
    for removal in reversed(removals):
        x = removal.put_back(x, layout)
        layout = removal.layout
    return x


def take_out(x: Tensor, layout: TokenLayout, removals: Sequence[Removal]) -> Tensor:
    """The inverse of `put_back`: the tokens with this layout, out of all."""
    after = [*(removal.layout for removal in removals[1:]), layout]
    for removal, left in zip(removals, after, strict=True):
        x = left.join(removal.take_out(x))
    return x


def all_back(layout: TokenLayout, removals: Sequence[Removal]) -> TokenLayout:
    """The layout of all tokens, which remembers what was left of them inside of the blocks.

    Args:
        layout: of those that are left.
        removals: all of the pass.
    """
    pairs = zip(removals[0].layout.buckets, layout.buckets, strict=True)
    return removals[0].layout.with_buckets(replace(one, inside=own.plan) for one, own in pairs)


def narrowed(
    evidence: Sequence[Evidence],
    parts: Sequence[Tensor],
    layout: TokenLayout,
    removals: Sequence[Removal],
) -> list[Evidence]:
    """What an attention with removed tokens in it shows about those that are left.

    Args:
        evidence: of each bucket, about all tokens of that attention.
        parts: `[b, prefix + n, p * c]` of each bucket, the tokens that are left.
        layout: of these.
        removals: of the others.
    """
    found: list[Evidence] = []
    for i, (shown, one) in enumerate(zip(evidence, layout.buckets, strict=True)):
        for removal in removals:
            plan = removal.plans[i]
            shown = shown if plan is None else shown.through(plan)
        p = layout.prefix
        found.append(shown.renewed(parts[i][:, p:], masses(one, parts[i])[:, p:]))
    return found


def with_entered(
    evidence: Sequence[Evidence], layout: TokenLayout, entered: Sequence[Tensor]
) -> list[Evidence]:
    """Evidence that also shows the tokens as they entered this block, and the one before.

    Args:
        evidence: of each bucket.
        layout: of the tokens.
        entered: `[b, prefix + n, p * c]` of each bucket.
    """
    return [
        shown.renewed(shown.x, shown.mass, _previous(one) | {ENTERED: own})
        for shown, one, own in zip(evidence, layout.buckets, _shown(layout, entered), strict=True)
    ]


def remembering(layout: TokenLayout, entered: Sequence[Tensor] | None) -> TokenLayout:
    """The layout with what entered this block, for the next one; None: the next one does not ask."""
    shown = [None] * len(layout.buckets) if entered is None else _shown(layout, entered)

    def renewed(one: SizeBucket, own: Evidence | None) -> SizeBucket:
        others = tuple(layer for layer in one.layers if layer[0] != PREVIOUS)
        return replace(one, layers=others if own is None else (*others, (PREVIOUS, own)))

    return layout.with_buckets(map(renewed, layout.buckets, shown))


def _previous(one: SizeBucket) -> dict[str | int, Evidence]:
    return {name: shown for name, shown in one.layers if name == PREVIOUS}


def _shown(layout: TokenLayout, parts: Sequence[Tensor]) -> list[Evidence]:
    p = layout.prefix
    return [
        Evidence(part[:, p:], mass=masses(one, part)[:, p:])
        for part, one in zip(parts, layout.buckets, strict=True)
    ]
