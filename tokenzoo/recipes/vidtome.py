"""VidToMe: tokens of the frames of a chunk join those of one of its frames."""

from __future__ import annotations

from typing import Annotated

from tokenzoo._core.kinds import Range
from tokenzoo.matchers import IntoFrames
from tokenzoo.mergers import Identity, WeightedMean
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once


@register_recipe
def vidtome(
    *,
    keep: int | float = 0.25,
    chunk: Annotated[int, Range(2)] = 4,
    replace: bool = True,
) -> Recipe:
    """Let the tokens of the other frames of a chunk join the most similar token of its middle frame.

    Of a few consecutive frames one receives, and the tokens of the others propose to its tokens, at any
    place: so an object that moves merges with itself. The most similar pairs merge. A token that merges is
    replaced by the one that it joins, whose result it takes when tokens are copied back (`unmerge`). It was
    made for diffusion models, around their self-attention.

    Formula:
        partner of x_i = argmax over the tokens j of the middle frame of cos(x_i, x_j);   the highest merge

    Args:
        keep: tokens of the whole clip to keep: a count or a fraction. (paper: 0.325, as 0.9
            of the tokens of 3 of 4 frames merge)
        chunk: frames of a chunk. (authors' code: 4)
        replace: a kept token stays as it is; False: it becomes the mean of its tokens by mass.
            (authors' code: True)

    Departures:
        - The receiving frame is the middle one; the authors draw it at random in every step of the
          diffusion.
        - The most similar pairs are those of the whole clip, theirs those of each chunk.
        - A keep below the receiving frames' tokens merges these in the same way; theirs stops there.
        - Their second, global merge with a bank of tokens of earlier chunks is not built.

    Licence:
        MIT (lixirui142/VidToMe)

    Reference:
        VidToMe, CVPR 2024, arXiv 2312.10656
    """
    merger = Identity() if replace else WeightedMean()
    return Recipe(Step(Stage.PROJECTED, Once(), IntoFrames(chunk), merger), keep=keep)
