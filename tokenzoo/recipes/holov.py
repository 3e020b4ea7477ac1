"""HoloV: attended tokens of every part of the image."""

from __future__ import annotations

from tokenzoo._core.kinds import Count, NonNegative
from tokenzoo.matchers import Drop, RunQuotas, SelectAssign
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import attention_by
from tokenzoo.scorers.attention_by import AttentionSource


@register_recipe
def holov(
    *,
    keep: int | float = 0.25,
    crops: Count = 16,
    power: NonNegative = 1.0,
    attention_source: AttentionSource = "cls",
) -> Recipe:
    """Keep the most attended tokens of every crop of the image, more of crops that are attended more.

    The most attended tokens of an image lie together and are alike. So the image is cut into crops, runs of
    tokens in raster order, and each crop has a quota, in proportion to the attention that CLS pays to it.
    In a crop the most attended tokens stay; the others are dropped. Kept tokens stay in raster order.

    Formula:
        w_c = (mean over the tokens j of crop c of  mean over the heads h of A_h[CLS, j])^power
        quota_c = floor(keep * w_c / sum of w), and one more for the crops of the highest w until it is keep

    Args:
        keep: patch tokens to keep: a count or a fraction. (paper: 192, 128 or 64 of 576)
        crops: number of crops. (authors' code: 16; for Qwen2.5-VL 1.78 times the tokens by those kept)
        power: a high one gives most to the most attended crops; 0: all have equal quotas. (authors' code:
            1)
        attention_source: "cls", or "received" for encoders without CLS.

    Departures:
        - The authors add 0.09 times a second term to the attention, the variance of the cosines of a token
          with those of its crop. Their code scales it so that its mean in each crop is that of the
          attention: it multiplies the weights of all crops by 1.09, and so changes no quota. Inside
          a crop it is not used. It is left out here.
        - What a crop cannot take goes to the most attended of all other tokens; the authors' code pads
          with zeros.
        - The authors choose after the projector; without the second term the choice is the same.
        - For encoders without CLS, `attention_source="received"` takes the mean attention that a token
          receives.

    Licence:
        Apache-2.0 (obananas/HoloV)

    Reference:
        Don't Just Chase "Highlighted Tokens" in MLLMs (HoloV), NeurIPS 2025, arXiv 2510.02912
    """
    stay = RunQuotas(attention_by(attention_source), crops, power)
    return Recipe(Step(Stage.FEATURES, Once(), SelectAssign(stay, Drop()), Identity()), keep=keep)
