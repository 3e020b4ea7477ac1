"""The frames of a video in a model with a batched tower: how many a call has, and how they are pooled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any, cast

from torch import Tensor

from tokenzoo.hooks import PerThread, Undo, thread_local, undo_all
from tokenzoo_adapters.hf.vlm.assembly import replaced
from tokenzoo_adapters.hf.vlm.spec import Modality, VisionLanguageSpec


class VideoPass(PerThread):
    """The video features that are made in this thread.

    Attributes:
        frames: of each video; None: no videos are encoded.
    """

    frames: int | None = thread_local("frames")


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
