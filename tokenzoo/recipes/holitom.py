"""HoliTom: static tokens merged over time, then tokens chosen in every frame."""

from __future__ import annotations

from typing import Annotated

from tokenzoo._core.kinds import Count, Positive, Range, Share, Words
from tokenzoo.matchers import Nearest, SelectAssign, StaticDynamic, TopK
from tokenzoo.mergers import CentreBlend, Mean, RunningMean
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.in_llm import Positions
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import LastTokenAttention, Similarity, attention_by
from tokenzoo.scorers.attention_by import AttentionSource
from tokenzoo.temporal import StaticWindows


@register_recipe
def holitom(
    *,
    keep: int | float = 0.25,
    threshold: Annotated[float, Range(-1, 2)] = 0.8,
    blend: Annotated[Share | None, Words("a fraction in [0, 1], or None for the plain mean")] = 0.6,
    k: Count = 7,
    longest: Count = 1024,
    retained: Annotated[Share | None, Words("a fraction in [0, 1], or None")] = None,
    layer: Annotated[Count | None, Words("a layer >= 1, or None")] = None,
    left: Positive = 0.5,
    positions: Positions = "keep",
    attention_source: AttentionSource = "received",
) -> Recipe:
    """Merge what does not change over windows of frames; keep attended and central tokens of the rest.

    A clip is cut into windows such that as many tokens as possible repeat the frame before. A place that
    does not change all along a window becomes one static token, the mean over its frames. Of the static
    tokens of a window the density peaks stay, and the others merge into them; of the dynamic tokens of a
    frame the most attended stay, and the others are dropped. Tokens come window by window: the static
    ones, then the dynamic ones of each frame. A second stage inside the language model keeps the
    tokens that the last token of the prompt attends to, and averages each of the others into the most
    similar of them.

    Formula:
        windows = argmax of  sum over windows of w frames of  (w - 1) * #static
        static: the places p with  cos(x_fp, x_(f+1)p) > threshold  for all f of the window but the last
        y_p = mean over the frames of x_fp;  centres by density peaks, the others join the nearest
        y = blend * y_centre + (1 - blend) * mean of the others
        dynamic: the highest received attention of each frame

    Args:
        keep: tokens of the whole clip to keep: a count or a fraction; with `retained` the most. (paper:
            0.1 to 0.25)
        threshold: tau; cosines above it are static. (paper: 0.8; authors' scripts 0.65 for a tenth)
        blend: beta, the weight of a centre; None: the plain mean of all. (authors' code: 0.6)
        k: nearest tokens that the density looks at. (authors' code: 7)
        longest: frames of the longest window. (authors' code: 1024)
        retained: the authors' own counts for this share of the tokens, which are rounded up in each
            frame and depend on the clip; None: exactly `keep`. (authors' code: 0.1 to 0.25)
        layer: the decoder layer of the second stage; None: no second stage. (authors' code: 18)
        left: tokens that the second stage leaves, as a factor on keep. (authors' code: 0.5)
        positions: in the second stage: "keep", with gaps, or "compact". (authors' code: "keep")
        attention_source: "received", or "cls". (authors' code: "received")

    Departures:
        - Exactly `keep` tokens stay, divided over the sets in proportion to their sizes; the authors round
          static sets to the nearest and dynamic ones up, as `retained` does.
        - A clip that has fewer tokens than `keep` after merging keeps single frames' tokens, too:
          those that differ most from the mean of their place.
        - No random numbers break ties of density; the lower index does.
        - The option that keeps dynamic tokens by density (D > 0) is not built: it stops the authors' code.
        - In a batch, the authors' share of one clip is multiplied into that of the next; here clips are
          independent.
        - The second stage is off unless `layer` is given: a recipe for tensors has one step.

    Licence:
        Apache-2.0 (cokeshao/HoliTom)

    Reference:
        HoliTom, NeurIPS 2025, arXiv 2505.21334
    """
    match = StaticDynamic(
        StaticWindows(threshold, longest),
        threshold,
        dynamic=attention_by(attention_source),
        retained=retained,
        k=k,
        k_of_centres=True,
    )
    merger = Mean() if blend is None else CentreBlend(blend)
    outer = Step(Stage.PROJECTED, Once(), match, merger)
    if layer is None:
        return Recipe(outer, keep=keep)
    join = SelectAssign(TopK(LastTokenAttention()), Nearest(Similarity("x")))
    inner = Step(Stage.LLM(layer), Once(keep=left), join, RunningMean(), positions=positions)
    return Recipe(outer, inner, keep=keep)
