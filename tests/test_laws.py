"""Every registered recipe and part keeps every law, and every law catches a part that breaks it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenzoo
from tokenzoo import Recipe, Stage, Step
from tokenzoo.errors import BadArgumentError, MissingEvidenceError
from tokenzoo.interfaces import Part
from tokenzoo.matchers import (
    REST,
    Alternate,
    Bipartite,
    Drop,
    Every,
    GreedyDPP,
    GridCentres,
    MaxMin,
    Nearest,
    Parity,
    Protect,
    SameCell,
    SelectAssign,
    Strided,
    Then,
    TopK,
)
from tokenzoo.mergers import Keep, Mean, TargetPlusMean, WeightedMean
from tokenzoo.schedules import Once
from tokenzoo.scorers import (
    CLSAttention,
    Diversity,
    FeatureNorm,
    Random,
    ReceivedAttention,
    Similarity,
    TextRelevance,
)
from tokenzoo.testing import LAWS, Example, LawBroken, check
from tokenzoo.testing.laws import recipe_of
from tokenzoo.testing.strategies import KINDS, budgets, examples, layers_in, plans
from tokenzoo.testing.toys import BROKEN

RECIPES = {name: tokenzoo.build(name).recipe for name in tokenzoo.list_recipes()}
RECIPES |= {
    "evoprune, by mass": tokenzoo.build("evoprune", by_mass=True, curve="sigmoid").recipe,
    "evoprune, exp": tokenzoo.build("evoprune", curve="exp", tau=2.0, merger="mean").recipe,
    "visionzip, counted": tokenzoo.build("visionzip", dominant=3).recipe,
    "cdpruner, layer": tokenzoo.build("cdpruner", relevance="clip", negated=False).recipe,
}

cosine, length = Similarity("x"), FeatureNorm()

# An instance or two of every registered part: those that are not made by hand here are not tested, and
# `test_every_registered_part_is_here` says so.
PARTS: Mapping[str, tuple[Part, ...]] = {
    "received_attention": (
        ReceivedAttention(),
        ReceivedAttention("patches", by_mass=True),
        ReceivedAttention(layer=-2),
    ),
    "cls_attention": (CLSAttention(), CLSAttention("max", layer="clip")),
    "feature_norm": (length, FeatureNorm("all_keys")),
    "diversity": (Diversity(), Diversity("x", k=1, tau=2.0)),
    "random": (Random(), Random(7)),
    "text_relevance": (TextRelevance(), TextRelevance("clip", negated=False)),
    "similarity": (cosine, Similarity("keys", "exp", 2.0), Similarity("all_keys", "sigmoid")),
    "bipartite": (
        Bipartite(cosine),
        Bipartite(cosine.nonnegative() * Diversity("x").discount(0.5)),
        Bipartite(cosine, split=Parity(), order="tome"),
    ),
    "alternate": (Alternate(),),
    "parity": (Parity(),),
    "every": (Every(2), Every(4)),
    "protect": (Protect(length, 0.4), Protect(length, 1.0, sticky=True), Protect(length, 0.0)),
    "select_assign": (
        SelectAssign(TopK(length), Nearest(cosine)),
        SelectAssign(TopK(length, rest="score"), Drop(), order="selected"),
    ),
    "top_k": (TopK(length), TopK(length.normalized("rank") + 0.5 * length.normalized("zscore"))),
    "strided": (Strided(), Strided("floor")),
    "then": (Then((0.5, TopK(length)), (2, MaxMin(cosine)), (REST, TopK(length, rest="score"))),),
    "max_min": (MaxMin(cosine),),
    "greedy_dpp": (GreedyDPP(cosine, length.normalized()),),
    "grid_centres": (GridCentres(),),
    "drop": (Drop(),),
    "nearest": (
        Nearest(cosine),
        SelectAssign(Then((0.5, TopK(length)), (REST, Strided())), Nearest(cosine, group=-1)),
    ),
    "same_cell": (SelectAssign(GridCentres(), SameCell()),),
    "weighted_mean": (WeightedMean(),),
    "mean": (Mean(),),
    "keep": (Keep(),),
    "target_plus_mean": (TargetPlusMean(),),
}

# What looks at no feature cannot score a NaN lowest ("drop" is tried with Strided).
BLIND = {"random", "uniform", "strided", "grid_centres", "drop"}

SCORING = ("batch_independent", "deterministic", "degenerate", "nan_lowest", "needs_honest")
MATCHING = (
    *("exact_budget", "protected_untouched", "held_untouched", "plan_total", "plans_compose"),
    *("batch_independent", "degenerate", "nan_lowest", "needs_honest", "fewest_honest"),
)
MERGING = (
    *("protected_untouched", "conserved", "batch_independent", "gradients", "degenerate"),
    "nan_lowest",
)
EXAMPLES = {"degenerate": 12}  # each tries a dozen things


def whole(part: Part | Recipe) -> bool:
    """Whether a part needs all tokens at once, which they are not beside protected ones."""
    return bool({need.partition("@")[0] for need in recipe_of(part).needs} & {"grid", "attention"})


def applies(law: str, name: str) -> bool:
    return law != "nan_lowest" or name not in BLIND


def recipe_cases() -> Iterator[object]:
    for name, recipe in RECIPES.items():
        for law in LAWS:
            if applies(law, name):
                yield pytest.param(recipe, law, id=f"{name}-{law}")


def part_cases() -> Iterator[object]:
    kinds = {
        **dict.fromkeys(tokenzoo.list_scorers(), SCORING),
        **dict.fromkeys(tokenzoo.list_matchers(), MATCHING),
        **dict.fromkeys(tokenzoo.list_mergers(), MERGING),
    }
    for name, parts in PARTS.items():
        for number, part in enumerate(parts):
            for law in kinds[name]:
                if applies(law, name):
                    yield pytest.param(part, law, id=f"{name}{number}-{law}")


@pytest.mark.parametrize(("recipe", "law"), list(recipe_cases()))
def test_recipes_keep_the_laws(recipe: Recipe, law: str) -> None:
    assert holds(recipe, law, examples=EXAMPLES.get(law, 25))


@pytest.mark.parametrize(("part", "law"), list(part_cases()))
def test_parts_keep_the_laws(part: Part, law: str) -> None:
    assert holds(part, law, examples=EXAMPLES.get(law, 20), max_tokens=16)


def holds(subject: Part | Recipe, law: str, **options: int) -> bool:
    check(subject, law, **options)  # raises, with the example
    return True


def test_every_registered_part_is_here() -> None:
    registered = tokenzoo.list_scorers() + tokenzoo.list_matchers() + tokenzoo.list_mergers()
    assert sorted(PARTS) == sorted(registered)


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if whole(recipe)])
def test_protecting_some_of_a_grid_is_refused(name: str) -> None:
    """A grid, or a softmax, without some of its tokens is none: an error, and not a wrong result."""
    example = Example.drawn(grid=(3, 4))
    recipe = Recipe(*RECIPES[name].steps, keep=11)
    with pytest.raises(MissingEvidenceError) as caught:
        example.reduce(recipe, protected=example.protected)
    missing = RECIPES[name].needs & {"grid", "attention"}
    assert missing
    assert all(need in str(caught.value) for need in missing)
    assert "protected" in str(caught.value)  # what is to be left out, since the grid was given


# --------------------------------------------------------------------------- the laws themselves


@pytest.mark.parametrize(
    ("part", "law"),
    [
        pytest.param(part, law, id=f"{law}-{type(part).__name__}")
        for law, parts in BROKEN.items()
        for part in parts
    ],
)
def test_a_law_catches_what_breaks_it(part: Part, law: str) -> None:
    with pytest.raises(LawBroken) as caught:
        check(part, law, max_tokens=8)
    assert isinstance(caught.value, AssertionError)
    message = str(caught.value)
    assert message.startswith(f"{part!r}: expected ")
    shown = message.rpartition(" Example: ")[2]
    # The example is one that can be pasted, and it breaks the law again.
    with pytest.raises(LawBroken):
        LAWS[law](
            part, eval(shown.replace("nan", "float('nan')"), {"Example": Example, "torch": torch})
        )


def test_every_law_has_something_that_breaks_it() -> None:
    assert set(BROKEN) == set(LAWS)
    assert all(BROKEN[law] for law in LAWS)
    assert all(law.__doc__ for law in LAWS.values())


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(
    "part",
    [
        SelectAssign(TopK(length), Nearest(cosine)),
        Bipartite(cosine, protect=Protect(length, 0.3)),
        length,
        WeightedMean(),
    ],
    ids=lambda part: type(part).__name__,
)
def test_a_law_lets_a_sound_part_pass(law: str, part: Part) -> None:
    assert holds(part, law, examples=8, max_tokens=12)


@pytest.mark.parametrize("law", ["exact_budget", "gradients", "needs_honest"])
def test_a_broken_part_breaks_its_own_law_and_few_others(law: str) -> None:
    """The laws are told apart: a part that only throws dice keeps the counts."""
    assert holds(BROKEN["deterministic"][0], law, examples=8, max_tokens=12)


def test_the_example_shown_is_the_smallest() -> None:
    with pytest.raises(LawBroken) as caught:
        check(BROKEN["exact_budget"][0], "exact_budget")
    assert "images=1, grid=(1, 2), prefix=0, heads=1" in str(caught.value)
    assert "expected x of 1 images with 1 tokens each, found (1, 2)" in str(caught.value)


def test_check_without_names_is_all_laws() -> None:
    with pytest.raises(LawBroken, match="OneTooMany"):
        check(BROKEN["exact_budget"][0], examples=4, max_tokens=6)
    check(SelectAssign(Strided(), Drop()), *(set(LAWS) - {"nan_lowest"}), examples=2, max_tokens=4)
    with pytest.raises(LawBroken, match="Strided"):
        check(SelectAssign(Strided(), Drop()), examples=4, max_tokens=4)


def test_laws_are_for_parts_that_reduce() -> None:
    with pytest.raises(BadArgumentError) as caught:
        recipe_of(Once())
    assert "Once(" in str(caught.value)
    assert "selectors" in str(caught.value)


def test_a_recipe_is_its_own() -> None:
    recipe = Recipe(Step(Stage.FEATURES, Once(), SelectAssign(Strided(), Drop()), Keep()))
    assert recipe_of(recipe) is recipe


# ------------------------------------------------------------------------------- the strategies


@given(examples())
@settings(max_examples=50)
def test_examples_are_what_their_story_says(example: Example) -> None:
    b, n = example.x.shape[:2]
    h = example.keys.shape[1]
    assert 1 <= b <= 3
    assert 1 <= example.patches <= 40
    assert 0 <= example.prefix <= 2
    assert n == example.prefix + example.patches
    assert example.grid[0] * example.grid[1] == example.patches
    assert example.keys.shape[:3] == example.queries.shape[:3] == (b, h, n)
    assert example.cls_attention.shape == (b, h, n)
    assert (
        example.received_attention.shape == example.mass.shape == example.protected.shape == (b, n)
    )
    assert bool((example.mass[:, : example.prefix] == 1).all())
    again = eval(repr(example), {"Example": Example, "torch": torch})
    assert torch.equal(again.x, example.x)
    assert torch.equal(again.cls_attention, example.cls_attention)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_examples(kind: str) -> None:
    example = Example.drawn(kind=kind, grid=(4, 5), prefix=0)  # pyright: ignore[reportArgumentType]
    counts = {"distinct": {20}, "repeated": {2, 3}, "equal": {1}}[kind]
    for image in range(example.images):
        assert len(example.x[image].unique(dim=0)) in counts
        assert len(example.keys[image, 0].unique(dim=0)) in counts


def test_examples_change_only_what_they_say() -> None:
    example = Example.drawn(images=3, grid=(2, 3), prefix=1, dtype=torch.float32)
    alone = example.alone()
    assert (alone.patches, alone.prefix, alone.grid) == (1, 0, (1, 1))
    assert torch.equal(alone.x[:, 0], example.x[:, 1])
    image = example.image(2)
    assert torch.equal(image.keys, example.keys[2:])
    assert torch.equal(image.text, example.text[2:])
    bad = example.poisoned([0, 4])
    rows = bad.x.isnan().all(-1)
    assert rows.nonzero()[:, 1].tolist() == [1, 5] * 3
    assert torch.equal(bad.keys.isnan().all(-1)[:, 0], rows)
    assert torch.equal(bad.received_attention.isnan(), rows)
    assert torch.equal(bad.x[~rows], example.x[~rows])
    infinite = example.poisoned([3], float("-inf"))
    assert bool((infinite.x[:, 4] == float("-inf")).all())
    assert bool(infinite.cls_attention[:, :, 4].isnan().all())
    torch.testing.assert_close(example.nudged().x, example.x)
    assert not torch.equal(example.double().nudged().x, example.double().x)
    assert example.double().x.dtype == torch.float64
    assert not example.scaled(0.0).keys.any()


@given(st.integers(1, 20), st.data())
@settings(max_examples=25)
def test_budgets_and_plans_are_valid(tokens: int, data: st.DataObject) -> None:
    keep = data.draw(budgets(tokens))
    assert 0 < keep <= 1 if isinstance(keep, float) else 1 <= keep <= tokens + 1
    plan = data.draw(plans(images=2, tokens=tokens, dropping=False, new=False))
    plan.check()
    assert bool((plan.dst >= 0).all())
    assert bool((plan.keep >= 0).all())


def test_layers_are_read_out_of_needs() -> None:
    assert layers_in(frozenset({"x", "keys@-2", "x@clip", "text"})) == {-2, "clip"}
