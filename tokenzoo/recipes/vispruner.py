"""VisPruner: half by attention, half by diversity."""

from __future__ import annotations

from tokenzoo._core.validation import check_fraction
from tokenzoo.matchers import REST, Drop, SelectAssign, Then, Thin, TopK
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import Similarity, attention_by
from tokenzoo.scorers.attention_by import AttentionSource


@register_recipe
def vispruner(
    *,
    keep: int | float = 0.25,
    important: float = 0.5,
    per_round: int = 8,
    attention_source: AttentionSource = "cls",
) -> Recipe:
    """Keep the tokens with the highest CLS attention, and thin out duplicates among the rest.

    Attention alone keeps many similar tokens. So half of the tokens are kept by CLS attention, and the
    others are thinned out: sorted by attention, they are repeatedly split by parity, and the tokens of
    one half with the most similar token in the other are dropped, which leaves diverse ones. Kept
    tokens stay in raster order.

    Formula:
        important = the highest of  mean over the heads h of A_h[CLS, j]
        round: a, b = even, odd places of the list;  drop the i in a with the highest max over j in b of
               cos(x_i, x_j);  list = what is left of a, the most similar first, then b

    Args:
        keep: patch tokens to keep: a count or a fraction. (paper: 192, 128, 64 or 32 of 576)
        important: share of them that is chosen by attention, rounded down. (paper: 0.5)
        per_round: duplicates dropped in each round. (authors' code: 8)
        attention_source: "cls", or "received" for encoders without CLS.

    Departures:
        - Where the number of the others is odd the authors' code stops with an error; here one half has one
          token more.
        - Near-ties decide the pairs of all later rounds: expect other tokens in another precision, as
          with their code.
        - For encoders without CLS, `attention_source="received"` takes the mean attention that a token
          receives.

    Licence:
        Apache-2.0 (Theia-4869/VisPruner)

    Reference:
        VisPruner, ICCV 2025 (second version of FasterVLM's paper)
    """
    check_fraction("important", important)
    scorer = attention_by(attention_source)
    thin = Thin(Similarity("x"), per_round)
    stay = Then((float(important), TopK(scorer, rest="score")), (REST, thin))
    return Recipe(Step(Stage.FEATURES, Once(), SelectAssign(stay, Drop()), Identity()), keep=keep)
