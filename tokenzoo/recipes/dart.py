"""DART: a few pivots and the tokens least similar to them."""

from __future__ import annotations

from tokenzoo._core.kinds import Count
from tokenzoo.matchers import Drop, FarFromPivots, SelectAssign
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import FeatureNorm


@register_recipe
def dart(
    *,
    keep: int | float = 0.25,
    layer: Count = 2,
    pivots: int = 4,
    text_pivots: int = 4,
    match_reference: bool = False,
) -> Recipe:
    """Keep a few pivots, and for each pivot the visual tokens that are least similar to it; drop the rest.

    DART selects by duplication instead of importance. The pivots are the tokens whose keys of layer K - 1
    (with positions, heads concatenated) have the largest L1 norms, some of the image and some of the
    text after it. Each pivot takes the remaining tokens with the lowest cosine to it in the input of
    layer K of the language model. Kept tokens stay in order and keep their positions, with gaps. No
    attention map is needed.

    Formula:
        pivots = the largest |k_j|_1,  visual and text apart
        for each pivot p: keep the j, not yet taken, with the lowest cos(h_p, h_j)

    Args:
        keep: visual tokens to keep: a count or a fraction. (authors' code: 0.222 or so)
        layer: the decoder layer K that is the first to see fewer tokens, >= 1. (authors' code: 2)
        pivots: visual tokens among the pivots; they are kept. (authors' code: 4)
        text_pivots: pivots among the text tokens after the image; fewer where the text is shorter.
            (authors' code: 4)
        match_reference: take the pivots in the order of the authors' code, that of a CPython set of their
            positions in the prompt. It waits for the device at this layer, and cannot be compiled into one
            graph.

    Departures:
        - The authors' count is pivots + (pivots + text_pivots) * k, over its budget by `pivots`; here
          `keep` is met exactly, and of a remainder the first pivots take one more each.
        - The order of the pivots changes the result, and the authors' is an accident of hashing: ours is
          visual before text, the largest norm first. `match_reference=True` has theirs.
        - A text shorter than `text_pivots` stops their code, and gives fewer pivots here.
        - One of their releases applies the model's last norm to h first; here, as in the other, h is taken
          as it is.

    Licence:
        Apache-2.0 (ZichenWen1/DART)

    Reference:
        Stop Looking for Important Tokens: Duplication Matters More (DART), EMNLP 2025, arXiv 2502.11494
    """
    order = "set" if match_reference else "score"
    norms = FeatureNorm("all_keys", power=1)
    stay = FarFromPivots(norms, pivots=pivots, text_pivots=text_pivots, order=order)
    step = Step(Stage.LLM(layer), Once(), SelectAssign(stay, Drop()), Identity(), positions="keep")
    return Recipe(step, keep=keep)
