"""The models that are held to every way of running, and how tests run them.

A new model joins by one row of `SPECS`. What is tried with which recipe:

- Every model with each of its recipes (`ALL`): what depends on both.
- The ways of running (`SOME`): each tower with one of its recipes in turn, each whole model with its first,
  and LLaVA with all of them, which work in its tower, after its projector and in its language model. Not
  the whole models that are `like` another one in chats.py: they have one recipe here.
- Offloading and saving meet our hooks in the same way in all models of a kind: `offloads` says which stand
  for the others.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenzoo
from tests.adapters import models as of_timm
from tests.adapters.hf import models as hf
from tests.adapters.test_torchvision_vit import open_clip_vit, torchvision_vit
from tests.conformance.chats import CHATS
from tests.conformance.spec_makers import (
    WHOLE,
    Inputs,
    Spec,
    hf_tower,
    of_x,
    packed_tower,
    timm_case,
    whole_model,
)

CLIP, QWEN_VL = "vision_tower.encoder.layers", ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
IDEFICS, HEAD = "vision_model.encoder.layers", {"vision_use_head": True}
IDEFICS3 = {"projector": "connector", "text": "text_model"}
TIMM = (*of_timm.TEN, of_timm.RES_POST, *of_timm.POSITIONAL)
SPECS: dict[str, Spec] = {
    **{f"timm {case.family}": timm_case(case) for case in TIMM},
    "torchvision": of_x(torchvision_vit, "encoder.layers.encoder_layer_1"),
    "open_clip": of_x(open_clip_vit, "transformer.resblocks.1"),
    "open_clip, mean": of_x(
        open_clip_vit, "transformer.resblocks.1", pool_type="avg", ls_init_value=1e-5
    ),
    "open_clip, mean, then norm": of_x(
        open_clip_vit, "transformer.resblocks.1", pool_type="avg", final_ln_after_pool=True
    ),
    **{name: hf_tower(name) for name in hf.TOWERS},
    "siglip without a head": hf_tower("siglip", vision_use_head=False),
    # Of the others, accelerate puts a parameter of their own nowhere.
    "llava": whole_model("llava", CLIP, WHOLE, extra=1, offloads=True),
    "llava_next": whole_model("llava_next", CLIP, ("evoprune", "divprune"), extra=1),
    "llava_onevision": whole_model("llava_onevision", CLIP, ("tome", "fastv")),
    **{
        kind: whole_model(kind, "visual.blocks", recipes, "depth")
        for kind, recipes in (
            ("qwen2_vl", ("divprune",)),
            ("qwen2_5_vl", WHOLE),
            ("qwen3_vl", ("fastv", "evoprune", "divprune", "ipcv")),
            ("qwen3_vl_moe", ("fastv",)),
            ("qwen3_5", ("divprune", "evoprune")),
            ("qwen3_5_moe", ("evoprune",)),
            ("glm4v", ("tome", "evoprune")),
        )
    },
    "internvl": whole_model("internvl", "vision_tower.encoder.layer", ("evoprune", "fastv")),
    "gemma3": whole_model("gemma3", CLIP, ("tome", "divprune"), vision=HEAD),
    "idefics3": whole_model("idefics3", IDEFICS, ("tome", "divprune"), **IDEFICS3),
    "smolvlm": whole_model("smolvlm", IDEFICS, ("fastv",), **IDEFICS3),
    "lfm2_vl": whole_model("lfm2_vl", CLIP, ("evoprune", "divprune"), second="feed_forward"),
    "minicpmv4_6": whole_model("minicpmv4_6", CLIP, ("divprune",), projector="merger"),
    "molmo2": whole_model("molmo2", "vision_tower.layers", ("divprune",)),
    "paligemma": whole_model("paligemma", CLIP, ("tome", "divprune")),  # no Gemma is followed
    "paligemma2": whole_model("paligemma2", CLIP, ("evoprune",), vision=HEAD),
    **{f"{kind} tower": packed_tower(kind) for kind in QWEN_VL},
}
if "cosmos3_edge" in CHATS:
    SPECS["cosmos3_edge"] = whole_model(
        "cosmos3_edge",
        "visual.encoder.layers",
        ("evoprune", "ipcv", "fastv"),
        projector="projector",
    )
DEPTH = 5


def fresh(name: str, depth: int = DEPTH) -> Any:
    """A model that nobody else has: a copy, which is faster than building one."""
    return copy.deepcopy(_built(name, depth))


@cache
def _built(name: str, depth: int) -> Any:
    return SPECS[name].make(depth)


def run(name: str, model: Any, inputs: Inputs | None = None) -> list[Tensor]:
    """What is compared: the output, and of a whole model two tokens of an answer."""
    spec = SPECS[name]
    given = spec.give(model) if inputs is None else inputs
    with torch.no_grad():
        found = [spec.read(model(**given))]
        if spec.whole:
            found.append(model.generate(**given, max_new_tokens=2, do_sample=False))
    return found


@cache
def expected(name: str, recipe: str | None) -> list[Tensor]:
    """What a model that is nothing but attached says; without a recipe, the bare model."""
    model = fresh(name)
    if recipe is not None:
        method(name, recipe).attach(model)
    return run(name, model)


def method(name: str, recipe: str, keep: float | None = None) -> Any:
    return tokenzoo.build(recipe, keep=SPECS[name].keep if keep is None else keep)


def other(name: str, model: Any) -> Inputs:
    """The arguments of another call: other pixels, and where a model takes several sizes, other sizes."""
    spec = SPECS[name]
    if spec.other is not None:
        return spec.other(model)
    given = spec.give(model)
    return {key: -value if value.is_floating_point() else value for key, value in given.items()}


def words() -> Inputs:
    """A prompt without images."""
    ids = torch.tensor([[hf.WORDS.index(word) for word in ("the", "cat", "is", "red")]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def same(found: list[Tensor], wanted: list[Tensor], tolerance: float = 0.0) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert (
            torch.equal(one, other)
            if tolerance == 0
            else of_timm.gap(one.float(), other.float()) <= tolerance
        )


ALL = [(name, recipe) for name, spec in SPECS.items() for recipe in spec.recipes]
SOME = [
    (name, recipe)
    for i, (name, spec) in enumerate(SPECS.items())
    for n, recipe in enumerate(spec.recipes)
    if name == "llava" or n == (0 if spec.whole else i % len(spec.recipes))
    if name not in CHATS or not CHATS[name].like
]
EVERY = pytest.mark.parametrize(("name", "recipe"), ALL)
EACH = pytest.mark.parametrize(("name", "recipe"), SOME)
LLM = ("fastv",)  # no pass of a tower has fewer tokens
