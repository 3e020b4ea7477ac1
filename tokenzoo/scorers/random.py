"""Random scores: the control that every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from tokenzoo._core.kinds import Range, Words
from tokenzoo._core.pseudo_random import uniform
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
        numbers = uniform(n, self.seed * 1_000_003 + n * 7_919, evidence.x.device)
        return numbers.expand(b, n)
