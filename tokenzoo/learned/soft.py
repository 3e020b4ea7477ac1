"""Soft assignments: every output is a weighted sum of all tokens, with weights that are learned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from tokenzoo._core.sorting import first_highest
from tokenzoo.evidence import Evidence
from tokenzoo.learned.part import Learned
from tokenzoo.parts import Matcher
from tokenzoo.token_map import TokenMap


@dataclass(frozen=True)
class SoftMatcher(Learned, Matcher, ABC):
    """The base of soft assignments; `SoftSum` does their arithmetic.

    All outputs are new tokens. The token map records of each token where most of it went.
    """

    @abstractmethod
    def assign(self, x: Tensor, known: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return how much of each token goes into each output, and what of it.

        Args:
            x: features `[b, n, c]`; 0 where they are not finite.
            known: `[b, n, 1]` bool, which are finite; the others get no weight.
            weights: of this site, as `starts` names them.

        Returns:
            `[b, n, m]` weights, those of an output add up to 1; and values `[b, n, c]`.
        """

    def soft(self, evidence: Evidence, keep: int) -> tuple[Tensor, Tensor]:
        """Return the weights `[b, n, keep]` and the values `[b, n, c]` of a site."""
        x, weights = self.read(evidence, keep)
        known = x.isfinite().all(-1, keepdim=True)  # [b, n, 1]
        assigned, values = self.assign(x.where(known, 0), known, weights)
        return assigned.where(known, 0), values.where(known, 0)

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        """Send every token to the output that takes most of it."""
        assigned, _ = self.soft(evidence, keep)
        most = first_highest(assigned)  # [b, n]
        return TokenMap(most.new_full((most.shape[0], keep), -1), most)

    def min_tokens(self, tokens: int, prefix: int = 0) -> int:
        """Return 1."""
        del tokens, prefix
        return 1


def over_tokens(logits: Tensor, known: Tensor) -> Tensor:
    """Return the softmax of `logits [b, n, m]` over the tokens; next to 0 where not `known [b, n, 1]`."""
    return logits.where(known, -1e4).softmax(1)
