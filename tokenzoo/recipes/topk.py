"""Top-K: in three blocks, the tokens with the highest CLS attention (EViT without its fused token)."""

from __future__ import annotations

from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Geometric
from tokenzoo.scorers import attention_by
from tokenzoo.scorers.attention_by import AttentionSource


@register_recipe
def topk(
    *,
    keep: int | float = 0.25,
    at: tuple[int | float, ...] = (0.25, 0.5, 0.75),
    attention_source: AttentionSource = "cls",
) -> Recipe:
    """Keep the tokens with the highest attention of CLS, mean over the heads; drop the rest.

    The simplest pruning inside an encoder: CLS, from which the result is read, attends to some tokens and
    hardly to the others, which are dropped, a share at each of three blocks. Kept tokens come in
    descending order of their score.

    Formula:
        score_j = mean over the heads h of A_h[CLS, j]

    Args:
        keep: patch tokens to keep in the end: a count or a fraction. (authors' code: 0.343, which is 0.7 at
            each of three blocks)
        at: the blocks after whose attention it happens, as indices or fractions of the depth. (authors'
            code: 3, 6 and 9 of 12)
        attention_source: "cls", or "received" for encoders without CLS.

    Departures:
        - The authors' code counts from the tokens of a 14 x 14 grid; here each block keeps a share of those
          that reach it.
        - For encoders without CLS, `attention_source="received"` takes the mean attention that a token
          receives.

    Licence:
        MIT (JoakimHaurum/TokenReduction)

    Reference:
        Which Tokens to Use? Investigating Token Reduction in Vision Transformers, 2023
    """
    match = SelectAssign(TopK(attention_by(attention_source)), Drop(), order="selected")
    return Recipe(Step(Stage.BLOCK, Geometric(at), match, Identity()), keep=keep)
