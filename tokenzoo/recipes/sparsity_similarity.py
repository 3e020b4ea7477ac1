"""Sparsity Meets Similarity, our reading: the head of the curve of CLS attention."""

from __future__ import annotations

from tokenzoo.matchers import Drop, Elbow, SelectAssign
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import attention_by
from tokenzoo.scorers.attention_by import AttentionSource


@register_recipe
def sparsity_similarity(
    *,
    keep: int | float = 0.25,
    attention_source: AttentionSource = "cls",
) -> Recipe:
    """Keep the tokens before the elbow of the sorted CLS attention, as many as the image needs.

    Few tokens have much to do with CLS, and most have little: sorted, the values fall steeply, and then
    hardly any more. The tokens of the head stay, those of the long tail are dropped. So the number
    of tokens depends on the image. Kept tokens stay in raster order.

    Formula:
        a_(1) >= ... >= a_(n), the sorted  mean over the heads h of A_h[CLS, j]
        line_i = the straight line from a_(1) to a_(n);   kept are the i before argmax of  line_i - a_(i)

    Args:
        keep: the most patch tokens to keep: a count or a fraction. (ours; the paper
            keeps 0.22 on average)
        attention_source: "cls", or "received" for encoders without CLS. (ours)

    Departures:
        - This is our reading of the abstract, which is what is public: there is no code, and the abstract
          does not say how the inflection point of the curve is found. Here it is the elbow, the point
          deepest below the line between the ends.
        - The paper sorts similarities to CLS; here its attention is sorted, since parts do not see CLS.
        - The paper's second round, in the language model, is not here.
        - Attached to a language model it is refused: prompts are written for a number that is known
          before.

    Licence:
        None stated (no code)

    Reference:
        Sparsity Meets Similarity, arXiv 2409.01162
    """
    match = SelectAssign(Elbow(attention_by(attention_source)), Drop())
    return Recipe(Step(Stage.FEATURES, Once(), match, Identity()), keep=keep)
