"""The evidence of a step in a language model: of the layer before it, and of the layer after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from tokenzoo.evidence import EMBEDDED, NEXT, TEXT, Evidence, Layer
from tokenzoo.token_map import take
from tokenzoo_adapters.hf.decoder.call import LayerCall
from tokenzoo_adapters.hf.decoder.next_layer import CosSin, NextLayerProbe, rotation_logits
from tokenzoo_adapters.hf.decoder.recording import recorded
from tokenzoo_adapters.hf.decoder.state import AttentionCall, Prompt
from tokenzoo_adapters.hf.decoder.steps import FROM_ATTENTION, FROM_NEXT_LAYER, FROM_POSITIONS
from tokenzoo_adapters.hf.gather import attention_of, heads_at
from tokenzoo_adapters.hf.names import ANGLES, cache_of, cached_keys

IN_PROMPT = frozenset(
    {
        *("x", "mass", "keys", "last_attention", "text_attention", "text_rotation"),
        *("x@text", "keys@text", "x@embedded", "text@embedded", "last_attention@next"),
    }
)
"""Evidence of the layers of a language model about the visual tokens of a prompt."""


@dataclass(frozen=True)
class LayerContext:
    """What a step needs in addition to the tokens; None: it needs no such evidence.

    Attributes:
        attention: queries and keys of the layer before.
        real: `[b, k]` bool, which columns of that layer's cache are not padding.
        angles: rotary positions in that layer.
        next_layer: the layer whose input is reduced.
    """

    attention: AttentionCall | None
    real: Tensor
    angles: CosSin | None
    next_layer: NextLayerProbe | None


def layer_context(call: LayerCall, module: nn.Module) -> LayerContext:
    """Collect what the step before a layer needs.

    Args:
        call: of the layer, before the step.
        module: the layer.

    Raises:
        AttachError: the attention of the layer before was not recorded, or the cache has no keys.
    """
    layer, prompt = call.layer, call.state.prompt
    needs = call.steps.by_layer[layer].needs
    probe = None
    if needs & FROM_NEXT_LAYER:
        columns, valid = call.columns(layer)
        held = columns.shape[1] - call.x.shape[1]
        keys = cached_keys(cache_of(call.inputs), call.language.cache_layers[layer], held)
        probe = NextLayerProbe(module, _angles(call, layer), keys, _real(prompt, columns, valid))
    return LayerContext(
        recorded(call.state, layer) if needs & FROM_ATTENTION else None,
        _real(prompt, *call.columns(layer - 1)),
        _angles(call, call.steps.at(layer - 1)) if needs & FROM_POSITIONS else None,
        probe,
    )


def _angles(call: LayerCall, at: int) -> CosSin:
    """The angles `[b, m, d]` of the tokens in the layers from the step at layer `at` on."""
    cos, sin = (call.fitted(at) if call.is_shorter(at) else call.inputs)[ANGLES]
    return cos.expand(call.x.shape[0], -1, -1), sin.expand(call.x.shape[0], -1, -1)


def _real(prompt: Prompt | None, index: Tensor, valid: Tensor | None) -> Tensor:
    """Which columns `index [b, k]` of a sequence are neither padding nor filler, `[b, k]`."""
    real = torch.ones_like(index, dtype=torch.bool) if valid is None else valid
    mask = None if prompt is None else prompt.mask
    if mask is not None and mask.shape[1] > int(index.max()):
        real = real & take(mask.to(index.device) != 0, index)
    return real


def prompt_evidence(
    call: LayerCall, rows: list[int], places: Tensor, words: int, context: LayerContext
) -> Evidence:
    """The evidence about the visual tokens of some prompts.

    Args:
        call: of the layer before which they are reduced.
        rows: g prompts.
        places: `[g, n]`, positions of their visual tokens among the m tokens that are left.
        words: t, how many tokens of text come after them in each prompt.
        context: what the step needs in addition.
    """
    x, state = call.x, call.state
    prompt = cast("Prompt", state.prompt)
    g = torch.tensor(rows, device=x.device)
    last = torch.tensor([[prompt.rows[r].last] for r in rows], device=x.device)  # [g, 1]
    columns = last - words + 1 + torch.arange(words, device=x.device)  # [g, t], of the whole prompt
    end, text = state.find(rows, last), state.find(rows, columns)  # among the tokens that are left
    show: dict[str, Callable[[], Tensor]] = {}
    show_text: dict[str, Callable[[], Tensor]] = {}
    layers: dict[Layer, Evidence] = {}
    if context.attention is not None:
        query, key, scale = context.attention
        query, key, real = query[g], key[g], context.real[g]
        past = key.shape[2] - x.shape[1]
        attention = partial(
            attention_of, query=query, key=key, scale=scale, places=places + past, real=real
        )
        show["keys"] = partial(heads_at, key, places + past)
        show["last_attention"] = lambda: attention(end + past)[:, :, 0]
        show["text_attention"] = lambda: attention(text + past)
        show_text["keys"] = partial(heads_at, key, text + past)
    if context.angles is not None:
        cos, sin = context.angles
        show["text_rotation"] = partial(rotation_logits, (cos[g], sin[g]), text, places)

    def evidence(values: Tensor, show: dict[str, Callable[[], Tensor]], **more: Any) -> Evidence:
        mass = torch.ones(values.shape[:2], dtype=torch.float32, device=x.device)
        return Evidence(values, mass=mass, show=show, **more)

    visual = x[g[:, None], places]  # [g, n, c]
    layers[TEXT] = evidence(x[g[:, None], text], show_text)
    if context.next_layer is not None:
        pay = partial(context.next_layer.last_attention, x, g, end, places)
        layers[NEXT] = evidence(visual, {"last_attention": pay})
    if state.embedded is not None:
        embedded = state.embedded.to(x.device)
        first = torch.tensor([prompt.rows[r].places for r in rows], device=x.device)
        values = embedded[g[:, None], columns]
        layers[EMBEDDED] = evidence(embedded[g[:, None], first], {}, text=values)
    return evidence(visual, show, prefix=prompt.rows[rows[0]].places[0], layers=layers)
