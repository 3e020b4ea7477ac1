"""torchvision's and open_clip's towers, whose attention is an nn.MultiheadAttention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from open_clip.transformer import VisionTransformer as OpenClip
from torch import nn

import tokenzoo
from tests.adapters.models import gap, images, randomise, run
from tokenzoo import Recipe, Stage, Step
from tokenzoo.errors import AttachError
from tokenzoo.hooks.tap import Tap
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.schedules import Once
from tokenzoo.scorers import CLSAttention


def torchvision_vit(depth: int = 6, image_size: int = 112) -> Any:
    """A small one, 7 x 7 patches."""
    sizes: dict[str, Any] = {"patch_size": 16, "hidden_dim": 48, "num_heads": 2, "mlp_dim": 96}
    model = torchvision.models.VisionTransformer(
        image_size, num_layers=depth, num_classes=10, **sizes
    )
    return randomise(model).eval()


def open_clip_vit(depth: int = 6, **options: Any) -> Any:
    """A small one, 7 x 7 patches."""
    sizes = {"image_size": 112, "patch_size": 16, "width": 48, "heads": 2, "mlp_ratio": 2.0}
    return randomise(OpenClip(**{**sizes, **options}, layers=depth, output_dim=16)).eval()


def attention(**options: Any) -> Any:
    return randomise(nn.MultiheadAttention(24, 3, batch_first=True, **options)).eval()


@pytest.mark.parametrize(
    ("bias", "projected"), [(False, True), (True, True), (False, False)], ids=str
)
def test_the_tap_on_a_multihead_attention_is_the_attention(bias: bool, projected: bool) -> None:
    """As F.multi_head_attention_forward, which takes log mass as a float padding mask."""
    torch.manual_seed(0)
    module, x = attention(bias=projected), torch.randn(2, 7, 24)
    log = (torch.rand(2, 7) + 0.5).log() if bias else None
    expected, weights = module(x, x, x, key_padding_mask=log, average_attn_weights=False)
    tap = Tap(1, log)
    with tap:
        found, none = module(x, x, x, need_weights=False)
    assert none is None
    assert gap(found, expected) <= 1e-5
    seen = tap.seen[0]
    torch.testing.assert_close(seen.received(), weights.mean((1, 2))[:, 1:])
    torch.testing.assert_close(seen.cls(), weights[:, :, 0, 1:])
    assert seen.query.shape == seen.key.shape == (2, 3, 7, 8)


@pytest.mark.parametrize(
    ("options", "call", "word"),
    [
        ({}, {"need_weights": True}, "need_weights=True"),
        ({}, {"key_padding_mask": torch.zeros(2, 7)}, "key_padding_mask"),
        ({}, {"attn_mask": torch.zeros(7, 7)}, "attn_mask"),
        ({"add_bias_kv": True}, {}, "add_bias_kv"),
        ({"add_zero_attn": True}, {}, "add_zero_attn"),
    ],
)
def test_what_the_tap_does_not_write_out_is_refused(
    options: dict[str, Any], call: dict[str, Any], word: str
) -> None:
    module, x = attention(**options), torch.randn(2, 7, 24)
    with Tap(), pytest.raises(AttachError, match=word):
        module(x, x, x, **{"need_weights": False, **call})


def test_selection_by_cls_attention_is_that_of_the_weights() -> None:
    model = torchvision_vit(depth=3)
    step = Step(Stage.BLOCK, Once(1), SelectAssign(TopK(CLSAttention()), Drop()), Identity())
    layer, inputs = model.encoder.layers.encoder_layer_1, []
    layer.ln_1.register_forward_hook(lambda module, args, out: inputs.append(out))
    with tokenzoo.build(Recipe(step, keep=10)).attach(model, trace=True) as attached:
        run(model, images(model))
        keep = attached.record.keep
    y = inputs[-1]
    with torch.no_grad():
        _, weights = layer.self_attention(y, y, y)
    assert torch.equal(keep[:, 1:], weights[:, 0, 1:].topk(10).indices.sort().values + 1)


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")
def test_compiled_and_exported_where_no_block_is_watched() -> None:
    """In eager mode torch has a faster path of its own for such blocks: 1e-4, not 1e-5."""
    model = torchvision_vit(depth=2)
    x = images(model)
    tokenzoo.build("uniform", keep=30).attach(model)
    expected = run(model, x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert gap(run(compiled, x), expected) <= 1e-4
    with torch.no_grad():
        program = torch.export.export(model, (x,))
    assert gap(run(program.module(), x), expected) <= 1e-4
    torch.compiler.reset()


def test_attention_weights_are_never_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call with need_weights: sdpa, or in blocks that merge its output from the map of importance."""
    model = torchvision_vit(depth=4)
    tokenzoo.build("evoprune", keep=13).attach(model)
    x = images(model)
    calls: list[Any] = []
    original = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: calls.append(k) or original(*a, **k)
    )
    run(model, x)
    assert len(calls) == 1  # block 2 counts masses; 1 and 3 merge; 0 takes torch's own path
