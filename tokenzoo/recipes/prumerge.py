"""LLaVA-PruMerge: outliers of the CLS attention, merged with their neighbours."""

from __future__ import annotations

from tokenzoo._core.kinds import Count, Index, Share
from tokenzoo.matchers import REST, Fuse, Lattice, Outliers, SelectAssign, Then, TopK
from tokenzoo.mergers import NeighbourSum
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import Similarity, attention_by
from tokenzoo.scorers.attention_by import AttentionSource


@register_recipe
def prumerge(
    *,
    keep: int | float = 0.25,
    adaptive: bool = False,
    plus: bool = False,
    important: Index | Share = 0.5,
    step: Count | None = None,
    k: Count = 32,
    attention_source: AttentionSource = "cls",
    match_reference: bool = False,
) -> Recipe:
    """Keep tokens with outlying CLS attention, add their neighbours to them, and fuse all others.

    Tokens whose CLS attention is an outlier are kept, and each takes in some of the tokens with similar
    keys, weighted by their attention; the rest becomes one more token. PruMerge+ adds tokens that are
    evenly spaced over the image. Kept tokens come in descending order of attention, then the evenly
    spaced ones, then the one for all others.

    Formula:
        a_j = A[CLS, j], not renormalised
        y_i = x_i + sum of a_j x_j over the k tokens j, kept or not, with the largest cos(k_i, k_j)
        y_last = sum of a_j x_j over all j that are not kept
        adaptive: kept are the j with a_j > Q3 + 1.5 (Q3 - Q1)

    Args:
        keep: patch tokens to keep, the one for all others counted: a count or a fraction; with `adaptive`
            the most. (ours)
        adaptive: keep as many as stand out. (authors' code: True)
        plus: PruMerge+: also keep tokens that are evenly spaced.
        important: with plus, not adaptive: the share chosen by attention, rounded down, or their count.
            (ours)
        step: with plus, not adaptive: the distance of those that are evenly spaced; None: such that there
            are as many as are wanted.
        k: neighbours of each kept token. (authors' code: 32)
        attention_source: "cls", or "received" for encoders without CLS.
        match_reference: quartiles of the whole batch, as in the authors' code.

    Departures:
        - The authors take the quartiles over the whole batch, so that an image's count depends on its batch
          mates; `match_reference=True` does, too.
        - They take one attention over all channels of the last layer, whose output nobody reads; here it is
          the mean over the heads in the layer whose output is read.
        - In their PruMerge+ of a fixed size a token that is chosen both ways is there twice, and as many of
          the first tokens of the image are lost. Here each is there once, and the most attended of the
          others fill up; there is no option for theirs.
        - For encoders without CLS, `attention_source="received"` takes the mean attention that a token
          receives.

    Licence:
        Apache-2.0 (42Shawn/LLaVA-PruMerge)

    Reference:
        LLaVA-PruMerge, ICCV 2025, arXiv 2403.15388
    """
    scorer = attention_by(attention_source)
    if adaptive:
        stay = Outliers(scorer, plus, "batch" if match_reference else "image")
    elif plus:
        stay = Then((important, TopK(scorer, rest="score")), (REST, Lattice(step)))
    else:
        stay = TopK(scorer)
    match = SelectAssign(stay, Fuse(), order="selected")
    merger = NeighbourSum(Similarity("all_keys"), scorer, k)
    return Recipe(Step(Stage.FEATURES, Once(), match, merger), keep=keep)
