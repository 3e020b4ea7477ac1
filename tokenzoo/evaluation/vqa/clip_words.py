"""The vocabulary of the task `clips`: that of `collage-vqa`, and more words."""

from __future__ import annotations

from tokenzoo.evaluation.vqa.clips import GRID
from tokenzoo.evaluation.vqa.vocabulary import Vocabulary
from tokenzoo.evaluation.vqa.words import WORDS

PLACES = tuple(f"{row}{column}" for row in "ab"[:GRID] for column in range(1, GRID + 1))
"""Names of the cells of a frame, row by row: a1, a2, b1, b2."""

MORE = ("frame", "frames", "in", "clip", "when", "does", "change", "comes", "first", "last", "cut")
CLIP_WORDS = Vocabulary("clips", (*WORDS.own, *MORE))
"""The words of collages have the same tokens, so that their weights are a start."""
