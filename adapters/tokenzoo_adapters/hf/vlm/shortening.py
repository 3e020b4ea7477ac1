"""The arguments of a call with a prompt that is as short as the visual tokens that will come.

With sequential positions the tokens after an image move up. With M-RoPE they keep the coordinates of the
whole prompt, which are known when the tower has run: the images are encoded first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tokenzoo.errors import AttachError
from tokenzoo_adapters.hf.names import ENCODED, MASK, POSITIONS, TYPES
from tokenzoo_adapters.hf.vlm.cached_prompt import (
    CACHED,
    CachedPrompt,
    kept_positions,
    moved_positions,
)
from tokenzoo_adapters.hf.vlm.interface import EncodedCall, PromptAdapter
from tokenzoo_adapters.hf.vlm.placeholders import Shortened, VisualSpan, shorten
from tokenzoo_adapters.hf.vlm.prompt_text import PromptCall
from tokenzoo_adapters.hf.vlm.spec import Spans

FILLS = {MASK: 0, "labels": -100, TYPES: 0, "mm_token_type_ids": 0}
"""What stands in padding, for each argument that has one value per token of the prompt."""


@dataclass(frozen=True)
class ShortCall:
    """A call with a short prompt.

    Attributes:
        given: its arguments.
        cached: what a cache that it makes has to remember; None: the prompt is the caller's.
        index: `[b, m]`, the caller's column that each column is, -1 at padding; None: all, in order.
        said: whose text its images are chosen by, if a cache holds some of the prompt; None: `given`.
        spans: its images and videos, with as many tokens as come of each.
        encoded: its images, where they had to be encoded before the prompt could be shortened.
    """

    given: dict[str, Any]
    cached: CachedPrompt | None = None
    index: Tensor | None = None
    said: PromptCall | None = None
    spans: Spans = field(default_factory=dict[int, list[VisualSpan]])
    encoded: EncodedCall | None = None


def shorten_call(
    adapter: PromptAdapter,
    given: dict[str, Any],
    spans: Spans,
    *,
    pad_left: bool,
    remember: bool = False,
) -> ShortCall:
    """Shorten the prompt of a call to the planned placeholders.

    Args:
        adapter: of the model.
        given: the arguments of the call.
        spans: its images and videos.
        pad_left: where to pad, if the mask does not show it.
        remember: whether a cache has to remember the prompt even if no visual token goes.

    Raises:
        AttachError: there are no ids to shorten, or the mask is not one value a token.
    """
    encoded = None
    if any(span.shared for several in spans.values() for span in several):
        full = {
            token: [replace(span, short=span.full) for span in several]
            for token, several in spans.items()
        }
        encoded = adapter.encode(given, full)
        spans = encoded.counted(spans)
    short = _shortened(adapter, given, spans, pad_left=pad_left, remember=remember)
    if encoded is not None and adapter.spec.positions != "mrope":
        pixels = {modality.pixels for modality in adapter.spec.modalities}
        rest = {name: value for name, value in short.given.items() if name not in pixels}
        short = replace(short, given={**rest, ENCODED: encoded.outputs})
    return replace(short, spans=spans, encoded=encoded)


def _shortened(
    adapter: PromptAdapter, given: dict[str, Any], spans: Spans, *, pad_left: bool, remember: bool
) -> ShortCall:
    """As `shorten_call`, of images and videos whose tokens are counted."""
    same = all(span.full == span.short for several in spans.values() for span in several)
    if same and not (remember and spans):
        return ShortCall(given)
    mrope = adapter.spec.positions == "mrope"
    ids, mask = given.get("input_ids"), given.get(MASK)
    if not isinstance(ids, Tensor):
        raise AttachError(
            "a call with pixel values and no input_ids: the prompt cannot be shortened. Pass "
            "input_ids, as the processor returns them, not inputs_embeds"
        )
    if mask is not None and (not isinstance(mask, Tensor) or mask.shape != ids.shape):
        raise AttachError(
            f"attention_mask is {kind_of(mask)}; with input_ids {tuple(ids.shape)} that must be "
            "shortened it must be a tensor of their shape, 0 at padding"
        )
    short = found = shorten(ids, spans, attention_mask=mask, pad_left=pad_left)
    if short is None:
        if not mrope:
            return ShortCall(given)
        # The prompt stays as it is, but what is left of its images has other positions.
        short = Shortened(torch.arange(ids.shape[1]).expand_as(ids), ids.shape[1])
    new = dict(given)
    new["input_ids"] = short.take(ids, padding_id(adapter.base.config))
    for name, fill in FILLS.items():
        if per_token(name, given.get(name), ids):
            new[name] = short.take(given[name], fill)
    real = (short.index >= 0).to(ids.dtype)
    if mask is None and bool((short.index < 0).any()):
        new[MASK] = real
    if not mrope and per_token(POSITIONS, given.get(POSITIONS), ids):
        new[POSITIONS] = moved_positions(given[POSITIONS], short, mask, ids)
    now = new.get(MASK)
    now = real if now is None else now
    before = torch.ones_like(ids) if mask is None else (mask != 0).to(ids.dtype)
    lost = before.sum(1, keepdim=True) - (now != 0).to(ids.dtype).sum(1, keepdim=True)
    types = new[TYPES] if per_token(TYPES, new.get(TYPES), new["input_ids"]) else None
    cached = CachedPrompt(ids, new["input_ids"], now, lost, types=types)
    return ShortCall(new, cached, None if found is None else found.index)


def place_call(
    adapter: PromptAdapter, short: ShortCall, full: Mapping[str, Any], cache: Any
) -> ShortCall:
    """Encode the images of a shortened call, and keep the positions of its tokens (M-RoPE).

    Args:
        adapter: of the model.
        short: the shortened call.
        full: the arguments before that.
        cache: what came before, or None.
    """
    now, index = short.cached, short.index
    if now is None:
        return short
    old: CachedPrompt | None = getattr(cache, CACHED, None)
    before: Any = 0 if cache is None else int(cache.get_seq_length())
    start = None
    if old is not None and old.after is not None:
        decoded = before - old.short.shape[1]
        start, before = old.after + decoded, old.mask.sum(1, keepdim=True) + decoded
    placed = adapter.place(
        short.given, short.spans, start, encoded=short.encoded, index=short.index
    )
    positions = placed.positions
    own: Any = full.get(POSITIONS)
    if per_token(POSITIONS, own, full["input_ids"]):
        positions = own
        if index is not None:
            positions = kept_positions(own, index, short.given["input_ids"], placed.kept)
    count_on(adapter, placed.after, now.mask.sum(1, keepdim=True) + before)
    cached = replace(now, positions=positions, after=placed.after)
    return replace(short, given={**placed.given, POSITIONS: positions}, cached=cached)


def count_on(adapter: PromptAdapter, after: Tensor, there: Tensor) -> None:
    """Have the model count on from the position `after [b, 1]`, after so many tokens `[b, 1]`."""
    adapter.base.rope_deltas = after - there.to(after)


def per_token(name: str, value: object, ids: Tensor) -> bool:
    """Whether an argument has one value for each token of the prompt."""
    if name not in (*FILLS, "input_ids", POSITIONS) or not isinstance(value, Tensor):
        return False
    return value.shape[-1] == ids.shape[1]


def padding_id(config: Any) -> int:
    """A token to stand in padding, which nothing reads: embedded, and never a placeholder."""
    text = config.get_text_config()
    for source in (text, config):
        token = getattr(source, "pad_token_id", None)
        if isinstance(token, int) and 0 <= token < text.vocab_size:
            return token
    return 0


def kind_of(value: object) -> str:
    """The shape of a tensor, the type of anything else; for messages."""
    return f"{tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
