"""The vision towers of transformers that are supported, and the names of their parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TowerNames:
    """The names of the parts of a class of towers.

    Attributes:
        model: the class.
        layers: the list of its blocks.
        block: first norm, attention, second norm and last module of a block (see `BlockPath`).
        norm: the norm of all tokens after the blocks; "": there is none.
        cls: whether there is a CLS token; registers are those of the configuration.
        rotary: whether positions act inside the attention.
        flat: whether its input is flat patches and their grid, not an image.
        padding: the argument that says which patches are not padding, its second; "": there is none.
        asks: whether it interpolates its positions for another image size only if an argument says so.
        scale: the parameter by which a block multiplies its second branch, after its last module; "": none.
        masked: whether a block takes an attention mask.
        resizes: the entry of the config that says whether it takes images of other sizes; "": it does.
        prefix: the entry of the configuration that counts CLS tokens and registers; "": one CLS token, if
            there is one, and `num_register_tokens`.
        mlp: the MLP of a block.
    """

    model: str
    layers: str
    block: tuple[str, str, str, str]
    norm: str = ""
    cls: bool = True
    rotary: bool = False
    flat: bool = False
    padding: str = ""
    asks: bool = False
    scale: str = ""
    masked: bool = True
    resizes: str = ""
    prefix: str = ""
    mlp: str = "mlp"


_CLIP = ("layer_norm1", "self_attn", "layer_norm2", "mlp")
# Both branches end with the same module: the output of its first call is not changed.
_DINO = ("norm1", "attention", "norm2", "drop_path")
_VIT = ("layernorm_before", "attention", "layernorm_after", "dropout")


def _idefics(model: str) -> TowerNames:
    """A SigLIP that takes padded images: its positions are those of a grid of any size."""
    options: dict[str, Any] = {"cls": False, "padding": "patch_attention_mask"}
    return TowerNames(model, "encoder.layers", _CLIP, "post_layernorm", **options)


TOWERS: dict[str, TowerNames] = {
    "clip": TowerNames("CLIPVisionModel", "encoder.layers", _CLIP, asks=True),
    "siglip": TowerNames(
        "SiglipVisionModel", "encoder.layers", _CLIP, "post_layernorm", cls=False, asks=True
    ),
    "siglip2": TowerNames(
        "Siglip2VisionModel",
        "encoder.layers",
        _CLIP,
        "post_layernorm",
        cls=False,
        flat=True,
        padding="pixel_attention_mask",
    ),
    "dinov2": TowerNames("Dinov2Model", "encoder.layer", _DINO, "layernorm"),
    "dinov2_with_registers": TowerNames(
        "Dinov2WithRegistersModel", "encoder.layer", _DINO, "layernorm"
    ),
    "dinov3_vit": TowerNames("DINOv3ViTModel", "model.layer", _DINO, "norm", rotary=True),
    "internvl": TowerNames(
        "InternVLVisionModel", "encoder.layer", _VIT, "layernorm", scale="lambda_2", masked=False
    ),
    "vit": TowerNames("ViTModel", "layers", _VIT, "layernorm", asks=True),
    "idefics3": _idefics("Idefics3VisionTransformer"),
    "smolvlm": _idefics("SmolVLMVisionTransformer"),
    "aimv2": TowerNames(
        "Aimv2VisionModel",
        "encoder.layers",
        ("rms_norm1", "attention", "rms_norm2", "ffn"),
        "rms_norm",
        cls=False,
        mlp="ffn",
        resizes="is_native",
    ),
    "radio": TowerNames("RadioModel", "encoder.layer", _DINO, prefix="num_summary_tokens"),
}
"""The supported towers, by folder of transformers.models."""

WINDOWED = ("sam", "sam_hq", "sam2", "sam3")
"""Folders of towers that attend in windows of a fixed grid (SAM's), in which fewer tokens have no place."""
