"""MovieChat: the most similar neighbouring frames merge, down to a fixed memory."""

from __future__ import annotations

from tokenzoo.matchers import MergeFrames
from tokenzoo.mergers import WeightedMean
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once


@register_recipe
def moviechat(*, keep: int | float = 0.25) -> Recipe:
    """Merge the two most similar neighbouring frames, again and again, until few enough are left.

    The long-term memory of MovieChat has a fixed number of frames. Frames merge place by place, so
    that what is left are frames with all of their tokens: long still passages cost one frame, and short
    ones with much change keep theirs.

    Formula:
        s_f = mean over the places p of cos(x_fp, x_(f+1)p);   merge the f with the highest s_f

    Args:
        keep: tokens of the whole clip to keep: a count or a fraction. (ours)

    Departures:
        - A merged frame is the mean of its frames by mass; the authors' is the mean of the two that merge,
          in which later frames weigh more.
        - The whole clip is reduced at once; theirs reduces 16 frames whenever the short-term memory is
          full.
        - Where `keep` is no whole number of frames, the last merge is of the most similar places only;
          fewer tokens than a frame has are evenly spaced places.

    Licence:
        BSD-3-Clause by its file, non-commercial by its README (rese1f/MovieChat); written from the paper

    Reference:
        MovieChat, CVPR 2024, arXiv 2307.16449
    """
    return Recipe(Step(Stage.PROJECTED, Once(), MergeFrames(), WeightedMean()), keep=keep)
