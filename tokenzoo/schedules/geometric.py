"""The same share of the tokens at each of a few sites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tokenzoo._core.kinds import Words
from tokenzoo._core.validation import check_count
from tokenzoo.budget import spread
from tokenzoo.parts import Fewest, Schedule

from .once import Place, site_of


@dataclass(frozen=True)
class Geometric(Schedule):
    """Each of s sites keeps the share (keep / tokens) ** (1 / s) of its tokens.

    DynamicViT's and EViT's 0.7, 0.49 and 0.343 of the tokens after a quarter, half and three quarters of
    the blocks are keep=0.343 here.

    Args:
        at: the sites: ints are indices, negative from the end, floats fractions of the depth in [0, 1];
            (): every site (PiToMe). Sites that coincide on a shallow tower count once.
    """

    at: Annotated[
        tuple[Place, ...], Words("a tuple of sites: (0.25, 0.5, 0.75), or () for all")
    ] = (0.25, 0.5, 0.75)

    def counts(self, tokens: int, sites: int, keep: int, fewest: Fewest) -> tuple[int, ...]:
        """Return the tokens after each site; the last count is exactly `keep`."""
        check_count("sites", sites)
        chosen = sorted({site_of(place, sites, self) for place in self.at}) or list(range(sites))
        share = (min(keep, tokens) / tokens) ** (1 / len(chosen))
        weights = [0.0] * sites
        for number, site in enumerate(chosen):
            # Without removals the weights have no effect, but they must not all be 0.
            weights[site] = share**number * (1 - share) if share < 1 else 1.0
        return spread(tokens, keep, tuple(weights), fewest)
