"""Which of timm's models are supported, and why the others are not.

timm is never imported: a model in hand means that it is loaded.
"""

from __future__ import annotations

import sys
from typing import Any

from tokenzoo import hookimpl
from tokenzoo.adapter import Adapter
from tokenzoo.errors import UnsupportedModelError
from tokenzoo_adapters.timm.eva import TimmEva
from tokenzoo_adapters.timm.relpos import TimmRelPos
from tokenzoo_adapters.timm.vit import INSTEAD, TimmViT

# The supported classes, by module of timm.
FOLLOWED: dict[str, tuple[str, type[TimmViT]]] = {
    "timm.models.vision_transformer": ("VisionTransformer", TimmViT),
    "timm.models.eva": ("Eva", TimmEva),
    "timm.models.beit": ("Beit", TimmRelPos),
    "timm.models.vision_transformer_relpos": ("VisionTransformerRelPos", TimmRelPos),
}

# Modules of timm that are not supported, by the reason.
REFUSED: dict[str, str] = {
    "its attention works in windows of a fixed grid, which merging would break": (
        "vision_transformer_sam hieradet_sam2 hiera swin_transformer swin_transformer_v2 "
        "swin_transformer_v2_cr gcvit nest tiny_vit efficientvit_msra davit"
    ),
    "it is a pyramid: between its stages the tokens must be a whole grid": (
        "pit pvt_v2 mvitv2 levit coat volo visformer mobilevit edgenext nextvit focalnet metaformer "
        "efficientformer efficientformer_v2 efficientvit_mit fastvit iformer swiftformer shvit lowformer "
        "maxxvit twins"
    ),
    "it packs images of several sizes, with masks and positions of its own": "naflexvit gemma4_vit",
    "after its blocks the tokens must be the whole grid again": "qwen3_vit deepseek_vit",
    "its talking-heads attention never calls the fused attention": "cait",
    "it attends over channels, not over tokens": "xcit",
    "its gated attention computes a whole map of positions itself": "convit",
    "it has two sequences of tokens, which attend to each other": "crossvit tnt",
    "it mixes tokens by layers that are as long as the whole image": "mlp_mixer sequencer",
}

_REASONS = {module: reason for reason, names in REFUSED.items() for module in names.split()}

_OTHERS = "it is not a vision transformer: it computes on a grid, not on a sequence of tokens"


@hookimpl
def tokenzoo_adapter(model: Any) -> Adapter | None:
    """The adapter of a vision transformer of timm; raises for its other models."""
    name = f"timm's {type(model).__name__}"
    for module, (known, adapter) in FOLLOWED.items():
        loaded = sys.modules.get(module)
        if loaded is not None and isinstance(model, getattr(loaded, known)):
            found = adapter(model, fixed=not getattr(model, "dynamic_img_size", False))
            found.check(name)
            return found
    family = type(model).__module__
    if not family.startswith("timm.models."):
        return None
    if type(model).__name__ == "FeatureGetterNet":
        tokenzoo_adapter(model.model)  # says why not, if the model inside is not followed either
        raise UnsupportedModelError(
            f"{name} (features_only=True) only reads maps off a {type(model.model).__name__}. Attach to "
            "that model inside it, attach(net.model, restore=True), and call the outer one: its maps have "
            "all tokens again. Without restore=True maps of fewer tokens are an error"
        )
    reason = _REASONS.get(family.rpartition(".")[2], _OTHERS)
    followed = ", ".join(known for known, _ in FOLLOWED.values())
    raise UnsupportedModelError(
        f"{name}: {reason}. Supported are timm's {followed} (ViT, DeiT, DINOv2, DINOv3, CLIP, SigLIP, EVA, "
        f"PE, BEiT and their variants). {INSTEAD}"
    )
