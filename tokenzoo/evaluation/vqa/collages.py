"""Collages: 4 x 4 handwritten digits in four colours, and one cell with a small white dot.

The digits are the 8 x 8 scans of scikit-learn, in the splits of `tokenzoo.tools.digits`: no scan of a test
collage is in a training collage. A cell has 56 x 56 pixels, which are 4 x 4 patches of the tower; the dot
has 9 pixels across, less than a patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, one_hot

from tokenzoo._core.validation import check_choice, check_count
from tokenzoo.tools import digits

GRID = 4  # cells on a side
CELLS = GRID * GRID
SIDE = 56  # pixels on a side of a cell
COLOURS = {
    "red": (0.95, 0.20, 0.20),
    "green": (0.20, 0.85, 0.25),
    "blue": (0.30, 0.45, 1.00),
    "yellow": (0.95, 0.85, 0.20),
}
DOT = 4.5  # radius in pixels
CORNER = 7  # pixels from the edges of a cell to the middle of the dot: the middle of a patch


@dataclass(frozen=True)
class Collages:
    """Collages, and what is in them.

    Attributes:
        images: `[b, 3, 224, 224]` in 0..1.
        digits: `[b, 16]` int64 in 0..9, row by row. At least one digit occurs exactly once.
        colours: `[b, 16]` int64, indices into `COLOURS`. One colour is in more cells than any other.
        dots: `[b]` int64 in 0..15, the cell with the dot.
    """

    images: Tensor
    digits: Tensor
    colours: Tensor
    dots: Tensor


def collages(split: str, count: int, *, seed: int, augment: bool = False) -> Collages:
    """Draw collages of one split; the same arguments give the same collages.

    Args:
        split: "train", "validation" or "test".
        count: number of collages.
        seed: of all that is drawn.
        augment: also turn, slant and stretch the digits, for training.

    Raises:
        BadArgumentError: no such split, or a count below 1.
        MissingDependencyError: scikit-learn is not installed.
    """
    source = digits.splits()[check_choice("split", split, "train", "validation", "test")]
    check_count("count", count)
    check_count("seed", seed, least=0)
    g = torch.Generator().manual_seed(seed)
    labels = _labels(count, g)  # [b, 16]
    colours = _colours(count, g)  # [b, 16]
    dots = torch.randint(CELLS, (count,), generator=g)  # [b]
    weights = (source.labels == torch.arange(10)[:, None]).double()  # [10, scans]
    picks = torch.multinomial(weights[labels.flatten()], 1, generator=g)[:, 0]  # [b * 16]
    ink = enlarged(source.images[picks][:, None], g, augment)  # [b * 16, 1, 56, 56]
    paint = torch.tensor(list(COLOURS.values()))[colours.flatten()]  # [b * 16, 3]
    paint = paint * uniform(g, 0.8, 1.0, len(paint), 1)
    paper = uniform(g, 0.03, 0.20, len(paint), 1, 1, 1)
    pixels = paper + (paint[:, :, None, None] - paper) * ink  # [b * 16, 3, 56, 56]
    marked = one_hot(dots, CELLS).bool().flatten()
    pixels[marked] = torch.where(disc(count, g), 1.0, pixels[marked])
    cells = pixels.reshape(count, GRID, GRID, 3, SIDE, SIDE).permute(0, 3, 1, 4, 2, 5)
    images = cells.reshape(count, 3, GRID * SIDE, GRID * SIDE)
    images = images + 0.02 * torch.randn(images.shape, generator=g)
    return Collages(images.clamp(0, 1), labels, colours, dots)


def uniform(g: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    """Draw numbers between `low` and `high`, in `shape`."""
    return torch.rand(*shape, generator=g) * (high - low) + low


def _labels(count: int, g: torch.Generator) -> Tensor:
    """Draw digits `[b, 16]`, again for collages in which no digit occurs exactly once."""
    labels = torch.randint(10, (count, CELLS), generator=g)
    while (bad := ~(one_hot(labels, 10).sum(1) == 1).any(1)).any():
        labels[bad] = torch.randint(10, (int(bad.sum()), CELLS), generator=g)
    return labels


def _colours(count: int, g: torch.Generator) -> Tensor:
    """Draw colours `[b, 16]`, again for collages in which two colours are the most common ones."""
    kinds = len(COLOURS)
    colours = torch.randint(kinds, (count, CELLS), generator=g)
    while True:
        first, second = one_hot(colours, kinds).sum(1).topk(2).values.unbind(1)  # [b]
        bad = first == second
        if not bad.any():
            return colours
        colours[bad] = torch.randint(kinds, (int(bad.sum()), CELLS), generator=g)


def enlarged(scans: Tensor, g: torch.Generator, augment: bool, side: int = SIDE) -> Tensor:
    """Enlarge scans `[n, 1, 8, 8]` to 44 to 52 of 56 pixels, and shift them by up to 3 pixels.

    With another `side` the same shares of it, `[n, 1, side, side]`. `augment`: also turn and stretch them.
    """
    n = len(scans)
    scale, shift = uniform(g, SIDE / 52, SIDE / 44, n), uniform(g, -6 / SIDE, 6 / SIDE, n, 2)
    angle, slant, stretch = torch.zeros(n), torch.zeros(n), torch.ones(n)
    if augment:
        angle, slant = uniform(g, -0.25, 0.25, n), uniform(g, -0.2, 0.2, n)
        stretch = uniform(g, 0.87, 1.15, n)
    sin, cos = angle.sin() * scale, angle.cos() * scale
    first = torch.stack([cos * stretch, slant * cos - sin, shift[:, 0]], 1)  # [n, 3]
    second = torch.stack([sin * stretch, slant * sin + cos, shift[:, 1]], 1)
    where = affine_grid(torch.stack([first, second], 1), [n, 1, side, side], align_corners=False)
    return grid_sample(scans, where, mode="bicubic", align_corners=False).clamp(0, 1)


def disc(count: int, g: torch.Generator, side: int = SIDE) -> Tensor:
    """Return a disc in a random corner of each of `count` cells, `[count, 1, side, side]` bool."""
    corners = torch.randint(2, (count, 2), generator=g) * (side - 2 * CORNER) + CORNER  # [b, 2]
    near = (torch.arange(side) + 0.5 - corners[:, :, None]) ** 2  # [b, 2, 56]
    return (near[:, 0, :, None] + near[:, 1, None, :] < DOT**2)[:, None]
