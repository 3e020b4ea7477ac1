"""What was merged with what: do the tokens of different digits end up in one?

The shipped model was taught to name the digit of every patch token (see its card), so tokens of the same
digit may be alike wherever they lie. Looked at are pairs of patches that show ink and are part of one
token in the end: from one cell, or from two; and of the latter, how many show the same digit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from collage_runs import BATCH, PREFIX, Collages
from torch import Tensor

import tokenzoo
from tokenzoo import Recipe
from tokenzoo.tools import digits


def pairs(collages: Collages, recipe: Recipe) -> dict[str, float]:
    """Shares of all pairs of inked patches in one token: of one cell; of two cells, and one digit.

    Returns:
        "one cell"; "one digit": among the pairs from two cells; "by chance": the same among all pairs
        of inked patches from two cells, merged or not.
    """
    model, data = collages.model, collages.data
    sums = torch.zeros(3, 2, dtype=torch.float64)
    with tokenzoo.build(recipe).attach(model, trace=True) as attached:
        for start in range(0, len(data.images), BATCH):
            part = slice(start, start + BATCH)
            with torch.inference_mode():
                model(data.images[part])
            token = attached.record.dst[:, PREFIX:]  # [b, n]
            together = (token[:, :, None] == token[:, None]) & (token >= 0)[:, :, None]
            sums += counted(together, inked(data.images[part]), data.digits[part])
    one_cell, one_digit, chance = (part / whole for part, whole in sums.tolist())
    return {"one cell": one_cell, "one digit": one_digit, "by chance": chance}


def counted(together: Tensor, ink: Tensor, labels: Tensor) -> Tensor:
    """Pairs of inked patches, `[3, 2]`: part and whole of the three shares of `pairs`.

    `together [b, n, n]` bool: in one token; `ink [b, n]` bool; `labels [b, cells]`: the digits.
    """
    side = int(together.shape[1] ** 0.5)
    patch = torch.arange(side * side)
    per_cell = digits.CELL // digits.PATCH
    cells = side // per_cell
    cell = patch // side // per_cell * cells + patch % side // per_cell  # [n]
    digit = labels[:, cell]  # [b, n]
    both = (ink[:, :, None] & ink[:, None]).triu(diagonal=1)  # [b, n, n]
    same_cell = cell[:, None] == cell
    same_digit = digit[:, :, None] == digit[:, None]
    apart = both & ~same_cell
    shares = [
        (both & together & same_cell, both & together),
        (apart & together & same_digit, apart & together),
        (apart & same_digit, apart),
    ]
    return torch.tensor([[part.sum(), whole.sum()] for part, whole in shares], dtype=torch.float64)


def inked(images: Tensor) -> Tensor:
    """Patches `[b, n]` that show ink: a pixel is bright in green, which the red tint is not."""
    return (F.max_pool2d(images[:, 1:2], digits.PATCH) > 0.2).flatten(1)
