"""One matcher in the first blocks of a tower, another in the last."""

from __future__ import annotations

from dataclasses import dataclass

from tokenzoo._core.kinds import Share
from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Matcher
from tokenzoo.token_map import TokenMap


@dataclass(frozen=True)
class ByDepth(Matcher):
    """Choose the matcher by the depth of the block (PiToMe).

    Args:
        first: the matcher in blocks i of L with i / L below `border`.
        last: the matcher in the others.
        border: a fraction of the depth.
    """

    first: Matcher
    last: Matcher
    border: Share = 0.5

    def __post_init__(self) -> None:
        self.require("depth")

    @property
    def ragged(self) -> bool:
        """Whether the count of one of the two depends on the data."""
        return self.first.ragged or self.last.ragged

    def min_tokens(self, tokens: int, prefix: int = 0) -> int:
        """Return the fewest tokens that both can leave."""
        return max(self.first.min_tokens(tokens, prefix), self.last.min_tokens(tokens, prefix))

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        """Match with the matcher of this block.

        Raises:
            BadArgumentError: one of the two cannot reduce to `keep`.
        """
        n, least = evidence.x.shape[1], self.min_tokens(evidence.x.shape[1], evidence.prefix)
        if keep < least:
            raise BadArgumentError(
                f"keep={keep} of {n} tokens; where one block has {self.first!r} and another "
                f"{self.last!r}, one step goes down to {least}: keep at least that many"
            )
        part = self.first if evidence.depth < self.border else self.last
        return part.match(evidence, keep)
