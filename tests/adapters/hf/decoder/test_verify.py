"""What a language model must show at attach: that its cache, masks and positions are taken as we think."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm import qwen
from tests.adapters.hf.vlm.calls import CACHE, SINGLE, answer, logits, remains
from tokenzoo.errors import AttachError

KINDS: dict[str, Callable[[], Any]] = {"llava": hf.llava, "qwen2_vl": qwen.qwen2_vl}


@contextmanager
def changed(modules: list[nn.Module], **body: Any) -> Generator[None]:
    """Modules of a class of the same name with other methods."""
    kind = type(modules[0])
    other = type(kind.__name__, (kind,), body)
    for module in modules:
        module.__class__ = other
    try:
        yield
    finally:
        for module in modules:
            module.__class__ = kind


def renamed(old: str, new: str) -> dict[str, Any]:
    """Methods of layers that are handed an argument under a new name."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs[new] = kwargs.pop(old)
        return nn.Module.__call__(self, *args, **kwargs)

    def forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> Any:
        kwargs[old] = kwargs.pop(new)
        return type(self).__mro__[1].forward(self, hidden_states, **kwargs)

    return {"__call__": call, "forward": forward}


def counting(self: Any, hidden_states: Tensor, **kwargs: Any) -> Any:
    """Of layers that count positions by their own cache."""
    n, cache = hidden_states.shape[1], kwargs.get(CACHE)
    held = 0 if cache is None else cache.get_seq_length(self.self_attn.layer_idx)
    d = kwargs["position_embeddings"][0].shape[-1]
    angles = torch.arange(held, held + n)[None, :, None] / torch.arange(1, d + 1)
    kwargs["position_embeddings"] = (angles.cos(), angles.sin())
    return type(self).__mro__[1].forward(self, hidden_states, **kwargs)


FASTV = tokenzoo.build("fastv", keep=8)
PYRAMID = tokenzoo.build("pyramiddrop", keep=8, layers=(1, 2), factors=(2, 1))
LAYERS: list[tuple[dict[str, Any], Any, str]] = [
    (renamed(CACHE, "kv"), FASTV, r"layer \d of the language model .* cache as kv"),
    (renamed("attention_mask", "mask"), FASTV, "LlamaModel does not run"),
    (renamed("position_embeddings", "turns"), FASTV, "get no position_embeddings"),
    (renamed("position_ids", "at"), PYRAMID, "get no position_ids"),
    ({"forward": counting}, FASTV, r"LlamaModel differs from itself by \d.*Nothing"),
]


@pytest.mark.parametrize(("body", "zoo", "named"), LAYERS)
def test_layers_that_take_things_otherwise_are_refused(body: Any, zoo: Any, named: str) -> None:
    model = hf.llava()
    given = SINGLE.given(model)
    with changed(list(model.model.language_model.layers), **body):
        bare = logits(model, given)
        with pytest.raises(AttachError, match=named):
            zoo.attach(model)
        assert remains(model) == []
        assert torch.equal(logits(model, given), bare)


def test_features_by_name_are_followed() -> None:
    def call(self: Any, x: Tensor, **kwargs: Any) -> Any:
        return nn.Module.__call__(self, hidden_states=x, **kwargs)

    model = hf.llava()
    given = SINGLE.given(model)
    with FASTV.attach(model):
        wanted = answer(model, given)
    with changed(list(model.model.language_model.layers), __call__=call), FASTV.attach(model):
        assert torch.equal(answer(model, given), wanted)


def test_a_language_model_whose_cache_has_another_name_is_refused() -> None:
    def forward(
        self: Any, attention_mask: Any = None, position_ids: Any = None, kv: Any = None, **more: Any
    ) -> Any:
        given = {"attention_mask": attention_mask, "position_ids": position_ids, CACHE: kv}
        return type(self).__mro__[1].forward(self, **given, **more)

    model = hf.llava()
    with (
        changed([model.model.language_model], forward=forward),
        pytest.raises(AttachError, match="LlamaModel has no argument for a cache"),
    ):
        FASTV.attach(model)
    assert remains(model) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_proof_leaves_nothing(kind: str) -> None:
    model = KINDS[kind]().train()
    layers = model.model.language_model.layers
    layers[1].eval()
    before, calls = list(layers), []
    modes = [module.training for module in model.modules()]
    handles = [
        layer.register_forward_hook(lambda module, args, out, i=i: calls.append(i))
        for i, layer in enumerate(layers)
    ]
    random = torch.get_rng_state()
    with tokenzoo.build("fastv", keep=8, layer=1).attach(model):
        assert sorted(calls) == [0] * 5 + [1] * 5  # the passes, of the layers at the step
        assert torch.equal(torch.get_rng_state(), random)
        assert torch.is_grad_enabled()
        assert [module.training for module in model.modules()] == modes
        assert all(a is b for a, b in zip(layers, before, strict=True))
        assert all(parameter.grad is None for parameter in model.parameters())
        assert getattr(model.model, "rope_deltas", None) is None
    for handle in handles:
        handle.remove()
    assert remains(model) == []


class Coarse(nn.Module):
    """A linear layer on features that are rounded to 8 bits a token, as some that are quantised are."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """Round, then multiply."""
        unit = x.abs().amax(-1, keepdim=True).clamp_min(1e-9) / 127
        return self.linear((x / unit).round() * unit)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("numbers", ["bfloat16", "float16", "coarse"])
@pytest.mark.parametrize("recipe", ["fastv", "dart"])
def test_coarse_numbers_are_no_reason(kind: str, numbers: str, recipe: str) -> None:
    model = KINDS[kind]()
    if numbers == "coarse":
        for layer in model.model.language_model.layers:
            layer.mlp.down_proj = Coarse(layer.mlp.down_proj)
            layer.self_attn.o_proj = Coarse(layer.self_attn.o_proj)
    else:
        model.to(getattr(torch, numbers))
    with tokenzoo.build(recipe, keep=8).attach(model):
        pass
