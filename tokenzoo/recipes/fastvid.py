"""FastVID: salient tokens of every frame, and anchor frames into which the others merge."""

from __future__ import annotations

from typing import Annotated

from tokenzoo._core.kinds import Count, Range, Share, Words
from tokenzoo.matchers import SalientAnchors
from tokenzoo.mergers import AnchorBlend
from tokenzoo.recipe import Recipe, Stage, Step
from tokenzoo.recipes.registry import register_recipe
from tokenzoo.schedules import Once
from tokenzoo.scorers import attention_by
from tokenzoo.scorers.attention_by import AttentionSource
from tokenzoo.temporal import SceneCuts


@register_recipe
def fastvid(
    *,
    keep: int | float = 0.25,
    segments: Count = 8,
    threshold: Annotated[float, Range(-1, 2)] = 0.9,
    context: Share = 0.4,
    every: Count = 4,
    blend: Share = 0.6,
    k: Count = 4,
    retained: Annotated[Share | None, Words("a fraction in [0, 1], or None")] = None,
    frame_features: int | str | None = None,
    attention_source: AttentionSource = "received",
) -> Recipe:
    """Keep the salient tokens of each frame, and merge the others into the anchor frames of segments.

    A clip is cut where neighbouring frames are least similar. Of each frame the tokens with the highest
    attention stay as they are. In the last frame of each segment, and every few frames before it, density
    peaks among the others are targets; every other token of the segment is averaged into the most similar
    target of each of these frames. Tokens stay in order of position.

    Formula:
        cuts: the lowest of cos(g_f, g_(f+1)), and all below the threshold,  g_f: features of frame f
        salient: the highest attention that a token j receives  in each frame
        y_i = w x_i + (1 - w) * mean of the r tokens that join i,   w = max(1 / (r + 1), blend)

    Args:
        keep: tokens of the whole clip to keep: a count or a fraction; with `retained` the most. (paper:
            0.1 to 0.25)
        segments: the least number of segments, as long as there are frames. (paper: c = 8)
        threshold: tau; a cosine of frames below it is a cut. (paper: 0.9)
        context: d, share of the tokens that are targets. (paper: 0.4)
        every: p, the distance of anchor frames. (paper: 4)
        blend: beta, the least weight of a target. (paper: 0.6)
        k: nearest tokens that the density looks at. (authors' code: 4)
        retained: the authors' own counts for this share of each frame's tokens, whose divisions lose a
            few tokens; None: exactly `keep`. (authors' code: 0.1 to 0.25)
        frame_features: the layer whose features, averaged over a frame, are g_f; None: the tokens
            themselves. (authors' code: the pooled embedding of the encoder)
        attention_source: "received", or "cls". (authors' code: the attention of SigLIP's pooling head,
            which is that of a query like CLS)

    Departures:
        - Exactly `keep` tokens stay, the targets divided over the anchor frames in proportion to the frames
          that each stands for; the authors' integer divisions lose a few, as with `retained`.
        - Frames are compared by the mean of their tokens. The pooled embeddings that theirs compares can be
          given on tensors, as `at={"frame": {"x": ...}}` with frame_features="frame".
        - A clip with fewer frames than `segments` stops the authors' code; here each frame is a segment.
        - No random numbers break ties of density; the lower index does.
        - Salience is the mean attention that a token receives, which every encoder shows; theirs is that of
          a pooling head, which the models that take videos here do not run.

    Licence:
        MIT (LunarShen/FastVID)

    Reference:
        FastVID, NeurIPS 2025, arXiv 2503.11187
    """
    cuts = SceneCuts(segments, threshold, frame_features)
    match = SalientAnchors(attention_by(attention_source), cuts, context, every, k, retained)
    merger = AnchorBlend(cuts, every, blend, retained, context)
    return Recipe(Step(Stage.PROJECTED, Once(), match, merger), keep=keep)
