"""Several selectors in turn, each applied to the rest of those before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

import torch
from torch import Tensor

from tokenzoo._core.kinds import Index, OneOf, Share, Words
from tokenzoo._core.validation import floor_share
from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Selector

REST: Final = "rest"
"""The share of the last selector: all that the others have not taken."""

Taken = Annotated[
    Index | Share | Annotated[str, OneOf(REST)],
    Words("a fraction in [0, 1] or a count >= 0, the last one REST", "share"),
]
"""A share of k."""

Turn = Annotated[tuple[Taken, Selector], Words("a pair (share, selector)")]


@dataclass(frozen=True, init=False, repr=False)
class Then(Selector):
    """Choose a share of k with each selector in turn: VisPruner's half by attention, half by diversity.

    Args:
        steps: pairs `(share, selector)`. A share is a fraction of k (rounded down), a count, or, for the
            last one, `REST`.
    """

    steps: tuple[Turn, ...]

    def __init__(self, *steps: Turn) -> None:
        last = [share == REST for share, _ in steps]
        if not steps or not last[-1] or any(last[:-1]):
            raise BadArgumentError(
                f"Then{steps!r}; it must be Then((share, selector), ..., (REST, selector)): the last "
                "share, and no other, is REST"
            )
        object.__setattr__(self, "steps", tuple((share, selector) for share, selector in steps))

    def __repr__(self) -> str:
        return f"Then({', '.join(map(repr, self.steps))})"

    def groups(self, k: int) -> tuple[int, ...]:
        """Return how many of k each selector takes (a nested selector is one group)."""
        sizes: list[int] = []
        for share, _ in self.steps:
            left = k - sum(sizes)
            if isinstance(share, float):
                sizes.append(min(left, floor_share(share, k)))
            else:
                sizes.append(min(left, share) if isinstance(share, int) else left)
        return tuple(sizes)

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose k tokens, group after group."""
        chosen: list[Tensor] = []
        rest = pool
        for size, (_, selector) in zip(self.groups(k), self.steps, strict=True):
            kept, rest = selector.select(evidence, rest, size)
            chosen.append(kept)
        return torch.cat(chosen, 1), rest
