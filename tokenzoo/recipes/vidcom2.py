"""VidCom2: unlike frames keep more tokens, and of each frame the tokens unlike the others stay."""

from __future__ import annotations

from tokenzoo._core.kinds import Positive, Share
from tokenzoo.matchers import Drop, PerFrame, SelectAssign
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import ClipUniqueness


@register_recipe
def vidcom2(
    *, keep: int | float = 0.25, temperature: Positive = 0.01, channels: Share = 0.5
) -> Recipe:
    """Keep the tokens that are unlike the mean of their frame and of the clip, more of unlike frames.

    Frames whose tokens are unlike the mean of the clip are unique, and keep more tokens. Of each frame the
    tokens stay that are least like the mean of the clip and of their frame. Only the half of the channels
    that varies least is looked at. Tokens stay in order of position.

    Formula:
        u_j = - sum over a of exp(-|v_j - m|^2 / 2 a),   a = 1/8 ... 2,  v_j: unit vectors, m: their mean
        score_j = u_j of the clip's mean + u_j of the frame's mean
        tokens of frame f  ~  1 + softmax(mean over its tokens of u_j of the clip's mean /
        temperature)_f - 1 / F

    Args:
        keep: tokens of the whole clip to keep: a count or a fraction. (paper: 0.25 or 0.15)
        temperature: of the softmax over the frames. (authors' code: 0.01)
        channels: share of the channels that is looked at. (authors' code: 0.5)

    Departures:
        - The total is exact; the authors round the count of each frame, and keep at least one of each.
        - It needs neither CLS nor any attention.

    Licence:
        Apache-2.0 (xuyang-liu16/VidCom2)

    Reference:
        VidCom2, EMNLP 2025, arXiv 2505.14454
    """
    of_frame, of_token = ClipUniqueness("clip", channels), ClipUniqueness("both", channels)
    match = SelectAssign(PerFrame(of_token, of_frame, temperature), Drop())
    return Recipe(Step(Stage.PROJECTED, Once(), match, Identity()), keep=keep)
