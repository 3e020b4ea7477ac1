"""K-Medoids: in three blocks, the medoids of clusters."""

from __future__ import annotations

from tokenzoo.matchers import Medoids, Nearest, SelectAssign
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Geometric
from tokenzoo.scorers import NegativeSquaredDistance, ReceivedAttention


@register_recipe
def kmedoids(
    *,
    keep: int | float = 0.25,
    rounds: int = 3,
    at: tuple[int | float, ...] = (0.25, 0.5, 0.75),
    match_reference: bool = False,
) -> Recipe:
    """Cluster the tokens around medoids, starting at the most attended; keep the medoids.

    The first medoids are the tokens that receive most attention. In a few rounds, every token joins the
    nearest medoid, and the token of each cluster with the smallest weighted sum of distances to the
    others becomes its medoid. Nothing is averaged.

    Formula:
        cluster of j = argmin over the medoids m of |x_j - x_m|
        medoid = argmin over i in the cluster of  w_i * sum over j in the cluster of |x_i - x_j|
        w_i = mean over heads and queries of the attention to i

    Args:
        keep: patch tokens (clusters) to keep in the end: a count or a fraction. (ours)
        rounds: how many. (authors' code: 3)
        at: the blocks after whose attention it happens, as indices or fractions of the depth.
            (authors' code: 3, 6 and 9 of 12)
        match_reference: distances to all tokens, not to those of the cluster, as in the published code.

    Departures:
        - The published code adds up the distances to all tokens, also to those outside of the cluster;
          `match_reference=True` does, too.
        - Weights are of the attention of the same block, not of the one before.
        - No cluster is empty, so no medoid occurs twice.
        - Its variant with equal weights, which begins at a random token, is not built.
        - It was built from a description; there are no recorded numbers to compare it with.

    Licence:
        MIT (JoakimHaurum/TokenReduction)

    Reference:
        Which Tokens to Use? Investigating Token Reduction in Vision Transformers, 2023
    """
    stay = Medoids(NegativeSquaredDistance(), ReceivedAttention(), rounds, match_reference)
    match = SelectAssign(stay, Nearest(NegativeSquaredDistance()), order="selected")
    return Recipe(Step(Stage.BLOCK, Geometric(at), match, Identity()), keep=keep)
