"""VisionZip: dominant tokens, and contextual tokens that merge the rest."""

from __future__ import annotations

from tokenzoo._core.kinds import Index, Share
from tokenzoo._core.validation import check_fraction
from tokenzoo.matchers import REST, Nearest, SelectAssign, Strided, Then, TopK
from tokenzoo.mergers import TargetPlusMean
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import Similarity, attention_by
from tokenzoo.scorers.attention_by import AttentionSource


@register_recipe
def visionzip(
    *,
    keep: int | float = 0.25,
    dominant: Index | Share = 27 / 32,
    attention_source: AttentionSource = "cls",
) -> Recipe:
    """Keep the tokens with the highest CLS attention; merge the rest into every s-th of them.

    A few tokens receive nearly all of the attention of CLS: these dominant tokens are kept as they are.
    Evenly spaced ones of the others become contextual tokens, and each of the rest joins the contextual
    token with the most similar key (of the layer whose output is read). Dominant tokens come first, then
    the contextual ones.

    Formula:
        score_j = sum over the heads h of softmax(q_CLS k_j / sqrt(d))_h
        join_i = argmax over contextual c of cos(k_i, k_c),  k: mean over the heads
        y_c = x_c + mean over i joining c of x_i

    Args:
        keep: patch tokens to keep, dominant and contextual together: a count or a fraction. (paper: 64,
            128 or 192 of 576)
        dominant: share of them chosen by CLS attention, or their count. (paper: 54 of 64)
        attention_source: "cls", or "received" for encoders without CLS.

    Departures:
        - The authors count CLS as one of their dominant tokens; prefix tokens are never counted here.
        - A contextual token is itself PLUS the mean of what joins it, as in the authors' code; the paper
          describes an average.
        - For encoders without CLS, `attention_source="received"` takes the mean attention that a token
          receives.

    Licence:
        Apache-2.0 (dvlab-research/VisionZip)

    Reference:
        VisionZip, CVPR 2025, arXiv 2412.04467
    """
    if not isinstance(dominant, int):
        check_fraction(
            "dominant", dominant
        )  # under the name of the option, which is not that of the part
    stay = Then(
        (dominant, TopK(attention_by(attention_source, sum_heads=True))),
        (REST, Strided(spacing="floor")),
    )
    match = SelectAssign(stay, Nearest(Similarity("keys"), group=-1), order="groups")
    return Recipe(Step(Stage.FEATURES, Once(), match, TargetPlusMean()), keep=keep)
