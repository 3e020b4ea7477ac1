"""PatchMerger: in three blocks, what learned queries find."""

from __future__ import annotations

from tokenzoo.matchers import PatchQueries
from tokenzoo.mergers import SoftSum
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Geometric


@register_recipe
def patchmerger(
    *,
    keep: int | float = 0.25,
    at: tuple[int | float, ...] = (0.25, 0.5, 0.75),
    scaled: bool = False,
    match_reference: bool = False,
    seed: int = 0,
) -> Recipe:
    """Replace the tokens by as many sums as there are learned queries, each by the attention of one query.

    Every output may read all tokens, and none stands for a place of the image. The queries are weights of
    the recipe, for one model and one number of tokens. They have to be trained: `tokenzoo train
    patchmerger`.

    Formula:
        y = softmax over the tokens (Q LN(x)^T) x

    Args:
        keep: patch tokens (queries) in the end: a count or a fraction. (paper: 8 tokens)
        at: the blocks after whose attention it happens, as indices or fractions of the depth. (paper: once,
            in the middle; authors of the comparison: 3, 6 and 9 of 12)
        scaled: divide the logits by the root of the width. (authors' code: no)
        match_reference: sum the normed features LN(x), as the paper does.
        seed: of the first weights. (ours)

    Departures:
        - The paper sums the normed features, and the model is trained with that; here the features
          themselves are summed, as a trained model expects. `match_reference=True` does as the paper.
        - CLS and registers stay as they are, as in the code of the comparison; the paper merges all tokens.
        - Tokens are merged after the attention of a block, not before the block.
        - It was built from a description; there are no recorded numbers to compare it with.

    Licence:
        MIT (JoakimHaurum/TokenReduction)

    Reference:
        Learning to Merge Tokens in Vision Transformers (PatchMerger), 2022, arXiv 2202.12015
    """
    queries = PatchQueries(seed, scaled, normed_values=match_reference)
    return Recipe(Step(Stage.BLOCK, Geometric(at), queries, SoftSum(queries)), keep=keep)
