"""A prompt that goes on where a cache ended: only what is new is shortened."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenzoo.errors import AttachError
from tokenzoo_adapters.hf.names import MASK, POSITIONS, TYPES, cache_of
from tokenzoo_adapters.hf.vlm.cached_prompt import CachedPrompt
from tokenzoo_adapters.hf.vlm.interface import PromptAdapter
from tokenzoo_adapters.hf.vlm.prompt_text import PromptCall
from tokenzoo_adapters.hf.vlm.shortening import ShortCall, count_on, per_token, shorten_call
from tokenzoo_adapters.hf.vlm.spec import Spans


def continued(
    adapter: PromptAdapter, prompt: dict[str, Any], spans: Spans, cached: CachedPrompt
) -> ShortCall:
    """Put what a cache holds in front of the new part of a conversation, which is shortened.

    Args:
        adapter: of the model.
        prompt: the arguments of `generate`, with the whole conversation, or its new tokens alone.
        spans: its images and videos.
        cached: what the cache was made of.

    Raises:
        AttachError: the conversation does not begin with the prompt that the cache was made of, or padding
            would come between its tokens in a model that reads them in a row.
    """
    ids, mask = prompt["input_ids"], prompt.get(MASK)
    n = cached.full.shape[1]
    if not cached.begins(ids):
        if mask is not None and mask.shape[1] >= n + ids.shape[1]:
            # Only the new tokens were passed, with the mask of all.
            mask = torch.cat([cached.mask.to(mask), mask[:, n:]], 1)
            return ShortCall({**prompt, MASK: mask}, cached, spans=spans)
        raise AttachError(
            f"the cache was made from another prompt: input_ids {tuple(ids.shape)} do not begin with the "
            f"{n} tokens that it was made from. Pass the whole conversation, as generate returned it, or "
            "no cache"
        )
    new = {
        name: value[..., n:] if per_token(name, value, ids) else value
        for name, value in prompt.items()
    }
    lost, after, positions = cached.lost, cached.after, cached.positions
    short = ShortCall(new, spans=spans)
    if new["input_ids"].shape[1]:
        short = shorten_call(adapter, new, spans, pad_left=True)
        new, spans = short.given, short.spans
        lost = lost if short.cached is None else lost + short.cached.lost
        if not adapter.spec.gaps:
            _check_gaps(None if mask is None else mask[:, n:], new.get(MASK))
    answered = int(cache_of(prompt).get_seq_length()) - cached.short.shape[1]
    said = PromptCall(new, spans, answered)
    rows = torch.ones_like(new["input_ids"]) if mask is None else new[MASK]
    joined = {
        "input_ids": torch.cat([cached.short, new["input_ids"]], 1),
        MASK: torch.cat([cached.mask.to(rows), rows], 1),
    }
    typed = cached.typed(new)
    whole = {**new, **joined, **typed}
    if positions is not None and after is not None and new["input_ids"].shape[1]:
        placed = adapter.place(new, spans, after, said, short.encoded, short.index)
        after = placed.after
        positions = torch.cat([positions, placed.positions.to(positions)], -1)
        whole = {**placed.given, **joined, POSITIONS: positions, "mm_token_type_ids": None}
        count_on(adapter, after, joined[MASK].sum(1, keepdim=True))
    types = typed.get(TYPES)
    now = CachedPrompt(ids, joined["input_ids"], joined[MASK], lost, positions, after, types=types)
    return ShortCall(whole, now, said=said, spans=spans)


def _check_gaps(own: Tensor | None, short: Tensor | None) -> None:
    """Refuse padding before the new tokens of a conversation that the caller has not put there.

    Args:
        own: the caller's mask of the new tokens `[b, k]`; None: no padding.
        short: of those that are left.

    Raises:
        AttachError: there is more of it.
    """
    before, after = (0 if mask is None else int((mask == 0).sum()) for mask in (own, short))
    if after > before:
        raise AttachError(
            "the rows of this batch lose unequally many tokens, so padding would come between what a cache "
            "holds and what is new, and the language model reads the columns before each token, padding "
            "too. Continue the rows one by one, or pass the whole conversation without a cache"
        )
