"""The task `documents`: pages show the words that are said of them, and answers are right."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation.vqa.documents import (
    COLUMNS,
    FRAMES,
    HEIGHT,
    LEFTS,
    SIDE,
    SLOTS,
    VALUES,
    Page,
    pages,
    printed,
)
from tokenzoo.evaluation.vqa.page_questions import FAMILY, KINDS, PLACES, WORDS, ask, cells


def test_ink_is_where_the_words_are() -> None:
    """A page without words, stamp and frame has none; a word and a stamp are in their own cells."""
    drawn = [replace(page, frame="plain") for page in pages("test", 8, seed=3)]
    dark = printed(drawn, seed=0).amin(1) < 0.6  # [b, 224, 224]
    cut = dark.unfold(1, HEIGHT, HEIGHT).unfold(2, SIDE // COLUMNS, SIDE // COLUMNS)
    inked = cut.sum((3, 4)).flatten(1) > 40  # [b, 16]
    for page, found in zip(drawn, inked.tolist(), strict=True):
        wanted = [word is not None for word in cells(page)]
        wanted[page.stamp] = True
        assert found == wanted


def test_frames_and_words_are_printed_as_said() -> None:
    """The same page with another word differs there alone; a box is at the edges, a rule in the middle."""
    page = Page([None] * 3 + ["date"] + [None] * 4, [None] * 3 + ["cap"] + [None] * 4, 2, "plain")
    other = replace(page, values=[None] * 3 + ["cup"] + [None] * 4)
    # Each alone, so that paper and shifts are the same.
    plain, word = (printed([one], seed=0)[0] for one in (page, other))
    rows, columns = (plain - word).abs().amax(0).nonzero().unbind(1)
    assert 3 * HEIGHT <= rows.min() <= rows.max() < 4 * HEIGHT
    assert LEFTS[1] <= columns.min() <= columns.max() < LEFTS[1] + 40
    shown = {
        frame: printed([replace(page, frame=frame)], seed=0)[0].amin(0) < 0.7 for frame in FRAMES
    }
    edges = {
        frame: (dark[:5, 20:200].any(0) & dark[-5:, 20:200].any(0)).all()
        for frame, dark in shown.items()
    }
    middle = {frame: dark[20:200, 100:112].any(1).all() for frame, dark in shown.items()}
    assert edges == {"plain": False, "box": True, "rule": False}
    assert middle == {"plain": False, "box": False, "rule": True}


def test_pages_are_drawn_again_and_answer_every_kind() -> None:
    first, again, other = (pages("train", 30, seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert first != other
    assert first != pages("test", 30, seed=5)
    assert printed(first[:2], seed=1).equal(printed(first[:2], seed=1))
    for page in first:
        assert all(ask(kind, page, random.Random(0)) for kind in KINDS)
        values = [value for value in page.values if value]
        assert 4 <= len(values) <= 7
        (twice,) = {value for value in values if values.count(value) == 2}
        assert any(value in FAMILY[twice] for value in values if value != twice)


KEYS = ["name", "date", None, "city", "item", None, "rate", "unit"]
FOUND = ["cap", "cup", None, "cap", "oil", None, "owl", "zip"]
ANSWERS = {
    "count all lines": "six",
    "kind of frame": "rule",
    "where is stamp": "f1",
    "word at a1": "name",
    "word at h2": "zip",
    "value of rate": "owl",
    "key of cup": "date",
    "where is oil": "e2",
    "where is city": "d1",
}


def test_answers_are_right() -> None:
    page, rng = Page(KEYS, FOUND, 10, "rule"), random.Random(0)
    asked = [ask(kind, page, rng) for kind in KINDS for _ in range(400)]
    found = {" ".join(one.words[:-1]): one.answer for one in asked if one is not None}
    assert {words: found[words] for words in ANSWERS} == ANSWERS
    assert not {"key of cap", "where is cap"} & set(found)
    pairs = [words.split() for words in found if "like" in words]
    for first, _, second in pairs:
        same = len({FOUND[PLACES.index(place) // COLUMNS] for place in (first, second)}) == 1
        assert found[f"{first} like {second}"] == ("yes" if same else "no")
    drawn = [ask("same", page, rng) for _ in range(400)]
    wanted = [one for one in drawn if one is not None and one.answer == "no"]
    near = [one for one in wanted if {one.words[0], one.words[2]} <= {"a2", "b2", "d2", "e2", "g2"}]
    assert 0.4 < len(wanted) / 400 < 0.6
    assert len(near) > len(wanted) / 2


def test_an_empty_page_has_no_answer_to_some() -> None:
    page = Page([None] * SLOTS, [None] * SLOTS, None, "plain")
    unanswered = {kind for kind in KINDS if ask(kind, page, random.Random(2)) is None}
    assert unanswered == {"stamp-where", "word-at", "value-of", "key-of", "word-where", "same"}


def test_words_are_told_apart() -> None:
    assert len(set(WORDS.words)) == len(WORDS.words)
    assert len(VALUES) == 32
    with pytest.raises(
        BadArgumentError, match=r"'total' is not in the vocabulary of documents.* cap"
    ):
        WORDS.encode(["value", "of", "total", "?"])


@pytest.mark.parametrize(
    ("split", "count", "seed"), [("all", 1, 0), ("test", 0, 0), ("test", 1, -1)]
)
def test_refused(split: str, count: int, seed: int) -> None:
    with pytest.raises(BadArgumentError):
        pages(split, count, seed=seed)
