"""Models that are refused, with what they are and what works: an error at attach, and nothing is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import timm
import tokenzoo_adapters.timm.plugin as timm_plugin
import torch
import torchvision
import transformers
from open_clip.timm_model import TimmModel
from timm.models.vision_transformer import ParallelScalingBlock
from torch import nn

import tokenzoo
from tests.adapters.hf.models import tower_sizes
from tests.adapters.models import SIGLIP, VIT, gap, traces
from tests.adapters.test_torchvision_vit import open_clip_vit
from tokenzoo.errors import UnsupportedModelError


def on_meta(make: Callable[[], Any]) -> Any:
    with torch.device("meta"):
        return make()


def hf(kind: str, **options: Any) -> Any:
    found = getattr(transformers, kind)
    return on_meta(lambda: found(found.config_class(**options)))


def clip_of_open_clip() -> Any:
    return open_clip.CLIP(
        embed_dim=16,
        vision_cfg={"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32},
        text_cfg={"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1},
    ).eval()


def timm_in_open_clip() -> Any:
    return TimmModel("vit_tiny_patch16_224", embed_dim=16, image_size=32, pretrained=False)


def getter(name: str) -> Any:
    sizes: dict[str, Any] = {"embed_dim": 48, "depth": 4, "num_heads": 4}
    return timm.create_model(name, features_only=True, **sizes)


def pooling_with_positions() -> Any:
    model = SIGLIP.build()
    model.attn_pool.pos_embed = nn.Parameter(torch.zeros(196, 48))
    return model


def pooling_otherwise() -> Any:
    class AttentionPoolPrr(nn.Module):  # timm has one of this name, from 1.0.26 on
        pass

    model = SIGLIP.build()
    model.attn_pool = AttentionPoolPrr()
    return model


TIMM = {
    "samvit_base_patch16": "windows of a fixed grid",
    "swin_tiny_patch4_window7_224": "windows of a fixed grid",
    "naflexvit_base_patch16_gap": "several sizes",
    "cait_xxs24_224": "never calls the fused attention",
    "xcit_nano_12_p8_224": "over channels",
    "pvt_v2_b0": "between its stages",
    "convit_tiny": "a whole map of positions",
    "crossvit_tiny_240": "two sequences",
    "mixer_s16_224": "as long as the whole image",
    "resnet18": "not a vision transformer",
}
VISION = {"vision_config": tower_sizes(num_hidden_layers=4)}
# How each is made, and what the error names in addition to its class.
MODELS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    **{
        name: (
            lambda name=name: on_meta(lambda: timm.create_model(name, pretrained=False)),
            ("timm's", reason, "DINOv2", "zoo.reduce(features)"),
        )
        for name, reason in TIMM.items()
    },
    "parallel branches": (
        lambda: VIT.build(block_fn=ParallelScalingBlock),
        ("ParallelScalingBlock", "between attention and"),
    ),
    "another attention": (lambda: VIT.build(attn_layer="diff"), ("DiffAttention",)),
    "a pool with positions": (pooling_with_positions, ("AttentionPoolLatent", "positions of its")),
    "another pool": (pooling_otherwise, ("AttentionPoolPrr",)),
    **{
        f"features_only of {name}": (lambda name=name: getter(name), (kind, "net.model, restore"))
        for name, kind in (
            ("vit_tiny_patch16_224", "VisionTransformer"),
            ("eva02_tiny_patch14_224", "Eva"),
            ("beit_base_patch16_224", "Beit"),
        )
    },
    "features_only of a pyramid": (
        lambda: timm.create_model(
            "hiera_tiny_224", features_only=True, embed_dim=16, stages=(1, 1, 1, 1)
        ),
        ("Hiera", "works in windows"),
    ),
    "torchvision's Swin": (lambda: on_meta(torchvision.models.swin_t), ("torchvision's", "plain")),
    "torchvision's ResNet": (
        lambda: on_meta(torchvision.models.resnet18),
        ("torchvision's", "plain"),
    ),
    "open_clip, attentional pool": (
        lambda: open_clip_vit(attentional_pool=True),
        ("an attention with learned queries",),
    ),
    "open_clip, custom blocks": (
        lambda: open_clip_vit(block_type="custom"),
        ("CustomResidualAttentionBlock",),
    ),
    "open_clip, whole": (clip_of_open_clip, ("attach(model.visual)",)),
    "open_clip around timm": (timm_in_open_clip, ("attach(model.trunk)",)),
    "CLIPModel": (lambda: hf("CLIPModel", **VISION), ("only its vision tower", "vision_model")),
    "SiglipModel": (lambda: hf("SiglipModel", **VISION), ("only its vision tower", "vision_model")),
    "SamVisionModel": (
        lambda: hf("SamVisionModel", num_hidden_layers=2),
        ("is not supported: it attends in windows", "zoo.reduce(features)"),
    ),
    **{
        kind: (lambda kind=kind: hf(kind), ("is not supported", "SiglipVisionModel"))
        for kind in ("Dinov2Backbone", "SwinModel", "BeitModel", "BertModel")
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_it_is_refused_by_name(name: str) -> None:
    make, words = MODELS[name]
    model = make()
    before = traces(model)  # features_only reads its maps by hooks
    with pytest.raises(UnsupportedModelError) as caught:
        tokenzoo.build("evoprune").attach(model)
    kind = "Hiera" if "pyramid" in name else type(model).__name__
    assert all(word in str(caught.value) for word in (kind, *words)), str(caught.value)
    assert traces(model) == before


def test_reasons_name_families_that_timm_has() -> None:
    families = [name for names in timm_plugin.REFUSED.values() for name in names.split()]
    assert len(families) == len(set(families)) > 40
    missing = {family for family in families if not hasattr(timm.models, family)}
    later = {"iformer", "lowformer", "qwen3_vit", "gemma4_vit", "deepseek_vit"}  # than timm 1.0.26
    assert missing in (set(), later)


def clip_of_transformers() -> Any:
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
    config = transformers.CLIPConfig(
        vision_config=tower_sizes(image_size=32, patch_size=8),
        text_config={**text, "intermediate_size": 32},
        projection_dim=16,
    )
    return transformers.CLIPModel(config).eval()


@pytest.mark.parametrize(
    ("make", "inside", "call"),
    [
        (clip_of_open_clip, "visual", lambda model, x: model.encode_image(x)),
        (timm_in_open_clip, "trunk", lambda model, x: model(x.repeat(1, 1, 7, 7))),
        (
            clip_of_transformers,
            "vision_model",
            lambda model, x: model.get_image_features(pixel_values=x).pooler_output,
        ),
    ],
)
def test_the_tower_inside_of_them_works(make: Any, inside: str, call: Any) -> None:
    model, x = make().eval(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        bare = call(model, x)
        with tokenzoo.build("tome", keep=1).attach(model.get_submodule(inside)):
            assert gap(call(model, x), bare) > 1e-4
            assert inside != "vision_model" or model.text_model.config._attn_implementation == (
                "sdpa"
            )
        assert torch.equal(call(model, x), bare)
