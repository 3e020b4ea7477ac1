"""The models that are held to every way of running: how to build each small, call it, and read its output.

A new model joins by one row of `SPECS`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import tokenzoo
from tests.adapters import models as of_timm
from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm import qwen
from tests.adapters.hf.vlm.calls import FLOWER, TALL, TEMPLE, Batch
from tests.adapters.hf.vlm.test_packed_tower import MIXED
from tests.adapters.test_torchvision_vit import open_clip_vit, torchvision_vit
from tests.conformance.chats import CHATS, whole

Inputs = Mapping[str, Any]
TOWER = ("evoprune", "tome", "random")
WITH_CLS = (*TOWER, "visionzip")
WHOLE = ("evoprune", "tome", "divprune", "fastv")  # in the tower, after the projector, in the LLM


@dataclass(frozen=True)
class Spec:
    """A model and its call.

    Attributes:
        make: from a number of blocks (of its tower), always the same model, in eval mode.
        give: from the model, the arguments of its call.
        read: from its output, the tensor that is compared, which has a gradient.
        recipes: that run on it.
        keep: of a patch's tokens, for all recipes.
        tokens: patch tokens of the inputs; None: of several sizes, or a whole model.
        second: a module of the second block, and other places where a pass may fail.
        other: from the model, the arguments of another call, if not those of `give` with other pixels.
        checkpoint: turns gradient checkpointing on, reentrant or not; None: this library has none.
        compiles: with fullgraph=True, as its bare form; one model of each attention.
        offloads: accelerate can move its weights.
        whole: a multimodal model, which generates.
    """

    make: Callable[[int], Any]
    give: Callable[[Any], Inputs]
    read: Callable[[Any], Tensor]
    second: str
    places: tuple[str, ...] = ()
    recipes: tuple[str, ...] = TOWER
    keep: float = 0.4
    tokens: int | None = None
    other: Callable[[Any], Inputs] | None = None
    checkpoint: Callable[[Any, bool], None] | None = None
    compiles: bool = False
    offloads: bool = False
    whole: bool = False


def itself(output: Tensor) -> Tensor:
    return output


def first(output: Any) -> Tensor:
    """The features, without the pooled output, if the model has one."""
    return output.last_hidden_state


def pooled(output: Any) -> Tensor:
    return torch.cat([output.last_hidden_state, output.pooler_output[:, None]], 1)


def logits(output: Any) -> Tensor:
    """Of the tokens that no row has as padding, and no recipe drops."""
    return output.logits[:, -3:]


def grouped(output: Any) -> Tensor:
    return output.pooler_output


def timm_case(case: Any) -> Spec:
    """A model of timm, of 7 x 7 patches."""
    size = 7 * int(re.findall(r"patch(\d+)", case.name)[0])
    relative = case.family.startswith(("relative", "shared relative"))
    return Spec(
        lambda depth: case.build(depth=depth, img_size=size),
        lambda model: {"x": of_timm.images(model, batch=3)},
        itself,
        second="blocks.1.mlp",
        places=("blocks.1.attn", "blocks.3"),
        tokens=49,
        recipes=WITH_CLS if case.pooling == "token" else TOWER,
        compiles=case in (of_timm.EVA02, of_timm.BEIT_SHARED, of_timm.RELPOS),
        # Of relative positions some biases have no gradient but rounding.
        checkpoint=None if relative else timm_checkpoint,
    )


def timm_checkpoint(model: Any, reentrant: bool) -> None:
    timm.layers.set_reentrant_ckpt(reentrant)
    model.set_grad_checkpointing()


def hf_checkpoint(model: Any, reentrant: bool) -> None:
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})


def hf_tower(name: str, **options: Any) -> Spec:
    layers = {"clip": "encoder.layers", "siglip": "encoder.layers", "siglip2": "encoder.layers"}
    layers |= {"vit": "layers", "dinov3_vit": "model.layer", "aimv2": "encoder.layers"}
    with_cls = "siglip" not in name and name != "aimv2"
    return Spec(
        lambda depth: hf.tower(name, num_hidden_layers=depth, **options),
        lambda model: hf.pixels(model, batch=3),
        first if options or name == "radio" else pooled,
        second=f"{layers.get(name, 'encoder.layer')}.1.{'ffn' if name == 'aimv2' else 'mlp'}",
        places=(f"{layers.get(name, 'encoder.layer')}.3",),
        tokens=64,
        recipes=WITH_CLS if with_cls else TOWER,
        checkpoint=hf_checkpoint,
        offloads=with_cls or bool(options),
        compiles=name in ("clip", "siglip", "dinov3_vit") and not options,
    )


PROMPTS = Batch(("what is the <image> ?", "the cat"), ((TALL,), ()))
BEFORE = Batch(("<image> what is the dog ?", "<image> the cat"), ((TEMPLE,), (FLOWER,)))


@cache
def prompts(kind: str) -> Inputs:
    """A padded batch: a row with an image, and one without; of PaliGemma all have one."""
    return dict((PROMPTS if CHATS[kind].words else BEFORE).given(whole(kind)))


def whole_model(kind: str, blocks: str, depth: str = "num_hidden_layers", **options: Any) -> Spec:
    """A multimodal model.

    Args:
        kind: of `CHATS`.
        blocks: path of the blocks of its tower.
        depth: what its configuration calls the number of them.
        **options: `extra` blocks that nobody reads, `vision` options, paths of the `projector`, the `text`
            model and its `second` part, and fields of the spec.
    """
    extra, vision = options.pop("extra", 0), options.pop("vision", {})
    projector = "visual.merger" if "visual" in blocks else "multi_modal_projector"
    projector, text = options.pop("projector", projector), options.pop("text", "language_model")
    places = (f"model.{blocks}.2", f"model.{projector}", f"model.{text}.layers.3")
    return Spec(
        lambda n: CHATS[kind].make(vision={depth: n + extra, **vision}),
        lambda model: prompts(kind),
        logits,
        second=f"model.{text}.layers.2.{options.pop('second', 'mlp')}",
        places=places,
        checkpoint=hf_checkpoint,
        whole=True,
        **{"recipes": WHOLE, **options},
    )


def packed_tower(kind: str) -> Spec:
    return Spec(
        lambda depth: getattr(qwen, kind)(vision={"depth": depth}).model.visual,
        lambda model: qwen.pixels(model, MIXED),
        grouped,
        other=lambda model: qwen.pixels(model, ((1, 8, 12), (2, 6, 4))),
        second="blocks.1.mlp",
        places=("blocks.3.attn", "blocks.3", "merger"),
        recipes=(*TOWER, "divprune"),
        checkpoint=hf_checkpoint,
        offloads=True,
    )


def of_x(make: Callable[..., Any], path: str, **options: Any) -> Spec:
    """A tower of torchvision or open_clip, of 7 x 7 patches."""
    return Spec(
        lambda depth: make(depth, **options),
        lambda model: {"x": of_timm.images(model, batch=3)},
        itself,
        second=f"{path}.mlp",
        places=(path,),
        tokens=49,
        compiles=not options,
        recipes=WITH_CLS,
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
    "llava": whole_model("llava", CLIP, extra=1, offloads=True),
    "llava_next": whole_model("llava_next", CLIP, extra=1),
    "llava_onevision": whole_model("llava_onevision", CLIP),
    **{kind: whole_model(kind, "visual.blocks", "depth") for kind in QWEN_VL},
    **{
        kind: whole_model(kind, "visual.blocks", "depth", recipes=recipes)
        for kind, recipes in (
            ("qwen3_vl_moe", ("fastv",)),
            ("qwen3_5", WHOLE[:1]),
            ("qwen3_5_moe", WHOLE[:1]),
            ("glm4v", WHOLE[:2]),
        )
    },
    # With the first recipe, which folds its groups in the tower.
    "internvl": whole_model("internvl", "vision_tower.encoder.layer", recipes=WHOLE[::-1]),
    "gemma3": whole_model("gemma3", CLIP, recipes=WHOLE[:3], vision=HEAD),
    **{kind: whole_model(kind, IDEFICS, **IDEFICS3) for kind in ("idefics3", "smolvlm")},
    "lfm2_vl": whole_model("lfm2_vl", CLIP, second="feed_forward", recipes=WHOLE[:3]),
    "minicpmv4_6": whole_model("minicpmv4_6", CLIP, recipes=("divprune",), projector="merger"),
    "molmo2": whole_model("molmo2", "vision_tower.layers", recipes=("divprune",)),
    "paligemma": whole_model("paligemma", CLIP, recipes=WHOLE[:3]),  # no Gemma is followed
    "paligemma2": whole_model("paligemma2", CLIP, recipes=WHOLE[:3], vision=HEAD),
    **{f"{kind} tower": packed_tower(kind) for kind in QWEN_VL},
}
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


# Every recipe of every model, for what depends on both; for the ways of running, each model with one of
# its recipes in turn, and LLaVA with all of them: they work in its tower, after its projector, in its LLM.
ALL = [(name, recipe) for name, spec in SPECS.items() for recipe in spec.recipes]
SOME = [
    (name, recipe)
    for i, (name, spec) in enumerate(SPECS.items())
    for recipe in (spec.recipes if name == "llava" else [spec.recipes[i % len(spec.recipes)]])
]
EVERY = pytest.mark.parametrize(("name", "recipe"), ALL)
EACH = pytest.mark.parametrize(("name", "recipe"), SOME)
LLM = ("fastv",)  # no pass of a tower has fewer tokens
