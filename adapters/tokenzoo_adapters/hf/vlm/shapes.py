"""Images of several sizes in one padded batch of flat patches (SigLIP 2): encoded one size after another.

A batch `[images, l, 3 * patch * patch]` has `h * w` patches of each image first, then padding, which is
masked in the tower. Images of one size need no padding and no mask, and are a batch as any other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tokenzoo.adapter import Adapter
from tokenzoo.errors import AttachError
from tokenzoo.hooks import Undo, hook_first, undo_all
from tokenzoo_adapters.hf.names import LAST, POOLED
from tokenzoo_adapters.hf.towers import HFTower
from tokenzoo_adapters.hf.vlm.assembly import replaced
from tokenzoo_adapters.hf.vlm.groups import side_by_side
from tokenzoo_adapters.hf.vlm.placeholders import VisualSpan
from tokenzoo_adapters.hf.vlm.spec import SpanCall, VisionLanguageSpec

Shape = tuple[int, int]


def per_shape(call: SpanCall) -> list[VisualSpan]:
    """Images with `[images, 2]` rows and columns of patches; `one_size_a_run` encodes those of a size."""
    side = round(call.spec.group(call.base.config) ** 0.5)
    shapes = _shapes(call.sizes)
    runs = list(dict.fromkeys(shapes))
    counts = [(rows // side) * (columns // side) for rows, columns in shapes]
    return [
        VisualSpan(n, call.plan(n), patches=n, run=runs.index(shape))
        for n, shape in zip(counts, shapes, strict=True)
    ]


def one_size_a_run(spec: VisionLanguageSpec, base: Any, tower: Adapter) -> Undo:
    """Encode the images of a call one size after another, in the order in which the sizes come.

    The projector is given grids `[b, h, w, c]`, or what is left of them, `[b, g, m * g, c]`.
    """
    original = cast("Any", type(base)).get_image_features
    method = partial(_features, spec, base, cast("HFTower", tower))
    # `generate` reads the names of the arguments off the signature of what is wrapped.
    update_wrapper(method, original, assigned=(), updated=())
    undo: list[Callable[[], Any]] = [replaced(base, get_image_features=method)]
    # Before whatever reads the projector's tokens: the step of the stage "projected".
    undo.append(hook_first(base.get_submodule(spec.projector), _in_a_row).remove)
    return partial(undo_all, undo)


def _features(
    spec: VisionLanguageSpec,
    base: Any,
    tower: HFTower,
    pixel_values: Tensor,
    spatial_shapes: Tensor,
    pixel_attention_mask: Tensor | None = None,
    **options: Any,
) -> Any:
    """`get_image_features` of the model: its tower and its projector, for each size.

    Raises:
        AttachError: an image has more patches or others than its size says, or cannot be grouped.
    """
    shapes, group = _shapes(spatial_shapes), spec.group(base.config)
    _check(shapes, round(group**0.5), pixel_values, pixel_attention_mask)
    wanted = options.pop("return_dict", None)
    hidden, rows, output = dict[int, Tensor](), dict[int, Tensor](), None
    for shape in dict.fromkeys(shapes):
        images = [i for i, one in enumerate(shapes) if one == shape]
        tower.embedded.size = shape  # a tower in which nothing is reduced does not look
        output = getattr(base, spec.tower)(
            pixel_values=pixel_values[images, : shape[0] * shape[1]],
            pixel_attention_mask=None,
            spatial_shapes=spatial_shapes[images],
            return_dict=True,
            **options,
        )
        x: Tensor = getattr(output, LAST)
        left = side_by_side(x)
        grid = x.reshape(len(images), *shape, -1) if left is None else left
        hidden.update(zip(images, x, strict=True))
        rows.update(zip(images, base.get_submodule(spec.projector)(grid), strict=True))
    order = range(len(shapes))
    setattr(output, LAST, pad_sequence([hidden[i] for i in order], batch_first=True))
    setattr(output, POOLED, [rows[i] for i in order])
    wanted = base.config.return_dict if wanted is None else wanted
    return output if wanted else cast("Any", output).to_tuple()


def _in_a_row(projector: nn.Module, args: Any, output: Tensor) -> Tensor:
    """A hook of the projector: what it made of grids `[b, h, w, c']`, as `[b, n, c']`."""
    del projector, args
    return output.flatten(1, 2)


def _shapes(sizes: Tensor) -> list[Shape]:
    rows: list[list[int]] = cast("Any", torch.as_tensor(sizes)).tolist()
    return [(height, width) for height, width in rows]


def _check(shapes: list[Shape], side: int, pixels: Tensor, mask: Tensor | None) -> None:
    there = [pixels.shape[1]] * len(shapes) if mask is None else cast("Any", mask.sum(1)).tolist()
    for i, ((rows, columns), patches) in enumerate(zip(shapes, there, strict=True)):
        if rows % side or columns % side:
            raise AttachError(
                f"image {i} has {rows} x {columns} patches (spatial_shapes), of which {side} x {side} "
                f"are a token: both must be multiples of {side}, as the processor makes them"
            )
        if rows * columns > patches or (mask is not None and rows * columns != patches):
            raise AttachError(
                f"image {i} has {rows} x {columns} patches (spatial_shapes), and {patches} were passed: "
                "pass pixel_values, spatial_shapes and pixel_attention_mask as the processor returns them"
            )
