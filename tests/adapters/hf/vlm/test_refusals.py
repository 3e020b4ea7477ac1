"""All models of transformers for images and text: each is followed, or refused with a reason of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenzoo_adapters.hf.plugin import tokenzoo_adapter
from tokenzoo_adapters.hf.towers import find_tower
from tokenzoo_adapters.hf.vlm.adapter import VisionLanguageAdapter
from tokenzoo_adapters.hf.vlm.models import SPECS
from tokenzoo_adapters.hf.vlm.refusals import AFTER, REFUSALS, refusal_of
from torch import nn

import tokenzoo
from benchmarks.models_to_try import vision_language_classes
from tests.adapters.hf import models as hf
from tests.adapters.models import gap
from tests.refusals import refused
from tokenzoo.errors import UnsupportedModelError

CLASSES = vision_language_classes()
CONSTRAINTS = (Path(__file__).parents[4] / "constraints.txt").read_text()
STRICT = f"\ntransformers=={transformers.__version__}\n" in CONSTRAINTS
"""Whether this is the version whose models were all read."""

UNMADE = """
    ChameleonForConditionalGeneration CohereCompassForConditionalGeneration
    DeepseekOcr2ForConditionalGeneration DiffusionGemmaForBlockDiffusion Emu3ForConditionalGeneration
    Granite4VisionForConditionalGeneration HunYuanVLForConditionalGeneration
    PerceptionLMForConditionalGeneration Qwen3OmniMoeForConditionalGeneration
    Qwen4ExpForConditionalGeneration
"""
"""Classes whose default configuration makes no model: they are refused by their class alone."""

OPTIONS = {
    "aya_vision": {"vision_config": {"num_attention_heads": 16}},
    **{kind: {"mm_tokens_per_image": 49} for kind in ("gemma3", "shieldgemma2")},  # of 14 x 14
}
DEPTHS = ("num_hidden_layers", "num_layers", "depth", "encoder_layers", "decoder_layers")


def shorter(config: Any) -> Any:
    """A configuration with two layers in each of its parts, unless layers share caches."""
    fixed = hasattr(config, "num_kv_shared_layers")
    for name, value in list(vars(config).items()):
        if isinstance(value, transformers.PretrainedConfig):
            shorter(value)
        elif name in DEPTHS and isinstance(value, int) and value > 2 and not fixed:
            setattr(config, name, 2)
    return config


def made(kind: str) -> Any:
    """The model of a type, of its default sizes, without weights."""
    config = shorter(transformers.CONFIG_MAPPING[kind](**OPTIONS.get(kind, {})))
    found = getattr(transformers, CLASSES[kind])
    if CLASSES[kind] in UNMADE.split():
        model = found.__new__(found)
        nn.Module.__init__(model)
        model.config = config
        return model
    with torch.device("meta"):
        return found(config)


@pytest.mark.parametrize("kind", CLASSES)
def test_it_is_followed_or_refused_with_its_reason(kind: str) -> None:
    model = made(kind)
    if type(model).__name__ in {spec.whole for spec in SPECS}:
        assert isinstance(tokenzoo_adapter(model), VisionLanguageAdapter)
        return
    known = refusal_of(model)
    if known is None and not STRICT:
        known = REFUSALS[0]
        reason = "is not known to tokenzoo"
    else:
        assert known is not None, f"read modeling_*.py of {kind}, and add it to hf/vlm/refusals.py"
        reason = f"is not supported: {known.why}. What works on it: "
        if known.tower:
            reason += f"attach(model.{inside(model)}, restore=True), inside the tower; or "
        reason += known.instead
    refused(
        lambda: tokenzoo.build("divprune").attach(model),
        f"transformers' {CLASSES[kind]} {reason}",
        kind=UnsupportedModelError,
    )


def inside(model: Any) -> str:
    """The path of the first supported tower in a model."""
    return next(path for path, module in model.named_modules() if find_tower(module) is not None)


def test_a_folder_has_one_reason_or_a_spec() -> None:
    folders = [folder for one in REFUSALS for folder in one.folders]
    assert len(folders) == len(set(folders))
    assert not set(folders) & {spec.folder for spec in SPECS}
    if STRICT:
        modules = [getattr(transformers, name).__module__ for name in CLASSES.values()]
        assert not set(folders) - {module.split(".")[2] for module in modules}
    reasons = [one.why for one in REFUSALS]
    assert all(". " not in why and not why.endswith(".") for why in reasons)


def test_a_model_that_nobody_has_read_is_refused_in_general() -> None:
    class NewerForConditionalGeneration(nn.Module):
        def get_image_features(self) -> None: ...

        def generate(self) -> None: ...

    NewerForConditionalGeneration.__module__ = "transformers.models.newer.modeling_newer"
    refused(
        lambda: tokenzoo.build("divprune").attach(NewerForConditionalGeneration()),
        "NewerForConditionalGeneration is not known to tokenzoo",
        "docs/adding-a-model.md",
        AFTER,
        kind=UnsupportedModelError,
    )


def test_a_subclass_has_the_reason_of_its_class() -> None:
    class Mine(transformers.FuyuForCausalLM):
        pass

    with torch.device("meta"):
        model = Mine(shorter(transformers.FuyuConfig()))
    refused(
        lambda: tokenzoo.build("divprune").attach(model),
        "Mine is not supported: there is no vision transformer",
        kind=UnsupportedModelError,
    )


def test_a_part_of_a_model_has_not_the_reason_of_the_whole() -> None:
    with torch.device("meta"):
        text = transformers.Llama4ForCausalLM(shorter(transformers.Llama4TextConfig()))
    refused(
        lambda: tokenzoo.build("divprune").attach(text),
        "Llama4ForCausalLM is not supported. Supported are",
        kind=UnsupportedModelError,
    )


CLIP, SIGLIP = ("clip_vision_model", {}), ("siglip_vision_model", {"vision_use_head": False})
TOWERS_INSIDE: dict[str, tuple[tuple[str, dict[str, Any]], dict[str, Any]]] = {
    "vipllava": (CLIP, {"vision_feature_layers": [-2, -4, 2]}),
    "llava_next_video": (CLIP, {"vision_feature_layer": -2}),
    "video_llava": (CLIP, {}),
    "cohere2_vision": (SIGLIP, {}),
    "aya_vision": (SIGLIP, {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}),
    "deepseek_vl": (SIGLIP, {}),
}
"""Models with a supported tower in them: what it is, and further entries of the config."""


@pytest.mark.parametrize("kind", TOWERS_INSIDE)
def test_what_the_error_says_of_the_tower_inside_is_right(kind: str) -> None:
    """Attached with restore=True, it returns as many tokens as the model reads, of all layers."""
    (tower, own), options = TOWERS_INSIDE[kind]
    sizes = {"model_type": tower, **hf.tower_sizes(), "projection_dim": 48, **own}
    config = transformers.CONFIG_MAPPING[kind](
        vision_config=sizes, text_config={"model_type": "llama", **hf._LLM}, **options
    )
    model = hf.randomise(getattr(transformers, CLASSES[kind])(config)).eval()
    part = model.get_submodule(inside(model))
    images = torch.randn(2, 3, hf.SIDE, hf.SIDE, generator=torch.Generator().manual_seed(0))
    given: dict[str, Any] = {"pixel_values": images}
    read = model.model.get_image_features
    if kind in ("llava_next_video", "video_llava"):
        given, read = {"pixel_values_videos": images[None]}, model.model.get_video_features

    def features() -> torch.Tensor:
        found = read(**given).pooler_output
        # Before transformers 5.24 LLaVA-NeXT-Video returns a tuple of videos.
        return found if isinstance(found, torch.Tensor) else torch.cat(found)

    with torch.no_grad():
        bare = features()
        with tokenzoo.build("evoprune", keep=1.0).attach(part, restore=True):
            assert gap(features(), bare) <= 1e-5
        with tokenzoo.build("evoprune", keep=0.35).attach(part, restore=True):
            assert 1e-3 < gap(features(), bare) < 10
        assert torch.equal(features(), bare)
