"""FasterVLM: the tokens with the highest CLS attention, after the tower."""

from __future__ import annotations

from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import attention_by
from tokenzoo.scorers.attention_by import AttentionSource


@register_recipe
def fastervlm(*, keep: int | float = 0.25, attention_source: AttentionSource = "cls") -> Recipe:
    """Keep the tokens with the highest attention of CLS, mean over the heads; drop the rest.

    CLS attention of the vision encoder reflects importance better than attention in the language model,
    which favours the last positions. It is read in the layer whose output is used (LLaVA: the last but
    one), with CLS among the keys, not renormalised. Kept tokens stay in raster order.

    Formula:
        score_j = mean over the heads h of softmax(q_CLS k_j / sqrt(d))_h

    Args:
        keep: patch tokens to keep: a count or a fraction. (paper: 144, 58 or 29 of 576)
        attention_source: "cls", or "received" for encoders without CLS.

    Departures:
        - The authors project all tokens and drop then; where the projector acts on each token alone,
          dropping before it gives the same.
        - For encoders without CLS, `attention_source="received"` takes the mean attention that a token
          receives.

    Licence:
        Apache-2.0 (Theia-4869/FasterVLM)

    Reference:
        FasterVLM, 2024, arXiv 2412.01818
    """
    match = SelectAssign(TopK(attention_by(attention_source)), Drop())
    return Recipe(Step(Stage.FEATURES, Once(), match, Identity()), keep=keep)
