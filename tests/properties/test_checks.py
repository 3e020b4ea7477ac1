"""The check functions: what they take, what they refuse, what they say."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

import tokenzoo
from tests.properties.instances import EXAMPLES
from tokenzoo import Affinity, Evidence, Recipe, plugins
from tokenzoo.errors import BadArgumentError, UnknownNameError, UnsupportedModelError
from tokenzoo.matchers import (
    Alternate,
    Bipartite,
    Drop,
    Nearest,
    Protect,
    SelectAssign,
    Strided,
    TopK,
)
from tokenzoo.mergers import Mean, WeightedMean
from tokenzoo.parts import Discount
from tokenzoo.schedules import Once, Skip
from tokenzoo.scorers import FeatureNorm, Similarity
from tokenzoo.testing import (
    PROPERTIES,
    PropertyViolation,
    check,
    check_adapter,
    check_matcher,
    check_merger,
    check_recipe,
    check_schedule,
    check_scorer,
)
from tokenzoo.testing.subjects import CHECKS, KINDS, kind_of, recipe_of

length, cosine = FeatureNorm(), Similarity("x")

ONE_OF_EACH: dict[str, Any] = {
    "scorer": length,
    "pair scorer": cosine,
    "matcher": Bipartite(cosine),
    "selector": TopK(length),
    "assigner": Nearest(cosine),
    "split": Alternate(),
    "protection": Protect(length),
    "merger": Mean(),
    "schedule": Skip(),
    "recipe": tokenzoo.build("tome").recipe,
}
FUNCTIONS = {
    function.__name__: function
    for function in (check_scorer, check_matcher, check_merger, check_schedule, check_recipe)
}


@dataclass(frozen=True)
class Energy(tokenzoo.Scorer):
    power: float = 2.0

    def score(self, evidence: Evidence) -> Tensor:
        return evidence.x.float().abs().pow(self.power).mean(-1)  # [b, n]


class Learned(tokenzoo.Scorer, nn.Module):
    """A scorer that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def score(self, evidence: Evidence) -> Tensor:
        return evidence.x.double().square().sum(-1).sqrt() * self.weight.double()


@dataclass(frozen=True)
class Needy(tokenzoo.Scorer):
    def __post_init__(self) -> None:
        self.require("thoughts")

    def score(self, evidence: Evidence) -> Tensor:
        return evidence.x.sum(-1)


@dataclass(frozen=True)
class Crooked(tokenzoo.PairScorer):
    def score(self, evidence: Evidence) -> Affinity:
        return Affinity(evidence.x.float(), evidence.x[:, :1].float())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_check_takes_its_kinds_and_names_the_right_one_for_others(
    kind: str, name: str
) -> None:
    subject = ONE_OF_EACH[kind]
    assert kind_of(subject) == kind
    if CHECKS[kind] == name:
        FUNCTIONS[name](subject, examples=2)
        return
    with pytest.raises(BadArgumentError) as caught:
        FUNCTIONS[name](subject)
    assert f"{name}({subject!r}): this is a" in str(caught.value)
    assert str(caught.value).endswith(f"{kind}; use {CHECKS[kind]}")


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        (Energy, "it is a class: pass an instance, Energy(...)"),
        (nn.Linear(1, 1), "check_adapter(model, image=...)"),
        ("evoprune", "check_recipe('evoprune')"),
        (Discount(length, 0.1), "checked are recipes, scorers"),
        (3, "checked are recipes, scorers"),
    ],
)
def test_what_is_no_part_is_refused(subject: object, words: str) -> None:
    with pytest.raises(BadArgumentError) as caught:
        check_scorer(subject)  # pyright: ignore[reportArgumentType]
    assert words in str(caught.value)


def test_an_adapter_is_tried_on_its_model() -> None:
    from tests.mutants.adapters import Adapted, TinyViT

    with pytest.raises(BadArgumentError, match=r"check_adapter\(make, image=...\)"):
        check(Adapted(TinyViT(Adapted)))


def test_check_takes_instances_classes_factories_and_recipes() -> None:
    check(Energy(), examples=3)
    check(Energy, examples=3)
    check(Learned, examples=3)
    check(lambda: Energy(3.0), examples=3)
    check(tokenzoo.build("tome"), examples=2)
    check(plugins.find("recipes", "pool"), examples=2)
    check(Skip, examples=2)
    with pytest.raises(
        BadArgumentError, match=r"TopK takes scorer: pass an instance, TopK\(scorer\)"
    ):
        check(TopK)
    with pytest.raises(
        BadArgumentError, match=r"needs thoughts, which no site provides; there are "
    ):
        check(Needy())


def test_laws_by_name() -> None:
    check(SelectAssign(Strided(), Drop()), "plan_total", "exact_budget", examples=2, max_tokens=4)
    with pytest.raises(BadArgumentError) as caught:
        check(Skip(), "nan_lowest")
    assert "'nan_lowest' is not a property of a schedule; these are: frozen_data, " in str(
        caught.value
    )


def test_recipes_by_name() -> None:
    check_recipe("uniform", examples=2)
    check_recipe(tokenzoo.build("uniform", keep=7), examples=2)
    with pytest.raises(UnknownNameError, match="evoprune"):
        check_recipe("evoprun")


@pytest.mark.parametrize("make", [length, "evoprune", tokenzoo.build("tome")])
def test_an_adapter_needs_a_model(make: Any) -> None:
    with pytest.raises(BadArgumentError, match="an adapter is tried on a model"):
        check_adapter(make, image=torch.zeros(2, 3, 4, 4))


def test_an_adapter_needs_a_batch() -> None:
    with pytest.raises(BadArgumentError, match="at least two inputs"):
        check_adapter(nn.Identity(), image=torch.zeros(1, 3, 4, 4))
    with pytest.raises(BadArgumentError, match="nor a function that makes one"):
        check_adapter(3, image=torch.zeros(2, 3, 4, 4))  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadArgumentError, match="which is not a torch module"):
        check_adapter(lambda: 3, image=torch.zeros(2, 3, 4, 4))  # pyright: ignore[reportArgumentType]


def test_an_error_of_the_part_is_told_as_a_broken_law() -> None:
    with pytest.raises(PropertyViolation) as caught:
        check_scorer(Crooked())
    assert caught.value.expected
    assert "Crooked()" in caught.value.example
    assert "import Crooked" in caught.value.example


def test_a_model_that_nobody_knows() -> None:
    with pytest.raises(UnsupportedModelError, match="no adapter supports"):
        check_adapter(nn.Identity(), image=torch.zeros(2, 3), examples=1)


@pytest.mark.parametrize("prop", PROPERTIES.values(), ids=PROPERTIES)
def test_every_property_has_a_promise_and_a_reference(prop: Any) -> None:
    assert prop.promise.endswith(".")
    assert len(prop.promise) > 40
    assert prop.binds <= {*KINDS, "adapter"}
    module, _, rest = prop.read.partition("tokenzoo.")
    assert module == ""
    found: Any = tokenzoo
    path = "tokenzoo"
    for name in rest.split("."):
        path = f"{path}.{name}"
        found = getattr(found, name) if hasattr(found, name) else importlib.import_module(path)
    assert found.__doc__ or name == "needs"


def test_laws_are_for_parts_that_reduce() -> None:
    with pytest.raises(BadArgumentError) as caught:
        recipe_of(Once())
    assert "Once(" in str(caught.value)
    assert "selectors" in str(caught.value)


def test_a_recipe_is_its_own() -> None:
    recipe: Recipe = ONE_OF_EACH["recipe"]
    assert recipe_of(recipe) is recipe
    assert isinstance(recipe_of(Alternate()).steps[0].merger, WeightedMean)


CALLS: list[int] = []


@dataclass(frozen=True)
class Everywhere(tokenzoo.Scorer):
    """Keeps its state where no copy of it can be made."""

    def score(self, evidence: Evidence) -> Tensor:
        CALLS.append(len(CALLS))
        generator = torch.Generator().manual_seed(len(CALLS))
        return torch.rand(evidence.x.shape[:2], generator=generator)


@dataclass(frozen=True)
class WrongOnce(Everywhere):
    """Gives scores of a wrong shape, and never again."""

    def score(self, evidence: Evidence) -> Tensor:
        scores = super().score(evidence)
        return scores[..., None] if len(CALLS) == 5 else scores


@pytest.mark.parametrize(
    ("part", "prop"), [(Everywhere(), "deterministic"), (WrongOnce(), "scores_formed")]
)
def test_a_state_outside_of_the_part_is_reported_as_a_violation(
    part: Everywhere, prop: str
) -> None:
    """Also where Hypothesis only finds it unreliable, which nobody could read."""
    CALLS.clear()
    with pytest.raises(PropertyViolation) as caught:
        check(part, prop, max_tokens=8)
    assert caught.value.property == prop


class Uncopied(Learned):
    def __deepcopy__(self, memo: object) -> Uncopied:
        raise NotImplementedError


def test_a_part_that_cannot_be_copied_is_tried_as_it_is() -> None:
    check(Uncopied(), "deterministic", "exact_budget", examples=3)


@pytest.mark.parametrize("examples", [3, 40])
def test_as_many_examples_are_tried_as_were_asked_for(examples: int) -> None:
    CALLS.clear()
    check(Everywhere(), "scores_formed", examples=examples)
    assert len(CALLS) == 2 * examples  # each in its own dtype and in bfloat16


def test_the_profiles() -> None:
    assert settings.get_profile("thorough").max_examples == 1000
    assert settings.get_profile("thorough").derandomize
    assert (settings.default.max_examples == 1000) == (EXAMPLES == 1000)
