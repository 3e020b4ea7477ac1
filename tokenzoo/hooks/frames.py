"""The step of the stage "frames": before a block of a batched tower a video gets fewer frames.

A frame is one token of the step, with the features of all its tokens: what merges two frames merges their
tokens at each place. Frames are compared by the mean cosine of their tokens at all places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from tokenzoo.errors import AttachError
from tokenzoo.evidence import Evidence
from tokenzoo.hooks.reduction import Event, Options, Place
from tokenzoo.hooks.state import ReductionState
from tokenzoo.recipe import Step
from tokenzoo.reduce import reduce_patches
from tokenzoo.tokens import Tokens, unit

FrameStep = Callable[[Tensor, ReductionState], tuple[Tensor, ReductionState]]
"""Makes fewer frames of a video of what enters a block, and of the state that it carries."""


def merge_frames(
    x: Tensor,
    state: ReductionState,
    step: Step,
    videos: Sequence[int],
    left: int,
    place: Place,
    options: Options,
) -> tuple[Tensor, ReductionState]:
    """Reduce the frames of each video to so many.

    Args:
        x: tokens of all frames `[v * f, n, c]`, what enters the block.
        state: that they carry; none of them was reduced.
        step: whose parts are used.
        videos: frames of each video, equally many.
        left: frames of each video that are to be left.
        place: of the block.
        options: of the attachment.

    Returns:
        `[v * left, n, c]`, and the state.

    Raises:
        AttachError: the videos have different numbers of frames.
    """
    f = videos[0]
    first = state.frames[0] if state.frames else f
    if set(videos) != {f}:
        raise AttachError(
            f"the videos of one batch have {tuple(videos)} frames: a step over frames takes videos of "
            "equally many; call the model once for each number"
        )
    options.tick()
    n = x.shape[1]
    bucket = state.bucket
    known = None if bucket.mass is None else bucket.mass[:, 0].reshape(-1, f)  # [v, f]
    tokens = Tokens.of(x.reshape(len(videos), f, -1), mass=known)  # [v, f, n * c]
    # Of the unit vectors of the tokens at all places: cosines of frames are mean cosines of tokens.
    vectors = unit(x).reshape(len(videos), f, -1)
    evidence = Evidence(vectors, mass=tokens.mass)
    after, plan = reduce_patches(step, tokens, evidence, left, check=options.debug, ordered=True)
    if options.on_reduce is not None:
        options.on_reduce(Event(place.block, plan, tokens, after, place.stage))
    mass = after.mass.detach().reshape(-1, 1).expand(-1, n).contiguous()  # [v * left, n]
    layout = state.layout.with_buckets([replace(bucket, mass=mass)])
    options.tick()
    x = after.x.reshape(len(videos) * left, n, x.shape[2])
    return x, replace(state, layout=layout, frames=(first, left))
