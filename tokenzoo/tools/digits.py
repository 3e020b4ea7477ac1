"""A small vision task out of real images that are on disk after installation, and a model for it.

A collage is a 4x4 grid of handwritten digits (scikit-learn's `load_digits`, 1,797 real 8x8 scans),
one of them marked by a tinted background. Two questions are asked of it: which digit is marked
(one detail), and how many there are of each digit (the whole image). The second one is what a
small token budget hurts: a token that is gone takes a part of some digit along.

The shipped model, `load_digits_vit()`, is a plain timm `VisionTransformer` trained without any
token reduction, so it favours no method. `tokenzoo/weights/README.md` is its model card, and
`benchmarks/train_digits.py` the script that made it. All of this needs `pip install
'tokenzoo[demo]'`; the module itself imports without scikit-learn and timm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor

from tokenzoo._core.needs import need
from tokenzoo.errors import BadArgumentError

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

__all__ = [
    "CELL",
    "COUNT_CLASSES",
    "PATCH",
    "Collages",
    "Digits",
    "accuracy",
    "collages",
    "digits_vit",
    "load_digits_vit",
    "splits",
]

CELL = 16  # pixels on a side of one cell
PATCH = 4  # pixels on a side of one patch token: 16 tokens per cell
COUNT_CLASSES = 5  # a digit occurs 0, 1, 2, 3, or "4 or more" times
WEIGHTS = "digits_vit.safetensors"


@dataclass(frozen=True)
class Digits:
    """Some of the 1,797 digits: `images` [n, 8, 8] float32 in 0..1 (0 is paper, 1 is ink),
    `labels` [n] int64 in 0..9, `indices` [n] int64: the rows of `load_digits()` they came from.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor


@dataclass(frozen=True)
class Collages:
    """Collages of g x g digits, with their labels.

    `images` [b, 3, 16g, 16g] float32 in -1..1, `digits` [b, g*g] int64 in 0..9, row by row,
    `marked` [b] int64 in 0..g*g-1: the cell with the tinted background.
    """

    images: Tensor
    digits: Tensor
    marked: Tensor

    @property
    def answer(self) -> Tensor:
        """The marked digit, [b] int64 in 0..9."""
        return self.digits.gather(1, self.marked[:, None])[:, 0]

    @property
    def counts(self) -> Tensor:
        """How often each digit occurs, [b, 10] int64 (true counts: not cut off at 4)."""
        return F.one_hot(self.digits, 10).sum(dim=1)


@lru_cache(maxsize=1)
def splits() -> dict[str, Digits]:
    """The digits in three parts that share none: 'train', 'validation' and 'test'.

    Of every six successive digits of a class, four go to train, one to validation and one to test:
    1,204 / 297 / 296 digits, the same ones on every call and every machine, with every class in
    its share. The parts share no scan, but they do share writers.

    Raises `MissingDependencyError` without scikit-learn.
    """
    data = need("sklearn.datasets", "demo", "scikit-learn").load_digits()
    images = torch.tensor(data.images, dtype=torch.float32) / 16  # [1797, 8, 8]; stored as 0..16
    labels = torch.tensor(data.target, dtype=torch.int64)  # [1797]
    # Each digit's number among those of its own class. Taking every sixth row of the file instead
    # would go wrong: the file runs through 0..9 again and again, so that would pick even digits.
    rank = F.one_hot(labels, 10).cumsum(0).gather(1, labels[:, None])[:, 0] - 1  # [1797]
    turn = rank % 6
    parts = {"train": turn < 4, "validation": turn == 4, "test": turn == 5}
    return {
        name: Digits(images[mask], labels[mask], mask.nonzero()[:, 0])
        for name, mask in parts.items()
    }


def collages(
    split: str, count: int, *, seed: int, cells: int = 4, augment: bool = False
) -> Collages:
    """Draw `count` collages of `cells` x `cells` digits of one split, with replacement.

    The same arguments give the same collages, bit for bit (on one version of torch). Every digit is
    enlarged to 14 to 16 pixels, shifted by up to a pixel and a half, and given its own contrast
    and background; every pixel gets a little noise. `augment` is for training: it also turns,
    slants and stretches the digits, as there are only about 1,200 of them.

    Raises `BadArgumentError` for an unknown split, or a count or number of cells below 1.
    """
    parts = splits()
    if split not in parts:
        raise BadArgumentError(f"no split {split!r}: pass one of {', '.join(parts)}")
    if count < 1 or cells < 1:
        raise BadArgumentError(f"count and cells must be 1 or more, not {count} and {cells}")
    source = parts[split]
    g = torch.Generator().manual_seed(seed)
    n = count * cells * cells

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=g) * (high - low) + low

    pick = torch.randint(len(source.labels), (n,), generator=g)  # [n]
    marked = torch.randint(cells * cells, (count,), generator=g)  # [b]

    # affine_grid maps the cell's coordinates (-1..1) to the digit's: scale 16/14 shows the digit
    # 14 pixels wide, and what lies outside it is paper (zero padding).
    scale = uniform(1.0, CELL / 14, n)
    shift = uniform(-3 / CELL, 3 / CELL, n, 2)  # 1.5 pixels; a cell is 2 units, or 16 pixels, wide
    angle, slant = torch.zeros(n), torch.zeros(n)
    stretch = torch.ones(n)
    if augment:
        angle = uniform(-math.pi / 12, math.pi / 12, n)
        slant = uniform(-0.2, 0.2, n)
        stretch = uniform(0.85, 1.15, n)
    sin, cos = angle.sin() * scale, angle.cos() * scale
    row_x = torch.stack([cos * stretch, slant * cos - sin, shift[:, 0]], dim=1)  # [n, 3]
    row_y = torch.stack([sin * stretch, slant * sin + cos, shift[:, 1]], dim=1)  # [n, 3]
    grid = F.affine_grid(torch.stack([row_x, row_y], 1), [n, 1, CELL, CELL], align_corners=False)
    ink = F.grid_sample(source.images[pick][:, None], grid, align_corners=False)  # [n, 1, 16, 16]

    paper = uniform(-0.9, -0.6, n, 1, 1, 1) + uniform(-0.06, 0.06, n, 3, 1, 1)  # [n, 3, 1, 1]
    tint = torch.tensor([1.0, -0.2, -0.2])[:, None, None] * uniform(0.4, 0.7, n, 1, 1, 1)
    is_marked = F.one_hot(marked, cells * cells).reshape(n, 1, 1, 1)  # [n, 1, 1, 1]
    paper = paper + tint * is_marked
    ink_level = uniform(0.6, 1.0, n, 1, 1, 1)
    pixels = paper + (ink_level - paper) * ink  # [n, 3, 16, 16]
    pixels = pixels.reshape(count, cells, cells, 3, CELL, CELL).permute(0, 3, 1, 4, 2, 5)
    images = pixels.reshape(count, 3, cells * CELL, cells * CELL)  # [b, 3, 16g, 16g]
    images = images + 0.05 * torch.randn(images.shape, generator=g)
    digits = source.labels[pick].reshape(count, cells * cells)  # [b, g*g]
    return Collages(images.clamp(-1, 1), digits, marked)


def digits_vit() -> VisionTransformer:
    """The architecture, with random weights, in training mode: a plain timm `VisionTransformer`.

    [b, 3, 64, 64] in, 256 patch tokens of 4x4 pixels and a class token, 12 blocks of width 96 with
    3 heads, [b, 60] out: 10 logits for the marked digit, then 5 for the count of each digit
    (0, 1, 2, 3, 4 or more), digit by digit.

    Raises `MissingDependencyError` without timm.
    """
    vit: VisionTransformer = need(
        "timm.models.vision_transformer", "demo", "timm"
    ).VisionTransformer(
        img_size=4 * CELL,
        patch_size=PATCH,
        embed_dim=96,
        depth=12,
        num_heads=3,
        mlp_ratio=4.0,
        global_pool="token",
        num_classes=10 + 10 * COUNT_CLASSES,
    )
    return vit


def load_digits_vit() -> VisionTransformer:
    """`digits_vit()` with the shipped weights, in eval mode: float16 on disk, float32 in memory.

    Raises `MissingDependencyError` without timm.
    """
    vit = digits_vit()
    state = load((files("tokenzoo") / "weights" / WEIGHTS).read_bytes())
    vit.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return vit.eval()


def accuracy(logits: Tensor, collages: Collages) -> dict[str, float]:
    """Compute the accuracy of logits [b, 60], as fractions in 0..1.

    'marked': the marked digit; 'counts': the ten counts of a collage, each for itself;
    'all counts': collages with all ten counts right.
    """
    target = collages.counts.clamp(max=COUNT_CLASSES - 1)  # [b, 10]
    marked = logits[:, :10].argmax(dim=1) == collages.answer  # [b]
    guess = logits[:, 10:].reshape(-1, 10, COUNT_CLASSES).argmax(dim=2)  # [b, 10]
    right = guess == target  # [b, 10]
    return {
        "marked": marked.float().mean().item(),
        "counts": right.float().mean().item(),
        "all counts": right.all(dim=1).float().mean().item(),
    }
