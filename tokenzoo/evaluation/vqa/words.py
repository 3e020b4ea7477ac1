"""The vocabulary of the task `collage-vqa`."""

from __future__ import annotations

from tokenzoo.evaluation.vqa.collages import COLOURS, GRID
from tokenzoo.evaluation.vqa.vocabulary import END as END
from tokenzoo.evaluation.vqa.vocabulary import Vocabulary

PLACES = tuple(f"{row}{column}" for row in "abcd"[:GRID] for column in range(1, GRID + 1))
"""Names of the cells, row by row: a1 to d4."""

DIGITS = tuple(f"digit{digit}" for digit in range(10))
"""Digits as what is seen, which are other words than the numbers of a count."""

NUMBERS = (
    "none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine or more",
)  # fmt: skip
ANSWERS = (*PLACES, *DIGITS, *COLOURS, *NUMBERS, "yes", "no")
QUESTION = ("digit", "colour", "at", "count", "all", "where", "is", "dot", "like", "most", "common")
WORDS = Vocabulary("collage-vqa", (*QUESTION, *ANSWERS))
VOCABULARY = WORDS.words
INDEX = WORDS.index
encode = WORDS.encode
