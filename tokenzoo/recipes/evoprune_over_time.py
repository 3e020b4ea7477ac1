"""Ours: EvoPrune inside the encoder, then what is left of the frames joined over time."""

from __future__ import annotations

from typing import Annotated

from tokenzoo._core.kinds import Positive, Range, Share, Words
from tokenzoo.matchers import IntoFrames, NeighbourPairs
from tokenzoo.mergers import WeightedMean
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.evoprune import evoprune
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once, Scaled, Skip
from tokenzoo.schedules import Share as ShareOf


@register_recipe
def evoprune_over_time(
    *,
    keep: int | float = 0.25,
    more: Positive = 2.0,
    frames_left: Annotated[
        Share | None, Words("a share of the frames in [0.5, 1), or None")
    ] = None,
    chunk: Annotated[int, Range(2)] = 4,
    ctr: float = 0.25,
    lam: float = 0.1,
    stride: int = 1,
    start: Annotated[int, Range(1)] = 1,
    every: Annotated[int, Range(1)] = 2,
) -> Recipe:
    """Merge inside the encoder as EvoPrune does, and over time what the frames then have in common.

    EvoPrune leaves more tokens of each frame than are wanted. After the projector, tokens of neighbouring
    frames join the most similar token of the frame in the middle of them, until the clip has exactly as
    many as are wanted: a still passage costs little more than a frame. With `frames_left`, the most similar
    neighbouring frames are merged whole, before the first block that merges tokens, so that the encoder
    runs on fewer frames; these then keep so many more tokens each, and `more` has no part.

    Formula:
        inside: as evoprune, `more` times the wanted tokens of a frame
        after:  the highest  max over j in the middle frame of its chunk of cos(x_i, x_j)  join their j
        y = weighted mean by mass

    Args:
        keep: tokens of the whole clip to keep: a count or a fraction. Of an image, it is kept, too. (ours)
        more: how many times as many tokens of a frame leave the encoder. (ours)
        frames_left: share of the frames that stay inside the encoder; None: all. It needs a model that
            stacks the frames of a video. (ours)
        chunk: frames that share a middle frame. (ours; as in VidToMe)
        ctr: as in evoprune.
        lam: as in evoprune.
        stride: as in evoprune.
        start: as in evoprune; with `frames_left`, also the block before which frames are merged.
        every: as in evoprune.

    Departures:
        - A composition of our own: EvoPrune's authors name redundancy over time as what they left undone.

    Licence:
        This project's

    Reference:
        EvoPrune, arXiv 2603.03681; VidToMe, CVPR 2024, arXiv 2312.10656
    """
    (inside,) = evoprune(keep=keep, ctr=ctr, lam=lam, stride=stride, start=start, every=every).steps
    first: list[Step] = []
    schedule = Scaled(Skip(start, every), more)
    if frames_left is not None:
        first = [Step(Stage.FRAMES(start), ShareOf(frames_left), NeighbourPairs(), WeightedMean())]
        schedule = Skip(start, every)
    block = Step(Stage.BLOCK, schedule, inside.matcher, inside.merger)
    after = Step(Stage.PROJECTED, Once(), IntoFrames(chunk), WeightedMean())
    return Recipe(*first, block, after, keep=keep, proportional_attention=True)
