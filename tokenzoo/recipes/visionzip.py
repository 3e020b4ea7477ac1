"""VisionZip: a few dominant tokens, and a few that gather the rest (arXiv 2412.04467, CVPR 2025)."""

from __future__ import annotations

from tokenzoo.checks import check_fraction
from tokenzoo.matchers import REST, Nearest, SelectAssign, Strided, Then, TopK
from tokenzoo.mergers import TargetPlusMean
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.schedules import Once
from tokenzoo.scorers import CLSAttention, Similarity


def visionzip(*, keep: int | float = 0.25, dominant: int | float = 27 / 32) -> Recipe:
    """Keep what CLS attends to; of the rest, every s-th token takes in those with similar keys.

    Args:
        keep: patch tokens to keep, dominant and contextual together: a count or a fraction. The authors
            count CLS as one of their dominant tokens; we never count prefix tokens.
        dominant: share of them chosen by CLS attention, or their count (paper: 54 of 64).

    Dominant tokens come first, then the contextual ones. A contextual token is itself PLUS the mean of
    what joins it, as in the authors' code; the paper describes an average.
    """
    if not isinstance(dominant, int) or isinstance(dominant, bool) or dominant < 0:
        check_fraction("dominant", dominant)
    stay = Then((dominant, TopK(CLSAttention(heads="sum"))), (REST, Strided(spacing="floor")))
    match = SelectAssign(stay, Nearest(Similarity("keys"), group=-1), order="groups")
    return Recipe(Step(Stage.FEATURES, Once(), match, TargetPlusMean()), keep=keep)
