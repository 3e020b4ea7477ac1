"""G-Prune: representatives in the graph of similar tokens."""

from __future__ import annotations

from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import GraphFlow


@register_recipe
def gprune(
    *,
    keep: int | float = 0.25,
    threshold: float = 0.5,
    temperature: float = 0.03,
    steps: int = 5,
) -> Recipe:
    """Keep the tokens with most mass after a random walk over similar tokens; drop the rest.

    Similar tokens are neighbours in a graph. A random walk along its edges accumulates in tokens that
    represent many; dividing by the number of neighbours prevents a large uniform area from taking all
    places. It uses neither attention nor text. Kept tokens stay in raster order.

    Formula:
        P_ij = softmax over the neighbours j of i, cos >= threshold, of cos(x_i, x_j) / temperature
        score_j = (w P^steps)_j / number of neighbours of j,   w_i = |x_i|

    Args:
        keep: patch tokens to keep: a count or a fraction. (paper: 0.5)
        threshold: the least cosine of neighbours; a token is its own. (paper: 0.5)
        temperature: of the softmax that makes probabilities of cosines. (paper: 0.03)
        steps: of the walk. (paper: 5)

    Departures:
        - The authors' code leaves the positions of the prompt as they were, with gaps; here the prompt is
          shortened, as by every recipe after the tower.
        - A cosine near the threshold can make an edge or not: expect other tokens in another precision,
          as with their code.
        - They prune the base image and the stitched crops of LLaVA-NeXT one by one, and leave newlines
          alone.

    Licence:
        None stated (jytmelon/G-Prune)

    Reference:
        What Kind of Visual Tokens Do We Need? (G-Prune), AAAI 2025, arXiv 2501.02268
    """
    scorer = GraphFlow("x", threshold, temperature, steps)
    match = SelectAssign(TopK(scorer), Drop())
    return Recipe(Step(Stage.PROJECTED, Once(), match, Identity()), keep=keep)
