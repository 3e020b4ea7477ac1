"""The adapter of a packed tower: images of different sizes in one sequence of patches, as in Qwen2-VL."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from tokenzoo.adapter import Adapter


class PackedAdapter(Adapter, ABC):
    """A tower whose blocks pass on a sequence of patches `[r, c]`: that of all images of a pass.

    A token is `patches` of them, one after another: what the language model reads. A unit is an image, or
    one slice in time of a video: what the tower attends to as a whole, with a budget of its own.

    Beside what every adapter says:
    `width` and `hidden` are of a patch;
    `follow` is handed as `places` which tokens `[t]` of the whole sequence are left, ascending;
    `trial` says a number of tokens, whose first half is a segment of its own and the second half another;
    the tower makes the tensor that enters the first block itself.
    """

    watched = True
    positional = True

    patches: int = 1
    """How many patches make one token (p)."""

    reach: tuple[int, ...] = ()
    """Of each block, how many tokens of a full image one token attends with; 0: all; (): all, always."""

    @abstractmethod
    def units(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of the tokens of each unit of the pass that runs in this thread."""

    def order(self, grid: tuple[int, int]) -> Tensor | None:
        """`[N]` int64: where each token of a unit, in raster order, is in its part of the sequence.

        None: the sequence is in raster order.
        """
        del grid
        return None

    def windows(self, index: int, options: dict[str, Any]) -> tuple[Tensor, int] | None:
        """The windows in which block `index` attends.

        Args:
            index: of the block.
            options: the keyword arguments of its attention, for the tokens that are left.

        Returns:
            Their boundaries `[s + 1]` in patches, and the most patches of one; None: each unit attends to
            all of itself.
        """
        del index, options
        return None
