"""SiT: in three blocks, a small network sums the tokens into fewer."""

from __future__ import annotations

from tokenzoo.matchers import Slimming
from tokenzoo.mergers import SoftSum
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Geometric


@register_recipe
def sit(
    *,
    keep: int | float = 0.25,
    at: tuple[int | float, ...] = (0.25, 0.5, 0.75),
    hidden: float = 0.5,
    seed: int = 0,
) -> Recipe:
    """Let a small network say how much of each token goes into each of fewer tokens.

    Two layers map a token to a logit for each output; the softmax of an output's logits over all tokens
    weighs them. The layers are weights of the recipe, for one model and one number of tokens. They have to
    be trained: `tokenzoo train sit`.

    Formula:
        w = softmax over the tokens (scale * Linear(GELU(Linear(LN(x)))))
        y_k = sum over j of w_jk x_j

    Args:
        keep: patch tokens in the end: a count or a fraction. (ours)
        at: the blocks after whose attention it happens, as indices or fractions of the depth.
            (authors' code: 3, 6 and 9 of 12)
        hidden: width of the layer between, as a share of the channels. (authors' code: 0.5)
        seed: of the first weights. (ours)

    Departures:
        - The paper distils dense features, which a second module restores from the few; here the outputs
          of the bare model are distilled.
        - The second layer starts with weights eight times as large as usual, so that each output starts as
          a sum of a few tokens, for models that are frozen.
        - Tokens are merged after the attention of a block, not before the block.
        - It was built from a description; there are no recorded numbers to compare it with.

    Licence:
        MIT (JoakimHaurum/TokenReduction)

    Reference:
        Self-slimmed Vision Transformer (SiT), ECCV 2022, arXiv 2111.12624
    """
    slim = Slimming(seed, hidden)
    return Recipe(Step(Stage.BLOCK, Geometric(at), slim, SoftSum(slim)), keep=keep)
