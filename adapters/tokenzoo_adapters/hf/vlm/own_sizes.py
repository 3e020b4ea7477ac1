"""Sizes of images that a model is given a copy of, into which is written how many tokens are left.

For a model with an unfollowed tower that splits the projector's rows by the sizes of its images. What the
spec has as `put` (`ProjectedRows`) writes into `state.sizes` what is left; the model reads them after it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any, cast

from tokenzoo.adapter import Adapter
from tokenzoo.errors import UnsupportedModelError
from tokenzoo.hooks import Undo
from tokenzoo_adapters.hf.vlm.assembly import replaced
from tokenzoo_adapters.hf.vlm.spec import Modality, VisionLanguageSpec
from tokenzoo_adapters.hf.vlm.unfollowed_tower import ProjectorPass, UnfollowedTower


def own_sizes(spec: VisionLanguageSpec, base: Any, tower: Adapter) -> Undo:
    """Give the features method for images a copy of its sizes, and note the frames of videos.

    Videos have grids `[videos, 3]` (frames, rows, columns) and are encoded by the method for images.

    Raises:
        UnsupportedModelError: the tower is followed.
    """
    if not isinstance(tower, UnfollowedTower):
        raise UnsupportedModelError(
            f"own_sizes needs a tower that is not followed, and {type(tower).__name__} is: leave it out of "
            "the spec, or set unfollowed="
        )
    methods: dict[str, Callable[..., Any]] = {}
    for modality in spec.modalities:
        original = getattr(cast("Any", type(base)), modality.features)
        call = _image_features if modality.kind == "image" else _video_features
        method = partial(call, tower.state, base, modality, original)
        # `generate` reads the names of the arguments off the signature of what is wrapped.
        methods[modality.features] = update_wrapper(method, original, assigned=(), updated=())
    return replaced(base, **methods)


def _image_features(
    state: ProjectorPass, base: Any, modality: Modality, original: Any, *args: Any, **options: Any
) -> Any:
    call = inspect.signature(original).bind(base, *args, **options)
    state.sizes = call.arguments[modality.sizes] = call.arguments[modality.sizes].clone()
    return original(*call.args, **call.kwargs)


def _video_features(
    state: ProjectorPass, base: Any, modality: Modality, original: Any, *args: Any, **options: Any
) -> Any:
    call = inspect.signature(original).bind(base, *args, **options)
    state.frames = tuple(int(frames) for frames in call.arguments[modality.sizes][:, 0])
    try:
        return original(*call.args, **call.kwargs)
    finally:
        state.frames = None
