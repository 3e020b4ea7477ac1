"""Learned parts on models: weights are made at attach time, follow the model, and are for it alone."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tokenzoo
from tests.adapters.models import EVA02, VIT, images
from tests.refusals import refused
from tokenzoo import Recipe, Stage, Step
from tokenzoo.errors import AttachError, BadArgumentError, MissingEvidenceError, UntrainedWarning
from tokenzoo.evaluation.candidates import ready_recipes
from tokenzoo.learned import parts_that_learn
from tokenzoo.matchers import Drop, SelectAssign, Slimming, TopK
from tokenzoo.mergers import Fused, Identity, SoftSum
from tokenzoo.schedules import Once
from tokenzoo.testing import check_scorer

RECIPES = ("dynamicvit", "patchmerger", "sinkhorn", "sit")
SOFT = RECIPES[1:]
EACH = pytest.mark.parametrize("name", RECIPES)
pytestmark = pytest.mark.filterwarnings("ignore::tokenzoo.errors.UntrainedWarning")


def vit(**options: Any) -> Any:
    return VIT.build(depth=4, **options)


def build(name: str, **options: Any) -> tokenzoo.Method:
    return tokenzoo.build(name, **{"keep": 20, "at": (1, 3), **options})


def moved(attached: tokenzoo.Attached) -> None:
    """Train a little, in effect."""
    with torch.no_grad():
        for parameter in attached.learned.parameters():
            parameter += 0.1 * torch.randn_like(parameter)


@EACH
def test_the_weights_are_made_for_the_blocks_that_reduce(name: str) -> None:
    method, model = build(name), vit()
    before = {**model.state_dict()}
    with method.attach(model) as attached:
        sets = {key.split(".")[1] for key in attached.learned.state_dict()}
        assert sets == {"1", "3"}
        assert {*model.state_dict()} == {*before}  # the model's own are the bare model's
        model(images(model))
        assert attached.counts == attached.plan().blocks
        own = [*attached.learned.parameters()]
    with method.attach(model) as again:
        assert all(one is other for one, other in zip(own, again.learned.parameters(), strict=True))


@EACH
def test_the_first_weights_are_a_function_of_the_seed(name: str) -> None:
    found = []
    for seed in (0, 0, 1):
        with build(name, seed=seed).attach(vit()) as attached:
            found.append(torch.cat([p.detach().flatten() for p in attached.learned.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@EACH
def test_gradients_reach_every_weight_through_a_frozen_model(name: str) -> None:
    model = vit().requires_grad_(False)
    # After the last block's attention, a model that reads CLS looks at no other token.
    with build(name, at=(0, 2)).attach(model) as attached:
        attached.train()
        out = model(images(model))
        (out * torch.randn_like(out)).sum().backward()
        for key, parameter in attached.learned.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            # What is added to all logits of a softmax changes nothing.
            assert key.endswith("two_bias") or parameter.grad.any(), key
    assert all(parameter.grad is None for parameter in model.parameters())


@EACH
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_weights_have_the_dtype_of_the_model(name: str, dtype: torch.dtype) -> None:
    model = vit().to(dtype)
    with build(name).attach(model) as attached:
        assert {p.dtype for p in attached.learned.parameters()} == {dtype}
        assert model(images(model).to(dtype)).isfinite().all()
        assert attached.counts == attached.plan().blocks


def test_the_modules_of_parts_follow_train_and_eval() -> None:
    model = vit()
    with build("dynamicvit").attach(model) as attached:
        for mode in (True, False):
            attached.train(mode)
            assert {m.training for m in (*model.modules(), *attached.learned.modules())} == {mode}
        x = images(model)
        assert torch.equal(attached.eval() and model(x), model(x))
        model.train()  # by itself, too, the model says what a gate does
        assert not torch.equal(model(x), model(x))


def test_a_gate_learns_by_the_attention_to_its_tokens_and_changes_no_value() -> None:
    """Without noise, what a model in training says is what it says in eval mode."""
    model = vit().double()
    method = build("dynamicvit")
    x = images(model).double()
    with method.attach(model) as attached:
        (gate,) = parts_that_learn(method.recipe.steps)
        wanted = model(x)
        model.train()
        with torch.no_grad():  # probabilities near 0 and 1: noise changes no choice
            for key, parameter in attached.learned.named_parameters():
                if key.endswith("three"):
                    parameter *= 1e7
        wanted = model.eval()(x)
        found = model.train()(x)
        torch.testing.assert_close(found, wanted)
        assert attached.mass.requires_grad is False
        assert gate.weights.made.sites == {1: attached.counts[1], 3: 20}


@EACH
def test_copies_of_an_attached_model_have_weights_of_their_own(name: str) -> None:
    model = vit()
    x = images(model)
    with build(name).attach(model) as attached:
        twin = copy.deepcopy(model)
        stored = pickle.loads(pickle.dumps(model))
        wanted = model(x)
        moved(attached)
        changed = model(x)
        assert not torch.equal(changed, wanted)
        for one in (twin, stored):
            assert torch.equal(one(x), wanted)


@EACH
def test_trained_weights_are_for_one_model(name: str) -> None:
    method = build(name)
    with method.attach(vit()) as attached:
        moved(attached)
    before = [p.clone() for p in attached.learned.parameters()]
    others = [
        (VIT.build(depth=5), method, ("VisionTransformer with 5 blocks", "4 blocks")),
        (vit(embed_dim=24), method, ("width 24", "width 48", "attach it to that model")),
        (vit(), tokenzoo.build(name, keep=20, at=(0, 2)), ("after block 0",)),
    ]
    if name != "dynamicvit":  # the queries of a soft assignment are as many as its outputs
        others.append((vit(), tokenzoo.build(method.recipe, keep=21), ("21 tokens after block 3",)))
    for model, other, words in others[:2] + others[3:]:
        refused(lambda model=model, other=other: other.attach(model), *words, kind=AttachError)
        assert not hasattr(model, "_tokenzoo_attached")
    assert all(
        torch.equal(*pair) for pair in zip(before, attached.learned.parameters(), strict=True)
    )


def test_the_gates_of_a_recipe_work_with_other_counts() -> None:
    method = build("dynamicvit")
    with method.attach(vit()) as attached:
        moved(attached)
    model = vit()
    with tokenzoo.build(method.recipe, keep=50).attach(model) as other:
        model(images(model))
        assert other.counts[-1] == 50
        assert other.learned[0] is attached.learned[0]


def test_untrained_weights_are_made_anew_for_another_model() -> None:
    method = build("sit")
    for depth in (4, 5):
        model = VIT.build(depth=depth)
        with method.attach(model) as attached:
            model(images(model))
            assert len(attached.counts) == depth


def test_untrained_weights_are_said_where_nothing_is_trained() -> None:
    model = vit()
    with pytest.warns(UntrainedWarning, match="tokenzoo train"), build("sit").attach(model):
        pass
    with pytest.warns(UntrainedWarning, match="tokenzoo train"):
        build("sit").reduce(torch.randn(1, 40, 8), depth=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UntrainedWarning)
        build("evit").attach(model).detach()
        build("sit").attach(model, when="train").detach()
        method = build("sit")
        with method.attach(model.train()) as attached:
            moved(attached)
        method.attach(model.eval()).detach()


def test_nothing_is_left_of_an_attachment_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    method, model = build("sit"), vit()
    monkeypatch.setattr("tokenzoo.hooks.verify.prove", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        method.attach(model)
    (part,) = parts_that_learn(method.recipe.steps)
    assert part.weights.made is None
    assert not [*part.weights.parameters()]


@pytest.mark.parametrize("name", SOFT)
def test_new_tokens_have_no_place_where_positions_count(name: str) -> None:
    words = ("new tokens", "position")
    refused(lambda: build(name).attach(EVA02.build(depth=4)), *words, kind=AttachError)
    refused(lambda: build(name).attach(vit(), restore=True), *words, kind=AttachError)


def test_learned_parts_work_in_blocks() -> None:
    part = Slimming()
    recipe = Recipe(Step(Stage.FEATURES, Once(), part, SoftSum(part)), keep=5)
    refused(lambda: tokenzoo.build(recipe).attach(vit()), "depth", kind=MissingEvidenceError)


def test_on_tensors_weights_are_for_their_width_count_and_blocks() -> None:
    method, model = build("sit"), vit()
    with method.attach(model) as attached:
        moved(attached)
        counts = attached.plan().blocks
        width = attached.adapter.width
    x = torch.randn(2, 196, width)
    one = tokenzoo.build(method.recipe, keep=counts[1])
    assert one.reduce(x, depth=0.25).x.shape == (2, counts[1], width)
    refused(lambda: one.reduce(x, depth=0.5), "none for block 2", "1, 3")
    refused(lambda: one.reduce(x[..., :-1], depth=0.25), f"width {width - 1}", "'gain'")
    refused(lambda: method.reduce(x, depth=0.25), "20 tokens", kind=BadArgumentError)


@EACH
@pytest.mark.filterwarnings("ignore:While compiling")
def test_compiled_and_exported(name: str) -> None:
    model = vit()
    x = images(model)
    with build(name).attach(model), torch.no_grad():
        wanted = model(x)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), wanted, atol=1e-4, rtol=1e-4)
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), wanted, atol=1e-4, rtol=1e-4)


def test_a_module_that_is_no_part_of_ours_goes_to_the_model_too() -> None:
    class Line(tokenzoo.Scorer, nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(48, 1)

        def score(self, evidence: tokenzoo.Evidence) -> torch.Tensor:
            return self.layer(evidence.x)[..., 0].float()

    line = Line()
    step = Step(Stage.BLOCK, Once(1), SelectAssign(TopK(line), Drop()), Identity())
    model = vit().double()
    with tokenzoo.build(Recipe(step, keep=9)).attach(model) as attached:
        assert line.layer.weight.dtype == torch.float64
        assert [*attached.learned] == [line]
        model(images(model).double())


def test_the_part_of_the_document_learns() -> None:
    text = (Path(__file__).parents[2] / "docs" / "learning.md").read_text()
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class Line" in b]
    names: dict[str, Any] = {"tokenzoo": tokenzoo, "__name__": "learning"}
    exec(block, names)
    check_scorer(names["Line"](), examples=5)
    step = Step(
        Stage.BLOCK, Once(1), SelectAssign(TopK(names["Line"]()), Drop()), Fused(names["Line"]())
    )
    model = vit()
    with tokenzoo.build(Recipe(step, keep=9)).attach(model) as attached:
        assert [len(one) for one in attached.learned.parameters()] == [48, 48]
        model(images(model))


def test_recipes_that_must_be_trained_are_no_candidates() -> None:
    found = ready_recipes()
    assert {*tokenzoo.list_recipes()} - {*found} == {*RECIPES}


@EACH
def test_checkpointing_changes_no_gradient_of_a_part(name: str) -> None:
    """Blocks run again in the backward pass: with the same noise, and the masses that carry a gradient."""
    found: list[list[torch.Tensor]] = []
    for checkpointed in (False, True):
        model = vit().double().train()
        model.set_grad_checkpointing(checkpointed)
        with build(name, at=(0, 2)).attach(model) as attached:
            torch.manual_seed(3)
            model(images(model).double()).square().sum().backward()
            found.append([p.grad for p in attached.learned.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 1
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert any(bool(one.any()) for one in found[0])
