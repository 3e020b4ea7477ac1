"""MustDrop: alike windows merge early in the encoder; the question decides inside the language model."""

from __future__ import annotations

from typing import Annotated

from tokenzoo._core.kinds import Positive, Range, Share
from tokenzoo.matchers import REST, Drop, MergeWindows, SelectAssign, Then, TopK
from tokenzoo.mergers import Identity, WeightedMean
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.in_llm import Positions, staged_steps
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import TextAttention


@register_recipe
def mustdrop(
    *,
    keep: int | float = 0.25,
    spatial: Positive = 3.0,
    window: Annotated[int, Range(2)] = 3,
    layers: tuple[int, ...] = (3, 7, 11, 15),
    factors: tuple[float, ...] = (2.5, 1.9, 1.4, 1.0),
    summed: Share = 0.5,
    positions: Positions = "compact",
) -> Recipe:
    """Merge alike windows after the first block; then keep, at a few layers, what the words attend to.

    Neighbouring patches of the sky are one token's worth of information. So after the first block of the
    encoder the tokens of a window become one, in the windows whose tokens are most alike. Inside of the
    language model a token is worth keeping if all words of the question together attend to it, or if a
    single word does: at a few layers a share of the tokens is chosen by the sum over the words, the
    others by the maximum.

    Formula:
        alike_w = mean over pairs i != j of window w of cos(x_i, x_j);   y_w = mean by mass of its tokens
        stays: the highest  sum over words t of A[t, j];  of the others the highest  max over t of A[t, j]
        A: the mean over the heads, of layer K - 1

    Args:
        keep: visual tokens that are left in the end: a count or a fraction. (ours)
        spatial: how many tokens the merged windows leave, as a factor on keep. (authors' code: windows
            with a mean cosine of 0.8 or more merge)
        window: rows and columns of a window. (authors' code: 3)
        layers: the decoder layers K before which tokens go, each >= 1. (authors' code: 3, 7, 11, 15: after
            the layers 2, 6, 10 and 14 of 32)
        factors: how many stay before each of them, as factors on keep. (ours)
        summed: the share that is chosen by the sum; the others are by the maximum. (ours)
        positions: "compact": tokens are numbered anew after each drop; "keep": with gaps, as models need
            whose visual tokens have rows and columns (Qwen2-VL). (authors' code: compact)

    Departures:
        - Counts are fixed: so many windows merge, and so many tokens stay at each layer. The authors
          compare with thresholds (the sum below a share of the total and the maximum below a number:
          dropped), one pair for each benchmark; those in their code drop nothing.
        - Their key set, the 8 % of the tokens that CLS attends to most in the last layer of the encoder, is
          never dropped in the language model. A step there does not know what the encoder attends to:
          there is no key set here.
        - After the prompt they also shorten the caches of the layers between the first and the last
          drop to the last set. Here each layer's cache has the tokens that the layer has read.
        - Merged windows stay in the place of their first token; theirs come first, the most alike ahead.
        - Grids that are no multiple of the window have smaller windows at their edges; theirs must divide.

    Licence:
        README: Apache-2.0, without a licence file (liuting20/MustDrop); its code was not read

    Reference:
        MustDrop, 2024, arXiv 2411.10803
    """
    early = Once(at=1, keep=spatial)
    merge = Step(Stage.BLOCK, early, MergeWindows(window), WeightedMean(), attended=0)
    by_sum = TopK(TextAttention("mean", "sum"))
    by_word = TopK(TextAttention("mean", "max"))
    match = SelectAssign(Then((summed, by_sum), (REST, by_word)), Drop())
    return Recipe(merge, *staged_steps(layers, factors, match, Identity(), positions), keep=keep)
