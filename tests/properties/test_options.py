"""Options of parts and recipes are what their annotations say; for parts, see `options_checked`."""

from __future__ import annotations

import inspect
import math
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Optional

import pytest
import torch
from torch import Tensor, nn

import tokenzoo
from tokenzoo import Recipe, Stage, Step, plugins
from tokenzoo._core.kinds import Count, OneOf, Range, Share, Words
from tokenzoo._core.options import options_of
from tokenzoo.errors import LONGEST, BadArgumentError, TokenzooError
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.parts import Discounted, Sum
from tokenzoo.schedules import Explicit, Once
from tokenzoo.scorers import FeatureNorm, Random, Similarity
from tokenzoo.testing import Example
from tokenzoo.testing.properties.options import NUMBERS, OTHERS

RECIPES = {name: plugins.find("recipes", name) for name in tokenzoo.list_recipes()}
EXAMPLE = Example.drawn()
# A number that no float32 holds, and one that no int64 does.
EDGES = (*NUMBERS, *OTHERS, 10**29, 10**5000, "a" * 10**6, b"a", torch.ones(2))


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_the_annotation_of_every_option_can_be_read(kind: plugins.Kind) -> None:
    """One that cannot be is not checked, and nobody would notice."""
    for factory in plugins.collect(kind).values():
        assert all(option.kind is not None for option in options_of(factory))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_refuses_what_cannot_work_or_works_with_it(name: str) -> None:
    for option in (*inspect.signature(RECIPES[name]).parameters, "flops"):
        for value in EDGES:
            try:
                zoo = tokenzoo.build(name, **{option: value})
            except TokenzooError as error:
                assert len(str(error)) <= LONGEST  # noqa: PT017
                continue
            with suppress(TokenzooError):
                zoo.plan(20, 40)
            with suppress(TokenzooError):
                EXAMPLE.reduce(zoo.recipe)


class Part(tokenzoo.Scorer):
    def score(self, evidence: tokenzoo.Evidence) -> Tensor:
        return evidence.x.sum(-1)


@dataclass(frozen=True)
class Plain(Part):
    """A plugin's part: annotations, and no check of its own."""

    k: Count = 5
    share: Share = 0.5
    how: Literal["a", "b", 1] = "a"
    word: Annotated[str, OneOf("x", "y")] = "x"
    most: Annotated[float, Range(0, math.inf)] = math.inf
    inner: tokenzoo.Scorer | None = None
    both: int | Share = 3
    pair: tuple[int, str] = (1, "a")
    many: tuple[Share, ...] = ()
    old: Optional[int] = None  # noqa: UP045
    flag: bool = False
    bare: float = 1.0
    said: Annotated[int, Range(1), Words("one or more")] = 1
    listed: list[int] | None = None


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("k", 0, "k=0; it must be an int >= 1"),
        ("k", True, "k=True; it must be an int >= 1"),
        ("k", 2.0, "k=2.0; it must be an int >= 1"),
        ("k", 2**31, "k=2147483648; it must be an int >= 1, and below 2 ** 31 in size"),
        ("share", 1.5, "share=1.5; it must be a fraction in [0, 1]"),
        ("share", math.nan, "share=nan; it must be a fraction in [0, 1]"),
        ("how", "c", "how='c'; it must be 'a', 'b' or 1"),
        ("how", True, "how=True; it must be 'a', 'b' or 1"),
        ("how", 1.0, "how=1.0; it must be 'a', 'b' or 1"),
        ("word", "z", "word='z'; it must be 'x' or 'y'"),
        ("word", ["x"], "word=['x']; it must be 'x' or 'y'"),
        ("most", math.nan, "most=nan; it must be a number from 0 to inf"),
        ("inner", Similarity(), "it must be a Scorer or None"),
        ("inner", Random, "Random'>; it must be a Scorer or None"),
        ("both", 1.5, "both=1.5; it must be a fraction in [0, 1]"),
        ("both", "a", "both='a'; it must be an int or a fraction in [0, 1]"),
        ("pair", (1,), "pair=(1,); it must be a tuple of 2: an int, a str"),
        ("pair", ("a", 1), "pair='a'; it must be an int"),
        ("many", (0.5, 2.0), "many=2.0; it must be a fraction in [0, 1]"),
        ("many", 0.5, "many=0.5; it must be a tuple, each item a fraction in [0, 1]"),
        ("old", 1.5, "old=1.5; it must be an int or None"),
        ("flag", 1, "flag=1; it must be True or False"),
        ("bare", math.inf, "bare=inf; it must be a finite number"),
        ("bare", 1e39, "bare=1e+39; it must be a finite number, and at most 3.4e+38 in size"),
        ("bare", 10**29, "it must be a finite number, and below 2 ** 31 in size"),
        ("said", 0, "said=0; it must be one or more"),
        ("listed", (1,), "listed=(1,); it must be a list or None"),
    ],
)
def test_a_plugins_part_is_checked_by_its_annotations(option: str, value: Any, words: str) -> None:
    with pytest.raises(BadArgumentError, match=rf"{re.escape(words)}.* \(an option of Plain\)$"):
        replace(Plain(), **{option: value})


def test_what_annotations_allow_is_taken() -> None:
    made = Plain(1, 1, 1, "y", 3e300, Random(), 7, [2, "b"], [0, 1], 3, True, -3, 2, [1])  # pyright: ignore[reportArgumentType]
    assert made.pair == (2, "b")
    assert made.many == (0, 1)
    assert hash(replace(made, listed=None))


@dataclass(frozen=True)
class Late(Part):
    """Sees checked options in its own `__post_init__`, which its heirs have, too."""

    k: Count = 5

    def __post_init__(self) -> None:
        object.__setattr__(self, "half", 1 / self.k)


@dataclass(frozen=True)
class Heir(Late):
    share: Share = 0.5


class Written(Part, nn.Module):
    """Learns: its options are the arguments of its own `__init__`."""

    def __init__(self, width: Count, *rest: Share, **named: Share) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Late(0), "k=0"),
        (lambda: Heir(share=2.0), "share=2.0"),
        (lambda: Heir(0), "k=0"),
        (lambda: Written(0), "width=0"),
        (lambda: Written(1, 0.5, 2.0), "rest=2.0"),
        (lambda: Written(1, a=2.0), "named=2.0"),
        (lambda: Discounted(pairs=None, by="x"), "pairs=None; it must be a PairScorer"),  # pyright: ignore[reportArgumentType]
        (lambda: Discounted(Similarity(), "x"), "by='x'; it must be a Discount"),  # pyright: ignore[reportArgumentType]
        (lambda: Sum(()), "terms=()"),
        (lambda: Sum((FeatureNorm(),)), "it must be a Normalized"),  # pyright: ignore[reportArgumentType]
        (lambda: Explicit((1, 2**40)), "removals=1099511627776; it must be an int >= 0, and below"),
        (lambda: Stage("llm", True), "layer=True"),
        (lambda: Stage(["llm"]), "name=['llm']"),  # pyright: ignore[reportArgumentType]
        (lambda: Step(Stage.BLOCK, Once(), TopK(Random()), Identity()), "matcher="),  # pyright: ignore[reportArgumentType]
    ],
)
def test_whatever_makes_a_part_checks_it(make: Any, words: str) -> None:
    with pytest.raises(BadArgumentError, match=re.escape(words)):
        make()


def test_what_is_annotated_in_another_way_works_as_ever() -> None:
    class Hidden:
        pass

    @dataclass(frozen=True)
    class Odd(Part):
        anything: Any = None
        hidden: Hidden | None = None
        missing: "Nowhere" = 3  # noqa: F821, UP037 # pyright: ignore
        wrong: int = None  # pyright: ignore[reportAssignmentType]
        either: int | Any = "a"

    odd = Odd(object(), Hidden(), "a", either=math.nan)  # pyright: ignore
    assert odd.wrong is None
    step = Step(Stage.FEATURES, Once(), SelectAssign(TopK(odd), Drop()), Identity())
    assert tokenzoo.build(Recipe(step, keep=3)).reduce(torch.ones(1, 5, 2)).x.shape == (1, 3, 2)

    class Undecorated(Part):
        def __init__(self, x, y=2):  # type: ignore[no-untyped-def] # pyright: ignore
            self.x = x  # pyright: ignore

    Undecorated(object(), y="a")
    with pytest.raises(TypeError, match="missing"):
        Undecorated()  # pyright: ignore
    assert list(inspect.signature(Undecorated).parameters) == ["x", "y"]
