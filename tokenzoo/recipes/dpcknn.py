"""DPC-KNN: clusters around density peaks, each merged into its mean."""

from __future__ import annotations

from tokenzoo.matchers import Nearest, SelectAssign, TopK
from tokenzoo.mergers import Mean
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Geometric
from tokenzoo.scorers import DensityPeak, NegativeSquaredDistance


@register_recipe
def dpcknn(
    *,
    keep: int | float = 0.25,
    k: int = 5,
    at: tuple[int | float, ...] = (0.25, 0.5, 0.75),
) -> Recipe:
    """Cluster the tokens by density peaks and k nearest neighbours; each cluster becomes its mean.

    Cluster centres are tokens with a high density that are far from denser tokens, in the order of the
    product of both. Every other token joins the nearest centre, and a cluster becomes the plain mean of
    its tokens, at three blocks.

    Formula:
        d_ij = |x_i - x_j| / sqrt(c);   density_i = exp(-mean of d_ij^2 over the k nearest j)
        score_i = density_i * min over the denser j of d_ij   (the densest: the largest d of the image)
        cluster of j = argmin over the centres i of d_ij

    Args:
        keep: patch tokens (clusters) to keep in the end: a count or a fraction. (ours)
        k: nearest neighbours that the density looks at, the token itself counted. (authors' code: 5)
        at: the blocks where it happens, as indices or fractions of the depth. (authors' code: 3, 6 and 9 of
            12)

    Departures:
        - No random numbers break ties of density; the lower index does.
        - Merging happens between attention and MLP, not before the block.
        - The variant with learned weights is the same with the weights as masses and a weighted mean.
        - It needs neither CLS nor any attention.

    Licence:
        MIT (JoakimHaurum/TokenReduction)

    Reference:
        TCFormer, CVPR 2022, arXiv 2204.08680
    """
    match = SelectAssign(
        TopK(DensityPeak(k=k)), Nearest(NegativeSquaredDistance()), order="selected"
    )
    return Recipe(Step(Stage.BLOCK, Geometric(at), match, Mean()), keep=keep)
