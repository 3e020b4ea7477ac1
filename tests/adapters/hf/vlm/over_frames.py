"""A recipe that reduces a video as a whole, after the projector."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo import Recipe, Stage, Step
from tokenzoo.evidence import Evidence
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.parts import Scorer
from tokenzoo.schedules import Once


@dataclass(frozen=True)
class Change(Scorer):
    """How much a token differs from that of the frame before, at its place; the most in the first frame."""

    needs = frozenset({"x", "frames"})

    def score(self, evidence: Evidence) -> Tensor:
        """Return 1 - the cosine, `[b, n]`."""
        x = evidence.x.unflatten(1, (evidence.frames, -1))  # [b, f, n, c]
        change = 1 - torch.cosine_similarity(x[:, 1:], x[:, :-1], -1)
        return torch.cat([torch.full_like(change[:, :1], 2), change], 1).flatten(1)


def over_frames(keep: int | float) -> Recipe:
    """Of a video the tokens that have changed most, anywhere in it."""
    chosen = SelectAssign(TopK(Change()), Drop())
    return Recipe(Step(Stage.PROJECTED, Once(), chosen, Identity()), keep=keep)
