"""One selector after another, each on what the ones before have left."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import Evidence
from tokenzoo.interfaces import Selector, check_fraction

REST: Final = "rest"
"""The share of the last selector: whatever the others have not taken."""

Share = int | float | str


@dataclass(frozen=True, init=False, repr=False)
class Then(Selector):
    """Take a share of k with each selector in turn: VisPruner's half by attention, half by diversity.

    Args:
        steps: pairs `(share, selector)`. A share is a fraction of k (rounded down), a count, or, for the
            last one, `REST`.
    """

    steps: tuple[tuple[Share, Selector], ...]

    def __init__(self, *steps: tuple[Share, Selector]) -> None:
        if not steps or steps[-1][0] != REST or any(share == REST for share, _ in steps[:-1]):
            raise BadArgumentError(
                "Then((share, selector), ..., (REST, selector)): the last share, and no other, is REST"
            )
        for share, _ in steps[:-1]:
            if isinstance(share, float):
                check_fraction("share", share)
            elif not isinstance(share, int) or isinstance(share, bool) or share < 0:
                raise BadArgumentError(
                    f"share={share!r}; it is a fraction in [0, 1] or a count >= 0"
                )
        object.__setattr__(self, "steps", tuple((share, selector) for share, selector in steps))

    def __repr__(self) -> str:
        return f"Then({', '.join(map(repr, self.steps))})"

    def groups(self, k: int) -> tuple[int, ...]:
        """How many of k each selector takes (a nested selector counts as one group)."""
        sizes: list[int] = []
        for share, _ in self.steps:
            left = k - sum(sizes)
            if isinstance(share, float):
                sizes.append(min(left, math.floor(k * share)))
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
