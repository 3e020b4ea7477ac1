"""The old name of an adapter of a packed tower: `PackedAdapter`."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from tokenzoo.adapter import Adapter
from tokenzoo.layouts import PackedLayout


class PackedAdapter(Adapter, ABC):
    """Deprecated: an `Adapter` with `layout_class = PackedLayout`, `group` and `layout(x)`."""

    uses_attention_interface = True
    positional = True
    layout_class = PackedLayout
    patches: int = 1
    """Now `Adapter.group`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        warnings.warn(
            "tokenzoo.packed.PackedAdapter is tokenzoo.Adapter with layout_class = PackedLayout, group and "
            "layout(x); the old name goes with version 0.3",
            DeprecationWarning,
            stacklevel=2,
        )

    @property
    def group(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """`patches`."""
        return self.patches

    @abstractmethod
    def units(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of the tokens of each unit of the pass that runs in this thread."""

    def order(self, grid: tuple[int, int]) -> Tensor | None:
        """`[N]` int64: where each token of a unit, in raster order, is in its part of the sequence.

        None: the sequence is in raster order.
        """
        del grid
        return None

    def layout(self, x: Tensor) -> PackedLayout:
        """Units in one sequence.

        Raises:
            AttachError: another number of patches enters the first block.
        """
        return PackedLayout.checked(x, self.units(), self.order, group=self.patches)
