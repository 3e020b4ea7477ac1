"""DivPrune: the tokens that are furthest apart (arXiv 2503.02175, CVPR 2025)."""

from __future__ import annotations

from tokenzoo.matchers import Drop, MaxMin, SelectAssign
from tokenzoo.mergers import Keep
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.schedules import Once
from tokenzoo.scorers import Similarity


def divprune(*, keep: int | float = 0.25) -> Recipe:
    """Keep tokens one by one, each the furthest (1 - cosine) from all kept so far; drop the rest.

    Args:
        keep: patch tokens to keep: a count or a fraction (paper: 0.098).

    A token is never chosen twice. The authors' code can do that where features are duplicated.
    """
    match = SelectAssign(MaxMin(Similarity("x")), Drop())
    return Recipe(Step(Stage.PROJECTED, Once(), match, Keep()), keep=keep)
