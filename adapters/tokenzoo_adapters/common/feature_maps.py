"""Intermediate features: maps of the whole grid or an error, never a map of fewer tokens.

A reshape to the grid can fit fewer tokens by accident: a quarter of them, with four times the channels.
"""

from __future__ import annotations

from typing import Any, cast

import torch

from tokenzoo.errors import AttachError

MAPS = (
    "forward_intermediates cannot make maps of the grid's size: fewer tokens are left; attach with "
    "restore=True, or use output_fmt='NLC', or blocks before the first reduction"
)
LAYERS = (
    "get_intermediate_layers returns features of the whole grid, but fewer tokens are left: attach with "
    "restore=True, or use blocks before the first reduction; forward_intermediates(output_fmt='NLC') "
    "returns the tokens that are left"
)


def forward_intermediates(model: Any, width: int, x: Any, *args: Any, **options: Any) -> Any:
    """Call the `forward_intermediates` of a tower of timm or open_clip, with tokens `[b, n, width]`.

    Raises:
        AttachError: it makes maps, and fewer tokens are left.
    """
    original = cast("Any", type(model)).forward_intermediates
    try:
        result: Any = original(model, x, *args, **options)
    except RuntimeError as error:
        if "is invalid for input of size" in str(error):  # a reshape to the grid
            raise AttachError(MAPS) from error
        raise
    found: Any = result["image_intermediates"] if hasattr(result, "keys") else result
    features: Any = found if hasattr(found, "append") else found[1]  # after the last features
    for item in features:
        y: Any = item if torch.is_tensor(item) else item[0]  # (patches, prefix)
        if y.ndim == 4 and y.shape[1] != width:  # [b, c, rows, columns]
            raise AttachError(MAPS)
    return result


def whole(features: Any, tokens: int | None) -> Any:
    """Check that features are of all tokens, and return them.

    Args:
        features: of `get_intermediate_layers`: each `[b, n, c]`, or that and its prefix tokens.
        tokens: patches of the image; None: not known.

    Raises:
        AttachError: fewer tokens are left in one of them.
    """
    for item in features:
        y: Any = item if torch.is_tensor(item) else item[0]
        if y.ndim == 3 and tokens is not None and y.shape[1] != tokens:
            raise AttachError(LAYERS)
    return features
