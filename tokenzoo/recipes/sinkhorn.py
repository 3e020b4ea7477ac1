"""Sinkhorn: in three blocks, the tokens are spread over learned centres by optimal transport."""

from __future__ import annotations

from tokenzoo.matchers import TransportCentres
from tokenzoo.mergers import SoftSum
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Geometric


@register_recipe
def sinkhorn(
    *,
    keep: int | float = 0.25,
    at: tuple[int | float, ...] = (0.25, 0.5, 0.75),
    temperature: float = 0.03,
    rounds: int = 3,
    match_reference: bool = False,
    seed: int = 0,
) -> Recipe:
    """Spread the tokens over learned centres, so that each takes the same share; sum what it is given.

    Optimal transport assigns softly: a token goes to the centres that are like it, and no centre stays
    empty. The centres are weights of the recipe, for one model and one number of tokens. They have to be
    trained: `tokenzoo train sinkhorn`.

    Formula:
        s_jk = cos(x_j, c_k) / temperature
        w = exp(s + u + v), with u and v from a few rounds that even out its rows and columns
        y_k = sum over j of w_jk x_j,   sum over j of w_jk = 1

    Args:
        keep: patch tokens (centres) in the end: a count or a fraction. (ours)
        at: the blocks after whose attention it happens, as indices or fractions of the depth.
            (authors' code: 3, 6 and 9 of 12)
        temperature: of the cosines: lower is harder. (ours; authors' code: 1)
        rounds: how many. (authors' code: 3)
        match_reference: sum features of length 1, as in the published code.
        seed: of the first weights. (ours)

    Departures:
        - The published code sums features of length 1, and outputs are that short; here they are sums of
          the features themselves, as a trained model expects. `match_reference=True` does as the code.
        - The published code has the temperature 1, with which every output is near the mean of all tokens;
          the models there are trained with it.
        - The centres have any length, and are normalised where they are used.
        - Tokens are merged after the attention of a block, not before the block.
        - It was built from a description; there are no recorded numbers to compare it with.

    Licence:
        MIT (JoakimHaurum/TokenReduction)

    Reference:
        Which Tokens to Use? Investigating Token Reduction in Vision Transformers, 2023
    """
    centres = TransportCentres(seed, temperature, rounds, unit_values=match_reference)
    return Recipe(Step(Stage.BLOCK, Geometric(at), centres, SoftSum(centres)), keep=keep)
