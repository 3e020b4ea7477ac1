"""Splits: the two sides of a bipartite match, of which a proposes and b receives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from tokenzoo._core.kinds import Range
from tokenzoo._core.sorting import ordered
from tokenzoo.parts import Part


class Split(Part, ABC):
    """Divides the mergeable tokens into sources (a) and targets (b)."""

    @abstractmethod
    def sides(self, free: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
        """Divide `free [b, f]`, ascending token indices, into `(a, b)`.

        `prefix` is the number of prefix tokens in front of the patches.
        """

    @abstractmethod
    def limit(self, tokens: int) -> int:
        """Return the maximal number of merges among this many tokens."""


@dataclass(frozen=True)
class Alternate(Split):
    """Alternate between the sides over the mergeable tokens, so that half can always merge (EvoPrune).

    Args:
        proposers: "odd": the first, third, ... of the mergeable tokens propose to the second, fourth, ...;
            "even": these propose to those.
    """

    proposers: Literal["odd", "even"] = "odd"

    def sides(self, free: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
        """Divide `free [b, f]` alternately; the first side has one more of an odd number."""
        del prefix
        odd, even = free[:, ::2], free[:, 1::2]
        return (odd, even) if self.proposers == "odd" else (even, odd)

    def limit(self, tokens: int) -> int:
        """Return half of the number of tokens, rounded down."""
        return tokens // 2


@dataclass(frozen=True)
class Halves(Split):
    """The first half of the mergeable tokens proposes to the second (PiToMe on text)."""

    def sides(self, free: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
        """Divide in the middle; the second half has one more of an odd number."""
        del prefix
        half = free.shape[1] // 2
        return free[:, :half], free[:, half:]

    def limit(self, tokens: int) -> int:
        """Return half of the number of tokens, rounded down."""
        return tokens // 2


@dataclass(frozen=True)
class Parity(Split):
    """ToMe's split: even positions of the whole sequence propose to the odd ones, prefix counted.

    With one CLS token in front, the patches 1, 3, 5, ... propose to 0, 2, 4, ...
    """

    def sides(self, free: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
        """Divide all tokens by parity; the split is not for subsets."""
        odd = prefix % 2
        return free[:, odd::2], free[:, 1 - odd :: 2]

    def limit(self, tokens: int) -> int:
        """Return half of the number of tokens, rounded down."""
        return tokens // 2


@dataclass(frozen=True)
class Every(Split):
    """ToMe's k-th split: every k-th token receives, all others propose (and are usually all merged)."""

    k: Annotated[int, Range(2)] = 2

    def sides(self, free: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
        """Let tokens k - 1, 2k - 1, ... receive; a remainder at the end proposes."""
        del prefix
        f = free.shape[1]
        place = torch.arange(f, device=free.device)
        order = ordered((place % self.k == self.k - 1).long())
        sources = f - f // self.k
        return free[:, order[:sources]], free[:, order[sources:]]

    def limit(self, tokens: int) -> int:
        """Return the number of tokens minus every k-th; 0 if none would receive."""
        return tokens - tokens // self.k if tokens >= self.k else 0
