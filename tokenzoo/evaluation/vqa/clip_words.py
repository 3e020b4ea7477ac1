"""The vocabulary of the task `clips`: that of `collage-vqa`, and words for what is where, and when.

A cell at a time, or what is looked for at a place, is one word ("b2-three", "red-b2"), so that a question
has four words as those about collages have.
"""

from __future__ import annotations

from tokenzoo.evaluation.vqa.clips import FRAMES, GRID
from tokenzoo.evaluation.vqa.collages import COLOURS
from tokenzoo.evaluation.vqa.vocabulary import Vocabulary
from tokenzoo.evaluation.vqa.words import DIGITS, NUMBERS, WORDS

PLACES = tuple(f"{row}{column}" for row in "ab"[:GRID] for column in range(1, GRID + 1))
"""Names of the cells of a frame, row by row: a1, a2, b1, b2."""

TIMES = NUMBERS[1 : FRAMES + 1]
"""Names of the frames: one to eight."""

CELLS_THEN = tuple(f"{place}-{time}" for time in TIMES for place in PLACES)
"""A cell in a frame, frame by frame."""

DOTS_THEN = tuple(f"dot-{time}" for time in TIMES)
"""The dot in a frame."""

COLOURS_THERE = tuple(f"{colour}-{place}" for colour in COLOURS for place in PLACES)
DIGITS_THERE = tuple(f"{digit}-{place}" for digit in DIGITS for place in PLACES)
CHANGES_THERE = tuple(f"change-{place}" for place in PLACES)
"""A colour, a digit and a change at a place."""

ENDS = tuple(f"{place}-{end}" for end in ("first", "last") for place in PLACES)
"""A cell in the first and in the last frame."""

MORE = (
    "frame",
    "when",
    "cut",
    *CELLS_THEN,
    *DOTS_THEN,
    *COLOURS_THERE,
    *DIGITS_THERE,
    *CHANGES_THERE,
    *ENDS,
)
CLIP_WORDS = Vocabulary("clips", (*WORDS.own, *MORE))
"""The words of collages have the same tokens, so that their weights are a start."""
