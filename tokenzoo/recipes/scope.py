"""SCOPE: salient tokens that cover the image."""

from __future__ import annotations

from tokenzoo._core.kinds import NonNegative
from tokenzoo.matchers import Drop, MaxCoverage, SelectAssign
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import Similarity, attention_by
from tokenzoo.scorers.attention_by import AttentionSource


@register_recipe
def scope(
    *,
    keep: int | float = 0.25,
    alpha: NonNegative = 1.0,
    attention_source: AttentionSource = "cls",
) -> Recipe:
    """Keep tokens one by one, each with the largest gain in coverage, weighted by its CLS attention.

    The most attended tokens lie on a few objects and are alike. A set of tokens covers a token as well as
    the most similar one of the set does, and a token that is like those already kept adds little. Each
    step keeps the token with the largest product of what it adds and the attention that it receives; the
    others are dropped. Kept tokens stay in raster order.

    Formula:
        gain_j = sum over i of max(0, cos(x_i, x_j) - max(0, max over c kept of cos(x_i, x_c)))
        next = argmax over j not kept of  gain_j * a_j^alpha,   a_j = mean over the heads h of A_h[CLS, j]

    Args:
        keep: patch tokens to keep: a count or a fraction. (paper: 192, 128 or 64 of 576)
        alpha: power of the attention; 0: coverage alone. (AngelSlim: 1.0)
        attention_source: "cls", or "received" for encoders without CLS. (AngelSlim: "received" for
            Qwen2.5-VL)

    Departures:
        - The authors' code has no licence and was not read. The formula is that of their paper; that
          negative cosines cover nothing, and the default of `alpha`, are those of AngelSlim's version.
        - It works on the features of the tower, as the authors do in CLIP; AngelSlim's version compares
          tokens after the projector.
        - For encoders without CLS, `attention_source="received"` takes the mean attention that a token
          receives.

    Licence:
        None stated (kinredon/SCOPE); AngelSlim's version: Apache-2.0 (Tencent/AngelSlim)

    Reference:
        SCOPE, NeurIPS 2025, arXiv 2510.24214
    """
    stay = MaxCoverage(Similarity("x"), attention_by(attention_source), alpha)
    return Recipe(Step(Stage.FEATURES, Once(), SelectAssign(stay, Drop()), Identity()), keep=keep)
