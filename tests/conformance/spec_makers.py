"""How the models of `SPECS` are built small, called, and read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
import torch
from torch import Tensor

from tests.adapters import models as of_timm
from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm import qwen
from tests.adapters.hf.vlm.calls import FLOWER, TALL, TEMPLE, Batch
from tests.adapters.hf.vlm.test_packed_tower import MIXED
from tests.conformance.chats import CHATS, whole

Inputs = Mapping[str, Any]
TOWER = ("evoprune", "tome", "random", "ipcv")
WITH_CLS = (*TOWER, "visionzip")
# In the tower, after the projector, in the LLM, and in the tower alone.
WHOLE = ("evoprune", "tome", "divprune", "fastv", "ipcv")


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
        offloads: accelerate moves its weights in a test; one model of each kind.
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
        offloads=name in ("dinov2", "dinov3_vit"),
        compiles=name in ("clip", "siglip", "dinov3_vit") and not options,
    )


PROMPTS = Batch(("what is the <image> ?", "the cat"), ((TALL,), ()))
BEFORE = Batch(("<image> what is the dog ?", "<image> the cat"), ((TEMPLE,), (FLOWER,)))


@cache
def prompts(kind: str) -> Inputs:
    """A padded batch: a row with an image, and one without; of PaliGemma all have one."""
    return dict((PROMPTS if CHATS[kind].words else BEFORE).given(whole(kind)))


def whole_model(
    kind: str,
    blocks: str,
    recipes: tuple[str, ...],
    depth: str = "num_hidden_layers",
    **options: Any,
) -> Spec:
    """A multimodal model.

    Args:
        kind: of `CHATS`.
        blocks: path of the blocks of its tower.
        recipes: that run on it.
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
        recipes=recipes,
        checkpoint=hf_checkpoint,
        whole=True,
        **options,
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
        offloads=kind == "qwen2_5_vl",
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
