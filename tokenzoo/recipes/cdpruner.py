"""CDPruner: diverse tokens that matter to the question (arXiv 2506.10967, NeurIPS 2025)."""

from __future__ import annotations

from tokenzoo.matchers import Drop, GreedyDPP, SelectAssign
from tokenzoo.mergers import Keep
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.schedules import Once
from tokenzoo.scorers import Similarity, TextRelevance


def cdpruner(
    *, keep: int | float = 0.25, relevance: int | str | None = None, negated: bool = True
) -> Recipe:
    """Keep the most probable subset of a DPP: kernel = relevance_i * cosine_ij * relevance_j.

    Args:
        keep: patch tokens to keep: a count or a fraction.
        relevance: the layer whose features share a space with the text; None: the tokens themselves. The
            paper compares CLIP's projected patches: `at={"clip": {"x": ...}}` with relevance="clip".
        negated: in CLIP the low cosines mark the patches that the text speaks of.

    Relevance is scaled in each image (the authors scale over the batch), and the count is exact beyond
    the rank of the kernel (theirs falls short).
    """
    stay = GreedyDPP(Similarity("x"), TextRelevance(relevance, negated))
    return Recipe(Step(Stage.PROJECTED, Once(), SelectAssign(stay, Drop()), Keep()), keep=keep)
