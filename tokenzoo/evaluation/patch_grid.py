"""Features of all patches of an image, also after a pass that saw a smaller one."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import interpolate

from tokenzoo.errors import BadArgumentError


def enlarged(found: Tensor, patches: int) -> Tensor:
    """Return features `[b, n, c]` of all n = `patches` of a square image, from those that a pass returned.

    A model that was shown smaller images returns fewer: their grid is interpolated.

    Raises:
        BadArgumentError: there are fewer patches, and no rectangle near a square has so many; or the whole
            image is not a square.
    """
    count = found.shape[1]
    if count == patches:
        return found
    whole = math.isqrt(patches)
    # Of a square image the smaller one is the rectangle that is nearest to a square, and not upright.
    rows = max(height for height in range(1, math.isqrt(count) + 1) if count % height == 0)
    columns = count // rows
    if whole * whole != patches or columns > min(2 * rows, whole):
        raise BadArgumentError(
            f"{count} of {patches} patches are left; all patches must be a square, and those that are left "
            "a rectangle near a square: ask for another number"
        )
    grid = found.mT.reshape(*found.shape[::2], rows, columns)  # [b, c, rows, columns]
    return interpolate(grid, (whole, whole), mode="bilinear").flatten(2).mT
