"""LongVU: tokens that differ from the first frame of their window."""

from __future__ import annotations

from typing import Annotated

from tokenzoo._core.kinds import Count, Range, Words
from tokenzoo.matchers import Above, Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import TemporalChange
from tokenzoo.temporal import FrameWindows


@register_recipe
def longvu(
    *,
    keep: int | float = 0.25,
    window: Count = 8,
    threshold: Annotated[
        float | None, Range(-1, 2), Words("a number from -1 to 2, or None")
    ] = None,
) -> Recipe:
    """Keep the first frame of each window, and the tokens that differ most from it.

    A clip is cut into windows of a few frames. The first frame of a window stays whole; of the
    others those tokens stay that are unlike the token at the same place in the first one. This is the
    last of LongVU's three reductions. Tokens stay in order of position.

    Formula:
        score_fp = 1 - cos(x_fp, x_gp),  g: the first frame of the window;   the first frames: higher
        than all

    Args:
        keep: tokens of the whole clip to keep: a count or a fraction; with `threshold` the most. (ours)
        window: frames of a window. (authors' code: 8)
        threshold: keep all tokens whose cosine is below it, however many; None: exactly `keep`. (authors'
            code: 0.6)

    Departures:
        - The count is exact; the authors drop by the threshold, as with `threshold`, and if that
          leaves too many, cut the ends of the windows.
        - The two reductions before are not built: dropping frames that DINOv2 finds alike, and a lower
          resolution for frames that the question is not about.
        - LongVU is trained with them; this is the rule alone, on a model that was not.

    Licence:
        Apache-2.0 (Vision-CAIR/LongVU)

    Reference:
        LongVU, ICML 2025, arXiv 2410.17434
    """
    change = TemporalChange("first", FrameWindows(window))
    stay = TopK(change) if threshold is None else Above(change, 1 - threshold)
    match = SelectAssign(stay, Drop())
    return Recipe(Step(Stage.PROJECTED, Once(), match, Identity()), keep=keep)
