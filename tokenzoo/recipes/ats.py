"""ATS: adaptive sampling of tokens by CLS attention."""

from __future__ import annotations

from tokenzoo.matchers import Drop, Sampled, SelectAssign
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Geometric
from tokenzoo.scorers import ValueWeighted
from tokenzoo.scorers.attention_by import AttentionSource


@register_recipe
def ats(
    *,
    keep: int | float = 0.25,
    fill: bool = False,
    at: tuple[int | float, ...] = (0.25, 0.5, 0.75),
    attention_source: AttentionSource = "cls",
    match_reference: bool = False,
) -> Recipe:
    """Sample tokens at even steps of their cumulative significance; the count adapts to the image.

    The significance of a token is its attention from CLS times the length of its value. The token at which
    the cumulative significance, normalised to 1, is nearest to one of `keep` evenly spaced marks stays.
    A significant token can take several marks, so an image with few significant tokens keeps few. Kept
    tokens stay in raster order, the others are dropped.

    Formula:
        s_j = sum over the heads h of A_h[CLS, j] |v_hj|,   c_j = (s_1 + ... + s_j) / (sum of s + 1e-6)
        for i = 1 ... K: keep the j with the smallest |c_j - (2 i - 1) / (2 K)|,   K = keep

    Args:
        keep: the most patch tokens to keep in the end: a count or a fraction. (ours)
        fill: make it exactly so many: the most significant of the other tokens stay, too. (ours)
        at: the blocks after whose attention it happens, as indices or fractions of the depth.
            (authors' code: 3, 6 and 9 of 12)
        attention_source: "cls", or "received" for encoders without CLS.
        match_reference: marks as in the published code.

    Departures:
        - The published code makes the marks by a range in floating point, which has K - 1 of them for some
          K (29 of 30); here they are K. `match_reference=True` has theirs.
        - It counts from the tokens of a 14 x 14 grid; here each block samples from those that reach it.
        - Images with fewer tokens are padded, in both; here padding has mass 0, and receives no attention.
        - For encoders without CLS, `attention_source="received"` takes the mean attention that a token
          receives.

    Licence:
        MIT (JoakimHaurum/TokenReduction, whose code this is compared with)

    Reference:
        Adaptive Token Sampling for Efficient Vision Transformers (ATS), ECCV 2022
    """
    match = SelectAssign(Sampled(ValueWeighted(attention_source), fill, match_reference), Drop())
    step = Step(Stage.BLOCK, Geometric(at), match, Identity())
    # Log mass is 0 for every token, and -inf for padding.
    return Recipe(step, keep=keep, proportional_attention=True)
