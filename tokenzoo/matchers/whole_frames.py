"""Whole frames, evenly spaced: the control of temporal methods."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo._core.sorting import choose
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Selector


@dataclass(frozen=True)
class WholeFrames(Selector):
    """Keep evenly spaced whole frames, and of one more frame evenly spaced tokens, if k leaves a remainder.

    The pool is the whole clip.
    """

    def __post_init__(self) -> None:
        self.require("frames")

    def select(self, evidence: Evidence, pool: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Choose k tokens in the order of the frames; the frame with the remainder is the last of them."""
        frames = evidence.frames
        size = pool.shape[1] // frames
        count = -(-k // size)  # frames of which some are kept
        at = torch.arange(k, device=pool.device)
        frame = (2 * (at // size) + 1) * frames // (2 * max(1, count))
        left = max(1, k - (count - 1) * size)  # tokens of the last frame
        place = at % size
        thin = (2 * place + 1) * size // (2 * left)
        place = torch.where(at // size == count - 1, thin.clamp_max(size - 1), place)
        return choose(pool, (frame * size + place).expand(pool.shape[0], k))
