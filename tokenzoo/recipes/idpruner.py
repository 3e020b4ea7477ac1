"""IDPruner: important tokens that are unlike each other, by maximal marginal relevance."""

from __future__ import annotations

from tokenzoo._core.kinds import Share
from tokenzoo.matchers import Drop, MarginalRelevance, SelectAssign
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import Similarity, attention_by
from tokenzoo.scorers.attention_by import AttentionSource


@register_recipe
def idpruner(
    *,
    keep: int | float = 0.25,
    balance: Share = 0.5,
    attention_source: AttentionSource = "cls",
) -> Recipe:
    """Keep tokens one by one, each important and unlike all kept so far.

    Maximal marginal relevance ranks documents for a search: each next one is relevant, and says something
    new. Here the relevance of a token is its importance, and what it shares with the tokens kept so far is
    the highest cosine with one of them. The others are dropped. Kept tokens stay in raster order.

    Formula:
        next = argmax over j not kept of  balance * a_j - (1 - balance) * max over c kept of cos(x_j, x_c)
        a = minmax over the image of  mean over the heads h of A_h[CLS, j];   the first one: argmax of a

    Args:
        keep: patch tokens to keep: a count or a fraction. (paper: 0.25 or 0.1)
        balance: weight of the importance, the paper's lambda; 0: diversity alone after the first token.
            (paper: 0.5)
        attention_source: "cls", or "received" for encoders without CLS. (ours)

    Departures:
        - The authors' importance comes from a small network that was trained for each model; it is not
          here. CLS attention takes its place, so their accuracies are not claimed.
        - It works on the features of the tower; the authors compare tokens after the projector.
        - For encoders without CLS, `attention_source="received"` takes the mean attention that a token
          receives.

    Licence:
        Apache-2.0 (Tencent/AngelSlim)

    Reference:
        IDPruner, 2026, arXiv 2602.13315
    """
    importance = attention_by(attention_source).normalized("minmax")
    match = SelectAssign(MarginalRelevance(importance, Similarity("x"), balance), Drop())
    return Recipe(Step(Stage.FEATURES, Once(), match, Identity()), keep=keep)
