"""Vision transformers with a CLS token that take images of one size: those of torchvision and open_clip."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, Self

from tokenzoo.adapter import Adapter
from tokenzoo_adapters.common.embedded import Embedded, declared
from tokenzoo_adapters.common.evidence import FROM_ATTENTION


@dataclass(frozen=True, eq=False)
class SingleSizeViT(Adapter, ABC):
    """What these adapters share.

    Args:
        model: the transformer.
        prefix: CLS and declared tokens.
    """

    model: Any
    prefix: int = 1
    embedded: Embedded = field(default_factory=Embedded, repr=False)

    stages = frozenset({"block", "features"})
    provides = FROM_ATTENTION | {"cls_attention", "grid"}

    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(rows, columns) of the patches of an image."""

    def tokens(self) -> int:
        """Patch tokens of an image."""
        rows, columns = self.size()
        return rows * columns

    def grid(self, tokens: int) -> tuple[int, int] | None:
        """The grid of an image, if it has that many patches."""
        return self.size() if tokens == self.tokens() else None

    def with_prefix(self, prefix: int) -> Self:
        """The adapter for a model with prompts between CLS and the patches."""
        return replace(self, prefix=declared(prefix, 1))
