"""FasterVLM: what CLS attends to, behind the tower (arXiv 2412.01818)."""

from __future__ import annotations

from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Keep
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.schedules import Once
from tokenzoo.scorers import CLSAttention


def fastervlm(*, keep: int | float = 0.25) -> Recipe:
    """Keep the tokens with the highest attention of CLS, mean over the heads; drop the rest.

    Args:
        keep: patch tokens to keep: a count or a fraction (paper: 144, 58 or 29 of 576).

    score_j = mean over the heads h of softmax(q_CLS k_j / sqrt(d))_h, in the layer whose output is read
    (LLaVA: the last but one), CLS among the keys and not renormalised. Kept tokens stay in raster order.
    The authors project all tokens and drop then; where the projector acts on each token alone, dropping
    before it gives the same.
    """
    match = SelectAssign(TopK(CLSAttention()), Drop())
    return Recipe(Step(Stage.FEATURES, Once(), match, Keep()), keep=keep)
