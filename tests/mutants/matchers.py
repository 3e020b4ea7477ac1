"""Matchers, and parts of them, that break one promise each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenzoo._core.validation import floor_share
from tokenzoo.evidence import Evidence
from tokenzoo.matchers import (
    Alternate,
    Anchored,
    DistinctPerGroup,
    Elbow,
    MarginalRelevance,
    MaxCoverage,
    Protect,
    RunQuotas,
)
from tokenzoo.parts import Assigner, Matcher, Selector
from tokenzoo.temporal import FrameWindows
from tokenzoo.token_map import TokenMap


def _first(evidence: Evidence, keep: int) -> TokenMap:
    """Keep the first tokens; the last of them takes in the others."""
    b, n = evidence.x.shape[:2]
    index = torch.arange(n, device=evidence.x.device).expand(b, n)
    return TokenMap(index[:, :keep], index.clamp_max(keep - 1))


@dataclass(frozen=True)
class FirstTokens(Matcher):
    """Keeps the first tokens; the last of them takes in the others. Blind, and honest."""

    def min_tokens(self, tokens: int, prefix: int = 0) -> int:
        return 1

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        return _first(evidence, keep)


class OneTooMany(FirstTokens):
    """Keeps one token more than it was asked for, where there is one more."""

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        return _first(evidence, min(keep + 1, evidence.x.shape[1]))


class KeepsByValue(FirstTokens):
    """Keeps as many tokens as the data seem to ask for."""

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        return _first(evidence, max(1, int((evidence.x[0].sum(-1) > 0).sum())))


class TwoPlaces(FirstTokens):
    """Counts every token in the first output, the kept ones too."""

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        plan = _first(evidence, keep)
        return TokenMap(plan.keep, torch.zeros_like(plan.dst))


class KeptTwice(FirstTokens):
    """Keeps the first token in every output."""

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        plan = _first(evidence, keep)
        return TokenMap(torch.zeros_like(plan.keep), plan.dst)


class FalseHold(FirstTokens):
    """Says that it holds all tokens, and merges some of them."""

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        plan = _first(evidence, keep)
        return replace(plan, held=torch.ones_like(plan.keep, dtype=torch.bool))


class _SlipPlan(TokenMap):
    """A plan whose composition is off by one."""

    def then(self, later: TokenMap) -> TokenMap:
        both = super().then(later)
        return TokenMap(both.keep, both.dst.roll(1, -1))


class Slips(FirstTokens):
    """Gives plans that do not compose."""

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        plan = _first(evidence, keep)
        return _SlipPlan(plan.keep, plan.dst)


class Boaster(FirstTokens):
    """Says that one token can stay, and halves at most."""

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        return _first(evidence, max(keep, (evidence.x.shape[1] + 1) // 2))


class Modest(FirstTokens):
    """Says that it can halve at most, and goes down to one token."""

    def min_tokens(self, tokens: int, prefix: int = 0) -> int:
        return (tokens + 1) // 2


class Nobody(FirstTokens):
    """Says that no token at all can stay."""

    def min_tokens(self, tokens: int, prefix: int = 0) -> int:
        return 0


class HeavyToo(FirstTokens):
    """Keeps one more as soon as tokens have been merged before."""

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        more = int(evidence.mass.max() > 1)
        return _first(evidence, min(keep + more, evidence.x.shape[1]))


@dataclass(frozen=True)
class Twice(Selector):
    """Keeps the first token of the pool k times."""

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return pool[:, :1].expand(-1, k), pool[:, k:]


@dataclass(frozen=True)
class MiscountsGroups(Selector):
    """Speaks of a group more than it has."""

    def groups(self, k: int) -> tuple[int, ...]:
        return (k, 1)

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return pool[:, :k], pool[:, k:]


@dataclass(frozen=True)
class OutOfRange(Assigner):
    """Sends every token to a slot after the last one."""

    def assign(
        self, evidence: Evidence, kept: Tensor, rest: Tensor, groups: tuple[int, ...]
    ) -> Tensor:
        return torch.full_like(rest, kept.shape[1])


class LosesOne(Alternate):
    """Forgets the last of an odd number of tokens."""

    def sides(self, free: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
        half = free.shape[1] // 2
        return free[:, : 2 * half : 2], free[:, 1 : 2 * half : 2]


class GreedySplit(Alternate):
    """Says that all but one token can merge, and has every second one receive."""

    def limit(self, tokens: int) -> int:
        return tokens - 1


class CountsFromOne(FrameWindows):
    """Numbers its segments from 1."""

    def segment(self, evidence: Evidence) -> Tensor:
        return super().segment(evidence) + 1


class HoldsAll(Protect):
    """Holds its share, whether or not enough are left to merge."""

    def count(self, tokens: int, merges: int) -> int:
        return floor_share(self.share, tokens)


class Recovers(MaxCoverage):
    """Forgets what it has chosen: the token that covers most is chosen again and again."""

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        kept, rest = super().select(evidence, pool, k)
        return kept[:, :1].expand_as(kept), rest


class CoversTheBatch(MaxCoverage):
    """Weighs the gain of a token by what it is in the whole batch."""

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        mean = evidence.x.mean(0, keepdim=True).expand_as(evidence.x)
        return super().select(evidence.renewed(mean + evidence.x, evidence.mass), pool, k)


class FirstOfNaN(MarginalRelevance):
    """Takes a token that is no number for the most important one."""

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        bad = ~evidence.x.isfinite().all(-1, keepdim=True)
        high = evidence.x.where(~bad, 0) + 1e3 * bad
        return super().select(evidence.renewed(high, evidence.mass), pool, k)


class LosesTheSurplus(RunQuotas):
    """Gives what a run cannot take to nobody, and fills up with the first token."""

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        kept, rest = super().select(evidence, pool, k)
        lost = k // 2
        return torch.cat([kept[:, : k - lost], kept[:, :1].expand(-1, lost)], 1), rest


class AlwaysAnAnchor(Anchored):
    """Keeps an anchor with all its neighbours, even where fewer tokens are wanted."""

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return super().select(evidence, pool, min(max(k, 5), pool.shape[1]))


class CutsAtTheElbow(Elbow):
    """Returns as many tokens as the data say, without padding."""

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        kept, rest = super().select(evidence, pool, k)
        count = int(self.lengths(evidence, pool, k).max())
        return kept[:, :count], torch.cat([kept[:, count:], rest], 1)


class LeavesOutAlikes(DistinctPerGroup):
    """Returns only tokens that differ, and so fewer where many are alike."""

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        kept, rest = super().select(evidence, pool, k)
        count = min(k, 1 + pool.shape[1] // 4)
        return kept[:, :count], torch.cat([kept[:, count:], rest], 1)
