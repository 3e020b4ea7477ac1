"""What a projector that makes one token of a group of patches is given when groups are missing.

Such a projector takes the grid of a whole image. A square number of groups that are left would pass for
one, in silence. So each group becomes an image of its own, or those that are left fill a grid with zeros.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from tokenzoo.adapter import Adapter
from tokenzoo.hooks import PerThread, Undo, get_state, hook_first, thread_local, undo_all
from tokenzoo.layouts import BatchedLayout
from tokenzoo_adapters.hf.names import LAST
from tokenzoo_adapters.hf.vlm.spec import VisionLanguageSpec


def folded_groups(spec: VisionLanguageSpec, base: Any, tower: Adapter) -> Undo:
    """Give a projector that joins the patches of a square grid each group that is left as its own image.

    The tower's output `[b, prefix + m * p, c]` goes on as `[b * m, prefix + p, c]`, with repeated prefix
    tokens; what the projector makes of it, `[b * m, 1, c']`, is `[b, m, c']` again. For models that shuffle
    pixels between the tower and the projector, or in a projector that takes a square of any size.
    """
    del tower
    folded = _Folded()
    handles = [
        getattr(base, spec.tower).register_forward_hook(partial(_fold, folded)),
        # Before whatever reads the projector's tokens: the step of the stage "projected".
        hook_first(base.get_submodule(spec.projector), partial(_unfold, folded)),
    ]
    return partial(undo_all, [handle.remove for handle in handles])


def filled_grid(spec: VisionLanguageSpec, base: Any, tower: Adapter) -> Undo:
    """Give a projector that takes a grid of one size the groups that are left, and zeros after them.

    The groups `[b, m * p, c]` become the first ones of a grid `[b, n * p, c]` in raster order; of what the
    projector makes of it, `[b, n, c']`, the first m stay.
    """
    del tower
    filled, projector = _Filled(), base.get_submodule(spec.projector)
    handles = [
        projector.register_forward_pre_hook(partial(_fill, filled)),
        hook_first(projector, partial(_cut, filled)),
    ]
    return partial(undo_all, [handle.remove for handle in handles])


def side_by_side(x: Tensor) -> Tensor | None:
    """The groups `[b, m * p, c]` that are left, as grids one group high: `[b, g, m * g, c]`.

    None if all are there, in the grid of the image.
    """
    layout = _by_groups(x)
    if layout is None:
        return None
    bucket, side = layout.bucket, isqrt(layout.group)
    groups = x.reshape(x.shape[0], bucket.tokens, -1)
    row = replace(layout, raster=(1, bucket.tokens)).join([groups])
    return row.reshape(x.shape[0], side, bucket.tokens * side, x.shape[2])


class _Folded(PerThread):
    """The pass of a tower that runs in this thread.

    Attributes:
        images: of the batch whose groups are images of their own now; None: they are not.
    """

    images: int | None = thread_local("images")


class _Filled(PerThread):
    """The call of a projector that runs in this thread.

    Attributes:
        tokens: of each image, before the zeros that fill its grid; None: there are none.
    """

    tokens: int | None = thread_local("tokens")


def _fold(folded: _Folded, tower: nn.Module, args: Any, output: Any) -> Any:
    """A hook of the tower; groups that are all there are left in their grid."""
    del tower, args
    x: Tensor = getattr(output, LAST)
    layout, folded.images = _by_groups(x), None
    if layout is None:
        return output
    folded.images, m = x.shape[0], layout.bucket.tokens
    prefix, patches = x[:, : layout.prefix], x[:, layout.prefix :]
    groups = patches.reshape(-1, layout.group, x.shape[2])  # [b * m, p, c]
    setattr(output, LAST, torch.cat([prefix.repeat_interleave(m, 0), groups], 1))
    return output


def _unfold(folded: _Folded, projector: nn.Module, args: Any, output: Tensor) -> Tensor:
    """A hook of the projector."""
    del projector, args
    images, folded.images = folded.images, None
    return output if images is None else output.reshape(images, -1, output.shape[-1])


def _fill(filled: _Filled, projector: nn.Module, args: tuple[Tensor, ...]) -> Any:
    """A pre-hook of the projector; groups that are all there are left in their grid."""
    del projector
    x = args[0]
    layout, filled.tokens = _by_groups(x), None
    if layout is None:
        return None
    bucket = layout.bucket
    filled.tokens, first = bucket.tokens, bucket.first
    rest = x.new_zeros(x.shape[0], first * layout.group - x.shape[1], x.shape[2])
    groups = torch.cat([x, rest], 1).reshape(x.shape[0], first, -1)
    return (replace(layout, raster=bucket.grid).join([groups]), *args[1:])


def _cut(filled: _Filled, projector: nn.Module, args: Any, output: Tensor) -> Tensor:
    """A hook of the projector."""
    del projector, args
    tokens, filled.tokens = filled.tokens, None
    return output if tokens is None else output[:, :tokens]


def _by_groups(x: Tensor) -> BatchedLayout | None:
    """The layout of a tower's tokens that lie group by group; None: they are in raster order."""
    state = get_state(x)
    layout = None if state is None else state.layout
    if not isinstance(layout, BatchedLayout) or layout.group == 1 or layout.raster is not None:
        return None
    return layout
