"""A share of the tokens of a site, whatever the recipe keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tokenzoo._core.kinds import Range, Words
from tokenzoo._core.validation import check_count
from tokenzoo.budget import resolve_keep
from tokenzoo.parts import Fewest, Schedule


@dataclass(frozen=True)
class Share(Schedule):
    """The last site keeps a share of its tokens; for `Stage.FRAMES`, whose tokens are frames.

    Args:
        share: of the tokens, in (0, 1], rounded to the nearest count (halves up), and at least one.
    """

    share: Annotated[float, Range(0, 1, above=True), Words("a share of the tokens, in (0, 1]")] = (
        0.5
    )

    uses_keep = False

    def counts(self, tokens: int, sites: int, keep: int, fewest: Fewest) -> tuple[int, ...]:
        """Return all tokens before the last site, and the share of them after it."""
        del keep
        check_count("tokens", tokens)
        check_count("sites", sites)
        left = max(resolve_keep(float(self.share), tokens), fewest(tokens))
        return (*(tokens,) * (sites - 1), left)
