"""Tokens of the other frames of a chunk join the tokens of one frame (VidToMe)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from tokenzoo._core.kinds import Range
from tokenzoo._core.sorting import ordered, places
from tokenzoo.affinity import Affinity
from tokenzoo.evidence import Evidence
from tokenzoo.temporal.clip_matcher import ClipMatcher
from tokenzoo.temporal.segmenter import by_frame
from tokenzoo.token_map import TokenMap, take
from tokenzoo.tokens import unit


@dataclass(frozen=True)
class IntoFrames(ClipMatcher):
    """Merge the most similar pairs of a token of any frame and one of the middle frame of its chunk.

    Chunks are `chunk` consecutive frames. Of the tokens outside of the middle frames, those with the
    highest cosine join the most similar token of their chunk's middle frame. If more must go than there
    are, all join, and the middle frames are cut into chunks again; in a single frame, every token may join
    one of evenly spaced ones.

    Args:
        chunk: frames of a chunk.
    """

    chunk: Annotated[int, Range(2)] = 4

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        """Keep exactly `keep` tokens, in order of position."""
        x = by_frame(unit(evidence.x), evidence.frames)  # [b, f, n, c]
        b, frames, n, _ = x.shape
        index = torch.arange(frames * n, device=x.device).expand(b, -1)
        lead = index  # the token that each token has joined
        level = list(range(frames))
        while len(level) * n > keep and len(level) > 1:
            middles = [chunk[len(chunk) // 2] for chunk in _chunks(level, self.chunk)]
            into = {
                i: m for m, c in zip(middles, _chunks(level, self.chunk), strict=True) for i in c
            }
            sources = [frame for frame in level if into[frame] != frame]
            excess = min(len(level) * n - keep, len(sources) * n)
            lead = _joined(x, lead, sources, [into[frame] for frame in sources], excess)
            level = middles if excess == len(sources) * n else []
        if level and n > keep:
            lead = _thinned(x[:, level[0]], lead, level[0] * n, keep)
        order = ordered((lead != index).long())
        return TokenMap(order[:, :keep], take(places(order), lead), complete=True)


def _chunks(frames: list[int], size: int) -> list[list[int]]:
    """Cut a list into pieces of a size; the last can be shorter."""
    return [frames[i : i + size] for i in range(0, len(frames), size)]


def _joined(x: Tensor, lead: Tensor, sources: list[int], into: list[int], excess: int) -> Tensor:
    """Let the `excess` most similar tokens of some frames join the most similar one of another frame each.

    Args:
        x: unit vectors `[b, f, n, c]`.
        lead: `[b, f * n]` the token that each has joined so far.
        sources: frames whose tokens join.
        into: the frame that those of each of them join.
        excess: how many.
    """
    b, _, n, c = x.shape
    left, right = x[:, sources].reshape(-1, n, c), x[:, into].reshape(-1, n, c)
    score, best = Affinity(left, right).best()  # [b * sources, n]
    base = torch.tensor([frame * n for frame in into], device=x.device)[:, None]
    target = (best.view(b, -1, n) + base).flatten(1)
    token = torch.tensor([frame * n for frame in sources], device=x.device)[:, None]
    token = (token + torch.arange(n, device=x.device)).flatten().expand(b, -1)
    gone = ordered(score.view(b, -1), descending=True)[:, :excess]
    moved = torch.arange(lead.shape[1], device=x.device).expand_as(lead)
    moved = moved.scatter(1, take(token, gone), take(target, gone))
    return take(moved, lead)  # what had joined a token moves with it


def _thinned(x: Tensor, lead: Tensor, start: int, keep: int) -> Tensor:
    """Let the tokens of the only frame left, `x [b, n, c]`, join evenly spaced ones."""
    b, n, _ = x.shape
    kept = (2 * torch.arange(keep, device=x.device) + 1) * n // (2 * keep)
    _, best = Affinity(x, x[:, kept]).best()  # [b, n]
    best = kept[best].scatter(1, kept.expand(b, -1), kept.expand(b, -1))
    moved = torch.arange(lead.shape[1], device=x.device).expand_as(lead)
    moved = moved.scatter(1, (start + torch.arange(n, device=x.device)).expand(b, -1), start + best)
    return take(moved, lead)
