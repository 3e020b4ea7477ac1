"""PiToMe: merge tokens in large clusters, and keep isolated ones."""

from __future__ import annotations

from tokenzoo.matchers import Bipartite, ByDepth, Protect
from tokenzoo.mergers import WeightedMean
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Geometric
from tokenzoo.scorers import GraphEnergy, Similarity


@register_recipe
def pitome(
    *,
    keep: int | float = 0.25,
    margin: float = 0.75,
    alpha: float = 1.0,
    border: float = 0.5,
) -> Recipe:
    """Merge the tokens with the highest energy: those in large clusters of similar keys.

    A token in a large, uniform area has many similar ones, and merging it loses little; an isolated token
    is likely to be informative. The energy of a token measures its similarity to all others. Sorted by
    energy, tokens at even ranks find their most similar partner among those at odd ranks; in the last
    half of the blocks only the 2 r with the highest energy take part, in the first half all do, and the r
    most similar pairs merge.

    Formula:
        E_i = mean over j of f(cos(k_i, k_j) - m),   f(x) = x if x > 0, else alpha (exp(x) - 1)
        m = margin * (1 - l / L) in block l of L;  keys k are means over the heads
        y_j = sum over i merged into j of m_i x_i / sum of m_i

    Args:
        keep: patch tokens to keep in the end, by the same share in every block. (authors' code: shares of
            0.9125 a block)
        margin: in the first block. (authors' code: 0.75; paper: 0.9)
        alpha: what a dissimilar token takes away from the energy at most. (paper: 1)
        border: from which fraction of the depth on tokens of low energy are protected. (authors' code: 0.5)

    Departures:
        - Outputs are in the order of their positions, not of their energy: both are split by energy again.
        - Where more than half of the tokens are to go at one block the authors' code stops with an error;
          here the plan says beforehand that it is out of reach.
        - Its form for text is in the parts (`GraphEnergy(curve="gaussian")`, `Halves`), not in this recipe.
        - It needs no CLS, and leaves prefix tokens alone; theirs merges a distillation token.

    Licence:
        CC-BY-NC-4.0 (hchautran/PiToMe)

    Reference:
        Accelerating Transformers with Spectrum-Preserving Token Merging (PiToMe), NeurIPS 2024
    """
    energy = GraphEnergy("keys", margin, alpha=alpha, fall=margin)
    first = Bipartite(Similarity("keys"), rank=energy)
    last = Bipartite(Similarity("keys"), protect=Protect(energy, 1.0), rank=energy)
    match = ByDepth(first, last, border)
    return Recipe(Step(Stage.BLOCK, Geometric(()), match, WeightedMean()), keep=keep)
