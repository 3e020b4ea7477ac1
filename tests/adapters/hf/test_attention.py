"""The registration of our attention with transformers: one name in the configuration, removed on detach."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from tokenzoo_adapters.hf.attention import install, name_of
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

import tokenzoo
from tests.adapters.hf.models import pixels, randomise, tower
from tests.adapters.models import gap
from tests.conformance.specs import SPECS, fresh
from tokenzoo.errors import AttachError
from tokenzoo.hooks.tap import TAP_ATTR, Tap

BASES = pytest.mark.parametrize("base", ["sdpa", "eager"])


def features(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).last_hidden_state


def tapped(module: nn.Module, tap: Tap) -> Tap:
    setattr(module, TAP_ATTR, SimpleNamespace(tap=tap))
    return tap


def llama(**options: Any) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 50, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(**sizes, **heads, **options)
    return randomise(transformers.LlamaModel(config)).eval()


def find_attention(model: nn.Module) -> Any:
    return next(m for m in model.modules() if type(m).__name__.endswith("Attention"))


@BASES
@pytest.mark.parametrize("name", ["clip", "dinov2", "vit"])
def test_the_tap_sees_the_attention_and_adds_log_mass(base: str, name: str) -> None:
    """Without a tap nothing changes, and afterwards the name is the model's own."""
    model = tower(name, attn_implementation="eager")
    block = find_attention(model)
    x, mass = torch.randn(2, 9, 48), torch.rand(2, 9) + 0.5
    _, plain = block(x)
    expected = plain * mass[:, None, None]
    expected = expected / expected.sum(-1, keepdim=True)
    model.set_attn_implementation(base)
    bare = block(x)[0]
    undo = install(model)
    assert model.config._attn_implementation == name_of(base)
    assert torch.equal(block(x)[0], bare)
    tap = tapped(block, Tap(1, mass.log()))
    out, _ = block(x)
    tapped(block, Tap(1, torch.zeros(2, 9)))
    assert gap(out, block(x)[0]) > 1e-3
    undo()
    assert model.config._attn_implementation == base
    assert torch.equal(block(x)[0], bare)
    torch.testing.assert_close(tap.seen[0].received(), expected.mean((1, 2))[:, 1:])
    torch.testing.assert_close(tap.seen[0].cls(), expected[:, :, 0, 1:])


@BASES
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_of_a_language_model_keep_their_masks(base: str, side: str) -> None:
    model = llama(attn_implementation=base)
    ids = torch.arange(14).view(2, 7) % 50
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, :3] = 0
    given = {"input_ids": ids, "attention_mask": mask if side == "left" else mask.flip(1)}
    bare = features(model, given)
    undo = install(model)
    assert torch.equal(features(model, given), bare)
    # Without its mask function it would be another answer, and no error.
    removed = AttentionMaskInterface._global_mapping.pop(name_of(base))
    assert gap(features(model, given), bare) > 1e-2
    AttentionMaskInterface.register(name_of(base), removed)
    undo()


def test_log_mass_in_a_causal_attention_without_a_mask_is_refused() -> None:
    model = llama(attn_implementation="sdpa")
    install(model)
    tapped(model.layers[0].self_attn, Tap(0, torch.zeros(1, 5)))
    with pytest.raises(AttachError, match="causal"):
        model(torch.arange(5)[None])


@pytest.mark.parametrize("name", ["flex_attention", "paged|eager", "kernels-community/flash-attn2"])
def test_what_cannot_be_seen_is_refused_by_name(name: str) -> None:
    model = tower("clip")
    model.config._attn_implementation_internal = name
    with pytest.raises(AttachError, match=r"set_attn_implementation\(\"sdpa\"\)") as error:
        tokenzoo.build("tome").attach(model)
    assert name in str(error.value)
    assert model.config._attn_implementation == name


def test_the_file_of_the_forward_says_what_eager_is() -> None:
    """A subclass in another file, here, has no such function: that of its forward counts."""
    model = tower("clip", attn_implementation="eager")
    x, own = pixels(model), type(find_attention(model))
    zoo = tokenzoo.build("evoprune", keep=16)
    with zoo.attach(model):
        expected = features(model, x)
    inherits = type("Inherits", (own,), {})
    overrides = type(
        "Overrides", (own,), {"forward": lambda self, *a, **k: own.forward(self, *a, **k)}
    )

    def become(kind: type) -> None:
        for layer in model.encoder.layers:
            layer.self_attn.__class__ = kind

    become(inherits)
    with zoo.attach(model):
        assert torch.equal(features(model, x), expected)
    become(overrides)
    with pytest.raises(AttachError, match="Overrides has no eager_attention_forward"):
        zoo.attach(model)
    assert model.config._attn_implementation == "eager"
    model.set_attn_implementation("sdpa")
    zoo.attach(model)


@pytest.mark.parametrize("name", ["clip", "dinov3_vit", "llama"])
def test_transformers_quotes_the_name_that_the_user_knows(name: str) -> None:
    """It takes config.output_attentions = True with one name alone: what it says is what can be done."""
    model = llama() if name == "llama" else tower(name)
    for base, advice in (("sdpa", "detach, then set it"), ("eager", "output_attentions=True in")):
        model.set_attn_implementation(base)
        undo = install(model)
        with pytest.raises(ValueError, match=rf"set to {base} \(tokenzoo is attached: .*{advice}"):
            model.config.output_attentions = True
        undo()


@pytest.mark.parametrize("recipe", ["evoprune", "tome"])
def test_another_implementation_while_attached_is_an_error_not_silence(recipe: str) -> None:
    model = tower("siglip")
    x, zoo = pixels(model), tokenzoo.build(recipe, keep=16)
    attached = zoo.attach(model)
    model.set_attn_implementation("eager")
    with pytest.raises(AttachError, match=r"0 fused attention calls.* was changed while"):
        features(model, x)
    attached.detach()
    assert model.config._attn_implementation == "eager"  # what the user has set stays
    zoo.attach(model)
    features(model, x)


def test_two_models_of_one_configuration() -> None:
    """A third, made of a copy of it while the others are attached, is bare."""
    one = tower("clip")
    two = randomise(type(one)(one.config), seed=1).eval()
    x = pixels(one)
    bare = [features(one, x), features(two, x)]
    first = tokenzoo.build("evoprune", keep=16).attach(one)
    assert torch.equal(features(two, x), bare[1])
    second = tokenzoo.build("tome", keep=16).attach(two)
    reduced = features(two, x)
    config = copy.deepcopy(one.config)
    third = type(one)(config).eval()
    third.load_state_dict(one.state_dict())
    assert torch.equal(features(third, x), bare[0])
    first.detach()
    assert torch.equal(features(one, x), bare[0])
    assert torch.equal(features(two, x), reduced)
    second.detach()
    assert one.config._attn_implementation == "sdpa"
    with tokenzoo.build("evoprune", keep=16).attach(third):
        features(third, x)
    assert config._attn_implementation == "sdpa"


def test_unpickled_in_another_process(tmp_path: Path) -> None:
    """One that takes a batch, and one that packs its images."""
    saved: list[Any] = []
    for name in ("siglip", "qwen2_5_vl tower"):
        model = fresh(name)
        given = SPECS[name].give(model)
        bare = features(model, given)
        tokenzoo.build("tome", keep=0.4).attach(model)
        saved.append((model, dict(given), features(model, given), len(bare[0]), len(bare)))
    (tmp_path / "model").write_bytes(pickle.dumps(saved))
    code = (
        "import pickle, sys, torch; torch.set_num_threads(1)\n"
        "for model, x, expected, *whole in pickle.load(open(sys.argv[1], 'rb')):\n"
        "    found = model(**x).last_hidden_state\n"
        "    assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-4)\n"
        "    model._tokenzoo_attached.detach()\n"
        "    assert model.config._attn_implementation == 'sdpa'\n"
        "    found = model(**x).last_hidden_state\n"
        "    assert [len(found[0]), len(found)] == whole\n"
    )
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "model")], check=True, env=path)


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov3_vit"])
@pytest.mark.parametrize("recipe", ["evoprune", "tome"])
def test_a_flash_attention_takes_log_mass_as_a_channel(
    name: str, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its place is a function that takes no masks."""
    widths: list[int] = []

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
    ) -> tuple[Tensor, None]:
        assert attention_mask is None
        assert query.shape[-1] == key.shape[-1] == value.shape[-1]
        assert module.config._attn_implementation == "flash_attention_2"  # its functions load by it
        assert module.config.hidden_size == 48
        widths.append(query.shape[-1])
        out = F.scaled_dot_product_attention(query, key, value, scale=options["scaling"])
        return out.transpose(1, 2).contiguous(), None

    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", attend)
    model, zoo = tower(name), tokenzoo.build(recipe, keep=16)
    x = pixels(model)
    bare = features(model, x)
    with zoo.attach(model):
        expected = features(model, x)
    model.config._attn_implementation_internal = "flash_attention_2"
    assert torch.equal(features(model, x), bare)
    with zoo.attach(model):
        assert "flash" in model.config._attn_implementation
        widths.clear()
        assert gap(features(model, x), expected) <= 1e-5
    # The model's own heads before the first merge; with a bias, filled up to a multiple of 8.
    assert set(widths) == {12, 16}
    assert torch.equal(features(model, x), bare)
