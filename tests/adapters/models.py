"""Small models of every family that the adapters know, with weights at which nothing is degenerate."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import timm
import torch
from torch import Tensor, nn

from tokenzoo import Recipe, Stage, Step
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.schedules import Once
from tokenzoo.scorers import FeatureNorm

SMALL = {"num_classes": 10, "depth": 8, "embed_dim": 48, "num_heads": 2, "weight_init": "skip"}


@dataclass(frozen=True)
class Case:
    """A model of timm, made small.

    Attributes:
        name: the model's, in timm.
        family: what it stands for.
        prefix: CLS, distillation and register tokens.
        grid: rows and columns of its patches.
        pooling: how its head reads the tokens.
        options: for `timm.create_model`, in addition to `SMALL`.
    """

    name: str
    family: str
    prefix: int
    grid: tuple[int, int]
    pooling: str
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, **options: Any) -> Any:
        """A fresh model with random weights, in eval mode; always the same for the same options."""
        return small(self.name, **{**self.options, **options})


VIT = Case("vit_tiny_patch16_224", "ViT", 1, (14, 14), "token")
GAP = Case("vit_medium_patch16_gap_240", "ViT with a mean", 0, (15, 15), "avg")
DEIT = Case("deit_tiny_patch16_224", "DeiT", 1, (14, 14), "token")
DISTILLED = Case("deit_tiny_distilled_patch16_224", "DeiT, distilled", 2, (14, 14), "token")
DEIT3 = Case("deit3_small_patch16_224", "DeiT-III", 1, (14, 14), "token")
DINO = Case("vit_small_patch14_dinov2", "DINOv2", 1, (14, 14), "token", {"img_size": 196})
DINO_REG = Case(
    "vit_small_patch14_reg4_dinov2", "DINOv2, registers", 5, (14, 14), "token", {"img_size": 196}
)
CLIP = Case(
    "vit_base_patch32_clip_quickgelu_224", "CLIP", 1, (12, 14), "token", {"img_size": (384, 448)}
)
SIGLIP = Case("vit_base_patch16_siglip_224", "SigLIP", 0, (14, 14), "map")
REG_GAP = Case("vit_little_patch16_reg4_gap_256", "ViT, registers and a mean", 4, (16, 16), "avg")

TEN = (VIT, GAP, DEIT, DISTILLED, DEIT3, DINO, DINO_REG, CLIP, SIGLIP, REG_GAP)

# Norms after attention and MLP, instead of before them.
RES_POST = Case("vit_base_patch16_rpn_224", "ViT, post-norm", 0, (14, 14), "avg")

# Positions inside the attention: rotary, or a bias per pair of places.
EVA = {"embed_dim": 48, "num_heads": 2, "weight_init": None}
EVA02 = Case("eva02_tiny_patch14_224", "EVA-02", 1, (16, 16), "avg", EVA)
DINOV3 = Case("vit_small_patch16_dinov3", "DINOv3", 5, (16, 16), "token", EVA)
ROPE = Case("vit_small_patch16_rope_224", "ViT, rotary", 1, (14, 14), "token", EVA)
ROPE_MIXED = Case(
    "vit_small_patch16_rope_mixed_224", "ViT, rotary by head", 1, (14, 14), "token", EVA
)
PE_SIZE = {**EVA, "img_size": 256}
PE = Case("vit_pe_core_tiny_patch16_384", "Perception Encoder", 1, (16, 16), "map", PE_SIZE)
POST = {**EVA, "use_post_norm": True}
EVA_POST = Case("eva02_tiny_patch14_224", "EVA-02, post-norm", 1, (16, 16), "avg", POST)
EVA1 = Case("eva_giant_patch14_224", "EVA", 1, (16, 16), "token", EVA)  # absolute positions only
BEIT = Case("beit_base_patch16_224", "BEiT", 1, (14, 14), "avg", {"weight_init": None})
SHARED = {"weight_init": None, "use_rel_pos_bias": True, "use_shared_rel_pos_bias": True}
BEIT_SHARED = Case("beit_base_patch16_224", "BEiT, shared bias", 1, (14, 14), "avg", SHARED)
RELPOS = Case("vit_relpos_small_patch16_224", "relative positions", 0, (14, 14), "avg")
SRELPOS = Case("vit_srelpos_small_patch16_224", "shared relative positions", 0, (14, 14), "avg")
RELPOS_POST = Case(
    "vit_relpos_base_patch16_rpn_224", "relative positions, post-norm", 0, (14, 14), "avg"
)

POSITIONAL = (
    *(EVA02, DINOV3, ROPE, ROPE_MIXED, PE, EVA_POST),
    *(BEIT, BEIT_SHARED, RELPOS, SRELPOS, RELPOS_POST),
)


def small(name: str, **options: Any) -> Any:
    """A small model of timm with random weights, in eval mode."""
    wanted = {key: value for key, value in {**SMALL, **options}.items() if value is not None}
    return deepcopy(_made(name, tuple(sorted(wanted.items()))))


@cache
def _made(name: str, options: tuple[tuple[str, Any], ...]) -> Any:
    model = timm.create_model(name, pretrained=False, **dict(options))
    return randomise(model).eval()


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a value of about the size that a trained one has.

    As timm makes them, LayerScale's gammas are about 1e-5 and the CLS token is nearly 0: a mistake in
    any block would then be invisible in the output.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            last = name.rpartition(".")[2]
            if last.startswith("gamma"):
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
            elif last == "bias":
                parameter.copy_(0.1 * normal(parameter))
            elif parameter.ndim == 1:  # the weight of a norm
                parameter.copy_(1 + 0.2 * normal(parameter))
            elif last == "weight":
                parameter.copy_(normal(parameter) / parameter[0].numel() ** 0.5)
            elif last == "relative_position_bias_table":  # it is added to logits
                parameter.copy_(normal(parameter))
            else:  # CLS, registers, positions, latents
                parameter.copy_(0.5 * normal(parameter))
    return model


def images(
    model: Any, batch: int = 2, seed: int = 0, size: tuple[int, int] | None = None
) -> Tensor:
    """Random images of the model's own size: `[b, 3, height, width]`."""
    if size is None:
        known = getattr(model, "patch_embed", model)
        size = getattr(known, "img_size", None) or known.image_size
    size = (size, size) if isinstance(size, int) else size
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def run(model: nn.Module, x: Tensor) -> Tensor:
    """The output, without gradients."""
    with torch.no_grad():
        return model(x)


def largest(block: int, keep: int) -> Recipe:
    """Keep the largest tokens of one block, and drop the others."""
    step = Step(Stage.BLOCK, Once(block), SelectAssign(TopK(FeatureNorm()), Drop()), Identity())
    return Recipe(step, keep=keep)


def gap(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value of `b`."""
    if a.shape != b.shape:
        raise ValueError(f"{tuple(a.shape)} against {tuple(b.shape)}")
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max())


def traces(model: nn.Module) -> list[str]:
    """What an attachment has left on a model: nothing, hopefully."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs")
    names += ("_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called")
    found = [
        f"{path}.{name}"
        for path, module in model.named_modules()
        for name in names
        if getattr(module, name)
    ]
    mine = ("pool", "forward_intermediates", "forward_head", "_global_pool", "_tokenzoo_attached")
    mine += ("get_intermediate_layers",)
    return found + [name for name in vars(model) if name in mine]
