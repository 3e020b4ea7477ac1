"""FlashVID: attended and diverse tokens of every frame, and trees of similar tokens through the frames."""

from __future__ import annotations

from typing import Annotated

from tokenzoo._core.kinds import Count, Positive, Range, Share, Words
from tokenzoo.matchers import Drop, SelectAssign, TopK, TreeMerge
from tokenzoo.mergers import Identity, Mean
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.in_llm import Positions
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import LastTokenAttention, attention_by
from tokenzoo.scorers.attention_by import AttentionSource
from tokenzoo.temporal import SceneCuts


@register_recipe
def flashvid(
    *,
    keep: int | float = 0.25,
    selected: Share = 0.7,
    threshold: Annotated[float, Range(-1, 2)] = 0.8,
    segments: Count = 8,
    cut: Annotated[float, Range(-1, 2)] = 0.9,
    k: Count = 7,
    layer: Annotated[Count | None, Words("a layer >= 1, or None")] = None,
    expansion: Positive = 1.25,
    left: Positive = 0.3,
    positions: Positions = "keep",
    attention_source: AttentionSource = "received",
) -> Recipe:
    """Keep attended, diverse tokens of each frame; merge the others into trees, and these into clusters.

    Most tokens are selected frame by frame, one after another, by attention times the distance from those
    that are selected already. An object moves: so each of the others is linked to the most similar token of
    the frame before, at any place, if it is similar enough, and what is linked is one token, the mean. The
    trees that begin in a frame are then clustered by density peaks. Tokens stay in order of position.

    Formula:
        next = argmax over j of  a_j * min over the selected i of (1 - cos(x_i, x_j))
        link of x_fi = argmax over the others j of frame f - 1 of cos(x_fi, x_(f-1)j),  if above the
        threshold y = the mean of all tokens of the trees of a cluster

    Args:
        keep: tokens of the whole clip to keep: a count or a fraction. With `layer`, what that stage and
            the first are multiplied with. (paper: 0.1 to 0.25)
        selected: share of the tokens that are selected, rounded up. (authors' code: 0.7)
        threshold: cosines above it are linked. (authors' code: 0.8)
        segments: the least number of segments; no link crosses a cut. (authors' code: 8)
        cut: a cosine of neighbouring frames below it is a cut. (authors' code: 0.9)
        k: nearest trees that the density looks at. (authors' code: 7)
        layer: the decoder layer of a second stage, which keeps the tokens with the highest attention of
            the prompt's last token; None: no second stage. (authors' code: 20)
        expansion: with `layer`: tokens after the first stage, as a factor on keep. (authors' code: 1.25)
        left: with `layer`: tokens of the first stage that the second one leaves. (authors' code: 0.3)
        positions: in the second stage: "keep", with gaps, or "compact". (authors' code: "keep")
        attention_source: "received", or "cls". (authors' code: "cls", of encoders without it "received")

    Departures:
        - The count is exact, and clusters are divided over all frames in proportion to their trees; the
          authors divide them inside of each segment, and round up.
        - A cluster is the mean of all its tokens; theirs is the mean of its trees, and the sum of a tree
          through more than two frames is divided by too few.
        - No random numbers break ties of density; the lower index does.
        - Their later variant, which also multiplies by the relevance of a token to the segment, is not
          built.

    Licence:
        MIT (Fanziyang-v/FlashVID)

    Reference:
        FlashVID, ICLR 2026, arXiv 2602.08024
    """
    match = TreeMerge(
        attention_by(attention_source), SceneCuts(segments, cut), selected, threshold, k
    )
    if layer is None:
        return Recipe(Step(Stage.PROJECTED, Once(), match, Mean()), keep=keep)
    by_last = SelectAssign(TopK(LastTokenAttention()), Drop())
    schedule = Once(keep=expansion * left)
    return Recipe(
        Step(Stage.PROJECTED, Once(keep=expansion), match, Mean()),
        Step(Stage.LLM(layer), schedule, by_last, Identity(), positions=positions),
        keep=keep,
    )
