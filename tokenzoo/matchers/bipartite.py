"""Bipartite soft matching: a pair score decides which tokens leave and which they join.

Every token of one side proposes to its best partner on the other; the best proposals are merged. ToMe uses
the cosine of keys and a split by parity; EvoPrune discounts the cosine by the diversity of both tokens
and holds the tokens that receive most attention.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from tokenzoo._core.sorting import descending, ordered
from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import Evidence
from tokenzoo.matchers.protect import Protect
from tokenzoo.matchers.split import Alternate, Parity, Split
from tokenzoo.parts import Matcher, PairScorer, Scorer, token_scores
from tokenzoo.token_map import TokenMap, take


@dataclass(frozen=True)
class Bipartite(Matcher):
    """Merge the best-scoring pairs across a split.

    Args:
        pairs: a high score means merge.
        split: which tokens propose and which receive.
        protect: tokens that take no part; None: all take part.
        order: of the outputs: "position", or "tome": first the proposers that stay, then all receivers.
            ToMe leaves the former in descending order of their score where there is no prefix token,
            and by position where there is one; its next split by parity depends on it.
        rank: the split divides the mergeable tokens in ascending order of this score (PiToMe: the most
            redundant first); None: in order of position.
    """

    pairs: PairScorer
    split: Split = Alternate()
    protect: Protect | None = None
    order: Literal["position", "tome"] = "position"
    rank: Scorer | None = None

    def __post_init__(self) -> None:
        if self.protect is not None and (self.order == "tome" or isinstance(self.split, Parity)):
            raise BadArgumentError(
                "protect= needs split=Alternate() and order='position': a split by index parity can leave "
                "fewer pairs than needed among the mergeable tokens, and order='tome' does not define "
                "the place of protected ones"
            )

    def min_tokens(self, tokens: int, prefix: int = 0) -> int:
        """Return the tokens minus the most that the split can merge."""
        del prefix
        return tokens - self.split.limit(tokens)

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        """Merge the n - keep best pairs; stable, with ties to the lower index."""
        b, n = evidence.x.shape[:2]
        merges = n - keep
        if merges == 0:
            return TokenMap.identity(b, n, device=evidence.x.device)
        every = torch.arange(n, device=evidence.x.device).expand(b, n)
        if self.protect is None:
            held, free = every[:, :0], every
        else:
            held, free = self.protect.partition(evidence, merges)
        if self.rank is not None:
            free = take(free, descending(-take(token_scores(self.rank, evidence), free)))
        sources, targets = self.split.sides(free, evidence.prefix)  # [b, s], [b, t]
        score, best = self.pairs.score(evidence).at(sources, targets).best()  # [b, s] each
        order = ordered(score, descending=True)  # best() gives finite numbers
        leaving, staying = order[:, :merges], order[:, merges:]
        gone, partner = take(sources, leaving), take(best, leaving)  # [b, r]
        if self.order == "position":
            plan = TokenMap.from_joins(gone, take(targets, partner), n)
            if self.protect is None:
                return plan
            marks = torch.zeros_like(every, dtype=torch.bool).scatter(1, held, True)
            return replace(plan, held=take(marks, plan.keep))
        if evidence.prefix > 0:
            staying = staying.sort(dim=-1).values
        kept = torch.cat([take(sources, staying), targets], 1)  # [b, m]
        slots = staying.shape[1] + partner
        return TokenMap.from_slots(kept, gone, slots, n, complete=True)
