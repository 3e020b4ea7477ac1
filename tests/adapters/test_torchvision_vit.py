"""torchvision's and open_clip's towers, whose attention is an nn.MultiheadAttention."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
import torchvision
from open_clip.transformer import VisionTransformer as OpenClip
from torch import Tensor, nn

import tokenzoo
from tests.adapters.models import gap, images, randomise, traces
from tests.adapters.models import one_thread as one_thread
from tokenzoo import Recipe, Stage, Step
from tokenzoo.errors import AttachError, UnsupportedModelError
from tokenzoo.hooks.attach import find_adapter
from tokenzoo.hooks.tap import Tap
from tokenzoo.matchers import Drop, GridCentres, SameCell, SelectAssign, TopK
from tokenzoo.mergers import Identity, WeightedMean
from tokenzoo.schedules import Last, Once
from tokenzoo.scorers import CLSAttention


def torchvision_vit(depth: int = 6) -> Any:
    """A small one, 7 x 7 patches."""
    model = torchvision.models.VisionTransformer(
        image_size=112,
        patch_size=16,
        num_layers=depth,
        num_heads=2,
        hidden_dim=48,
        mlp_dim=96,
        num_classes=10,
    )
    return randomise(model).eval()


def open_clip_vit(depth: int = 6, **options: Any) -> Any:
    """A small one, 7 x 7 patches."""
    sizes = {"image_size": 112, "patch_size": 16, "width": 48, "heads": 2, "mlp_ratio": 2.0}
    return randomise(OpenClip(**sizes, layers=depth, output_dim=16, **options)).eval()


MODELS = {
    "torchvision": torchvision_vit,
    "open_clip": open_clip_vit,
    "open_clip, mean": lambda: open_clip_vit(pool_type="avg", ls_init_value=1e-5),
    "open_clip, mean, then norm": lambda: open_clip_vit(pool_type="avg", final_ln_after_pool=True),
}
ALL = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


@ALL
def test_adapter_reads_the_model(make: Any) -> None:
    adapter = find_adapter(make())
    assert (adapter.prefix, adapter.tokens(), adapter.width, adapter.mlp_dim) == (1, 49, 48, 96)
    assert adapter.grid(49) == (7, 7)
    assert adapter.grid(48) is None
    assert len(adapter.blocks()) == 6


@pytest.mark.parametrize("bias", [None, 1.0])
def test_the_tap_on_a_multihead_attention_is_the_attention(bias: float | None) -> None:
    """As F.multi_head_attention_forward, which takes log mass as a float padding mask."""
    attention = randomise(nn.MultiheadAttention(24, 3, batch_first=True)).eval()
    x = torch.randn(2, 7, 24)
    mass = torch.rand(2, 7) + 0.5
    log = None if bias is None else mass.log()
    expected, weights = attention(x, x, x, key_padding_mask=log, average_attn_weights=False)
    tap = Tap(1, log)
    with tap:
        found, none = attention(x, x, x, need_weights=False)
    assert none is None
    torch.testing.assert_close(found, expected)
    seen = tap.seen[0]
    torch.testing.assert_close(seen.received(), weights.mean((1, 2))[:, 1:])
    torch.testing.assert_close(seen.cls(), weights[:, :, 0, 1:])
    assert seen.query.shape == seen.key.shape == (2, 3, 7, 8)


def test_the_tap_without_biases_of_the_projections() -> None:
    attention = randomise(nn.MultiheadAttention(24, 3, bias=False, batch_first=True)).eval()
    x = torch.randn(2, 7, 24)
    tap = Tap()
    with tap:
        found, _ = attention(x, x, x, need_weights=False)
    torch.testing.assert_close(found, attention(x, x, x)[0])


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
    attention = nn.MultiheadAttention(24, 3, batch_first=True, **options).eval()
    x = torch.randn(2, 7, 24)
    tap = Tap()
    with tap, pytest.raises(AttachError, match=word):
        attention(x, x, x, **{"need_weights": False, **call})


def test_selection_by_cls_attention_is_that_of_the_weights() -> None:
    model = torchvision_vit(depth=3)
    x = images(model)
    step = Step(Stage.BLOCK, Once(1), SelectAssign(TopK(CLSAttention()), Drop()), Identity())
    attached = tokenzoo.build(Recipe(step, keep=10)).attach(model, trace=True)
    inputs: list[Tensor] = []
    layer = model.encoder.layers.encoder_layer_1
    layer.ln_1.register_forward_hook(lambda module, args, out: inputs.append(out))
    run(model, x)
    keep = attached.record.keep
    attached.detach()
    y = inputs[-1]
    with torch.no_grad():
        _, weights = layer.self_attention(y, y, y)
    top = weights[:, 0, 1:].topk(10).indices.sort().values
    assert torch.equal(keep[:, 1:], top + 1)


@pytest.mark.parametrize("after", [False, True])
def test_a_mean_counts_masses(after: bool) -> None:
    """Merged only in the last block: the mean by mass is that of the members' features."""
    model = open_clip_vit(pool_type="avg", final_ln_after_pool=after)
    x = images(model)
    step = Step(Stage.BLOCK, Last(1), SelectAssign(GridCentres(), SameCell()), WeightedMean())
    features: list[Tensor] = []
    model.transformer.resblocks[5].register_forward_hook(lambda m, a, y: features.append(y))
    with tokenzoo.build(Recipe(step, keep=4)).attach(model) as attached:
        out = run(model, x)
        y, mass = features[-1], attached.mass[:, 1:]
    y = y if after else model.ln_post(y)
    mean = (y[:, 1:] * mass[..., None]).sum(1) / 49
    expected = (model.ln_post(mean) if after else mean) @ model.proj
    assert gap(out, expected) <= 1e-5
    assert len(mass.unique()) > 1


@ALL
def test_restored_features_leave_the_output_alone(make: Any) -> None:
    model = make()
    x = images(model)
    last: list[Tensor] = []
    block = model.get_submodule(find_adapter(model).blocks()[-1].name)
    for name in ("evoprune", "random"):
        expected = None
        for restore in (False, True):
            with tokenzoo.build(name, keep=12).attach(model, restore=restore):
                handle = block.register_forward_hook(lambda m, a, y: last.append(y))
                out = run(model, x)
                handle.remove()
            assert last[-1].shape[1] == (50 if restore else 13)
            expected = out if expected is None else expected
        assert gap(out, expected) <= 1e-5


@ALL
def test_gradients_flow(make: Any) -> None:
    model = make()
    tokenzoo.build("evoprune", keep=12).attach(model)
    model(images(model)).square().sum().backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in grads)


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


def test_what_is_compiled_bare_and_detached_is_bare_again() -> None:
    model = torchvision_vit(depth=2)
    x = images(model)
    compiled = torch.compile(model, backend="eager")
    bare = run(compiled, x)
    with tokenzoo.build("evoprune", keep=30, start=0).attach(model):
        assert gap(run(compiled, x), bare) > 1e-3
        assert gap(run(compiled, x), run(model, x)) <= 1e-4
    assert gap(run(compiled, x), bare) <= 1e-6
    torch.compiler.reset()


def test_a_whole_clip_says_where_its_tower_is() -> None:
    clip = open_clip.CLIP(
        embed_dim=16,
        vision_cfg={"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32},
        text_cfg={"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1},
    ).eval()
    with pytest.raises(UnsupportedModelError, match=r"attach\(model\.visual\)"):
        tokenzoo.build("tome").attach(clip)
    image = torch.randn(1, 3, 32, 32)
    bare = clip.encode_image(image)
    with tokenzoo.build("tome", keep=1).attach(clip.visual):
        assert gap(clip.encode_image(image), bare) > 1e-3
    assert torch.equal(clip.encode_image(image), bare)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"attentional_pool": True}, "an attention with learned queries"),
        ({"block_type": "custom"}, "CustomResidualAttentionBlock"),
    ],
)
def test_other_towers_of_open_clip_are_refused(options: dict[str, Any], word: str) -> None:
    model = open_clip_vit(**options)
    with pytest.raises(UnsupportedModelError, match=word):
        tokenzoo.build("tome").attach(model)
    assert traces(model) == []


def test_a_timm_tower_in_open_clip_says_where_it_is() -> None:
    from open_clip.timm_model import TimmModel

    tower = TimmModel("vit_tiny_patch16_224", embed_dim=16, image_size=32, pretrained=False)
    with pytest.raises(UnsupportedModelError, match=r"attach\(model\.trunk\)"):
        tokenzoo.build("tome").attach(tower)
    tokenzoo.build("tome", keep=1).attach(tower.trunk).detach()


@pytest.mark.parametrize("make", [torchvision.models.swin_t, torchvision.models.resnet18])
def test_other_models_of_torchvision_are_refused(make: Any) -> None:
    with torch.device("meta"):
        model = make()
    with pytest.raises(
        UnsupportedModelError, match=r"torchvision's .*not a plain vision transformer"
    ):
        tokenzoo.build("tome").attach(model)


def test_attention_weights_are_never_asked_for() -> None:
    """The fused attention stays: no call with need_weights, and one sdpa per watched block."""
    model = torchvision_vit(depth=4)
    tokenzoo.build("evoprune", keep=13).attach(model)
    x = images(model)
    calls: list[Any] = []
    original = F.scaled_dot_product_attention
    try:
        F.scaled_dot_product_attention = lambda *a, **k: calls.append(k) or original(*a, **k)
        run(model, x)
    finally:
        F.scaled_dot_product_attention = original
    assert len(calls) == 3  # blocks 1 and 3 merge; 2 and 3 count masses; 0 takes torch's own path
