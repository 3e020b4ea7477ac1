"""What a pass did, as the user is told it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenzoo.hooks.packed_layout import Pack
from tokenzoo.hooks.state import Pass
from tokenzoo.token_map import TokenMap


@dataclass(frozen=True)
class Passed:
    """What the last pass did with its images of one grid.

    Attributes:
        tokens: patch tokens of an image before the first block.
        images: which images of the pass these are (of a video, each slice in time); (): all.
        counts: patch tokens after each block.
        features: patch tokens that left the tower, and the projector.
        mass: how many input tokens each token stands for, `[b, n]`, prefix included; None: one each.
        record: from the first tokens to the last ones, where plans are kept (`trace=True`) and something
            was reduced; otherwise None.
    """

    tokens: int
    images: tuple[int, ...]
    counts: tuple[int, ...]
    features: int
    mass: Tensor | None
    record: TokenMap | None


def passed(state: Pass | Pack) -> tuple[Passed, ...]:
    """What a pass did, by the grid of its images; of a batch there is one."""
    if isinstance(state, Pack):
        return tuple(_of(lot.state, lot.units) for lot in state.lots)
    return (_of(state, ()),)


def _of(state: Pass, images: tuple[int, ...]) -> Passed:
    counts = (*state.counts[: len(state.counts) - len(state.fired)], *state.fired)
    return Passed(state.entered, images, counts, state.left, state.mass, state.plan)
