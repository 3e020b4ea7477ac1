"""Batches for the small whole models, ways of calling them, and what detach leaves on them."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from tests.adapters.hf import models as hf
from tests.adapters.hf.vlm import (
    cosmos,
    gemma3,
    glm,
    idefics3,
    internvl,
    lfm2_vl,
    minicpm,
    molmo2,
    paligemma,
    qwen,
)
from tests.adapters.models import gap

TEMPLE, FLOWER, TALL, WIDE, SMALL, *_ = hf.photos()
KINDS = {make.__name__: make for make in (hf.llava, hf.llava_next, hf.llava_onevision)}
NESTED = {"gemma3": gemma3.inputs, "idefics3": idefics3.inputs, "smolvlm": idefics3.inputs}
NESTED["lfm2_vl"] = lfm2_vl.inputs
"""What the processor of a model returns, by its kind, if it takes the images of each prompt."""
NEW = 3  # tokens of an answer: by the prompt, by its cache, and by one that has grown

CACHES = ("cache", "past_key_values")
"""What transformers calls the cache, from 5.24 on and before; what is attached takes both."""

CACHE = CACHES["cache" not in inspect.signature(transformers.LlamaModel.forward).parameters]
"""The name that the installed version has: bare models are called by it."""

ONE = "user: <image> what is this ? assistant:"
TWO = "<image> and <image> what is different ?"
NONE = "is the sky blue ?"


def inputs(
    model: Any,
    prompts: Sequence[str],
    images: Sequence[Sequence[Any]] = (),
    videos: Sequence[Any] | None = None,
    side: str = "left",
) -> Any:
    """What the processor of any of the small models returns, with the images of each prompt."""
    kind, flat = model.config.model_type, [image for some in images for image in some]
    if kind.startswith("llava"):
        return hf.inputs(model, prompts, images, videos, side)
    if kind.startswith("qwen"):
        return qwen.inputs(model, prompts, flat, videos, side)
    if kind.startswith("glm4v"):
        return glm.inputs(prompts, flat, videos, side)
    if kind == "cosmos3_edge":
        return cosmos.inputs(prompts, flat, videos, side)
    if kind in NESTED:
        return NESTED[kind](prompts, images, side)
    if kind in ("minicpmv4_6", "molmo2"):
        made = minicpm.inputs if kind == "minicpmv4_6" else molmo2.inputs
        return made(prompts, flat, videos, side)
    made = internvl.inputs if kind == "internvl" else paligemma.inputs
    return made(prompts, flat, side)


@dataclass(frozen=True)
class Batch:
    """Prompts with the images of each, and the videos of all."""

    prompts: tuple[str, ...]
    images: tuple[tuple[Any, ...], ...]
    videos: tuple[Any, ...] = ()

    def given(self, model: Any, side: str = "left") -> Any:
        """What the processor returns."""
        return inputs(model, self.prompts, self.images, self.videos or None, side)

    def rows(self, model: Any) -> list[Any]:
        """What the processor returns for each row alone."""
        films = list(self.videos)
        alone: list[Any] = []
        for prompt, images in zip(self.prompts, self.images, strict=True):
            mine = [films.pop(0) for _ in range(prompt.count("<video>"))]
            alone.append(inputs(model, [prompt], [images], mine or None))
        return alone


SINGLE = Batch((ONE,), ((TEMPLE,),))
PADDED = Batch((ONE, TWO, NONE), ((WIDE,), (FLOWER, SMALL), ()))


@cache
def whole(kind: str) -> Any:
    """The model of that name, the same for all tests: they leave it bare."""
    return KINDS[kind]()


def logits(model: Any, given: Any, **options: Any) -> Tensor:
    """What one call says, `[b, n, words]`."""
    with torch.no_grad():
        return model(**given, **options).logits


def answer(model: Any, given: Any, **options: Any) -> Tensor:
    """The new tokens that `generate` returns, `[b, NEW]`, after the caller's own prompt."""
    options = {"max_new_tokens": NEW, "do_sample": False, **options}
    told = {name: value for name, value in options.items() if value is not None}
    out = model.generate(**given, **told)
    ids = given["input_ids"]
    times = len(out) // len(ids)
    assert torch.equal(out[:, : ids.shape[1]], ids.repeat_interleave(times, 0))
    return out[:, ids.shape[1] :]


def cache_of(output: Any) -> Any:
    """The cache that a call returned."""
    return getattr(output, CACHE)


def real_gap(a: Tensor, b: Tensor, mask: Tensor) -> float:
    """The gap between logits at the tokens that are no padding."""
    there = mask.bool()
    return gap(a[there], b[there])


def ends(given: Any) -> Tensor:
    """The column of the last real token of each row, `[b]`."""
    mask = given["attention_mask"]
    return mask.shape[1] - 1 - mask.flip(1).argmax(1)


@contextmanager
def entering(model: Any) -> Generator[list[dict[str, Any]]]:
    """The arguments of each call of the language model."""
    calls: list[dict[str, Any]] = []

    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        del module, args
        calls.append(dict(kwargs))

    base = getattr(model, "model", model)
    language = base.text_model if hasattr(base, "text_model") else base.language_model
    handle = language.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def remains(model: nn.Module) -> list[str]:
    """What an attachment has left on a model: nothing, hopefully; transformers has hooks of its own."""
    found: list[str] = []
    for path, module in model.named_modules():
        for name in HOOKS:
            hooks = getattr(module, name).items()
            found += [f"{path}.{name}" for _, hook in hooks if _is_ours(hook)]
            for options in ("with_kwargs", "always_called"):
                left = set(getattr(module, f"{name}_{options}", ())) - {key for key, _ in hooks}
                found += [f"{path}.{name}_{options}"] * len(left)
        config = getattr(module, "config", None)
        if "tokenzoo" in str(getattr(config, "_attn_implementation", "")):
            found.append(f"{path}.config")
        mine = ("generate", "pack_image_features", "apply_pooling", "forward")
        mine += ("_get_logits_processor", "_get_stopping_criteria", "_deepstack_process")
        mine += ("get_image_features", "get_video_features")
        found += [f"{path}.{n}" for n in vars(module) if n in mine or "tokenzoo" in n]
    return found


def _is_ours(hook: Any) -> bool:
    while isinstance(hook, partial):
        hook = hook.func
    return str(getattr(hook, "__module__", "")).startswith("tokenzoo")
