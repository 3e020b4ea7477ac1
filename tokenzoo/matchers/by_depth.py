"""One matcher in the first blocks of a tower, another one in the last."""

from __future__ import annotations

from dataclasses import dataclass

from tokenzoo._core.kinds import Share
from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Matcher
from tokenzoo.token_map import TokenMap


@dataclass(frozen=True)
class ByDepth(Matcher):
    """Let the block decide which matcher it is (PiToMe).

    Args:
        first: in the blocks i of L with i / L below `border`.
        last: in the others.
        border: a fraction of the depth.
    """

    first: Matcher
    last: Matcher
    border: Share = 0.5

    def __post_init__(self) -> None:
        self.require("depth")

    @property
    def ragged(self) -> bool:
        """Whether one of the two takes its count from the data."""
        return self.first.ragged or self.last.ragged

    def fewest(self, tokens: int, prefix: int = 0) -> int:
        """The least that both can leave."""
        return max(self.first.fewest(tokens, prefix), self.last.fewest(tokens, prefix))

    def match(self, evidence: Evidence, keep: int) -> TokenMap:
        """Ask the one that the block is for.

        Raises:
            BadArgumentError: so few tokens are wanted that one of the two cannot leave them.
        """
        n, least = evidence.x.shape[1], self.fewest(evidence.x.shape[1], evidence.prefix)
        if keep < least:
            raise BadArgumentError(
                f"keep={keep} of {n} tokens; where one block has {self.first!r} and another "
                f"{self.last!r}, one step goes down to {least}: keep at least that many"
            )
        part = self.first if evidence.depth < self.border else self.last
        return part.match(evidence, keep)
