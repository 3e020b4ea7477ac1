"""Merge neighbours of a sequence, the most similar pairs first (frames in EarlyTom)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from tokenzoo._core.kinds import Range, Share, Words
from tokenzoo._core.precision import comparable
from tokenzoo._core.sorting import ordered
from tokenzoo.errors import BudgetError
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Matcher
from tokenzoo.temporal.segmenter import firsts, lengths
from tokenzoo.temporal.streaming_cuts import streaming
from tokenzoo.token_map import TokenMap, take
from tokenzoo.tokens import unit


@dataclass(frozen=True)
class NeighbourPairs(Matcher):
    """Merge pairs of neighbours, each token in one pair at most, whose cosines add up to the most.

    At `Stage.FRAMES` a token is a frame, and the cosine of two frames is the mean over all places. The
    pairs are found by dynamic programming over the sequence; the second of a pair joins the first.

    With a threshold, the sequence is cut as `StreamingCuts` does, and pairs that EarlyTom would merge come
    first: neither is the first or last of its segment, they are more alike than these two, and more alike
    than the second is to the one after it.

    Args:
        threshold: as in `StreamingCuts`; None: all pairs count alike.
        longest: as in `StreamingCuts`.
        memory: as in `StreamingCuts`.
    """

    threshold: Annotated[float | None, Range(-1, 2), Words("a number, or None")] = None
    longest: Annotated[int, Range(2)] = 6
    memory: Share = 0.9

    def __post_init__(self) -> None:
        self.require("x")

    def min_tokens(self, tokens: int, prefix: int = 0) -> int:
        """Return half of the tokens, rounded up."""
        del prefix
        return -(-tokens // 2)

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        """Merge n - keep pairs; of equal sums, the earlier pairs."""
        vectors = unit(evidence.x)
        b, n, _ = vectors.shape
        if keep < self.min_tokens(n):
            raise BudgetError(
                f"keep={keep} of {n}: each is in one pair at most, so {self.min_tokens(n)} are the fewest"
            )
        if keep == n:
            return TokenMap.identity(b, n, device=vectors.device)
        alike = comparable((vectors[:, 1:] * vectors[:, :-1]).sum(-1))  # [b, n - 1]
        # What is not finite is merged last: it has the lowest cosine.
        score = alike.nan_to_num(nan=-1.0)
        if self.threshold is not None:
            segment = streaming(vectors, self.threshold, self.longest, self.memory)
            score = score + 2 * preferred(vectors, alike, segment)
        first = best_pairs(score, n - keep)  # [b, r]
        return TokenMap.from_joins(first + 1, first, n)


def preferred(vectors: Tensor, alike: Tensor, segment: Tensor) -> Tensor:
    """Which neighbours EarlyTom merges: `[b, n - 1]` bool.

    Args:
        vectors: `[b, n, d]` of length 1.
        alike: `[b, n - 1]`, their cosines with the next.
        segment: `[b, n]`, the number of the segment of each.
    """
    begin, count = firsts(segment), lengths(segment)
    end = begin + count - 1
    at = torch.arange(segment.shape[1], device=segment.device).expand_as(segment)
    middle = (at > begin) & (at < end)
    ends = (take(vectors, begin) * take(vectors, end)).sum(-1)  # [b, n]
    inside = middle[:, :-1] & middle[:, 1:]
    # The last pair of the middle has no pair after it.
    after = torch.cat([alike[:, 1:], torch.full_like(alike[:, :1], -torch.inf)], 1)
    last = at[:, 1:] + 1 == end[:, 1:]
    could = inside & (alike > comparable(ends)[:, :-1]) & (last | (alike > after))
    # From left to right, no frame in two pairs.
    found = [torch.zeros_like(could[:, 0])]
    for pair in could.unbind(1):
        found.append(pair & ~found[-1])
    return torch.stack(found[1:], 1)


def best_pairs(score: Tensor, pairs: int) -> Tensor:
    """Choose pairs of neighbours that share nobody and have the highest sum, exactly so many.

    Args:
        score: `[b, n - 1]`, of each token and the next; finite.
        pairs: r, at most n // 2.

    Returns:
        `[b, r]` ascending, the first of each pair.
    """
    b, edges = score.shape
    worst = torch.finfo(score.dtype).min / 4
    none = score.new_full((b, pairs + 1), worst)
    none[:, 0] = 0
    best = [none, none]  # of the first 0 and 1 tokens: the highest sum of 0, 1, ..., r pairs
    taken: list[Tensor] = []
    for edge in range(edges):
        with_it = torch.cat([none[:, :1] + worst, best[-2][:, :-1] + score[:, edge, None]], 1)
        better = with_it > best[-1]  # of equal sums the one without this, later pair
        taken.append(better)
        best.append(torch.where(better, with_it, best[-1]))
    left = score.new_full((b, 1), pairs, dtype=torch.int64)
    chosen = torch.zeros_like(score, dtype=torch.bool)
    blocked = torch.zeros_like(left, dtype=torch.bool)
    for edge in range(edges - 1, -1, -1):
        blocked = taken[edge].gather(1, left) & ~blocked & (left > 0)
        chosen[:, edge : edge + 1] = blocked
        left = left - blocked.long()
    return ordered((~chosen).long())[:, :pairs]
