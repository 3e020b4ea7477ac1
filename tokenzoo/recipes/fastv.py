"""FastV: the visual tokens with the highest attention of the prompt's last token."""

from __future__ import annotations

from tokenzoo._core.kinds import Count
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import LastTokenAttention


@register_recipe
def fastv(*, keep: int | float = 0.5, layer: Count = 2) -> Recipe:
    """Keep the visual tokens to which the last token of the prompt attends most; drop the rest.

    After its first layers, a language model attends little to most of the image. So the visual tokens are
    ranked once, by the attention of layer K - 1 over the whole prompt, and from layer K on only the
    highest ranked remain. Kept tokens stay in order and keep their positions, with gaps.

    Formula:
        score_j = mean over the heads h of A_h[last, j],    A: the attention of layer K - 1

    Args:
        keep: visual tokens to keep: a count or a fraction. (paper: R = 0.5, the share that is dropped)
        layer: the decoder layer K that is the first to see fewer tokens, >= 1. (paper: 2)

    Departures:
        - The paper's K = 0, which drops at random before the first layer, is not built; the published
          variant that hides tokens by a mask and saves nothing neither.
        - The authors round n * (1 - R); a fraction `keep` is rounded as everywhere in tokenzoo, and a count
          is exact.

    Licence:
        None stated (pkunlp-icler/FastV)

    Reference:
        FastV, ECCV 2024, arXiv 2403.06764
    """
    match = SelectAssign(TopK(LastTokenAttention()), Drop())
    step = Step(Stage.LLM(layer), Once(), match, Identity(), positions="keep")
    return Recipe(step, keep=keep)
