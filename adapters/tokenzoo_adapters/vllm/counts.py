"""How many placeholders the images of a prompt have, before they are encoded.

The counts are those of an attached model of transformers: the same model on the meta device, attached
without a proof, says how many tokens each image of a call leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from tokenzoo.errors import AttachError, BadArgumentError
from tokenzoo_adapters.hf.vlm.placeholders import VisualSpan
from tokenzoo_adapters.vllm.recipe import ServedRecipe

GIVEN = ("pixel_values", "image_sizes", "image_grid_thw", "batch_num_images")
"""What of the processor's output, or of a call of vLLM's model, says how many tokens an image has."""

PLACED = ("qwen2_vl", "qwen2_5_vl")
"""Families with M-RoPE whose positions were tried in vLLM."""


def planner(recipe: ServedRecipe, config: Any) -> Any:
    """Attach a recipe to a model without weights, which plans and never runs.

    Args:
        recipe: of the server.
        config: of the checkpoint, as transformers reads it.

    Raises:
        UnsupportedModelError, MissingEvidenceError, BudgetError: see `Method.attach`.
        AttachError: vLLM does not run this model as transformers does.
    """
    transformers: Any = import_module("transformers")
    with torch.device("meta"):
        # A copy: while a recipe is attached, the configuration names our function of attention.
        model = transformers.AutoModel.from_config(deepcopy(config))
    attached = recipe.method.attach(model, prove=False)
    check_model(attached)
    return attached


def check_model(attached: Any) -> None:
    """See that vLLM's Transformers backend runs a model as transformers does.

    Args:
        attached: to the model, which may be on the meta device.

    Raises:
        AttachError: it does not, or it is no vision-language model.
    """
    spec, name = getattr(attached.adapter, "spec", None), type(attached.model).__name__
    if spec is None:
        raise AttachError(f"{name} is no vision-language model whose prompts tokenzoo can shorten")
    if spec.streams:
        raise AttachError(
            f"{name} adds features of inner blocks of its vision tower to its language model "
            f"({', '.join(stream.name for stream in spec.streams)}), and vLLM's Transformers backend does "
            "not pass them on: serve it with transformers"
        )
    if spec.positions == "mrope" and spec.folder not in PLACED:
        raise AttachError(
            f"{name}: its positions (M-RoPE) were not tried in vLLM with a recipe; those of "
            f"{', '.join(PLACED)} were. Serve it with transformers"
        )
    if not any(modality.kind == "image" for modality in spec.modalities):
        raise AttachError(f"{name} reads no images")


def image_spans(attached: Any, given: Mapping[str, Any]) -> list[VisualSpan]:
    """Count the tokens of each image, whole and with the recipe.

    Args:
        attached: to the model, which may be on the meta device.
        given: what the processor returned for the images, or what vLLM hands to its model.
    """
    known = {name: given[name] for name in GIVEN if given.get(name) is not None}
    found: dict[int, list[VisualSpan]] = attached.adapter.visuals(known, attached.token_plan)
    return [span for several in found.values() for span in several]


def shortened(ids: Tensor, sizes: Sequence[int], spans: Sequence[VisualSpan]) -> list[Tensor]:
    """What stands for each image in a prompt, with as many placeholders as are planned.

    The first placeholders stay, and everything that is not a placeholder.

    Args:
        ids: what the processor writes for the images, one after the other, `[n]`.
        sizes: how many ids are those of each image.
        spans: of each image.

    Raises:
        BadArgumentError: an image has other placeholders than the plan starts from.
    """
    if len(sizes) != len(spans):
        raise BadArgumentError(
            f"the processor writes {len(sizes)} images into the prompt, and {len(spans)} are planned"
        )
    found: list[Tensor] = []
    parts: Sequence[Tensor] = torch.split(ids, list(sizes))
    for number, (one, span) in enumerate(zip(parts, spans, strict=True)):
        here = one == one.mode().values  # the placeholder is what is repeated
        count = int(here.sum())
        if count != span.full:
            raise BadArgumentError(
                f"image {number}: the processor writes {count} placeholders, and the plan starts from "
                f"{span.full}: is this the processor of this model?"
            )
        if span.short > span.full:
            raise BadArgumentError(
                f"image {number}: {span.short} tokens are planned, more than its {span.full} placeholders: "
                "ask for fewer"
            )
        found.append(one[~here | (here.cumsum(0) <= span.short)])
    return found


def check_counts(rows: Sequence[int], spans: Sequence[VisualSpan]) -> None:
    """Raise an AttachError unless the images have as many tokens as their prompts have placeholders."""
    planned = [span.short for span in spans]
    if list(rows) != planned:
        raise AttachError(
            f"the images of a call have {list(rows)} tokens, and {planned} are planned: the prompts have "
            "placeholders for these. Were images passed that are encoded already?"
        )
