"""DynamicViT: in three blocks, the tokens that a learned gate wants to keep."""

from __future__ import annotations

from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import StraightThrough
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Geometric
from tokenzoo.scorers import KeepGate


@register_recipe
def dynamicvit(
    *,
    keep: int | float = 0.25,
    at: tuple[int | float, ...] = (0.25, 0.5, 0.75),
    seed: int = 0,
) -> Recipe:
    """Keep the tokens with the highest probability of a small network at each block; drop the rest.

    The network sees a token and the mean of all, and learns from the loss of the task which tokens are not
    needed. It has to be trained: `tokenzoo train dynamicvit`. Kept tokens come in descending order of their
    score.

    Formula:
        z = GELU(Linear(LN(x))),  z_j = [first half of z_j, mean over i of the second half of z_i]
        score_j = MLP(z_j)[keep] - MLP(z_j)[drop], the logit of p_j
        training: the k highest of score_j + logistic noise;  loss + (mean of p - k / n)^2

    Args:
        keep: patch tokens to keep in the end: a count or a fraction. (paper: 0.343, which is 0.7 at each of
            three blocks)
        at: the blocks after whose attention it happens, as indices or fractions of the depth. (paper:
            before the blocks 3, 6 and 9 of 12)
        seed: of the first weights. (ours)

    Departures:
        - In training the paper keeps all tokens, and masks those that are not drawn out of the attention;
          here they are dropped, and exactly as many stay as at inference. The gate gets the same gradient
          from the attention to the tokens that stay, and none from the others.
        - Tokens are dropped after the attention of a block, not before the block.
        - The loss has the task, the outputs of the bare model and the shares; the paper also compares the
          features of the tokens with a teacher's.
        - Counts are shares of the tokens that reach a block, not of a 14 x 14 grid.
        - The score is the logit, which orders tokens as the log probability does.
        - It was built from a description; there are no recorded numbers to compare it with.

    Licence:
        MIT (raoyongming/DynamicViT)

    Reference:
        DynamicViT, NeurIPS 2021, arXiv 2106.02034
    """
    gate = KeepGate(seed)
    match = SelectAssign(TopK(gate), Drop(), order="selected")
    return Recipe(Step(Stage.BLOCK, Geometric(at), match, StraightThrough(gate)), keep=keep)
