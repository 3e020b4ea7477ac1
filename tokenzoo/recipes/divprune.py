"""DivPrune: max-min diversity."""

from __future__ import annotations

from tokenzoo.matchers import Drop, MaxMin, SelectAssign
from tokenzoo.mergers import Identity
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import Similarity


@register_recipe
def divprune(*, keep: int | float = 0.25, match_reference: bool = False) -> Recipe:
    """Keep tokens one by one, each the furthest (1 - cosine) from all kept so far; drop the rest.

    This is the greedy solution of max-min diversity: of all subsets of this size, find the one whose two
    nearest tokens are furthest apart. It uses neither attention nor text, and runs after the projector.
    The first token is the one that is furthest from its nearest neighbour.

    Formula:
        next = argmax over i not kept of  min over j kept of  (1 - cos(x_i, x_j))

    Args:
        keep: patch tokens to keep: a count or a fraction. (paper: 0.098)
        match_reference: a token can be chosen again, as in the authors' code; fewer are kept then.

    Departures:
        A token is never chosen twice. The authors' code can choose one again where features are
        duplicated, and then keeps fewer tokens, as `match_reference=True` does.

    Licence:
        CC-BY-NC-4.0 (vbdi/divprune)

    Reference:
        DivPrune, CVPR 2025, arXiv 2503.02175
    """
    match = SelectAssign(MaxMin(Similarity("x"), repeats=match_reference), Drop())
    return Recipe(Step(Stage.PROJECTED, Once(), match, Identity()), keep=keep)
