"""The words that a small LLaVA knows: one token a word, no tokenizer to download."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from tokenzoo.errors import BadArgumentError

PAD, BOS, IMAGE = "<pad>", "<bos>", "<image>"
END = "?"
MARKS = (PAD, BOS, IMAGE, END)
"""The first words of every vocabulary."""


@dataclass(frozen=True)
class Vocabulary:
    """The words of a task; the place of a word is its token.

    Attributes:
        task: that asks and answers in them, for messages.
        own: all words but `MARKS`, each once.
    """

    task: str
    own: tuple[str, ...]

    @cached_property
    def words(self) -> tuple[str, ...]:
        """All words, in the order of their tokens."""
        return (*MARKS, *self.own)

    @cached_property
    def index(self) -> Mapping[str, int]:
        """The token of each word."""
        return {word: index for index, word in enumerate(self.words)}

    def encode(self, words: Sequence[str]) -> list[int]:
        """Return the token of each word.

        Raises:
            BadArgumentError: a word is not in the vocabulary.
        """
        unknown = [word for word in words if word not in self.index]
        if unknown:
            raise BadArgumentError(
                f"{unknown[0]!r} is not in the vocabulary of {self.task}; its words are "
                f"{', '.join(self.words[3:])}"
            )
        return [self.index[word] for word in words]
