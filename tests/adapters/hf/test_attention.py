"""The registration of our attention with transformers: one name in the configuration, removed on detach."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
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
from tests.adapters.models import one_thread as one_thread
from tests.conformance.specs import SPECS, fresh
from tokenzoo.errors import AttachError
from tokenzoo.hooks.tap import TAP_ATTR, Tap


def features(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).last_hidden_state


class Holder:
    def __init__(self, tap: Tap | None) -> None:
        self.tap = tap


def llama(**options: Any) -> Any:
    config = transformers.LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        vocab_size=50,
        **options,
    )
    return randomise(transformers.LlamaModel(config)).eval()


@pytest.mark.parametrize("base", ["sdpa", "eager"])
def test_without_a_tap_nothing_changes_and_undo_restores_the_name(base: str) -> None:
    model = tower("clip", attn_implementation=base)
    x = pixels(model)
    bare = features(model, x)
    undo = install(model)
    assert model.config._attn_implementation == name_of(base)
    assert torch.equal(features(model, x), bare)
    undo()
    assert model.config._attn_implementation == base
    assert torch.equal(features(model, x), bare)


@pytest.mark.parametrize("base", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["clip", "dinov2", "vit"])
def test_the_tap_sees_the_attention_and_adds_log_mass(base: str, name: str) -> None:
    model = tower(name, attn_implementation="eager")
    block = find_attention(model)
    x = torch.randn(2, 9, 48)
    mass = torch.rand(2, 9) + 0.5
    _, plain = block(x)
    expected = plain * mass[:, None, None]
    expected = expected / expected.sum(-1, keepdim=True)
    model.set_attn_implementation(base)
    undo = install(model)
    tap = Tap(1, mass.log())
    setattr(block, TAP_ATTR, Holder(tap))
    out, _ = block(x)
    torch.testing.assert_close(tap.seen[0].received(), expected.mean((1, 2))[:, 1:])
    torch.testing.assert_close(tap.seen[0].cls(), expected[:, :, 0, 1:])
    setattr(block, TAP_ATTR, Holder(Tap(1, torch.zeros(2, 9))))
    assert gap(out, block(x)[0]) > 1e-3
    undo()
    torch.testing.assert_close(tap.seen[0].received(), expected.mean((1, 2))[:, 1:])


def find_attention(model: nn.Module) -> Any:
    return next(m for m in model.modules() if type(m).__name__.endswith("Attention"))


@pytest.mark.parametrize("base", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_of_a_language_model_keep_their_masks(base: str, side: str) -> None:
    model = llama(attn_implementation=base)
    ids = torch.arange(14).view(2, 7) % 50
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, :3] = 0
    mask = mask if side == "left" else mask.flip(1)
    with torch.no_grad():
        bare = model(ids, attention_mask=mask).last_hidden_state
        undo = install(model)
        assert torch.equal(model(ids, attention_mask=mask).last_hidden_state, bare)
        # Without its mask function it would be another answer, and no error.
        removed = AttentionMaskInterface._global_mapping.pop(name_of(base))
        assert gap(model(ids, attention_mask=mask).last_hidden_state, bare) > 1e-2
        AttentionMaskInterface.register(name_of(base), removed)
        undo()


def test_log_mass_in_a_causal_attention_without_a_mask_is_refused() -> None:
    model = llama(attn_implementation="sdpa")
    install(model)
    setattr(model.layers[0].self_attn, TAP_ATTR, Holder(Tap(0, torch.zeros(1, 5))))
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


def test_an_attention_without_an_eager_function_is_refused() -> None:
    """Its forward is in this file, which has no such function; by sdpa it can be seen."""
    model = tower("vit", attn_implementation="eager")

    class Mine(type(find_attention(model))):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    for layer in model.layers:
        layer.attention.__class__ = Mine
    with pytest.raises(AttachError, match="Mine has no eager_attention_forward"):
        tokenzoo.build("tome").attach(model)
    assert model.config._attn_implementation == "eager"
    model.set_attn_implementation("sdpa")
    tokenzoo.build("tome").attach(model)


def test_the_file_of_the_forward_says_what_eager_is() -> None:
    """A subclass in another file, here, has no such function: that of its forward counts."""
    model = tower("clip", attn_implementation="eager")
    x = pixels(model)
    with tokenzoo.build("evoprune", keep=16).attach(model):
        expected = features(model, x)

    class Mine(type(find_attention(model))):
        pass

    for layer in model.encoder.layers:
        layer.self_attn.__class__ = Mine
    with tokenzoo.build("evoprune", keep=16).attach(model):
        assert torch.equal(features(model, x), expected)


@pytest.mark.parametrize("name", ["clip", "dinov3_vit", "llama"])
def test_transformers_quotes_the_name_that_the_user_knows(name: str) -> None:
    """It takes config.output_attentions = True with one name alone: what it says is what can be done."""
    model = llama() if name == "llama" else tower(name)
    for base, advice in (
        ("sdpa", "detach, then set it"),
        ("eager", "output_attentions=True in the"),
    ):
        model.set_attn_implementation(base)
        undo = install(model)
        with pytest.raises(ValueError, match=rf"set to {base} \(tokenzoo is attached: .*{advice}"):
            model.config.output_attentions = True
        undo()


@pytest.mark.parametrize("recipe", ["evoprune", "tome"])
def test_another_implementation_while_attached_is_an_error_not_silence(recipe: str) -> None:
    model = tower("siglip")
    x = pixels(model)
    attached = tokenzoo.build(recipe, keep=16).attach(model)
    model.set_attn_implementation("eager")
    with pytest.raises(
        AttachError, match=r"0 fused attention calls.* was changed while the recipe"
    ):
        features(model, x)
    attached.detach()
    assert model.config._attn_implementation == "eager"  # what the user has set stays
    tokenzoo.build(recipe, keep=16).attach(model)
    features(model, x)


def test_nothing_of_ours_is_saved_with_a_model(tmp_path: Path) -> None:
    model = tower("clip")
    x = pixels(model)
    bare = features(model, x)
    with tokenzoo.build("evoprune", keep=16).attach(model):
        model.save_pretrained(tmp_path)
    saved = "".join(path.read_text() for path in tmp_path.glob("*.json"))
    assert "tokenzoo" not in saved
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert loaded.config._attn_implementation == "sdpa"
    assert torch.equal(features(loaded, x), bare)


def test_two_models_of_one_configuration() -> None:
    one = tower("clip")
    two = randomise(type(one)(one.config), seed=1).eval()
    x = pixels(one)
    bare = [features(one, x), features(two, x)]
    first = tokenzoo.build("evoprune", keep=16).attach(one)
    assert torch.equal(features(two, x), bare[1])
    second = tokenzoo.build("tome", keep=16).attach(two)
    reduced = features(two, x)
    first.detach()
    assert torch.equal(features(one, x), bare[0])
    assert torch.equal(features(two, x), reduced)
    second.detach()
    assert one.config._attn_implementation == "sdpa"
    third = type(one)(copy.deepcopy(one.config))
    assert third.config._attn_implementation == "sdpa"


def test_a_model_made_of_the_configuration_of_an_attached_one_is_bare() -> None:
    model = tower("clip")
    with tokenzoo.build("evoprune", keep=16).attach(model):
        config = copy.deepcopy(model.config)
        other = type(model)(config)
        other.load_state_dict(model.state_dict())
    x = pixels(model)
    assert torch.equal(features(other.eval(), x), features(model, x))
    with tokenzoo.build("evoprune", keep=16).attach(other):
        features(other, x)
    assert config._attn_implementation == "sdpa"


@pytest.mark.parametrize("base", ["sdpa", "eager"])
def test_a_copy_is_attached_by_itself(base: str) -> None:
    model = tower("dinov3_vit", attn_implementation=base)
    x = pixels(model)
    bare = features(model, x)
    attached = tokenzoo.build("evoprune", keep=16).attach(model)
    reduced = features(model, x)
    twin = copy.deepcopy(model)
    attached.detach()
    assert torch.equal(features(model, x), bare)
    assert torch.equal(features(twin, x), reduced)
    assert twin.config._attn_implementation == name_of(base)
    twin._tokenzoo_attached.detach()
    assert twin.config._attn_implementation == base
    assert torch.equal(features(twin, x), bare)


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


def test_two_threads() -> None:
    model = tower("siglip")
    inputs = [pixels(model, batch=b, seed=b) for b in (1, 3)]
    attached = tokenzoo.build("tome", keep=16).attach(model)
    expected = [features(model, x) for x in inputs]
    found: dict[int, list[Tensor]] = {0: [], 1: []}
    counts: dict[int, Any] = {}

    def work(index: int) -> None:
        for _ in range(20):
            found[index].append(features(model, inputs[index]))
        counts[index] = attached.counts

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in (0, 1):
        assert all(torch.equal(out, expected[index]) for out in found[index])
        assert counts[index] == attached.plan().blocks


@pytest.fixture
def flash(monkeypatch: Any) -> list[tuple[int, ...]]:
    """A function that takes no masks, in the place of flash attention; what it was called with."""
    calls: list[tuple[int, ...]] = []

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
    ) -> tuple[Tensor, None]:
        assert attention_mask is None
        assert query.shape[-1] == key.shape[-1] == value.shape[-1]
        assert query.shape[-1] % 8 == 0 or query.shape[-1] == 12  # 12: as the model's own heads are
        assert (
            module.config._attn_implementation == "flash_attention_2"
        )  # it is loaded by that name
        assert module.config.hidden_size == 48
        calls.append(tuple(query.shape))
        out = F.scaled_dot_product_attention(query, key, value, scale=options["scaling"])
        return out.transpose(1, 2).contiguous(), None

    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", attend)
    return calls


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov3_vit"])
@pytest.mark.parametrize("recipe", ["evoprune", "tome"])
def test_a_flash_attention_takes_log_mass_as_a_channel(
    name: str, recipe: str, flash: list[tuple[int, ...]]
) -> None:
    model = tower(name)
    x = pixels(model)
    bare = features(model, x)
    with tokenzoo.build(recipe, keep=16).attach(model):
        expected = features(model, x)
    model.config._attn_implementation_internal = "flash_attention_2"
    assert torch.equal(features(model, x), bare)
    with tokenzoo.build(recipe, keep=16).attach(model):
        assert "flash" in model.config._attn_implementation
        flash.clear()
        assert gap(features(model, x), expected) <= 1e-5
    assert {shape[-1] for shape in flash} == {12, 16}  # with a bias, and before the first merge
    assert torch.equal(features(model, x), bare)
