"""`generate` of an attached model: the prompt is short for the model, and whole for the caller."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from tokenzoo.errors import AttachError
from tokenzoo.hooks import refuse_outside
from tokenzoo_adapters.common.patching import put, remove
from tokenzoo_adapters.hf.names import ENCODED, MASK, cache_in, cache_of
from tokenzoo_adapters.hf.vlm import generate_callbacks
from tokenzoo_adapters.hf.vlm.cached_prompt import CACHED, CachedPrompt
from tokenzoo_adapters.hf.vlm.conversation import continued
from tokenzoo_adapters.hf.vlm.generate_callbacks import CallerPrompt
from tokenzoo_adapters.hf.vlm.prompt_hooks import PromptHooks
from tokenzoo_adapters.hf.vlm.prompt_text import PromptCall
from tokenzoo_adapters.hf.vlm.shortening import place_call, shorten_call


def install(hooks: PromptHooks) -> Callable[[], None]:
    """Put a `generate` on a model that has one; return an uninstaller."""
    if not hasattr(hooks.model, "generate"):
        return partial(remove, hooks.model, ())
    mine = {"generate": partial(_generate, hooks), **generate_callbacks.methods(hooks.model)}
    put(hooks.model, mine)
    return partial(remove, hooks.model, tuple(mine))


def _generate(hooks: PromptHooks, *args: Any, **kwargs: Any) -> Any:
    """The `generate` that is put on the model; a function, so that it is copied and pickled with it."""
    refuse_outside(hooks.model, "generate")
    names = tuple(inspect.signature(cast("Any", type(hooks.model)).generate).parameters)[1:]
    return _generated(hooks, {**dict(zip(names, args, strict=False)), **kwargs})


@torch.no_grad()
def _generated(hooks: PromptHooks, given: dict[str, Any]) -> Any:
    original = cast("Any", type(hooks.model)).generate
    key = "inputs" if given.get("input_ids") is None else "input_ids"
    ids: Any = given.get(key)
    active = hooks.attached.active
    if active:
        given = hooks.takes.given((), given, "generate")
    if active and given.get(ENCODED):
        return _with_encoded(hooks, given)
    if not active or not _is_prompt(ids):
        if active and hooks.has_pixels(given) and not _is_prompt(ids):
            raise AttachError(
                "generate with pixel values and no input_ids [b, n]: the prompt cannot be shortened. "
                "Pass input_ids, as the processor returns them, not inputs_embeds"
            )
        return original(hooks.model, **given)
    hooks.decoder.check_generate(given)
    prompt: dict[str, Any] = {**given, "input_ids": given.pop(key), "inputs": None}
    cache = cache_of(prompt)
    cached: CachedPrompt | None = getattr(cache, CACHED, None)
    spans, text = hooks.spans(prompt), hooks.adapter.prompt_text
    if cached is None:
        # Where nothing is to go the cache remembers too: an image may come later, and follow this.
        call = shorten_call(hooks.adapter, prompt, spans, pad_left=True, remember=hooks.mrope)
        if hooks.mrope:
            call = place_call(hooks.adapter, call, prompt, None)
    else:
        call = continued(hooks.adapter, prompt, spans, cached)
    short, spans = call.given, call.spans
    _count_short(hooks.model, short, prompt["input_ids"].shape[1] - short["input_ids"].shape[1])
    b, n = short["input_ids"].shape
    if short is not prompt:
        callers = CallerPrompt(prompt["input_ids"], n, prompt.get(MASK))
        short.update(generate_callbacks.restoring(hooks.model, short, callers))
    hooks.state.spans, hooks.state.shape = spans, (b, n)
    try:
        text.begin(call.said or PromptCall(call.given, spans))
        output = original(hooks.model, **short)
    finally:
        hooks.state.spans = hooks.state.shape = None
        text.end()
    return _restored(output, prompt["input_ids"], short["input_ids"], cache, call.cached)


def _with_encoded(hooks: PromptHooks, given: dict[str, Any]) -> Any:
    """Call `generate` with encoded images: a model that assists another one gets them from that one."""
    if not getattr(given.get("generation_config"), "is_assistant", False):
        hooks.refuse_encoded()
    hooks.state.assists = True
    try:
        return cast("Any", type(hooks.model)).generate(hooks.model, **given)
    finally:
        hooks.state.assists = None


def _count_short(model: Any, given: dict[str, Any], removed: int) -> None:
    """Make lengths that count the caller's prompt count the short one, of so many columns fewer."""
    own = given.get("generation_config")
    config = own or getattr(model, "generation_config", None)
    new = given.get("max_new_tokens") or getattr(config, "max_new_tokens", None)
    changed: dict[str, int] = {}
    for name in ("max_length", "min_length"):
        value = given.get(name)
        if value is None and not (name == "max_length" and new is not None):
            value = getattr(config, name, None)
        if value and removed:
            changed[name] = max(1, value - removed)
    if own is None:
        given.update(changed)
    elif changed:  # transformers takes no lengths in addition to a configuration any more
        given["generation_config"] = own = copy.copy(own)
        for name, value in changed.items():
            setattr(own, name, value)
            given.pop(name, None)


def _restored(
    output: Any, full: Tensor, short: Tensor, cache: Any, cached: CachedPrompt | None
) -> Any:
    """What generate returned, with the caller's prompt in front."""
    alone = isinstance(output, Tensor)
    sequences: Tensor = output if alone else output.sequences
    times = sequences.shape[0] // full.shape[0]
    begin = full.repeat_interleave(times, 0).to(sequences.device)
    whole = torch.cat([begin, sequences[:, short.shape[1] :]], 1)
    returned = None if alone else cache_in(output, "generate")
    cache = cache if returned is None else returned
    if cache is not None and cached is not None and times == 1:
        setattr(cache, CACHED, cached)
    if alone:
        return whole
    output.sequences = whole
    return output


def _is_prompt(ids: object) -> bool:
    return isinstance(ids, Tensor) and ids.ndim == 2 and not ids.is_floating_point()
