"""Questions about a page, of eight kinds: four words each, with an answer of one word.

    coarse:  count all lines ?          fine:  word at b2 ?
             kind of frame ?                   value of date ?     (what is right of this key)
             where is stamp ?                  key of cap ?        (what is left of this value)
                                               where is cap ?      (it occurs once)
                                               b2 like d2 ?        (the same value: yes or no)

A place is a slot, a to h from the top, and a column. Coarse questions need no letter; fine ones are about
words, some of which differ in one letter only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from tokenzoo.evaluation.vqa.documents import COLUMNS, FAMILIES, FRAMES, KEYS, SLOTS, VALUES, Page
from tokenzoo.evaluation.vqa.question import Question
from tokenzoo.evaluation.vqa.vocabulary import END, Vocabulary

PLACES = tuple(f"{row}{column}" for row in "abcdefgh"[:SLOTS] for column in (1, 2))
"""Names of the cells, slot by slot: a1 to h2."""

NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight")
ASKING = (
    "word",
    "at",
    "value",
    "key",
    "of",
    "where",
    "is",
    "like",
    "count",
    "all",
    "lines",
    "kind",
)
WORDS = Vocabulary(
    "documents",
    (*ASKING, "frame", "stamp", *PLACES, *NUMBERS, "yes", "no", *FRAMES, *KEYS, *VALUES),
)


Ask = Callable[[Page, random.Random], Question | None]


def ask(kind: str, page: Page, rng: random.Random) -> Question | None:
    """Return a random question of a kind; None: this page has no answer to any.

    Args:
        kind: one of `KINDS`.
        page: that it is about; those of `pages` have answers to all kinds.
        rng: that chooses.
    """
    return KINDS[kind](page, rng)


def cells(page: Page) -> list[str | None]:
    """Return the words of the cells, in the order of `PLACES`."""
    return [word for line in zip(page.keys, page.values, strict=True) for word in line]


def _line_count(page: Page, rng: random.Random) -> Question:
    del rng
    number = sum(key is not None for key in page.keys)
    return Question("line-count", ("count", "all", "lines", END), NUMBERS[number])


def _frame(page: Page, rng: random.Random) -> Question:
    del rng
    return Question("frame", ("kind", "of", "frame", END), page.frame)


def _stamp_where(page: Page, rng: random.Random) -> Question | None:
    del rng
    if page.stamp is None:
        return None
    return Question("stamp-where", ("where", "is", "stamp", END), PLACES[page.stamp])


def _word_at(page: Page, rng: random.Random) -> Question | None:
    found = [(place, word) for place, word in zip(PLACES, cells(page), strict=True) if word]
    if not found:
        return None
    place, word = rng.choice(found)
    return Question("word-at", ("word", "at", place, END), word)


def _lines(page: Page, *, once: int) -> list[tuple[str, str]]:
    """Return key and value of the lines whose key (`once` 0) or value (1) is that of no other line."""
    lines = [(k, v) for k, v in zip(page.keys, page.values, strict=True) if k and v]
    words = [line[once] for line in lines]
    return [line for line in lines if words.count(line[once]) == 1]


def _value_of(page: Page, rng: random.Random) -> Question | None:
    lines = _lines(page, once=0)
    if not lines:
        return None
    key, value = rng.choice(lines)
    return Question("value-of", ("value", "of", key, END), value)


def _key_of(page: Page, rng: random.Random) -> Question | None:
    lines = _lines(page, once=1)
    if not lines:
        return None
    key, value = rng.choice(lines)
    return Question("key-of", ("key", "of", value, END), key)


def _word_where(page: Page, rng: random.Random) -> Question | None:
    words = cells(page)
    once = [(place, word) for place, word in enumerate(words) if word and words.count(word) == 1]
    if not once:
        return None
    place, word = rng.choice(once)
    return Question("word-where", ("where", "is", word, END), PLACES[place])


def _same(page: Page, rng: random.Random) -> Question | None:
    # Half of the answers are yes, and half of the others are about words that differ in one letter.
    found = [(slot, word) for slot, word in enumerate(page.values) if word]
    pairs = [(i, j, v, w) for i, v in found for j, w in found if i != j]
    same = rng.random() < 0.5
    fitting = [pair for pair in pairs if (pair[2] == pair[3]) == same]
    near = [pair for pair in fitting if FAMILY[pair[2]] == FAMILY[pair[3]]]
    if not fitting:
        return None
    first, second, _, _ = rng.choice(near if near and rng.random() < 0.5 else fitting)
    words = (PLACES[COLUMNS * first + 1], "like", PLACES[COLUMNS * second + 1], END)
    return Question("same", words, "yes" if same else "no")


FAMILY = {word: family for family in FAMILIES for word in family}
COARSE: Mapping[str, Ask] = {
    "line-count": _line_count,
    "frame": _frame,
    "stamp-where": _stamp_where,
}
FINE: Mapping[str, Ask] = {
    "word-at": _word_at,
    "value-of": _value_of,
    "key-of": _key_of,
    "word-where": _word_where,
    "same": _same,
}
KINDS: Mapping[str, Ask] = {**COARSE, **FINE}
