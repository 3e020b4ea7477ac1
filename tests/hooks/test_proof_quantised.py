"""The proof on models that were quantised first: noise of their layers is not another forward."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm import qwen
from tests.adapters.models import DINO_REG, RELPOS, VIT
from tests.hooks.test_site import STRANGE, Halved
from tokenzoo.adapter import Adapter
from tokenzoo.errors import AttachError
from tokenzoo.hooks import verify as proof


class Int8(nn.Module):
    """A linear layer of int8 weights; what it is given is rounded, too, by what else it is given.

    Args:
        linear: as it was.
        outliers: whether columns with a value above this are left as they are, as LLM.int8() does, and
            each row has a scale of its own; None: one scale for all.
    """

    def __init__(self, linear: nn.Linear, outliers: float | None) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.scale = nn.Buffer(weight.abs().amax(1) / 127)
        self.whole = nn.Buffer((weight / self.scale[:, None]).round().to(torch.int8))
        self.bias, self.outliers = linear.bias, outliers

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.zeros_like(x)
        if self.outliers is None:
            step = x.abs().amax() / 127
        else:
            kept = x * (x.abs().flatten(0, -2).amax(0) > self.outliers)
            step = (x - kept).abs().amax(-1, keepdim=True).clamp_min(1e-6) / 127
        rounded = ((x - kept) / step).round() * step + kept
        y = nn.functional.linear(rounded, self.whole.to(x.dtype) * self.scale[:, None])
        return y if self.bias is None else y + self.bias


def one_scale(model: nn.Module, outliers: float | None = None) -> nn.Module:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, Int8(child, outliers))
    return model


def left_out(model: nn.Module) -> nn.Module:
    return one_scale(model, 1.8)


def dynamic(model: nn.Module) -> nn.Module:
    torch.backends.quantized.engine = "fbgemm"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


MODELS = {
    "vit": lambda: VIT.build(depth=3),
    "dinov2": lambda: DINO_REG.build(depth=3),
    "relpos": lambda: RELPOS.build(depth=3),
    "clip": lambda: hf.tower("clip"),
    "dinov3": lambda: hf.tower("dinov3_vit"),
    "llava": hf.llava,
    "qwen2.5": qwen.qwen2_5_vl,
}
CASES = [(name, quantise) for name in MODELS for quantise in (dynamic, one_scale)]


@pytest.mark.parametrize(("name", "quantise"), [*CASES, ("vit", left_out), ("clip", left_out)])
def test_noise_of_quantised_layers_is_not_another_forward(name: str, quantise: Any) -> None:
    model = quantise(MODELS[name]())
    with tokenzoo.build("tome", keep=0.4).attach(model):
        pass


@pytest.mark.parametrize("kind", STRANGE, ids=lambda kind: kind.__name__)
def test_another_forward_is_refused_in_a_quantised_model(kind: Any) -> None:
    model: Any = one_scale(VIT.build(depth=1))
    model.blocks[0].__class__ = type("Block", (kind,), {})
    with pytest.raises(AttachError, match="in the order that the adapter describes"):
        tokenzoo.build("uniform", keep=0.5).attach(model)


def test_only_noise_is_excused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A float block has none; a difference that is larger than its noise says what the noise was."""
    found: list[float] = []
    measure = proof.noise

    def measured(model: nn.Module, adapter: Adapter, trial: proof.Trial) -> float:
        found.append(measure(model, adapter, trial))
        return found[-1]

    monkeypatch.setattr(proof, "noise", measured)
    bare = VIT.build(depth=1)
    tokenzoo.build("tome", keep=0.5).attach(bare).detach()
    assert found == []  # it costs nothing where nothing differs
    bare.blocks[0].__class__ = type("Block", (Halved,), {})
    with pytest.raises(AttachError, match="are kept: its forward is not"):
        tokenzoo.build("uniform", keep=0.5).attach(bare)
    assert max(found) <= 1e-6
    with pytest.raises(AttachError, match=r"batch changes its output by .*does not account"):
        tokenzoo.build("uniform", keep=0.5).attach(one_scale(bare))
