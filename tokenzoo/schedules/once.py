"""All removals at one site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tokenzoo._core.kinds import Range, Share, Words
from tokenzoo._core.validation import check_count
from tokenzoo.budget import round_half_up, spread
from tokenzoo.parts import Fewest, Schedule

from .weighted import Weighted, equal_weights, too_shallow

_WORDS = "an int, the index of a site, or a float in [0, 1], a fraction of the depth"
Place = Annotated[int | Share, Words(_WORDS)]
"""A site: its index, negative from the end, or a fraction of the depth."""


@dataclass(frozen=True)
class Once(Weighted):
    """One site removes all tokens that are to be removed.

    Args:
        at: an int is the index of the site, negative from the end; a float a fraction of the depth
            in [0, 1] (0.5 of 24 blocks is block 12, 1.0 the last); None the only or the last site.
        keep: a factor on the recipe's `keep`, for recipes of several steps: VScan keeps 1.5 times
            as many after the tower and 0.5 times as many in the language model, so that its layers
            read `keep` on average. Rounded to the nearest count (halves up), from 1 to all tokens.
    """

    at: Annotated[Place | None, Words(f"{_WORDS}, or None for the last site")] = None
    keep: Annotated[
        float,
        Range(0, 1.7e308, above=True),
        Words("a factor on the recipe's keep, a finite number above 0"),
    ] = 1.0

    def counts(self, tokens: int, sites: int, keep: int, fewest: Fewest) -> tuple[int, ...]:
        """Return all tokens before the site, `keep` times the factor from there on."""
        check_count("sites", sites)
        check_count("tokens", tokens)
        check_count("keep", keep)
        wanted = max(1, round_half_up(min(tokens, keep * self.keep)))
        return spread(tokens, wanted, self.weights(sites), fewest)

    def weights(self, sites: int) -> tuple[float, ...]:
        """Return 1 for this site, 0 for the others."""
        return equal_weights(sites, (self.site(sites),))

    def site(self, sites: int) -> int:
        """Return the index of the site, from 0.

        Raises:
            BadArgumentError: the tower has no site of that index.
        """
        return sites - 1 if self.at is None else site_of(self.at, sites, self)


def site_of(at: Place, sites: int, schedule: Schedule) -> int:
    """Return the index of the site at a position, from 0.

    Raises:
        BadArgumentError: the tower has no site of that index.
    """
    if isinstance(at, float):
        return min(sites - 1, round_half_up(at * sites))
    if not -sites <= at < sites:
        raise too_shallow(
            schedule, sites, f"take at from {-sites} to {sites - 1}, or None for the last"
        )
    return at % sites
