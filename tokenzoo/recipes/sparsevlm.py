"""SparseVLM: tokens that the relevant words attend to, and clusters of the rest."""

from __future__ import annotations

from typing import Annotated

from tokenzoo._core.kinds import Count, Index, OneOf, Share
from tokenzoo._core.quoting import quote
from tokenzoo.errors import BadArgumentError
from tokenzoo.matchers import REST, Among, Drop, JoinFirst, Nearest, SelectAssign, Then, TopK
from tokenzoo.mergers import Identity, Mean
from tokenzoo.recipe import Recipe
from tokenzoo.recipes.in_llm import Positions, staged_steps
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.scorers import DensityPeak, NegativeSquaredDistance, Raters


@register_recipe
def sparsevlm(
    *,
    keep: int | float = 0.2,
    layers: tuple[int, ...] = (3, 7, 16),
    factors: tuple[float, ...] = (2.7, 1.8, 1.0),
    version: Annotated[str, OneOf("1", "2")] = "1",
    dominant: Index | Share | tuple[Index | Share, ...] = 0.97,
    recycled: Share = 0.3,
    heads: Count | None = 14,
    positions: Positions | None = None,
    match_reference: bool = False,
) -> Recipe:
    """Keep the visual tokens to which the raters attend; cluster the best of the rest (version 1).

    Only some words of a question are about the image. These raters are found once, before the first layer:
    every visual token spreads a softmax of inner products over the words after it, and words that receive
    more than the mean are raters. At a few layers the visual tokens are ranked by the mean
    attention of the raters. Version 1 keeps the first; of the others, the best third or so become clusters
    by density peaks, each of them one new token, the mean of its members. Version 2 (SparseVLM+) uses some
    of the heads only, makes no clusters, and leaves positions unchanged.

    Formula:
        raters  = text tokens t whose  m_t = mean over visual v of softmax_t(e_v . e_t)  is above the mean
        score_j = mean over heads h and raters t of A_h[t, j],    A: the attention of layer K - 1

    Args:
        keep: visual tokens that are left in the end, clusters counted: a count or a fraction. (ours)
        layers: the decoder layers K before which tokens go, each >= 1. (authors' code: 3, 7, 16 of 32)
        factors: how many stay before each of them, as factors on keep. (authors' code: 300, 200, 110)
        version: "1" or "2".
        dominant: of version 1: share of the tokens kept as they are, or their count; the others are
            clusters. A tuple has one for each layer. (authors' code: one cluster for 33 tokens that go)
        recycled: of version 1: share of the others that the clusters are made of. (authors' code: 0.3)
        heads: of version 2: heads that count, those in which the raters look most at the image; None: all.
            (authors' code: 14)
        positions: "compact": tokens are numbered anew after each drop; "keep": with gaps, as models need
            whose visual tokens have rows and columns (Qwen2-VL); None: "compact" in version 1, "keep" in 2.
        match_reference: in version 2, divide the attention by that of the rotary positions alone, as the
            authors' code does.

    Departures:
        - The authors' counts stand in a table for four budgets, and their number of clusters follows from
          how many tokens go; here both follow from `keep`. Those for 192 tokens are, in version 1,
          keep=113, factors=(309 / 113, 204 / 113, 1.0), dominant=(300, 200, 110), and in version 2
          keep=118, factors=(300 / 118, 200 / 118, 1.0). In the paper the counts come from the rank of the
          attention.
        - Their clusters are drawn with a little noise; here equal densities are told apart by position. The
          density is of a tenth of the tokens, and one more, as in their code.
        - The division of version 2 is by numbers near 0 and below: signs turn. It is done with
          `match_reference=True` alone.
        - A text without raters, of one word, stops their code; then all words rate. A prompt that ends with
          its image has no text: its first tokens stay.

    Licence:
        Apache-2.0 (Gumpest/SparseVLMs)

    Reference:
        SparseVLM, ICML 2025, arXiv 2410.04417
    """
    if version == "2":
        raters = Raters(heads, unturned=match_reference)
        match = SelectAssign(TopK(raters), Drop())
        return Recipe(
            *staged_steps(layers, factors, match, Identity(), positions or "keep"), keep=keep
        )
    if match_reference is not False:
        raise BadArgumentError(
            f'match_reference={quote(match_reference)} applies to version="2" only; leave it out'
        )
    best = TopK(Raters(), rest="score", kept="position")
    clusters = Among(TopK(DensityPeak(k=0.1)), recycled)
    join = JoinFirst(Nearest(NegativeSquaredDistance(), group=-1), recycled)
    shares = dominant if isinstance(dominant, tuple | list) else (dominant,)
    matches = tuple(
        SelectAssign(Then((share, best), (REST, clusters)), join, order="selected")
        for share in shares
    )
    return Recipe(
        *staged_steps(layers, factors, matches, Mean(), positions or "compact"), keep=keep
    )
