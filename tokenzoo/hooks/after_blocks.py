"""The steps after the last block: on the features that leave the tower, and on what the projector makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from math import isqrt
from typing import cast

from torch import Tensor

from tokenzoo.budget import TokenBudget
from tokenzoo.errors import AttachError
from tokenzoo.evidence import Evidence
from tokenzoo.hooks.reduction import Options, Place, evidence_of, reduce_parts
from tokenzoo.hooks.state import ReductionState
from tokenzoo.layouts import BatchedLayout, SizeBucket, TokenLayout
from tokenzoo.layouts.base import masses
from tokenzoo.layouts.videos import pooled_evidence

Text = tuple[Tensor, Tensor]
"""Embeddings `[i, t, c]` of the text of each image, crop or frame, and `[i, t]` bool, False at padding."""


def reduce_features(
    x: Tensor,
    state: ReductionState,
    evidence: Sequence[Evidence] | None,
    place: Place,
    options: Options,
) -> tuple[Tensor, ReductionState]:
    """The step of the stage "features", on what leaves the last block.

    Args:
        x: what leaves it.
        state: with its layout.
        evidence: of the last block about the tokens of each bucket; None: it was not watched.
        place: of the last block.
        options: of the attachment.

    Returns:
        The tokens that are left, and the state with what a step after the projector needs.
    """
    step, keeps = state.steps.features, state.steps.keeps_evidence
    if step is None and not keeps:
        return x, _carried(state, None)
    parts = state.layout.split(x)
    evidence = _renewed(evidence, parts, state.layout)
    if step is not None and any(one.tokens > one.features for one in state.layout.buckets):
        options.tick()
        state, parts, evidence = reduce_parts(step, state, parts, evidence, place, options)
        options.tick()
        x = state.layout.join(parts)
    return x, _carried(state, evidence if keeps else None)


def pool_frames(
    output: Tensor,
    state: ReductionState,
    pool: Callable[[Tensor], Tensor],
    budget: Callable[[int], TokenBudget],
) -> tuple[Tensor, ReductionState]:
    """Pool the frames of a video before a step over frames, as the model would have done after it.

    Args:
        output: `[f, n, c]`.
        state: of the tokens that left the tower; where it has reduced them, nothing is pooled.
        pool: `Adapter.pool_frames`.
        budget: of an image with so many tokens, as planned.

    Returns:
        `[f, m, c]` and the state that begins with these; both as they are if the model pools nothing.
    """
    one = state.bucket
    pooled = pool(output) if one.tokens == one.first else output
    if pooled is output:
        return output, state
    m = pooled.shape[1]
    side = isqrt(m)
    bucket = SizeBucket(
        m,
        m,
        one.images,
        (side, side) if side * side == m else None,
        features=m,
        projected=budget(m).projected,
        mass=None if one.mass is None else one.mass[:, :1].expand(-1, m),  # of whole frames
        evidence=None if one.evidence is None else pooled_evidence(one.evidence, pool),
        layers=tuple((name, pooled_evidence(shown, pool)) for name, shown in one.layers),
    )
    return pooled, replace(state, layout=BatchedLayout((bucket,)))


def reduce_projected(
    output: Tensor,
    state: ReductionState,
    reaching: int,
    place: Place,
    options: Options,
    text: Callable[[], Text] | None = None,
    videos: Callable[[int], Sequence[int]] | None = None,
) -> tuple[Tensor, ReductionState]:
    """The step of the stage "projected", on what the projector makes of the tokens.

    Args:
        output: `[b, reaching + n, c]`, or of a packed sequence `[t, c]`.
        state: of the tokens that left the tower.
        reaching: prefix tokens that reach the projector.
        place: of the projector.
        options: of the attachment.
        text: returns the text of each image, crop or frame; None: the step needs none.
        videos: of the number of images and frames, the frames of each video, in order (an image has one).
            Then a video is reduced as a whole, and an image is left as it is. None: each for itself.

    Returns:
        The tokens that are left, and the state; its layout is that of the tower, with fewer tokens.
    """
    tower, step = state.layout, state.steps.projected
    frames: Sequence[int] = ()
    if videos is not None:
        frames = videos(sum(len(one.images) for one in tower.buckets) or len(output))
        if reaching and max(frames, default=1) > 1:
            raise AttachError(
                f"{reaching} prefix tokens of each frame reach the projector, and a step over frames takes "
                "patch tokens alone: configure the model to drop the CLS token before its projector"
            )
        tower = tower.by_video(frames)
        if state.frames:
            tower = with_all_frames(tower, *state.frames)
    layout = tower.projected(reaching)
    parts = layout.split(output)
    evidence = _renewed(None, parts, layout)
    if step is not None and any(one.tokens > place.keep(one) for one in layout.buckets):
        options.tick()
        if text is not None:
            evidence = _with_text(evidence, layout, text(), frames)
        after, parts, _ = reduce_parts(
            step, replace(state, layout=layout), parts, evidence, place, options
        )
        options.tick()
        output = after.layout.join(parts)
        tower = tower.reduced(after.layout.buckets)
    elif state.frames:
        output = layout.join(parts)
    buckets = [replace(one, evidence=None, layers=()) for one in tower.buckets]
    return output, replace(state, layout=tower.with_buckets(buckets), finished=True)


def with_all_frames(layout: TokenLayout, frames: int, left: int) -> TokenLayout:
    """The layout of videos of which fewer frames are left: what comes of them has rows for all frames.

    Args:
        layout: of the videos.
        frames: of each at first.
        left: of each now.
    """
    batched = cast("BatchedLayout", layout)
    one = batched.bucket
    planned = None if one.projected is None else one.projected // left * frames
    return replace(batched, buckets=(replace(one, projected=planned),), slots=frames)


def _with_text(
    evidence: list[Evidence], layout: TokenLayout, text: Text, videos: Sequence[int]
) -> list[Evidence]:
    """The evidence of each bucket, about the text of its images or videos.

    Args:
        evidence: of each bucket.
        layout: of these.
        text: of each image, crop or frame.
        videos: frames of each video, where a row of the evidence is a video; (): it is an image.

    Raises:
        AttachError: there are texts for another number of images.
    """
    embeddings, mask = text
    firsts = [0, *accumulate(videos)]  # of each video the first frame
    images = firsts[-1] if videos else sum(len(one.x) for one in evidence)
    if len(embeddings) != images:
        raise AttachError(
            f"the projector was given {images} images, crops or frames, and the prompts of the call have "
            f"{len(embeddings)}: call the model with its prompts and the images of these alone"
        )
    found: list[Evidence] = []
    for one, bucket in zip(evidence, layout.buckets, strict=True):
        rows = bucket.images or tuple(range(len(one.x)))
        index = [firsts[row] for row in rows] if videos else list(rows)
        device = one.x.device
        found.append(one.with_text(embeddings[index].to(device), mask[index].to(device)))
    return found


def _renewed(
    evidence: Sequence[Evidence] | None, parts: Sequence[Tensor], layout: TokenLayout
) -> list[Evidence]:
    """The evidence of the last block, about the tokens of each bucket as they are now.

    Args:
        evidence: of each bucket; None: what the bucket carries, or what the tokens themselves show.
        parts: `[b, prefix + n, c]` of each bucket.
        layout: of these.
    """
    prefix = layout.prefix
    if evidence is None:
        pairs = zip(parts, layout.buckets, strict=True)
        evidence = [one.evidence or evidence_of(part, one, None, prefix) for part, one in pairs]
    return [
        shown.renewed(part[:, prefix:], masses(one, part)[:, prefix:], dict(one.layers))
        for shown, part, one in zip(evidence, parts, layout.buckets, strict=True)
    ]


def _carried(state: ReductionState, evidence: list[Evidence] | None) -> ReductionState:
    """The state of what leaves the tower: without what nobody after the tower asks for."""
    further = state.steps.projected is not None
    before = state.layout.buckets
    if evidence is None and (further or not any(one.layers for one in before)):
        return state

    def carried(one: SizeBucket, own: Evidence | None) -> SizeBucket:
        return replace(one, evidence=own, layers=one.layers if further else ())

    shown = evidence or [None] * len(before)
    buckets = [carried(one, own) for one, own in zip(before, shown, strict=True)]
    return replace(state, layout=state.layout.with_buckets(buckets))
