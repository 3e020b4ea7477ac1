"""The frames of videos in a model with a batched tower: how many a call has, and what is left of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, update_wrapper
from typing import Any, cast

import torch
from torch import Tensor

from tokenzoo.errors import BadArgumentError
from tokenzoo.hooks import PerThread, Undo, thread_local, undo_all
from tokenzoo.layouts import TokenLayout
from tokenzoo_adapters.hf.vlm.assembly import replaced
from tokenzoo_adapters.hf.vlm.interface import EncodedCall
from tokenzoo_adapters.hf.vlm.prompt_text import PromptCall
from tokenzoo_adapters.hf.vlm.spans import per_image
from tokenzoo_adapters.hf.vlm.spec import Modality, Spans, VisionLanguageSpec


class VideoPass(PerThread):
    """The video features that are made in this thread.

    Attributes:
        frames: of each video, where they are stacked; None: no videos are encoded.
        left: where images are frames, the layout of what is left of the videos of the last pass.
    """

    frames: int | None = thread_local("frames")
    left: TokenLayout | None = thread_local("left")


def install(spec: VisionLanguageSpec, base: Any, state: VideoPass) -> Undo:
    """Note the frames of the videos of a call, where they are stacked (`Modality.stacked`)."""
    undo: list[Callable[[], Any]] = []
    for modality in spec.modalities:
        if modality.stacked:
            original = getattr(cast("Any", type(base)), modality.features)
            method = partial(_features, state, base, modality, original)
            # `generate` reads the names of the arguments off the signature of what is wrapped.
            update_wrapper(method, original, assigned=(), updated=())
            undo.append(replaced(base, **{modality.features: method}))
    return partial(undo_all, undo)


def check(adapter: Any, frames: int) -> None:
    """Raise unless images can be the frames of videos.

    Raises:
        BadArgumentError: images are cut into crops, the model takes videos itself, or prefix tokens reach
            its projector.
    """
    reason = ""
    if not all(modality.spans is per_image for modality in adapter.spec.modalities):
        reason = "it knows its videos itself, or cuts images into crops: leave frames= out"
    elif adapter.projected_prefix:
        reason = (
            "the CLS token of a frame reaches its projector: set the feature strategy to 'default'"
        )
    if reason:
        raise BadArgumentError(f"frames={frames!r} of {type(adapter.model).__name__}: {reason}")


def encode(adapter: Any, given: Mapping[str, Any], spans: Spans) -> EncodedCall:
    """Encode images that are the frames of videos, and find what is left of each.

    Args:
        adapter: of the model.
        given: the arguments of the call.
        spans: its images.
    """
    (modality,) = adapter.spec.modalities
    adapter.video_pass.left = None
    with adapter.prompt_text.call(PromptCall(given, spans)):
        encoded = getattr(adapter.base, modality.features)(given[modality.pixels], return_dict=True)
    layout, adapter.video_pass.left = adapter.video_pass.left, None
    ((token, several),) = spans.items()
    kept: list[Tensor] = [torch.arange(span.full) for span in several]
    places = None if layout is None else layout.buckets[0].places  # [v, f * m]
    if places is not None:
        places, n = places.cpu(), several[0].full  # one transfer, not one for each frame
        frame = places // n + torch.arange(len(places))[:, None] * adapter.frames
        kept = [places[frame == i] - i % adapter.frames * n for i in range(len(several))]
    return EncodedCall({modality.kind: encoded}, {token: kept}, given)


def pool(base: Any, x: Tensor) -> Tensor:
    """What the class of the model pools frames `[f, n, c]` to, if it does."""
    method = getattr(cast("Any", type(base)), "apply_pooling", None)
    return x if method is None else method(base, x)


def _features(
    state: VideoPass, base: Any, modality: Modality, original: Any, *args: Any, **options: Any
) -> Any:
    pixels: Tensor = args[0] if args else options[modality.pixels]
    state.frames = int(pixels.shape[1])
    try:
        return original(base, *args, **options)
    finally:
        state.frames = None
