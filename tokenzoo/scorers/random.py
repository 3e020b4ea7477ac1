"""Random scores: the control that every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from tokenzoo._core.kinds import Range, Words
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Scorer


@dataclass(frozen=True)
class Random(Scorer):
    """Pseudo-random scores as a function of (seed, position, number of tokens).

    They use no generator: an image has the same result in every batch, compiled or not.
    """

    seed: Annotated[int, Range(0), Words("an int from 0 to 2**31 - 1")] = 0

    def score(self, evidence: Evidence) -> Tensor:
        """Return scores `[b, n]`, uniform in [0, 1), the same for each image of the batch."""
        b, n = evidence.x.shape[:2]
        bits = (
            torch.arange(n, device=evidence.x.device) + (self.seed * 1_000_003 + n * 7_919) % 2**31
        )
        # Three rounds of multiply and xor-shift on 32 bits decorrelate neighbouring positions.
        for factor in (0x7FEB352D, 0x46AC68B5, 0x2C1B3C6D):
            bits = (bits ^ (bits >> 15)) * factor % 2**32
        bits = bits ^ (bits >> 16)
        return (bits.float() / 2**32).expand(b, n)
