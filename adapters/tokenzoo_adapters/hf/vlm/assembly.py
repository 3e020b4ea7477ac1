"""What is put on an attached model so that it accepts fewer tokens of an image after its tower.

A method that the bare model calls on itself is replaced on the instance, by a `functools.partial` of a
function of this module: copied and pickled with the model, it is the copy's. The class keeps its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, update_wrapper
from typing import Any, cast

from torch import Tensor

from tokenzoo.adapter import Adapter
from tokenzoo.errors import UnsupportedModelError
from tokenzoo.hooks import Undo
from tokenzoo_adapters.common.patching import put, remove
from tokenzoo_adapters.hf.names import POOLED
from tokenzoo_adapters.hf.vlm import anyres
from tokenzoo_adapters.hf.vlm.packed_tower import HFPackedTower
from tokenzoo_adapters.hf.vlm.spec import VisionLanguageSpec


def any_resolution(spec: VisionLanguageSpec, base: Any, tower: Adapter) -> Undo:
    """Pack the crops of an image by the rule of `anyres.py`, where they are grids no more."""
    del spec, tower
    return replaced(base, pack_image_features=partial(_pack, base))


def unpooled_frames(spec: VisionLanguageSpec, base: Any, tower: Adapter) -> Undo:
    """Leave the frames of a video unpooled that were reduced (as in EvoPrune, arXiv 2603.03681)."""
    del spec, tower
    return replaced(base, apply_pooling=partial(_pool, base))


def split_by_grid(spec: VisionLanguageSpec, base: Any, tower: Adapter) -> Undo:
    """Split the rows of packed images where the model splits them by their grids."""
    packed = packed_tower(tower)
    methods: dict[str, Callable[..., Any]] = {}
    for name in (modality.features for modality in spec.modalities):
        original = getattr(cast("Any", type(base)), name)
        method = partial(_features, packed, base, original)
        # `generate` reads the names of the arguments off the signature of what is wrapped.
        methods[name] = update_wrapper(method, original, assigned=(), updated=())
    return replaced(base, **methods)


def replaced(base: Any, **methods: Callable[..., Any]) -> Undo:
    """Put methods on an instance; returns what takes them away."""
    put(base, methods)
    return partial(remove, base, tuple(methods))


def packed_tower(tower: Adapter) -> HFPackedTower:
    """A tower that knows which groups of each image are left.

    Raises:
        UnsupportedModelError: it is batched.
    """
    if not isinstance(tower, HFPackedTower):
        raise UnsupportedModelError(
            f"split_by_grid and positions='mrope' need a packed tower, and {type(tower).__name__} is "
            "batched: leave them out of the spec"
        )
    return tower


def _pack(base: Any, image_features: Any, image_sizes: Any, *args: Any, **options: Any) -> Any:
    """The model's `pack_image_features`, by our rule where the crops are no grids any more."""
    original = cast("Any", type(base)).pack_image_features
    config = base.config
    if all(features.shape[1] == _side(config) ** 2 for features in image_features):
        return original(base, image_features, image_sizes, *args, **options)
    newline = options.get("image_newline", base.image_newline)
    packed = [
        anyres.pack(
            features,
            anyres.layout(config, (int(size[0]), int(size[1])), len(features)),
            newline,
        )
        for features, size in zip(image_features, image_sizes, strict=True)
    ]
    lengths = image_sizes.new_tensor([len(tokens) for tokens in packed])
    return packed, lengths


def _pool(base: Any, image_features: Tensor) -> Tensor:
    """The model's `apply_pooling`, of frames that have all their tokens."""
    if image_features.shape[1] != _side(base.config) ** 2:
        return image_features
    return cast("Any", type(base)).apply_pooling(base, image_features)


def _side(config: Any) -> int:
    return config.vision_config.image_size // config.vision_config.patch_size


def _features(
    tower: HFPackedTower, base: Any, original: Callable[..., Any], *args: Any, **options: Any
) -> Any:
    """A features method of the model, with as many rows of each image as are left."""
    if tower.rows.state.fills:  # called by the method for videos, which cuts what is too many
        return original(base, *args, **options)
    wanted = options.pop("return_dict", None)
    wanted = base.config.return_dict if wanted is None else wanted
    # The model splits the rows by the grid: it is given as many as that says, and those that are left are
    # taken out of them.
    with tower.rows.filled():
        output = original(base, *args, return_dict=True, **options)
    images: Sequence[Tensor] = getattr(output, POOLED)
    left = tower.rows.left(len(rows) for rows in images)
    setattr(output, POOLED, _taken(images, left))
    for stream in tower.streams:
        setattr(output, stream.name, [_taken(one, left) for one in getattr(output, stream.name)])
    return output if wanted else output.to_tuple()


def _taken(images: Sequence[Tensor], left: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Of the rows `[n, c]` of each image those that are left."""
    pairs = zip(images, left, strict=True)
    return tuple(rows if len(at) == len(rows) else rows[at.to(rows.device)] for rows, at in pairs)
