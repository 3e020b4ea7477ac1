"""A mean that somebody else's code takes over merged tokens counts masses, or is refused."""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import tokenzoo
from tests.adapters.hf.models import made, pixels, tower, tower_sizes
from tests.adapters.models import DEIT, VIT, gap, images
from tests.adapters.test_torchvision_vit import open_clip_vit, torchvision_vit
from tokenzoo.errors import AttachError, UnsupportedModelError


def mean(x: Tensor) -> Tensor:
    """Of all tokens but CLS, each of them counted once."""
    return x[:, 1:].mean(1)


def features(self: Any, x: Tensor, **options: Any) -> Tensor:
    """As code for fine-tuning masked autoencoders does it."""
    x = self._pos_embed(self.patch_embed(x))
    return self.fc_norm(mean(self.norm(self.blocks(self.norm_pre(x)))))


def of_torchvision(self: Any, x: Tensor) -> Tensor:
    x = self._process_input(x)
    return self.heads(
        mean(self.encoder(torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)))
    )


def of_dino(self: Any, pixel_values: Tensor) -> Any:
    out = transformers.Dinov2Model.forward(self, pixel_values)
    out.pooler_output = mean(out.last_hidden_state)
    return out


class Head(nn.Module):
    """A head of the user's after `global_pool=""`, which hands it all tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return mean(x)


def own(model: Any, **methods: Any) -> Any:
    """The model as one of the user's class, which has these methods."""
    model.__class__ = type("Mine", (type(model),), methods)
    return model


def with_own_features() -> Any:
    return own(
        VIT.build(depth=4, global_pool="avg"),
        forward_features=features,
        forward_head=lambda self, x, pre_logits=False: x if pre_logits else self.head(x),
    )


def with_own_pool() -> Any:
    model = VIT.build(depth=4)
    model.pool = MethodType(lambda self, x, pool_type=None: mean(x), model)
    return model


def with_own_head() -> Any:
    model = VIT.build(depth=4, global_pool="")
    model.head = Head()
    return model


OWN = {
    "forward_features": with_own_features,
    "forward_head": lambda: own(
        DEIT.build(depth=4, global_pool="avg"),
        forward_head=lambda self, x, pre_logits=False: self.head(self.fc_norm(mean(x))),
    ),
    "pool": with_own_pool,
    "Head": with_own_head,
    "forward": lambda: own(torchvision_vit(4), forward=of_torchvision),
    "_pool": lambda: own(open_clip_vit(4), _pool=lambda self, x: (mean(self.ln_post(x)), x[:, 1:])),
    r"forward \(of": lambda: own(tower("dinov2"), forward=of_dino),
}


def run(model: Any) -> Any:
    with torch.no_grad():
        out = model(**pixels(model)) if hasattr(model, "config") else model(images(model))
    return getattr(out, "pooler_output", out)


@pytest.mark.parametrize("what", OWN)
def test_code_that_reads_the_tokens_itself_is_given_all_of_them_or_refused(what: str) -> None:
    model = OWN[what]()
    with pytest.raises(AttachError, match=rf"{what}.*restore=True"):
        tokenzoo.build("tome", keep=20).attach(model)
    bare = run(model)
    with tokenzoo.build("tome", keep=20).attach(model, restore=True) as attached:
        assert gap(run(model), bare) > 1e-3
        assert attached.counts[-1] == 20


def test_all_tokens_give_the_mean_by_mass() -> None:
    own, stock = OWN["forward_features"](), VIT.build(depth=4, global_pool="avg")
    assert gap(run(own), run(stock)) <= 1e-5
    for recipe in ("tome", "pitome", "dpcknn"):
        zoo = tokenzoo.build(recipe, keep=20)
        with zoo.attach(own, restore=True), zoo.attach(stock):
            assert gap(run(own), run(stock)) <= 1e-5


def test_a_subclass_without_code_and_what_is_attached_already_are_no_strangers() -> None:
    model = own(VIT.build(depth=4))
    zoo = tokenzoo.build("tome", keep=20)
    zoo.attach(model)
    zoo.attach(model, replace=True)
    assert gap(run(model), run(VIT.build(depth=4))) > 1e-3


def clip(**sizes: Any) -> dict[str, Any]:
    return {"vision_config": tower_sizes(**sizes)}


REGISTERS = tower_sizes(num_register_tokens=3)
# Class, configuration, the tower's name, and the first token of which a mean is taken.
CLASSIFIERS: dict[str, tuple[dict[str, Any], str, int]] = {
    "Dinov2ForImageClassification": (tower_sizes(), "dinov2", 1),
    "Dinov2WithRegistersForImageClassification": (REGISTERS, "dinov2_with_registers", 4),
    "CLIPForImageClassification": (clip(), "vision_model", 1),
    "SiglipForImageClassification": (clip(), "vision_model", 0),
    "Siglip2ForImageClassification": (clip(num_patches=64, image_size=None), "vision_model", 0),
}


def mean_by_mass(model: Any, x: Tensor, mass: Tensor, first: int) -> Tensor:
    """What the classifier should say of tokens `x [b, n, c]`."""
    weight = mass[:, first:, None]
    mean = (x[:, first:] * weight).sum(1) / weight.sum(1)
    wide = model.classifier.in_features == 2 * x.shape[2]
    return model.classifier(torch.cat([x[:, 0], mean], 1) if wide else mean)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_classifier_counts_masses(kind: str) -> None:
    config, name, first = CLASSIFIERS[kind]
    model = made(kind, **config, num_labels=3)
    inside = getattr(model, name)
    x = pixels(inside)
    with torch.no_grad():
        bare = model(**x).logits
        for recipe in ("tome", "dpcknn", *(("ats",) if first else ())):
            with tokenzoo.build(recipe, keep=20).attach(model) as attached:
                logits = model(**x).logits
                tokens = inside(**x).last_hidden_state
                assert tokens.shape[1] < 64
                expected = mean_by_mass(model, tokens, attached.mass, first)
                assert gap(logits, expected) <= 1e-5, recipe
                assert gap(logits, bare) > 1e-3
                with attached.paused():
                    assert gap(model(**x).logits, bare) <= 1e-5
            with tokenzoo.build(recipe, keep=20).attach(model, restore=True):
                assert gap(model(**x).logits, logits) <= 1e-5
        assert torch.equal(model(**x).logits, bare)


@pytest.mark.parametrize("kind", [*CLASSIFIERS, "ViTForMaskedImageModeling"])
def test_around_an_attached_tower_a_plain_mean_is_refused(kind: str) -> None:
    config, name, first = CLASSIFIERS.get(kind, (tower_sizes(encoder_stride=7), "vit", 1))
    model = made(kind, **config)
    inside = getattr(model, name)
    x = pixels(inside)
    with torch.no_grad(), tokenzoo.build("tome", keep=20).attach(inside) as attached:
        assert inside(**x).last_hidden_state.shape[1] == first + 20
        with pytest.raises(AttachError, match=rf"{kind} reads all tokens.*restore=True"):
            model(**x)
        if kind == "Dinov2ForImageClassification":
            torch.compiler.reset()
            with pytest.raises(Exception, match=r"Observed exception|reads all tokens"):
                torch.compile(model, fullgraph=True, backend="eager")(**x)
        with attached.paused():
            model(**x)
    with torch.no_grad(), tokenzoo.build("tome", keep=20).attach(inside, restore=True):
        restored = model(**x)[0]
    with torch.no_grad(), tokenzoo.build("tome", keep=20).attach(model, restore=True):
        assert gap(restored, model(**x)[0]) <= 1e-5


def test_a_classifier_compiles_and_is_copied() -> None:
    config = tower_sizes(num_labels=3, num_hidden_layers=2)
    model = made("Dinov2ForImageClassification", **config)
    x = pixels(model)["pixel_values"]
    tokenzoo.build("tome", keep=20).attach(model)
    with torch.no_grad():
        eager = model(x).logits
        assert torch.equal(copy.deepcopy(model)(x).logits, eager)
        torch.compiler.reset()
        assert torch.equal(torch.compile(model, fullgraph=True, backend="eager")(x).logits, eager)


def test_a_model_that_needs_the_grid_is_refused() -> None:
    model = made("ViTForMaskedImageModeling", **tower_sizes(encoder_stride=7))
    for recipe, named in (("tome", "grid.*restore=True"), ("downsample", "at block, features")):
        with pytest.raises(AttachError, match=named):
            tokenzoo.build(recipe, keep=16).attach(model)


class NewForImageClassification(transformers.Dinov2PreTrainedModel):
    """A class that transformers may have one day."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.inside = transformers.Dinov2Model(config)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.inside(pixel_values).last_hidden_state.mean(1)


def test_a_class_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NewForImageClassification, "__module__", "transformers.models.new")
    model = NewForImageClassification(transformers.Dinov2Config(**tower_sizes())).eval()
    with pytest.raises(UnsupportedModelError, match=r"not known.*model.inside, restore=True"):
        tokenzoo.build("tome", keep=20).attach(model)
    tokenzoo.build("tome", keep=20).attach(model.inside)
    with pytest.raises(AttachError, match="NewForImageClassification reads all tokens"):
        model(**pixels(model))
