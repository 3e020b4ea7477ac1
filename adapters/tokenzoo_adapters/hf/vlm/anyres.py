"""How the crops of any-resolution images become a sequence (LLaVA-NeXT, LLaVA-OneVision): arithmetic.

Such an image is shown to the tower as a base crop, which is all of it, and as a grid of crops, onto which
it is letterboxed; each crop gives N = side * side tokens. The bare model stitches the grid together, cuts
the letterbox off, shrinks what is then still too large (OneVision alone), and ends each line of tokens with
a newline. The base crop's tokens come first, then the lines.

With fewer tokens a crop is no grid, and nothing can be stitched, cut or shrunk. OUR RULE:

1. the m tokens of the base crop come first;
2. then the crops of the grid in raster order, m tokens each;
3. crops that lie wholly in the letterbox, where the bare model keeps nothing, are left out;
4. one newline comes after each row of crops; a row of which no crop is left has none.

An image of a single crop (one of several in a OneVision prompt) is its m tokens and one newline, as in the
bare model. With m = N nothing was reduced, and the bare model's own packing is used.

So newlines are one per row of crops, not one per line of tokens, and a crop that is only partly in the
letterbox gives all of its m tokens: an image so narrow that most of its grid is letterbox can take more
tokens than in the bare model.

The bare models can only stitch crops of N tokens: a CLS token that is handed on
(vision_feature_select_strategy="full" with a CLIP tower), or a patch that is cut off as if it were one
("default" with SigLIP), makes the stitching fail. Adapters refuse both.
"""

from __future__ import annotations

from math import isqrt, sqrt
from typing import Any

import torch
from torch import Tensor

from tokenzoo.errors import BadArgumentError
from tokenzoo_adapters.hf.vlm.placeholders import VisualSpan

Layout = tuple[tuple[bool, ...], ...]
"""Rows of a grid of crops: which of them show some of the image. `()`: a single crop, no grid."""


def full_tokens(config: Any, image_size: tuple[int, int], crops: bool) -> int:
    """Tokens of an image in the bare model, as many as placeholders that its processor writes.

    Args:
        config: of a LLaVA-NeXT or LLaVA-OneVision model.
        image_size: (height, width) of the image in pixels.
        crops: whether it is cut into crops. OneVision does so with an image that is alone in its prompt.

    Raises:
        BadArgumentError: the model's `vision_aspect_ratio` says no number of crops.
    """
    lines, columns = _lines(config, image_size, crops)
    return _side(config) ** 2 + lines * (columns + 1)


def visual(
    config: Any, image_size: tuple[int, int], crops: bool, full: int, tokens: int
) -> VisualSpan:
    """An image of a prompt: `full` patch tokens of each crop, of which `tokens` are left.

    Raises:
        BadArgumentError: as `full_tokens`.
    """
    where = crop_layout(config, image_size, crops)
    newlines = _newlines(where)
    short = _crops(where) * tokens + newlines
    bare = full_tokens(config, image_size, crops)
    if tokens == full:
        short, newlines = bare, _lines(config, image_size, crops)[0]
    encoded = 1 + sum(map(len, where))
    return VisualSpan(bare, short, _crops(where), fixed=newlines, patches=full, encoded=encoded)


def pooled(tokens: int) -> int:
    """Tokens of a video's frame after OneVision's pooling, which halves a grid of so many, rounding up."""
    return ((isqrt(tokens) + 1) // 2) ** 2


def crop_layout(config: Any, image_size: tuple[int, int], crops: bool) -> Layout:
    """Which crops of an image show some of it."""
    if not crops:
        return ()
    side = _side(config)
    rows, columns = _grid(config, image_size)
    down, across = _window(config, image_size)

    def shows(line: range, number: int) -> bool:
        return max(line.start, number * side) < min(line.stop, (number + 1) * side)

    return tuple(
        tuple(shows(down, i) and shows(across, j) for j in range(columns)) for i in range(rows)
    )


def layout(config: Any, image_size: tuple[int, int], count: int) -> Layout:
    """As `crop_layout`, for an image that came out of the tower as so many crops, the base included.

    Raises:
        BadArgumentError: an image of this size has another number of crops.
    """
    where = crop_layout(config, image_size, count > 1)
    whole = 1 + sum(map(len, where))
    if count != whole:
        raise BadArgumentError(
            f"an image of {image_size[0]} x {image_size[1]} pixels has {whole} crops in this model, a base "
            f"and {len(where)} rows, but {count} were passed: pass image_sizes as the processor returns "
            "them"
        )
    return where


def pack(features: Tensor, where: Layout, newline: Tensor) -> Tensor:
    """Put the crops of one image in a row, by our rule.

    Args:
        features: `[crops, m, c]`, the base crop first, then the grid in raster order.
        where: the layout of the grid.
        newline: `[c]`.

    Returns:
        `[t, c]`, t as `visual(...).short` for m tokens.

    Raises:
        BadArgumentError: the layout is that of another number of crops.
    """
    if len(features) != 1 + sum(map(len, where)):
        raise BadArgumentError(
            f"{len(features)} crops were passed; this layout has {1 + sum(map(len, where))}: a base crop "
            f"and a grid of {len(where)} rows"
        )
    line = newline.to(features)[None]  # [1, c]
    if not where:
        return torch.cat([features[0], line])
    base, *grid = features.unbind()
    parts, crops = [base], iter(grid)
    for row in where:
        shown = [crop for crop, some in zip([next(crops) for _ in row], row, strict=True) if some]
        parts += [*shown, line] if shown else []
    return torch.cat(parts)


def _crops(where: Layout) -> int:
    """Crops that are packed, the base included."""
    return 1 + sum(map(sum, where))


def _newlines(where: Layout) -> int:
    return sum(map(any, where)) if where else 1


def _side(config: Any) -> int:
    return config.vision_config.image_size // config.vision_config.patch_size


def _lines(config: Any, image_size: tuple[int, int], crops: bool) -> tuple[int, int]:
    """Lines of tokens after the base crop in the bare model, and their length without the newline."""
    if not crops:
        return 1, 0
    lines, columns = map(len, _window(config, image_size))
    # None: LLaVA-NeXT, which never shrinks.
    said = getattr(config, "vision_aspect_ratio", None)
    if said is None:
        return lines, columns
    most = str(said).removeprefix("anyres_max_")
    if not most.isdecimal() or not int(most):
        raise BadArgumentError(
            f"vision_aspect_ratio={said!r} of the model's config; it must be 'anyres_max_N', such as "
            "'anyres_max_9': larger images are shrunk to the tokens of N crops"
        )
    ratio = sqrt(lines * columns / (int(most) * _side(config) ** 2))
    # 1.1 is the bare model's: what is hardly too large is left as it is.
    return (int(lines // ratio), int(columns // ratio)) if ratio > 1.1 else (lines, columns)


def _window(config: Any, image_size: tuple[int, int]) -> tuple[range, range]:
    """Lines and columns of the stitched grid's tokens that are not letterbox in the bare model."""
    rows, columns = _grid(config, image_size)
    height, width = rows * _side(config), columns * _side(config)
    tall, wide = image_size
    if wide / tall > width / height:
        edge = _edge(height, tall * (width / wide))
        return range(edge, height - edge), range(width)
    edge = _edge(width, wide * (height / tall))
    return range(height), range(edge, width - edge)


def _edge(length: int, image: float) -> int:
    # Rounded first, so that a product just below an integer is that integer, as in the bare model.
    return (length - int(round(image, 7))) // 2


def _grid(config: Any, image_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of crops: of the sizes on offer, that which shows most of the image's pixels.

    Of those that show as many it is the smallest, of those the first.
    """
    tall, wide = image_size

    def worth(size: tuple[int, int]) -> tuple[int, int]:
        height, width = size
        scale = min(width / wide, height / tall)
        shown = min(int(wide * scale) * int(tall * scale), wide * tall)
        return shown, shown - height * width

    height, width = max(config.image_grid_pinpoints, key=worth)
    crop = config.vision_config.image_size
    return height // crop, width // crop
