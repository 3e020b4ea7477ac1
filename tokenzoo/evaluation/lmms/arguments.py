"""The arguments of the model: `--model_args pretrained=...,recipe=evoprune,keep=0.25` of lmms-eval."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tokenzoo._core.quoting import quote
from tokenzoo._core.validation import check_choice, check_count
from tokenzoo.errors import BadArgumentError, UnknownNameError
from tokenzoo.zoo import Method, build, load

BARE = "none"
"""`recipe=none`: the bare model, for comparison."""

DTYPES = ("auto", "bfloat16", "float16", "float32")
ATTENTIONS = ("eager", "flash_attention_2", "sdpa")
PIXELS = ("min_pixels", "max_pixels")
OWN = ("pretrained", "recipe", "dtype", "device", "attn_implementation", "frames", *PIXELS)
"""Arguments of the model; all others are options of the recipe."""

OTHERS = tuple(name for name in OWN if name != "recipe")
RECIPES = "the name of a recipe (tokenzoo list), or the path of a recipe file (.json)"
EXAMPLE = "--model_args pretrained=llava-hf/llava-1.5-7b-hf,recipe=evoprune,keep=0.25"


@dataclass(frozen=True)
class ModelArguments:
    """What to load, what to attach, and where it runs.

    Attributes:
        pretrained: a checkpoint's name or folder.
        method: the recipe; None: the bare model.
        dtype: one of `DTYPES`; "auto": the checkpoint's.
        device: of torch ("cpu", "cuda:0"), or "auto": spread over all GPUs.
        attention: implementation of transformers; None: the model's default.
        frames: sampled from a video; None: as many as the processor's default.
        pixels: least and most pixels of an image, for processors that take images of any size.
        batch_size: prompts of a batch.
    """

    pretrained: str
    method: Method | None
    dtype: str = "auto"
    device: str = "cpu"
    attention: str | None = None
    frames: int | None = None
    pixels: Mapping[str, int] = field(default_factory=dict[str, int])
    batch_size: int = 1


def parse(given: Mapping[str, Any]) -> ModelArguments:
    """Read the arguments that lmms-eval passes: numbers and booleans are converted, all else are strings.

    Args:
        given: those of `--model_args`, and `batch_size`, `device`, `max_batch_size` of the command line.

    Raises:
        BadArgumentError: no checkpoint, no recipe, or a value that is not allowed.
        UnknownNameError: no such recipe, or no such option of it.
    """
    own = {name: given[name] for name in OWN if name in given}
    others = {name: read_value(value) for name, value in given.items() if name not in own}
    if "max_batch_size" in others:
        raise BadArgumentError(
            f"max_batch_size={quote(others['max_batch_size'])}: no batch size is searched for; leave it "
            "out, and set --batch_size"
        )
    batch_size = others.pop("batch_size", 1)
    pixels = {name: check_count(name, own[name]) for name in PIXELS if name in own}
    frames, attention = own.get("frames"), own.get("attn_implementation")
    return ModelArguments(
        pretrained=_text("pretrained", own, "a checkpoint's name or folder"),
        method=recipe_of(_text("recipe", own, f"{RECIPES}; '{BARE}' is the bare model"), others),
        dtype=check_choice("dtype", own.get("dtype", "auto"), *DTYPES),
        device=device_of(own.get("device")),
        attention=None
        if attention is None
        else check_choice("attn_implementation", attention, *ATTENTIONS),
        frames=None if frames is None else check_count("frames", frames),
        pixels=pixels,
        batch_size=check_count("batch_size", batch_size),
    )


def _text(name: str, given: Mapping[str, Any], what: str) -> str:
    """Return an argument that must be there, and not empty."""
    value = given.get(name)
    if not isinstance(value, str) or not value:
        found = f"{name}={quote(value)}" if name in given else f"{name} is missing"
        raise BadArgumentError(f"{found}; it must be {what}. For example: {EXAMPLE}")
    return value


def read_value(value: Any) -> Any:
    """Read a value that lmms-eval left a string as JSON, if it is that: "[1, 2]" is a list, "null" None.

    lmms-eval reads a negative number as a float, so a whole one becomes an int again: -2.0 is -2.
    """
    if isinstance(value, float) and value < 0 and value.is_integer():
        return int(value)
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def recipe_of(recipe: str, options: Mapping[str, Any]) -> Method | None:
    """Make a recipe by its name, or from a file; options come before those of the file.

    Args:
        recipe: a name, a path that ends in `.json`, or `BARE`.
        options: of the recipe.

    Returns:
        The recipe; None for `BARE`.

    Raises:
        UnknownNameError: no such recipe, or no such option of it; names the nearest.
        BadArgumentError: a value that is not allowed, a file that is no recipe, or an option of `BARE`.
    """
    if recipe == BARE:
        if options:
            raise BadArgumentError(
                f"{next(iter(options))}: recipe={BARE} is the bare model and has no options; leave it out"
            )
        return None
    try:
        if Path(recipe).suffix == ".json":
            saved = load(recipe)
            return build(saved.name or saved.recipe, **{**saved.options, **options})
        return build(recipe, **options)
    except UnknownNameError as error:
        raise UnknownNameError(
            f"{error}. recipe is {RECIPES}; the other arguments of the model are {', '.join(OTHERS)}"
        ) from error


def device_of(device: Any) -> str:
    """Return the device; None: a GPU if there is one. One of several processes has a GPU of its own.

    Raises:
        BadArgumentError: torch has no such device, or it is not there.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "auto":
        return device
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError) as error:
        raise BadArgumentError(
            f"device={quote(device)}; it must be 'auto', 'cpu', 'cuda', 'cuda:0' or another device of torch"
        ) from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise BadArgumentError(f"device={quote(device)}: torch sees no GPU here; pass device=cpu")
    if device == "cuda" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return device
