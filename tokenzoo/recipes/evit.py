"""EViT: in three blocks, the tokens with the highest CLS attention, and one that fuses the rest."""

from __future__ import annotations

from tokenzoo.matchers import Fuse, SelectAssign, TopK
from tokenzoo.mergers import Fused
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Geometric
from tokenzoo.scorers import attention_by
from tokenzoo.scorers.attention_by import AttentionSource


@register_recipe
def evit(
    *,
    keep: int | float = 0.25,
    at: tuple[int | float, ...] = (0.25, 0.5, 0.75),
    attention_source: AttentionSource = "cls",
) -> Recipe:
    """Keep the tokens with the highest attention of CLS, and fuse the others into one.

    Tokens with little attention from CLS are mostly background, but still carry information: one additional
    token fuses them, weighted by that attention. In the next of the three blocks the fused token is an
    ordinary token. Kept tokens come in descending order of attention, the fused one last.

    Formula:
        a_j = mean over the heads h of A_h[CLS, j]
        fused = sum of a_j x_j over all j that are not kept

    Args:
        keep: patch tokens to keep in the end, the fused one counted: a count or a fraction. (paper: 0.343,
            which is 0.7 at each of three blocks)
        at: the blocks after whose attention it happens, as indices or fractions of the depth. (paper: 3, 6
            and 9 of 12)
        attention_source: "cls", or "received" for encoders without CLS.

    Departures:
        - The code that this is compared with counts from the tokens of a 14 x 14 grid, in addition to
          the fused one; here each block keeps a share of those that reach it, the fused one among them.
        - The a_j are not renormalised, as in that code, so the fused token is shorter than a mean.
        - For encoders without CLS, `attention_source="received"` takes the mean attention that a token
          receives.

    Licence:
        Apache-2.0 (youweiliang/evit); compared with JoakimHaurum/TokenReduction, MIT

    Reference:
        EViT, ICLR 2022, arXiv 2202.07800
    """
    scorer = attention_by(attention_source)
    match = SelectAssign(TopK(scorer), Fuse(), order="selected")
    return Recipe(Step(Stage.BLOCK, Geometric(at), match, Fused(scorer)), keep=keep)
