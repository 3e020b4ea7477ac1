"""Features of all patches of an image, also after a pass that saw a smaller one."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import interpolate

from tokenzoo.errors import BadArgumentError


def enlarged(found: Tensor, patches: int) -> Tensor:
    """Return features `[b, n, c]` of all n = `patches`, from those that a pass returned.

    A model that was shown smaller images returns fewer: its square grid is interpolated.

    Raises:
        BadArgumentError: there are fewer patches, and their grid is not a square.
    """
    if found.shape[1] == patches:
        return found
    side, whole = math.isqrt(found.shape[1]), math.isqrt(patches)
    if side * side != found.shape[1] or whole * whole != patches:
        raise BadArgumentError(
            f"{found.shape[1]} of {patches} patches are left, and both must be square grids: ask for a "
            "square number"
        )
    grid = found.mT.reshape(*found.shape[::2], side, side)  # [b, c, side, side]
    return interpolate(grid, (whole, whole), mode="bilinear").flatten(2).mT
