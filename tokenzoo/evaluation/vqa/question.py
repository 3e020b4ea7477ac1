"""A question with an answer of one word, whatever it is about."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A question and its answer.

    Attributes:
        kind: one of the kinds of its task.
        words: four, the last is the question mark.
        answer: one word.
    """

    kind: str
    words: tuple[str, str, str, str]
    answer: str
