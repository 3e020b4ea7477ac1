"""The arithmetic of a soft assignment: every output is a weighted sum of all tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import Evidence
from tokenzoo.learned import SoftMatcher
from tokenzoo.parts import Matcher, Merger, walk
from tokenzoo.token_map import TokenMap, take
from tokenzoo.tokens import Tokens, full_precision


@dataclass(frozen=True)
class SoftSum(Merger):
    """Sum the tokens with the weights of a soft assignment.

    The mass of a token is divided among the outputs in proportion to its weights. Held outputs are
    unchanged, and held tokens are in no sum.

    Args:
        of: the matcher, which has the weights.
    """

    of: SoftMatcher

    def check_matcher(self, matcher: Matcher) -> None:
        """Raise a BadArgumentError if the matcher is another one: its tokens are not those of the sums."""
        if all(part != self.of for part in walk(matcher)):
            raise BadArgumentError(
                f"{self!r} with the matcher {matcher!r}; it sums what its own matcher assigns: pass "
                f"{self.of!r} as the matcher, too"
            )

    def merge(self, tokens: Tokens, plan: TokenMap, evidence: Evidence) -> Tokens:
        """Sum; masses add up."""
        if plan.held is None:
            x, mass = self._summed(evidence, tokens.mass, plan.kept)
            return plan.carry(tokens, x.to(tokens.x.dtype), mass)
        # Only a caller who protects tokens comes here, with one image at a time.
        free = (~take(plan.held, plan.targets)).nonzero()[None, :, 1]  # [1, f]
        slots = (~plan.held).nonzero()[:, 1]
        x, mass = self._summed(evidence.take(free), take(tokens.mass, free), len(slots))
        x = plan.of_kept(tokens.x).index_copy(1, slots, x.to(tokens.x.dtype))
        return plan.carry(tokens, x, plan.sum(tokens.mass).index_copy(1, slots, mass))

    def _summed(self, evidence: Evidence, mass: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        """Return the features `[b, keep, c]` and the masses `[b, keep]` of the outputs."""
        weights, values = self.of.soft(evidence, keep)  # [b, n, m], [b, n, c]
        with torch.no_grad():
            total = weights.sum(2, keepdim=True)
            # A token that is in no sum (it is not finite) still counts.
            shares = torch.where(total > 0, weights / total.clamp_min(1e-30), 1 / max(1, keep))
            masses = (shares.to(mass.dtype) * mass[..., None]).sum(1)
        return full_precision(weights.mT @ values), masses
