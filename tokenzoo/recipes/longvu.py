"""LongVU: tokens unlike the first frame of their window, or frames unlike the others of it."""

from __future__ import annotations

from typing import Annotated

from tokenzoo._core.kinds import Count, OneOf, Range, Words
from tokenzoo._core.quoting import quote
from tokenzoo.errors import BadArgumentError
from tokenzoo.matchers import Above, Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import FrameUniqueness, TemporalChange
from tokenzoo.temporal import FrameWindows


@register_recipe
def longvu(
    *,
    keep: int | float = 0.25,
    of: Annotated[str, OneOf("tokens", "frames")] = "tokens",
    window: Annotated[Count | None, Words("a count >= 1, or None")] = None,
    threshold: Annotated[
        float | None, Range(-1, 2), Words("a number from -1 to 2, or None")
    ] = None,
    layer: int | str | None = None,
) -> Recipe:
    """Keep the first frame of each window, and the tokens that differ most from it; or unlike frames.

    A clip is cut into windows of a few frames. The first frame of a window stays whole; of the
    others those tokens stay that are unlike the token at the same place in the first one. This is the
    last of LongVU's reductions; the first one, of="frames", keeps the middle frame of each window, and the
    frames that are least like the others of their window. Tokens stay in order of position.

    Formula:
        tokens: score_fp = 1 - cos(x_fp, x_gp),  g: the first frame of the window
        frames: score_f = 1 - mean over the frames g of the window of cos(x_f, x_g),  x_f: all of its tokens
        the first frame, or the middle one: higher than all others

    Args:
        keep: tokens of the whole clip to keep: a count or a fraction; with `threshold` the most. (ours)
        of: "tokens" or "frames". (authors' code: first frames, then tokens)
        window: frames of a window; None: 8 for tokens, 16 for frames. (authors' code: 8 and 16)
        threshold: keep all whose cosine is below it, however many; None: exactly `keep`. (authors'
            code: 0.6 for tokens, 0.83 for frames)
        layer: of frames: the layer whose features are compared; None: the tokens themselves. (authors'
            code: DINOv2's)

    Departures:
        - The count is exact; the authors drop by the threshold, as with `threshold`, and if that
          leaves too many, cut the ends of the windows.
        - One recipe is one of the two rules; theirs uses both, frames before the projector. The
          rule between them, a lower resolution for frames that the question is not about, is not built.
        - LongVU is trained with them; this is the rule alone, on a model that was not.

    Licence:
        Apache-2.0 (Vision-CAIR/LongVU)

    Reference:
        LongVU, ICML 2025, arXiv 2410.17434
    """
    if of == "frames":
        scorer = FrameUniqueness(FrameWindows(window or 16), layer)
    elif layer is None:
        scorer = TemporalChange("first", FrameWindows(window or 8))
    else:
        raise BadArgumentError(
            f'layer={quote(layer)} applies to of="frames" only, which compares frames by the features of '
            "another layer; leave it out"
        )
    stay = TopK(scorer) if threshold is None else Above(scorer, 1 - threshold)
    match = SelectAssign(stay, Drop())
    return Recipe(Step(Stage.PROJECTED, Once(), match, Identity()), keep=keep)
