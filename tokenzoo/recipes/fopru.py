"""FoPru: the tokens that receive most attention, after the tower."""

from __future__ import annotations

from typing import Literal

from tokenzoo.matchers import Drop, SelectAssign, TopK, WholeRows
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import MeanLogits, ReceivedAttention


@register_recipe
def fopru(
    *,
    keep: int | float = 0.25,
    strategy: Literal["rank", "row"] = "rank",
    match_reference: bool = False,
) -> Recipe:
    """Keep the tokens, or the rows of the image, that receive most attention of the others; drop the rest.

    The attention within the encoder shows its focus, without CLS. The paper takes the attention that a
    token receives or emits, whichever varies more: after a softmax all tokens emit nearly the same, so
    it is the received one. Kept tokens stay in raster order. No map of all pairs is computed.

    Formula:
        score_j = mean over the heads and the patches i of A[i, j]
        match_reference: of the logits q_i k_j, the mean over i or over j, whichever varies more

    Args:
        keep: patch tokens to keep: a count or a fraction. (ours)
        strategy: "rank": the highest scores; "row": the rows of the grid with the highest sums, and of a
            last part of a row the best.
        match_reference: take the attention before its softmax, as the published code does.

    Departures:
        - The published code takes the logits instead of the attention; `match_reference=True` does, too.
        - It keeps whole rows only, as many as there is room for; here the count is exact: ask for a
          multiple.
        - CLS is excluded from queries and keys, which is our reading: that code was unfinished there.

    Licence:
        None found for the paper's own code; compared with dongxianzhe/hydrainfer, Apache-2.0

    Reference:
        FoPru: Focal Pruning for Efficient Large Vision-Language Models, 2024, arXiv 2411.14164
    """
    scorer = MeanLogits() if match_reference else ReceivedAttention("patches")
    stay = TopK(scorer) if strategy == "rank" else WholeRows(scorer)
    return Recipe(Step(Stage.FEATURES, Once(), SelectAssign(stay, Drop()), Identity()), keep=keep)
