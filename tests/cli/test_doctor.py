"""`tokenzoo doctor` says what is so: works, refused with the reason, or broken, and nothing else."""

from __future__ import annotations

import json

import pytest
import timm
import tokenzoo_adapters.timm.vit as timm_vit
import torch

import tokenzoo
from tests.cli.calling import call, done
from tokenzoo.errors import BadArgumentError, BudgetError, UnknownNameError
from tokenzoo.tools import model_loading
from tokenzoo.tools.compatibility import TOLERANCE, examine, examine_model

HALF, ALL = tokenzoo.build("evoprune", keep=0.5), tokenzoo.build("evoprune", keep=1.0)


def tried(model, zoo=HALF):
    """The verdict about a model as it is."""
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    return examine_model(model, images, zoo, ALL, name="test_vit")


@pytest.fixture
def model():
    tower = model_loading.create("test_vit")
    model_loading.randomise(tower.model)
    assert tower.size == (3, 160, 160)
    return tower.model


def test_without_a_model_it_says_what_is_here(monkeypatch) -> None:
    output = done("doctor").output
    lines = [line.split() for line in output.splitlines()]
    assert ["torch", torch.__version__.partition("+")[0]] in lines
    assert ["timm", timm.__version__] in lines
    assert all(f"plugin {name} of tokenzoo" in output for name in tokenzoo.list_adapters())
    assert "The adapter of a vision transformer of timm" in output

    monkeypatch.setattr(timm.layers, "use_fused_attn", lambda: False)
    here = json.loads(done("doctor", "--json").output)
    assert here["versions"]["tokenzoo"] == tokenzoo.__version__
    assert here["fused attention"].keys() == {"flash", "memory-efficient", "timm"}
    assert here["fused attention"]["timm"] is False
    parts = {name for plugin in here["plugins"] for name in plugin["parts"].get("recipes", [])}
    assert parts == set(tokenzoo.list_recipes())
    adapters = {plugin["name"] for plugin in here["plugins"] if plugin["adapter"]}
    assert adapters == set(tokenzoo.list_adapters())


def test_a_model_that_works() -> None:
    arguments = ("doctor", "test_vit", "--keep", "30%", "--depth", 4)
    said = json.loads(done(*arguments, "--json").output)
    plan = tokenzoo.build("evoprune", keep=0.3).plan(100, 4, prefix=1, width=64, hidden=192)
    assert (said["verdict"], said["family"]) == ("works", "VisionTransformer")
    assert said["counts"] == said["planned"] == list(plan.blocks)
    assert (said["tokens"], said["flops"]) == (100, pytest.approx(plan.flops))
    assert 0 <= said["identity"] <= TOLERANCE < 0.01 < said["change"]

    lines = done(*arguments).output.splitlines()
    assert lines[0] == "works  test_vit (VisionTransformer), evoprune, keep 30%"
    assert f"tokens         100 -> {', '.join(map(str, plan.blocks))} (as planned)" in lines


def test_another_recipe_and_options_of_the_model() -> None:
    said = json.loads(done("doctor", "test_vit", "--recipe", "tome", "--keep", 40, "--json").output)
    assert said["counts"][-1] == 40
    assert len(set(said["counts"])) == len(said["counts"])  # tome takes some in every block
    assert examine("test_vit", keep=20, img_size=96).tokens == 36


def test_a_refusal_has_the_words_of_attach_and_needs_no_weights(monkeypatch) -> None:
    create, swin = model_loading.create, "swin_tiny_patch4_window7_224"
    with pytest.raises(tokenzoo.TokenzooError) as error:
        HALF.attach(create(swin, device="meta").model)

    def on_meta(name, **options):
        assert options["device"] == "meta"
        return create(name, **options)

    monkeypatch.setattr(model_loading, "create", on_meta)
    result = call("doctor", swin)
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        f"refused  {swin} (SwinTransformer), evoprune, keep 0.25",
        str(error.value),
    ]


def test_a_recipe_that_does_not_fit_is_refused_and_a_budget_out_of_reach_no_verdict() -> None:
    verdict = examine("test_vit", recipe="divprune", keep=50)
    assert verdict.verdict == "refused"
    assert "works at Stage.PROJECTED" in verdict.reason
    with pytest.raises(BudgetError, match="out of reach"):
        examine("test_vit", keep=3, depth=2)


def test_another_error_than_ours_is_broken(monkeypatch) -> None:
    def fails(self, model, **options):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(tokenzoo.zoo.Method, "attach", fails)
    result = call("doctor", "test_vit")
    assert result.exit_code == 1
    assert result.output.startswith("broken  test_vit (VisionTransformer)")
    assert "ZeroDivisionError: oh" in result.output


@pytest.mark.parametrize(
    ("undone", "complaint"),
    [
        (True, "keeping all tokens changes the output by"),
        (False, "after detach it is not the bare model"),
    ],
)
def test_an_adapter_that_changes_the_output_is_broken(
    model, monkeypatch, undone, complaint
) -> None:
    def install(self, proportional):
        handle = self.model.register_forward_hook(lambda module, args, output: output * 1.001)
        return handle.remove if undone else lambda: None

    monkeypatch.setattr(timm_vit.TimmViT, "install", install)
    verdict = tried(model)
    assert verdict.verdict == "broken"
    assert complaint in verdict.reason


def test_other_counts_than_planned_are_broken(model, monkeypatch) -> None:
    honest = tokenzoo.hooks.handle.Attached.counts
    monkeypatch.setattr(
        tokenzoo.hooks.handle.Attached,
        "counts",
        property(lambda self: (*honest.fget(self)[:-1], 1)),
    )
    assert "other counts than planned" in tried(model).reason


def test_where_nothing_can_be_seen_nothing_is_shown(model) -> None:
    torch.nn.init.zeros_(model.head.weight)
    verdict = tried(model)
    assert verdict.verdict == "broken"
    assert "too little to see an error" in verdict.reason


@pytest.fixture
def library(monkeypatch):
    """A library with two models, which notes how it is asked for them."""
    asked = []

    def make(name, options):
        asked.append((name, options))
        if "depth" in options and name == "fixed":
            raise TypeError("fixed() got an unexpected keyword argument 'depth'")
        if options.get("depth") == 99:
            raise AssertionError("at most 12 blocks")
        return torch.nn.Linear(3, 3)

    fake = model_loading._Library("fake", lambda: ["deep", "fixed"], make, lambda model: (3, 8, 8))
    monkeypatch.setitem(model_loading.LIBRARIES, "fake", fake)
    return asked


def test_nothing_is_downloaded_unless_asked_and_a_depth_is_tried(library) -> None:
    model_loading.create("fake:deep")
    model_loading.create("fake:deep", depth=3, pretrained=True)
    assert library == [("deep", {}), ("deep", {"pretrained": True, "depth": 3})]
    library.clear()
    assert not model_loading.create("fake:fixed", depth=4).model.training
    assert [options for _, options in library] == [{"depth": 4}, {}]
    with pytest.raises(BadArgumentError, match=r"fake:deep cannot be made.*at most 12 blocks"):
        model_loading.create("fake:deep", depth=99)
    with pytest.raises(UnknownNameError, match="fake has no model 'dep'; the nearest are deep"):
        model_loading.create("fake:dep")


def test_random_weights_hide_nothing() -> None:
    first, second = (model_loading.create("test_vit2").model for _ in range(2))
    model_loading.randomise(first)
    model_loading.randomise(second)
    scales = 0
    for (name, value), same in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(value, same), name
        assert float(value.detach().abs().mean()) > 0.01, name
        if name.endswith("gamma"):
            scales += 1
            assert 0.5 <= float(value.detach().min()) < float(value.detach().max()) <= 1.5
    assert scales > 0
