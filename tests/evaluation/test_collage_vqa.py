"""The task `collage-vqa`: collages show what is said of them, and answers are right."""

from __future__ import annotations

import random

import pytest
import torch

from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation.vqa.collages import CELLS, COLOURS, GRID, SIDE, collages
from tokenzoo.evaluation.vqa.questions import KINDS, Scene, ask, scenes
from tokenzoo.evaluation.vqa.words import PLACES, encode


def test_a_collage_shows_its_colours_and_its_dot() -> None:
    drawn = collages("test", 6, seed=1)
    cells = drawn.images.unfold(2, SIDE, SIDE).unfold(3, SIDE, SIDE)  # [b, 3, 4, 4, 56, 56]
    cells = cells.permute(0, 2, 3, 1, 4, 5).reshape(6, CELLS, 3, -1)
    white = (cells.amin(2) > 0.9).sum(2)  # [b, 16]
    assert white.argmax(1).equal(drawn.dots)
    assert white.sort(1).values[:, -2].max() < white.amax(1).min() / 4
    lit = cells.amax(2, keepdim=True) > 0.5
    seen = (cells * lit).sum(3) / lit.sum(3)  # [b, 16, 3]
    dot = torch.nn.functional.one_hot(drawn.dots, CELLS).bool()  # white pixels change the mean
    nearest = torch.cdist(seen, 0.9 * torch.tensor(list(COLOURS.values()))).argmin(2)
    assert nearest[~dot].equal(drawn.colours[~dot])


def test_collages_are_drawn_again_and_answer_every_kind() -> None:
    first, again, other = (collages("train", 12, seed=seed) for seed in (5, 5, 6))
    assert first.images.equal(again.images)
    assert not first.digits.equal(other.digits)
    for scene in scenes(first):
        assert all(ask(kind, scene, random.Random(0)) for kind in KINDS)


DIGITS = [0, 1, 1, 2] * 3 + [4, 4, 4, 7]  # 0: 3 times, 1: 6, 2: 3, 4: 3, 7: once, at d4
PAINTS = [0, 1, 2, 3] * 3 + [3, 3, 3, 3]  # yellow: 7 times
ANSWERS = {
    "most common colour": "yellow",
    "where is digit7": "d4",
    "where is dot": "b2",
    "digit at d4": "digit7",
    "colour at a2": "green",
    "count all digit1": "six",
    "count all digit9": "none",
    "count all yellow": "seven",
    "a1 like b1": "yes",
}


def test_answers_are_right() -> None:
    scene, rng = Scene(range(CELLS), DIGITS, PAINTS, GRID + 1), random.Random(0)
    asked = [ask(kind, scene, rng) for kind in KINDS for _ in range(400)]
    found = {" ".join(one.words[:-1]): one.answer for one in asked if one is not None}
    assert {words: found[words] for words in ANSWERS} == ANSWERS
    for words in (words.split() for words in found if "like" in words):
        first, second = (DIGITS[PLACES.index(words[place])] for place in (0, 2))
        assert found[" ".join(words)] == ("yes" if first == second else "no")


def test_a_part_of_a_collage_has_no_answer_to_some() -> None:
    part = Scene([5, 6], [3, 3], [0, 1], None)
    unanswered = {kind for kind in KINDS if ask(kind, part, random.Random(2)) is None}
    assert {"colour-most", "digit-where", "dot-where"} <= unanswered


def test_refused() -> None:
    with pytest.raises(BadArgumentError, match=r"'purple' is not in the vocabulary.* red"):
        encode(["count", "purple"])
    with pytest.raises(BadArgumentError, match="split='all'"):
        collages("all", 1, seed=0)
