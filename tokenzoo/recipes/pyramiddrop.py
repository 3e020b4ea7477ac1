"""PyramidDrop: fewer visual tokens in every quarter of a language model."""

from __future__ import annotations

from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe
from tokenzoo.recipes.in_llm import Positions, by_next_layer, staged_steps
from tokenzoo.recipes.registry import register_recipe


@register_recipe
def pyramiddrop(
    *,
    keep: int | float = 0.125,
    layers: tuple[int, ...] = (8, 16, 24),
    factors: tuple[float, ...] = (4.0, 2.0, 1.0),
    positions: Positions = "compact",
) -> Recipe:
    """Halve the visual tokens at a few layers of the language model, by the attention of the next layer.

    Deeper layers of a language model need fewer visual tokens. So the model is cut into stages; at the end
    of each, the visual tokens are ranked by the attention that the last token of the prompt pays to
    them, with the projections of the next layer: one query, so that no attention map is needed. The
    highest ranked stay in order; the others are dropped.

    Formula:
        score_j = mean over the heads h of softmax over i <= last of (q_last . k_i / sqrt(d)), at j
        q, k:  of layer K, made of its norm of what is about to enter it, turned to their positions

    Args:
        keep: visual tokens that are left in the end: a count or a fraction. (paper: 0.125)
        layers: the decoder layers K before which tokens go, each >= 1. (paper: 8, 16, 24 of 32)
        factors: how many stay before each of them, as factors on keep. (paper: shares 0.5, 0.25, 0.125)
        positions: "compact": tokens are numbered anew after each drop; "keep": with gaps, as models need
            whose visual tokens have rows and columns (Qwen2-VL). (authors' code: compact)

    Departures:
        - The authors keep int(n * share) of the n tokens at first; a fraction is rounded as everywhere in
          tokenzoo, and a count is exact.
        - Their code leaves out that several query heads share one key head, and fails there; it takes one
          image to a prompt, padded at the right. These limits do not exist here.
        - In training they take the mean over all answers of a conversation; here the query is always the
          last token of the prompt.

    Licence:
        MIT (Cooperx521/PyramidDrop)

    Reference:
        PyramidDrop, CVPR 2025, arXiv 2410.17247
    """
    return Recipe(*staged_steps(layers, factors, by_next_layer(), Identity(), positions), keep=keep)
