"""PruneVid: static tokens merged over time, all tokens merged over space."""

from __future__ import annotations

from typing import Annotated

from tokenzoo._core.kinds import Count, Positive, Range, Share, Words
from tokenzoo.matchers import Drop, SelectAssign, StaticDynamic, TopK
from tokenzoo.mergers import Identity, Mean
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.in_llm import Positions
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import TextAttention
from tokenzoo.temporal import DensityRuns


@register_recipe
def prunevid(
    *,
    keep: int | float = 0.25,
    threshold: Annotated[float, Range(-1, 2)] = 0.8,
    segments: Share = 0.25,
    k: Count = 7,
    retained: Annotated[Share | None, Words("a fraction in [0, 1], or None")] = None,
    layer: Annotated[Count | None, Words("a layer >= 1, or None")] = None,
    left: Positive = 0.4,
    positions: Positions = "keep",
) -> Recipe:
    """Merge static tokens over the frames of a segment, then similar tokens of each set.

    Frames are clustered, and the clusters made contiguous. A place whose tokens are alike in all pairs of
    frames of a segment becomes one static token, their mean. The static tokens of a segment, and the
    dynamic ones of each frame, are then clustered by density peaks, and a cluster becomes the mean of
    its tokens. Tokens come segment by segment: the static ones, then the dynamic ones of each frame,
    the highest peaks first. A second stage inside the language model keeps the tokens to which the
    words of the question attend.

    Formula:
        segments = contiguous clusters of the frames' mean tokens
        static: the places p with  mean over pairs f != g of cos(x_fp, x_gp) > threshold
        clusters of each set: centres by density peaks, the others join the nearest, and y = their mean
        second stage: score_j = max over heads and words t of A[t, j]

    Args:
        keep: tokens of the whole clip to keep: a count or a fraction; with `retained` the most. (ours)
        threshold: tau; places with a mean cosine above it are static. (paper: 0.8)
        segments: clusters of frames, as a share of the frames, rounded down. (paper: 0.25)
        k: nearest tokens, and frames, that the density looks at. (authors' code: 7)
        retained: the authors' own counts: this share of each set of more than 14 tokens, rounded down, and
            smaller sets whole; None: exactly `keep`. (paper: 0.5)
        layer: the decoder layer that is the first to see fewer tokens; None: no second stage. (paper:
            11, by the attention of layer 10)
        left: tokens that the second stage leaves, as a factor on keep. (paper: 0.4)
        positions: in the second stage: "keep", with gaps, or "compact". (authors' code: "keep")

    Departures:
        - Exactly `keep` tokens stay, divided over the sets in proportion to their sizes; the authors' total
          depends on the clip, as with `retained`.
        - A clip that has fewer tokens than `keep` after merging over time keeps single frames' tokens, too:
          those that differ most from the mean of their place.
        - No random numbers break ties of density; the lower index does.
        - The second stage takes the highest of all tokens; theirs takes a share of each set, which a
          language model does not know here. They also shorten the caches of the layers before, which
          stay whole here.
        - The second stage is off unless `layer` is given: a recipe for tensors has one step.

    Licence:
        CC BY-NC-SA 4.0 (Visual-AI/PruneVid)

    Reference:
        PruneVid, ACL Findings 2025, arXiv 2412.16117
    """
    match = StaticDynamic(
        DensityRuns(segments, k),
        threshold,
        rule="pairs",
        retained=retained,
        counting="set",
        k=k,
        centres="score",
    )
    merge = Step(Stage.PROJECTED, Once(), match, Mean())
    if layer is None:
        return Recipe(merge, keep=keep)
    by_text = SelectAssign(TopK(TextAttention()), Drop())
    prune = Step(Stage.LLM(layer), Once(keep=left), by_text, Identity(), positions=positions)
    return Recipe(merge, prune, keep=keep)
