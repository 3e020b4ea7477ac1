"""Static tokens of a segment stay once, dynamic ones in every frame (HoliTom, PruneVid)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from tokenzoo._core.kinds import Count, Range, Share, Words
from tokenzoo._core.sorting import descending, ordered, place_in_group, places
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Scorer, token_scores
from tokenzoo.temporal.clip_matcher import ClipMatcher
from tokenzoo.temporal.density import density_peaks, nearest_slots, squared_distances
from tokenzoo.temporal.segmenter import Segmenter
from tokenzoo.temporal.set_counts import Counting, authors_counts, in_proportion
from tokenzoo.temporal.tubes import Rule, Tubes, tubes
from tokenzoo.token_map import TokenMap, take


@dataclass(frozen=True)
class StaticDynamic(ClipMatcher):
    """Join the static tokens of each segment over its frames, then keep some of what is left.

    The tokens of a static place are one tube, which begins in the first frame of the segment and is one
    unit; every dynamic token is a unit of its own. A set is all static units of a segment, or all dynamic
    ones of a frame. Of each set the density peaks stay (DPC-KNN), and the others join the nearest of them.
    With `dynamic`, the highest-scoring dynamic units stay instead, and the others are dropped.

    Exactly `keep` tokens stay, each set in proportion to its units. If the clip has fewer units than
    that, the tokens that differ most from their tubes stay on their own. With `retained` the counts are
    those of the authors' code, which depend on the clip: `keep` is then the maximum.

    Args:
        segments: the segments.
        threshold: what is above it is static.
        rule: "neighbours": the cosine with the frame before, in all frames; "pairs": the mean cosine of all
            pairs of frames.
        dynamic: scores dynamic tokens; None: density peaks, as for static ones.
        retained: the share of the authors' own counts; None: exactly `keep`.
        counting: how that share is counted: "clip", of all tokens (HoliTom), or "set", of each set
            (PruneVid).
        k: nearest units that the density looks at, the unit itself counted.
        k_of_centres: the density looks at no more units than the set keeps (HoliTom).
        order: of the outputs: "groups", set after set; "position".
        centres: order inside a set: "position", or "score", the highest peaks first; a set that stays whole
            is in order of position.
    """

    segments: Segmenter
    threshold: Annotated[float, Range(-1, 2)] = 0.8
    rule: Rule = "neighbours"
    dynamic: Scorer | None = None
    retained: Annotated[Share | None, Words("a fraction in [0, 1], or None")] = None
    counting: Counting = "clip"
    k: Count = 7
    k_of_centres: bool = False
    order: Literal["groups", "position"] = "groups"
    centres: Literal["position", "score"] = "position"

    @property
    def ragged(self) -> bool:
        """Whether the count depends on the clip."""
        return self.retained is not None

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        """Keep exactly `keep` tokens, or at most as many."""
        n = evidence.x.shape[1]
        units = tubes(evidence.x, self.segments.segment(evidence), self.threshold, self.rule)
        sets = Sets.of(units)
        count, extra = self._counts(units, sets, keep)
        square = squared_distances(units.x.flatten(0, 1))  # [b * f, n of a frame, n of a frame]
        rank = self._ranks(evidence, sets, square, count)
        chosen = (rank < take(count, sets.of_token)) | extra
        index = torch.arange(n, device=rank.device).expand_as(rank)
        key = index
        if self.order == "groups":
            whole = take(count == sets.sizes, sets.of_token) | extra
            by_score = self.centres == "score"
            key = sets.turn * n + (torch.where(whole, index, rank) if by_score else index)
        order = ordered(torch.where(chosen, key, key.amax() + 1 + index))
        place, ends = places(order), chosen.sum(1).clamp_max(keep)
        slot = place.where(chosen & (place < keep), -1)
        dst = self._joined(units, sets, square, slot)
        kept = order[:, :keep]
        if not self.ragged:
            return TokenMap(kept, dst)
        padding = torch.arange(keep, device=kept.device) >= ends[:, None]
        return TokenMap(kept.masked_fill(padding, -1), dst, ends)

    def _counts(self, units: Tubes, sets: Sets, keep: int) -> tuple[Tensor, Tensor]:
        """Return how many units of each set stay `[b, 2 f + 1]`, and which other tokens do `[b, f * n]`."""
        leads = units.leads.flatten(1)
        if self.retained is not None:
            count = authors_counts(sets.sizes[:, :-1], leads.shape[1], self.retained, self.counting)
            return torch.cat([count, torch.zeros_like(count[:, :1])], 1), torch.zeros_like(leads)
        total = sets.sizes[:, :-1].sum(1, keepdim=True).clamp_max(keep)
        sizes = sets.sizes[:, :-1]
        count = in_proportion(sizes, sizes, total, units.static.shape[2])
        change = places(descending(units.change.flatten(1)))
        others = places(
            ordered(leads.long() * leads.shape[1] + change)
        )  # the tokens inside tubes first
        return torch.cat([count, torch.zeros_like(count[:, :1])], 1), others < keep - total

    def _ranks(self, evidence: Evidence, sets: Sets, square: Tensor, count: Tensor) -> Tensor:
        """Return the rank of each token in its set, from 0: `[b, f * n]`."""
        b, n = sets.of_token.shape
        most = take(count, sets.of_token).clamp_min(1) if self.k_of_centres else None
        most = None if most is None else most.view(square.shape[:2])
        # The authors' noise, which breaks ties, is left out.
        ties = self.retained is None
        score = density_peaks(square, sets.same(square), self.k, most, ties=ties).view(b, n)
        if self.dynamic is not None:
            own = token_scores(self.dynamic, evidence)
            score = torch.where(sets.dynamic, own, score.to(own.dtype))
        return place_in_group(sets.of_token, places(descending(score)))

    def _joined(self, units: Tubes, sets: Sets, square: Tensor, slot: Tensor) -> Tensor:
        """Return where each token goes, given the slots of those that stay and -1 for the others."""
        b, n = slot.shape
        near = nearest_slots(square, sets.same(square), slot.view(square.shape[:2])).view(b, n)
        if self.dynamic is not None:
            near = near.where(~sets.dynamic, -1)
        own = torch.where(slot >= 0, slot, near)
        # The other tokens of a tube follow its first one.
        follow = ~units.leads.flatten(1) & (slot < 0)
        return torch.where(follow, take(own, units.lead), own)


@dataclass(frozen=True)
class Sets:
    """The sets of the units of a clip: 2 t for the static units that begin in frame t, 2 t + 1 for the
    others.

    Attributes:
        of_token: `[b, f * n]`, the set of each token; 2 f for those inside a tube.
        turn: `[b, f * n]`, the same, but 2 t + 1 for those inside a tube.
        sizes: `[b, 2 f + 1]`.
    """

    of_token: Tensor
    turn: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, units: Tubes) -> Sets:
        """Return the sets of the units."""
        b, f, n = units.static.shape
        frame = torch.arange(f, device=units.lead.device)[:, None]
        turn = (2 * frame + (~(units.static & units.leads)).long()).view(b, f * n)
        of_token = turn.where(units.leads.flatten(1), 2 * f)
        sizes = torch.zeros_like(turn[:, :1]).expand(b, 2 * f + 1)
        return cls(of_token, turn, sizes.scatter_add(1, of_token, torch.ones_like(of_token)))

    @property
    def dynamic(self) -> Tensor:
        """Whether each token is a dynamic unit, `[b, f * n]`."""
        return self.of_token % 2 == 1

    def same(self, square: Tensor) -> Tensor:
        """Return which tokens of a frame are units of one set, in the shape of `square`."""
        of_token = self.of_token.view(square.shape[:2])
        inside = of_token < self.sizes.shape[1] - 1
        return (of_token[:, None] == of_token[..., None]) & inside[:, None] & inside[..., None]
