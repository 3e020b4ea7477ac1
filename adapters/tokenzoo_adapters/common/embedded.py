"""The patches that the patch embedding of a tower made in this pass: their grid and their number.

All other tokens that enter the first block are prefix tokens or undeclared ones. Otherwise the prompts of a
subclass would be counted, merged and dropped as patches.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokenzoo.hooks import PerThread, thread_local
from tokenzoo.parts import check_count


class Embedded(PerThread):
    """The patches that were embedded last, in this thread.

    Attributes:
        size: rows and columns of the patches, if they are a grid.
        made: number of patches; None after they have entered the first block.
    """

    size: tuple[int, int] | None = thread_local("size")
    made: int | None = thread_local("made")

    def note(self, rows: int, columns: int) -> None:
        """Remember a grid."""
        self.size, self.made = (rows, columns), rows * columns

    def entering(self, tokens: int, own_size: int | None, dropout: Any = None) -> int:
        """How many of `tokens`, which enter the first block, are patches (see `Adapter.entering`).

        Args:
            tokens: without prefix tokens.
            own_size: patches of an image of the model's only size; None: it takes several.
            dropout: the model's patch dropout, if it has one.
        """
        made, self.made = self.made, None
        if (
            made is None
        ):  # the embedding was not called, or the first block runs again (checkpointing)
            return tokens if own_size is None else min(tokens, own_size)
        chance = float(getattr(dropout, "prob", 0.0))
        if chance and dropout.training:
            return max(1, int(made * (1 - chance)))
        return made


def note_map(embedded: Embedded, module: Any, args: tuple[Any, ...], output: Tensor) -> None:
    """A hook of a convolution that makes the patches: `[b, c, rows, columns]`."""
    del module, args
    embedded.note(output.shape[-2], output.shape[-1])


def declared(prefix: int, known: int) -> int:
    """Check the number of prefix tokens that a user declares for a model with `known` ones.

    Raises:
        BadArgumentError: fewer than those.
    """
    return check_count("prefix", prefix, least=known)
