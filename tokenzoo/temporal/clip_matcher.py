"""What every matcher of whole clips has in common."""

from __future__ import annotations

from abc import ABC

from tokenzoo.parts import Matcher


class ClipMatcher(Matcher, ABC):
    """Matches the tokens of all frames of a clip by their features; it can keep a single token."""

    def __post_init__(self) -> None:
        self.require("frames", "x")

    def min_tokens(self, tokens: int, prefix: int = 0) -> int:
        """Return 1."""
        del tokens, prefix
        return 1
