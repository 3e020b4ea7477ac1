"""Pages of a form: lines with a key and a value, printed by Pillow, a stamp, and a frame or none.

A page of 224 x 224 pixels has eight slots for lines, of 28 pixels (two patches of the tower). Four to seven
of them have a line, a key in the left column and a value in the right one; one of the blank slots has a
round stamp in one of its columns. A word is 16 points high, and most of its ink is in three patches. The
font is DejaVu Sans Bold, which matplotlib brings.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenzoo._core.needs import need
from tokenzoo._core.validation import check_choice, check_count

SLOTS, COLUMNS = 8, 2
SIDE = 224  # pixels on a side of a page
HEIGHT = SIDE // SLOTS  # pixels of a slot
FAMILIES = (
    ("cap", "cup", "cop"), ("hat", "hot", "hut"), ("pen", "pin", "pan"), ("bed", "bad", "bid"),
    ("dog", "dig", "dug"), ("net", "nut", "not"), ("oil", "owl"), ("sky", "ski"), ("map", "mop"),
    ("fog", "fig"), ("van", "fan"), ("zip", "zap"), ("toy", "tea"),
)  # fmt: skip
"""Values; those of a family differ in a letter, but for the last."""

VALUES = tuple(word for family in FAMILIES for word in family)
KEYS = ("name", "date", "rate", "city", "item", "unit", "code", "paid", "size", "site")
FRAMES = ("plain", "box", "rule")
"""Nothing, a rectangle around the page, a line between the columns."""

STAMPS = ((200, 40, 40), (30, 140, 60), (40, 70, 200))
FONT, POINTS = "DejaVuSans-Bold.ttf", 16
LEFTS = (17, 129)  # where the columns begin
BASELINE = 23  # pixels from the top of a slot
SHIFT = (3, 1)  # pixels by which a word is off its place at most
RADIUS = 9  # of a stamp


@dataclass(frozen=True)
class Page:
    """What is on a page.

    Attributes:
        keys: the word in the left column of each slot; None: the slot is blank.
        values: the word in the right column of each slot; None where the key is.
        stamp: the cell with the stamp: twice its slot, plus 1 if it is in the right column; None: there is
            none, as in a part of a page.
        frame: one of `FRAMES`.
    """

    keys: Sequence[str | None]
    values: Sequence[str | None]
    stamp: int | None
    frame: str


def pages(split: str, count: int, *, seed: int) -> list[Page]:
    """Draw pages; the same arguments give the same pages, and other splits others.

    Each page has two equal values, one that differs from them in a letter, and keys of which none is equal.

    Raises:
        BadArgumentError: no such split, or a count below 1.
    """
    check_choice("split", split, "train", "validation", "test")
    check_count("count", count)
    check_count("seed", seed, least=0)
    rng = random.Random(f"{split} {seed}")
    return [_page(rng) for _ in range(count)]


def _page(rng: random.Random) -> Page:
    used = sorted(rng.sample(range(SLOTS), rng.randint(4, 7)))
    twice, near = rng.sample(rng.choice(FAMILIES), 2)
    others = rng.sample([word for word in VALUES if word not in (twice, near)], len(used) - 3)
    words = [twice, twice, near, *others]
    rng.shuffle(words)
    lines = zip(used, rng.sample(KEYS, len(used)), words, strict=True)
    found = {slot: (key, value) for slot, key, value in lines}
    keys, values = ([found.get(slot, (None, None))[i] for slot in range(SLOTS)] for i in (0, 1))
    blank = [slot for slot in range(SLOTS) if slot not in found]
    stamp = COLUMNS * rng.choice(blank) + rng.randrange(COLUMNS)
    return Page(keys, values, stamp, rng.choice(FRAMES))


def printed(pages: Sequence[Page], *, seed: int) -> Tensor:
    """Print pages: `[b, 3, 224, 224]` in 0..1.

    Args:
        pages: that are printed.
        seed: of paper, ink, noise and small shifts.

    Raises:
        MissingDependencyError: Pillow or matplotlib is not installed.
    """
    rng = random.Random(seed)
    images = torch.stack([_printed(page, rng) for page in pages])
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images + 0.01 * noise).clamp(0, 1)


def _printed(page: Page, rng: random.Random) -> Tensor:
    tint = rng.randint(232, 252)
    image = need("PIL.Image", "eval").new(
        "RGB", (SIDE, SIDE), (tint, tint, tint - rng.randint(0, 8))
    )
    draw = need("PIL.ImageDraw", "eval").Draw(image)
    grey = (rng.randint(60, 140),) * 3
    if page.frame == "box":
        inset = rng.randint(1, 3)
        draw.rectangle((inset, inset, SIDE - 1 - inset, SIDE - 1 - inset), outline=grey, width=2)
    if page.frame == "rule":
        x = rng.randint(104, 108)
        draw.line((x, 8, x, SIDE - 9), fill=grey, width=2)
    for left, words in zip(LEFTS, (page.keys, page.values), strict=True):
        for slot, word in enumerate(words):
            if word is not None:
                x = left + rng.randint(-SHIFT[0], SHIFT[0])
                y = slot * HEIGHT + BASELINE + rng.randint(-SHIFT[1], SHIFT[1])
                ink = (rng.randint(0, 60),) * 3
                draw.text((x, y), word, font=_font(), fill=ink, anchor="ls")
    if page.stamp is not None:
        slot, column = divmod(page.stamp, COLUMNS)
        x, y = LEFTS[column] + rng.randint(10, 40), slot * HEIGHT + rng.randint(12, 16)
        draw.ellipse((x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS), fill=rng.choice(STAMPS))
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.reshape(SIDE, SIDE, 3).permute(2, 0, 1) / 255


@cache
def _font() -> Any:
    """Load the font, with Pillow's own layout: others kern."""
    fonts = need("PIL.ImageFont", "eval")
    path = Path(need("matplotlib", "eval").get_data_path()) / "fonts" / "ttf" / FONT
    return fonts.truetype(str(path), POINTS, layout_engine=fonts.Layout.BASIC)
