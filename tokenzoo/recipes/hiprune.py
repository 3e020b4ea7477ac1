"""HiPrune: what a middle layer attends to, its surroundings, and what the last layer attends to."""

from __future__ import annotations

from tokenzoo._core.kinds import Share
from tokenzoo.matchers import Anchored, Drop, SelectAssign
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import attention_by
from tokenzoo.scorers.attention_by import AttentionSource


@register_recipe
def hiprune(
    *,
    keep: int | float = 0.25,
    alpha: Share = 0.1,
    object_layer: int | str = 8,
    attention_source: AttentionSource = "received",
) -> Recipe:
    """Keep anchors of a middle layer with the tokens next to them, and the most attended of the last layer.

    Middle layers of an encoder attend to the main objects; the last ones attend to tokens all over the
    image that carry what is known of the whole. So a few anchors are chosen by the attention of a middle
    layer, with their neighbours as buffers against its noise, and the rest of the budget goes to registers,
    the most attended tokens of the layer whose output is read. All others are dropped. Kept tokens
    stay in raster order.

    Formula:
        anchors = the round(alpha * keep / 5) highest of  a_j in `object_layer`,
                  a_j = mean over the heads h and all queries i of A_h[i, j]
        buffers = the tokens left, right, above and below of an anchor
        registers = of the others, the highest a_j of the last layer, until there are `keep`

    Args:
        keep: patch tokens to keep: a count or a fraction. (paper: 192, 128 or 64 of 576)
        alpha: share of anchors and buffers. (paper: 0.1)
        object_layer: the middle layer. (paper: the ninth of CLIP-L, the 16th of Qwen2.5-VL)
        attention_source: "received", or "cls". (paper: "received")

    Departures:
        - In the authors' code the tokens left and right of an anchor are those before and after it in
          raster order, also at the edge of the image, and a neighbour outside of the image is the
          first or last token. Here an anchor at the edge has fewer neighbours.
        - With alpha near 1 the buffers can be more than are left of the budget: those that the last
          layer attends to most stay.

    Licence:
        MIT (Danielement321/HiPrune)

    Reference:
        HiPrune, ACL Findings 2026, arXiv 2508.00553
    """
    middle = attention_by(attention_source, layer=object_layer)
    match = SelectAssign(Anchored(middle, attention_by(attention_source), alpha), Drop())
    return Recipe(Step(Stage.FEATURES, Once(), match, Identity()), keep=keep)
