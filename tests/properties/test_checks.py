"""The check functions: what they take, what they refuse, what they say."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

import tokenzoo
from tests.mutants.adapters import Adapted, TinyViT
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
from tokenzoo.mergers import CopyBack, Mean, WeightedMean
from tokenzoo.parts import Discount
from tokenzoo.schedules import Once, Skip
from tokenzoo.scorers import FeatureNorm, Similarity
from tokenzoo.temporal import FrameWindows
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
    "segmenter": FrameWindows(),
    "merger": Mean(),
    "restorer": CopyBack(),
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


IMAGES = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: check_scorer(Energy), "Energy"),
        (lambda: check_scorer(nn.Linear(1, 1)), "check_adapter(model, image=...)"),
        (lambda: check_scorer("evoprune"), "check_recipe('evoprune')"),
        (lambda: check_scorer(Discount(length, 0.1)), "Discount"),
        (lambda: check_scorer(3), "3"),
        (lambda: check(Adapted(TinyViT(Adapted))), "check_adapter(make, image=...)"),
        (lambda: check(TopK), "TopK(scorer)"),
        (lambda: check(Needy()), "thoughts"),
        (lambda: check(Skip(), "nan_lowest"), "'nan_lowest'"),
        (lambda: check_adapter(length, image=IMAGES), "FeatureNorm"),
        (lambda: check_adapter("evoprune", image=IMAGES), "'evoprune'"),
        (lambda: check_adapter(tokenzoo.build("tome"), image=IMAGES), "tome"),
        (lambda: check_adapter(nn.Identity(), image=IMAGES[:1]), "two inputs"),
        (lambda: check_adapter(3, image=IMAGES), "3"),
        (lambda: check_adapter(lambda: 3, image=IMAGES), "torch module"),
        # Properties of one site are for parts that reduce.
        (lambda: recipe_of(Once()), "Once("),
    ],
)
def test_what_cannot_be_checked_is_refused(call: Any, named: str) -> None:
    with pytest.raises(BadArgumentError, match=re.escape(named)):
        call()


def test_names_and_models_that_nobody_knows() -> None:
    with pytest.raises(UnknownNameError, match="evoprune"):
        check_recipe("evoprun")
    with pytest.raises(UnsupportedModelError, match="Identity"):
        check_adapter(nn.Identity(), image=torch.zeros(2, 3), examples=1)


@pytest.mark.parametrize(
    "subject",
    [Energy, Learned, lambda: Energy(3.0), plugins.find("recipes", "pool"), Skip],
)
def test_check_takes_instances_classes_factories_and_recipes(subject: Any) -> None:
    check(subject, examples=2)


def test_properties_and_recipes_by_name() -> None:
    check(SelectAssign(Strided(), Drop()), "plan_total", "exact_budget", examples=2, max_tokens=4)
    check_recipe("uniform", examples=2)
    check_recipe(tokenzoo.build("uniform", keep=7), examples=2)


def test_an_error_of_the_part_is_told_as_a_violation() -> None:
    with pytest.raises(PropertyViolation) as caught:
        check_scorer(Crooked())
    assert caught.value.expected
    assert "import Crooked" in caught.value.example


@pytest.mark.parametrize("prop", PROPERTIES.values(), ids=PROPERTIES)
def test_every_property_has_a_promise_and_a_reference(prop: Any) -> None:
    assert prop.promise.endswith(".")
    assert len(prop.promise) > 40
    assert prop.binds <= {*KINDS, "adapter"}
    path, *names = prop.read.split(".")
    found: Any = tokenzoo
    for name in names:
        path = f"{path}.{name}"
        found = getattr(found, name) if hasattr(found, name) else importlib.import_module(path)
    assert found.__doc__ or names[-1] == "needs"


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
