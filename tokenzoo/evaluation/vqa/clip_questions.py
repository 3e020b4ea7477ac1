"""Questions about a clip, of seven kinds: four words each, with an answer of one word.

    coarse:  colour at b2-three ?        fine:  digit at b2-three ?
             count all red-b2 ?                 digit at b2-last ?      (or b2-first)
             when is cut ?                      when is change-b2 ?
                                                where is dot-three ?

Coarse questions are about colours, which fill a cell, and the cut, which changes a whole frame; fine ones
about the shape of a digit, or the dot. What is counted are frames. Of a cut and of a change the answer is
the first frame after it, or "none".
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from tokenzoo.evaluation.vqa.clip_words import PLACES, TIMES
from tokenzoo.evaluation.vqa.clips import CELLS, Story
from tokenzoo.evaluation.vqa.collages import COLOURS
from tokenzoo.evaluation.vqa.question import Question
from tokenzoo.evaluation.vqa.words import DIGITS, END, NUMBERS

PAINTS = tuple(COLOURS)


@dataclass(frozen=True)
class Timeline:
    """What one clip shows.

    Attributes:
        digits: of the four cells, frame by frame.
        colours: of the four cells, frame by frame, indices into `COLOURS`.
        changes: of each cell, the index of the first frame after its change; 0: it never changes.
        cut: the index of the first frame after the cut; 0: there is none.
        dots: the cell with the dot, frame by frame.
    """

    digits: Sequence[Sequence[int]]
    colours: Sequence[Sequence[int]]
    changes: Sequence[int]
    cut: int
    dots: Sequence[int]


Ask = Callable[[Timeline, random.Random], Question]


def timelines(told: Story) -> list[Timeline]:
    """Return what each clip shows."""
    digits, colours = (told.seen(values) for values in (told.digits, told.colours))
    return [
        Timeline(
            [_ints(row) for row in digits[clip]],
            [_ints(row) for row in colours[clip]],
            _ints(told.changes[clip]),
            int(told.cuts[clip]),
            _ints(told.dots[clip]),
        )
        for clip in range(len(told.cuts))
    ]


def _ints(values: Tensor) -> list[int]:
    return [int(value) for value in values]


def ask_clip(kind: str, clip: Timeline, rng: random.Random) -> Question:
    """Return a random question of a kind, one of `CLIP_KINDS`; every clip has an answer to each."""
    return CLIP_KINDS[kind](clip, rng)


def _at(clip: Timeline, rng: random.Random) -> tuple[int, int]:
    """Return a frame and a cell."""
    return rng.randrange(len(clip.dots)), rng.randrange(CELLS)


def _changed(clip: Timeline, rng: random.Random, share: float) -> int:
    """Return a cell: in this share of the cases one that changes."""
    if rng.random() < share:
        return rng.choice([cell for cell in range(CELLS) if clip.changes[cell]])
    return rng.randrange(CELLS)


def _colour_at(clip: Timeline, rng: random.Random) -> Question:
    frame, cell = _at(clip, rng)
    words = ("colour", "at", _then(PLACES[cell], frame), END)
    return Question("colour-at", words, PAINTS[clip.colours[frame][cell]])


def _digit_at(clip: Timeline, rng: random.Random) -> Question:
    frame, cell = _at(clip, rng)
    words = ("digit", "at", _then(PLACES[cell], frame), END)
    return Question("digit-at", words, DIGITS[clip.digits[frame][cell]])


def _dot_where(clip: Timeline, rng: random.Random) -> Question:
    frame = rng.randrange(len(clip.dots))
    words = ("where", "is", _then("dot", frame), END)
    return Question("dot-where", words, PLACES[clip.dots[frame]])


def _colour_count(clip: Timeline, rng: random.Random) -> Question:
    # In three of four cases the colour is there in a frame.
    cell = _changed(clip, rng, 0.7)
    there = [row[cell] for row in clip.colours]
    asked = rng.choice((there[0], there[-1], there[-1], rng.randrange(len(PAINTS))))
    words = ("count", "all", f"{PAINTS[asked]}-{PLACES[cell]}", END)
    return Question("colour-count", words, NUMBERS[there.count(asked)])


def _cut_when(clip: Timeline, rng: random.Random) -> Question:
    del rng
    return Question("cut-when", ("when", "is", "cut", END), _frame(clip.cut))


def _change_when(clip: Timeline, rng: random.Random) -> Question:
    cell = _changed(clip, rng, 0.7)
    words = ("when", "is", f"change-{PLACES[cell]}", END)
    return Question("change-when", words, _frame(clip.changes[cell]))


def _digit_order(clip: Timeline, rng: random.Random) -> Question:
    cell, last = _changed(clip, rng, 1.0), rng.random() < 0.5
    words = ("digit", "at", f"{PLACES[cell]}-{'last' if last else 'first'}", END)
    return Question("digit-order", words, DIGITS[clip.digits[-1 if last else 0][cell]])


def _then(what: str, frame: int) -> str:
    return f"{what}-{TIMES[frame]}"


def _frame(index: int) -> str:
    """Return the number of a frame; "none" for the first, after which nothing can have changed."""
    return NUMBERS[index + 1] if index else NUMBERS[0]


CLIP_COARSE: Mapping[str, Ask] = {
    "colour-at": _colour_at,
    "colour-count": _colour_count,
    "cut-when": _cut_when,
}
CLIP_FINE: Mapping[str, Ask] = {
    "digit-at": _digit_at,
    "digit-order": _digit_order,
    "change-when": _change_when,
    "dot-where": _dot_where,
}
CLIP_KINDS: Mapping[str, Ask] = {**CLIP_COARSE, **CLIP_FINE}
