"""The vocabulary of the small LLaVA: one token a word, no tokenizer to download."""

from __future__ import annotations

from collections.abc import Sequence

from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation.vqa.collages import COLOURS, GRID

PAD, BOS, IMAGE = "<pad>", "<bos>", "<image>"
PLACES = tuple(f"{row}{column}" for row in "abcd"[:GRID] for column in range(1, GRID + 1))
"""Names of the cells, row by row: a1 to d4."""

DIGITS = tuple(f"digit{digit}" for digit in range(10))
"""Digits as what is seen, which are other words than the numbers of a count."""

NUMBERS = (
    "none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine or more",
)  # fmt: skip
ANSWERS = (*PLACES, *DIGITS, *COLOURS, *NUMBERS, "yes", "no")
QUESTION = ("digit", "colour", "at", "count", "all", "where", "is", "dot", "like", "most", "common")
END = "?"
VOCABULARY = (PAD, BOS, IMAGE, END, *QUESTION, *ANSWERS)
INDEX = {word: index for index, word in enumerate(VOCABULARY)}


def encode(words: Sequence[str]) -> list[int]:
    """Return the token of each word.

    Raises:
        BadArgumentError: a word is not in the vocabulary.
    """
    unknown = [word for word in words if word not in INDEX]
    if unknown:
        raise BadArgumentError(
            f"{unknown[0]!r} is not in the vocabulary of collage-vqa; its words are "
            f"{', '.join(VOCABULARY[3:])}"
        )
    return [INDEX[word] for word in words]
