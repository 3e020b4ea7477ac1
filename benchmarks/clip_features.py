"""What the tower says of frames, kept on disk, of which the clips of `train_clips.py` are put together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import vqa_training as training
from torch import Tensor
from vqa_training import CHUNK

from tokenzoo.evaluation.vqa.clips import (
    CELLS,
    FRAMES,
    GRID,
    SIDE,
    Story,
    clips,
    framed,
    lit,
    painted,
    story,
)
from tokenzoo.evaluation.vqa.collages import COLOURS, disc

PER_CELL = SIDE // 14  # patches on a side of a cell
# The cell in which each patch of a frame lies: [36]
CELL_OF = torch.arange(GRID * PER_CELL).div(PER_CELL, rounding_mode="floor")
CELL_OF = (CELL_OF[:, None] * GRID + CELL_OF).flatten()


@dataclass
class Sources:
    """Frames of which clips are made: x [s, 2, 36, c], without dots and with; digits, colours [s, 4].

    `whole`: clips as they are. All cells of a frame of the other kind have a dot, or none has, and a patch
    anywhere in it knows which: from them alone it is not learned where the dot is.
    """

    x: Tensor
    digits: Tensor
    colours: Tensor
    whole: tuple[Tensor, Story] | None = None

    @staticmethod
    def read(folder: Path) -> Sources:
        found = training.cached(folder, "train")
        x = torch.cat([one["x"].unflatten(0, (2, -1)).transpose(0, 1) for one in found])
        digits, colours = (
            torch.cat([one[name] for one in found]) for name in ("digits", "colours")
        )
        return Sources(x, digits, colours, whole(folder, "whole"))

    def drawn(self, count: int, g: torch.Generator) -> tuple[Tensor, Story]:
        """Draw `count` whole clips."""
        if self.whole is None:
            raise SystemExit("there are no whole clips")
        x, told = self.whole
        index = torch.randint(len(x), (count,), generator=g)
        return x[index], Story(**{name: value[index] for name, value in vars(told).items()})

    def clips(self, count: int, frames: int, g: torch.Generator) -> tuple[Tensor, Story]:
        """Put clips together: features [b, f, 36, c], and what they show."""
        told = story(count, frames, g)
        wanted = (told.digits * len(COLOURS) + told.colours)[..., None]  # [b, 2, 4, 1]
        fits = wanted == (self.digits * len(COLOURS) + self.colours).T  # [b, 2, 4, s]
        if not fits.any(-1).all():
            raise SystemExit("too few frames for all digits in all colours: cache more")
        owner = (torch.rand(fits.shape, generator=g) * fits).argmax(-1)  # [b, 2, 4]
        owner = told.seen(owner)[:, :, CELL_OF]  # [b, f, 36]
        dotted = (told.dots[:, :, None] == CELL_OF).long()
        return self.x[owner, dotted, torch.arange(len(CELL_OF))], told


def drawn_chunk(split: str, chunk: int) -> tuple[Tensor, dict[str, Any]]:
    """Draw the frames of a chunk, and what is kept of them.

    For training eight frames, each without a dot and with one in every cell ("train"), or whole clips
    ("whole"); for validation whole clips.
    """
    if split != "train":
        part = "train" if split == "whole" else split
        made = clips(part, CHUNK // FRAMES, seed=chunk, augment=split == "whole")
        return made.images.flatten(0, 1), vars(made.story)
    g = torch.Generator().manual_seed(chunk)
    digits = torch.randint(10, (CHUNK // 2, CELLS), generator=g)
    colours = torch.randint(len(COLOURS), (CHUNK // 2, CELLS), generator=g)
    cells = painted(split, digits.flatten(), colours.flatten(), g, augment=True)
    dotted = torch.where(disc(len(cells), g, SIDE), 1.0, cells)
    both = (
        torch.stack([cells, dotted]).unflatten(1, (-1, CELLS)).flatten(0, 1)
    )  # [16, 4, 3, 42, 42]
    return lit(framed(both), g), {"digits": digits, "colours": colours}


def whole(folder: Path, split: str) -> tuple[Tensor, Story]:
    """Read whole clips: features [b, f, 36, c], and what they show."""
    found = training.cached(folder, split)
    x = torch.cat([one.pop("x").unflatten(0, (-1, FRAMES)) for one in found])
    return x, Story(**{name: torch.cat([one[name] for one in found]) for name in found[0]})
