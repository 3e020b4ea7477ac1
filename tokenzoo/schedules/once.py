"""Everything at one site."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tokenzoo.budget import round_half_up, spread
from tokenzoo.checks import check_count
from tokenzoo.errors import BadArgumentError
from tokenzoo.interfaces import Fewest

from .weighted import Weighted, equal_weights, too_shallow


@dataclass(frozen=True)
class Once(Weighted):
    """One site removes all that is to go.

    Args:
        at: an int is the index of the site, negative from the end; a float a fraction of the depth
            in [0, 1] (0.5 of 24 blocks is block 12, 1.0 the last); None the only or the last site.
        keep: a factor on the recipe's `keep`, for recipes of several steps: VScan keeps 1.5 times
            as many behind the tower and 0.5 times as many in the language model, so that its layers
            read `keep` on average. Rounded to the nearest count (halves up), from 1 to all tokens.
    """

    at: int | float | None = None
    keep: float = 1.0

    def __post_init__(self) -> None:
        index = self.at is None or (isinstance(self.at, int) and not isinstance(self.at, bool))
        if not index and not (isinstance(self.at, float) and 0 <= self.at <= 1):
            raise BadArgumentError(
                f"at={self.at!r}; it is an int, the index of a site, a float in [0, 1], a fraction "
                "of the depth, or None for the last site"
            )
        number = isinstance(self.keep, int | float) and not isinstance(self.keep, bool)  # pyright: ignore[reportUnnecessaryIsInstance]
        if not number or not 0 < self.keep < math.inf:
            raise BadArgumentError(
                f"keep={self.keep!r}; it is a factor on the recipe's keep, a finite number above 0"
            )

    def counts(self, tokens: int, sites: int, keep: int, fewest: Fewest) -> tuple[int, ...]:
        """All tokens up to the site, `keep` times the factor from there on."""
        check_count("sites", sites)
        check_count("tokens", tokens)
        check_count("keep", keep)
        wanted = max(1, round_half_up(min(tokens, keep * self.keep)))
        return spread(tokens, wanted, self.weights(sites), fewest)

    def weights(self, sites: int) -> tuple[float, ...]:
        """1 for the one site."""
        return equal_weights(sites, (self.site(sites),))

    def site(self, sites: int) -> int:
        """The index of the site, from 0.

        Raises:
            BadArgumentError: there is none of that index.
        """
        if self.at is None:
            return sites - 1
        if isinstance(self.at, float):
            return min(sites - 1, round_half_up(self.at * sites))
        if not -sites <= self.at < sites:
            raise too_shallow(
                self, sites, f"take at from {-sites} to {sites - 1}, or None for the last"
            )
        return self.at % sites
