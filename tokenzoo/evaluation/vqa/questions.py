"""Questions about a collage, of eight kinds: four words each, with an answer of one word.

    coarse:  colour at b3 ?         fine:  digit at b3 ?
             count all red ?               count all digit7 ?
             most common colour ?          where is digit7 ?    (it occurs once)
                                           b3 like d1 ?         (the same digit: yes or no)
                                           where is dot ?

Coarse questions are about colours, which fill a cell; fine ones about the shape of a digit, or the dot.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from tokenzoo.evaluation.vqa.collages import CELLS, COLOURS, Collages
from tokenzoo.evaluation.vqa.question import Question
from tokenzoo.evaluation.vqa.words import DIGITS, END, NUMBERS, PLACES

PAINTS = tuple(COLOURS)


@dataclass(frozen=True)
class Scene:
    """What a collage, or a part of it, shows.

    Attributes:
        places: indices of its cells.
        digits: of each of these cells.
        colours: of each of these cells, indices into `COLOURS`.
        dot: the cell with the dot; None: it is in no cell of this part.
    """

    places: Sequence[int]
    digits: Sequence[int]
    colours: Sequence[int]
    dot: int | None


Ask = Callable[[Scene, random.Random], Question | None]


def scenes(drawn: Collages) -> list[Scene]:
    """Return the scene of each collage."""
    return [
        Scene(range(CELLS), _ints(digits), _ints(colours), int(dot))
        for digits, colours, dot in zip(drawn.digits, drawn.colours, drawn.dots, strict=True)
    ]


def ask(kind: str, scene: Scene, rng: random.Random) -> Question | None:
    """Return a random question of a kind; None: this scene has no answer to any.

    Args:
        kind: one of `KINDS`.
        scene: that it is about; a whole collage has answers to all kinds.
        rng: that chooses.
    """
    return KINDS[kind](scene, rng)


def _ints(values: Tensor) -> list[int]:
    return [int(value) for value in values]


def _digit_at(scene: Scene, rng: random.Random) -> Question:
    place, digit = rng.choice(list(zip(scene.places, scene.digits, strict=True)))
    return Question("digit-at", ("digit", "at", PLACES[place], END), DIGITS[digit])


def _colour_at(scene: Scene, rng: random.Random) -> Question:
    place, colour = rng.choice(list(zip(scene.places, scene.colours, strict=True)))
    return Question("colour-at", ("colour", "at", PLACES[place], END), PAINTS[colour])


def _digit_count(scene: Scene, rng: random.Random) -> Question:
    # Half of the questions are about a digit that is there.
    digit = rng.choice(scene.digits) if rng.random() < 0.5 else rng.randrange(10)
    number = scene.digits.count(digit)
    return Question("digit-count", ("count", "all", DIGITS[digit], END), _number(number))


def _colour_count(scene: Scene, rng: random.Random) -> Question:
    colour = rng.randrange(len(PAINTS))
    number = scene.colours.count(colour)
    return Question("colour-count", ("count", "all", PAINTS[colour], END), _number(number))


def _number(count: int) -> str:
    return NUMBERS[min(count, len(NUMBERS) - 1)]


def _colour_most(scene: Scene, rng: random.Random) -> Question | None:
    del rng
    counts = [scene.colours.count(colour) for colour in range(len(PAINTS))]
    if counts.count(max(counts)) > 1:
        return None
    answer = PAINTS[counts.index(max(counts))]
    return Question("colour-most", ("most", "common", "colour", END), answer)


def _digit_where(scene: Scene, rng: random.Random) -> Question | None:
    once = [digit for digit in range(10) if scene.digits.count(digit) == 1]
    if not once:
        return None
    digit = rng.choice(once)
    place = scene.places[scene.digits.index(digit)]
    return Question("digit-where", ("where", "is", DIGITS[digit], END), PLACES[place])


def _digit_same(scene: Scene, rng: random.Random) -> Question | None:
    cells = range(len(scene.places))
    pairs = [(i, j) for i in cells for j in cells if i != j]
    same = rng.random() < 0.5
    fitting = [(i, j) for i, j in pairs if (scene.digits[i] == scene.digits[j]) == same]
    if not fitting:
        return None
    first, second = (PLACES[scene.places[one]] for one in rng.choice(fitting))
    return Question("digit-same", (first, "like", second, END), "yes" if same else "no")


def _dot_where(scene: Scene, rng: random.Random) -> Question | None:
    del rng
    if scene.dot is None:
        return None
    return Question("dot-where", ("where", "is", "dot", END), PLACES[scene.dot])


COARSE: Mapping[str, Ask] = {
    "colour-at": _colour_at,
    "colour-count": _colour_count,
    "colour-most": _colour_most,
}
FINE: Mapping[str, Ask] = {
    "digit-at": _digit_at,
    "digit-count": _digit_count,
    "digit-where": _digit_where,
    "digit-same": _digit_same,
    "dot-where": _dot_where,
}
KINDS: Mapping[str, Ask] = {**COARSE, **FINE}
