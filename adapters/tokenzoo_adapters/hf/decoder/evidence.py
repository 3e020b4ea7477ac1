"""What a step inside a language model is shown: by the layer before it, and by the one behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from tokenzoo.evidence import EMBEDDED, NEXT, TEXT, Evidence, Layer
from tokenzoo.token_map import take
from tokenzoo_adapters.hf.decoder.next_layer import Coming, Turns, rotation
from tokenzoo_adapters.hf.decoder.state import Flow, Prompt, Seen, find
from tokenzoo_adapters.hf.gather import attention_of, heads_at


@dataclass(frozen=True)
class Beside:
    """What is known at a step beside the tokens.

    Attributes:
        look: queries and keys of the layer before, where the step looks at them.
        seen: `[b, k]` bool, which columns of that layer's cache are no padding.
        turns: rotary positions in that layer, where the step looks at them.
        coming: the layer that is about to run, where the step looks through it.
    """

    look: Seen | None
    seen: Tensor
    turns: Turns | None
    coming: Coming | None


def unpadded(prompt: Prompt | None, index: Tensor, valid: Tensor | None) -> Tensor:
    """Which columns `index [b, k]` of a sequence are no padding, `[b, k]`."""
    seen = torch.ones_like(index, dtype=torch.bool) if valid is None else valid
    mask = None if prompt is None else prompt.mask
    if mask is not None and mask.shape[1] > int(index.max()):
        seen = seen & take(mask.to(index.device) != 0, index)
    return seen


def shown(
    x: Tensor, flow: Flow, rows: list[int], here: Tensor, words: int, beside: Beside
) -> Evidence:
    """What is shown about the visual tokens `here [g, n]` of some rows, with so many words behind them."""
    prompt = cast("Prompt", flow.prompt)
    some = torch.tensor(rows, device=x.device)
    last = torch.tensor([[prompt.rows[r].last] for r in rows], device=x.device)  # [g, 1]
    asked = last - words + 1 + torch.arange(words, device=x.device)  # [g, t], of those that entered
    end, behind = find(flow, rows, last), find(flow, rows, asked)
    show: dict[str, Callable[[], Tensor]] = {}
    of_text: dict[str, Callable[[], Tensor]] = {}
    layers: dict[Layer, Evidence] = {}
    if beside.look is not None:
        query, key, scale = beside.look
        query, key, seen = query[some], key[some], beside.seen[some]
        past = key.shape[2] - x.shape[1]
        pays = partial(attention_of, query=query, key=key, scale=scale, here=here + past, seen=seen)
        show["keys"] = partial(heads_at, key, here + past)
        show["last_attention"] = lambda: pays(end + past)[:, :, 0]
        show["text_attention"] = lambda: pays(behind + past)
        of_text["keys"] = partial(heads_at, key, behind + past)
    if beside.turns is not None:
        cos, sin = beside.turns
        show["text_rotation"] = partial(rotation, (cos[some], sin[some]), behind, here)

    def site(values: Tensor, show: dict[str, Callable[[], Tensor]], **more: Any) -> Evidence:
        mass = torch.ones(values.shape[:2], dtype=torch.float32, device=x.device)
        return Evidence(values, mass=mass, show=show, **more)

    visual = x[some[:, None], here]
    layers[TEXT] = site(x[some[:, None], behind], of_text)
    if beside.coming is not None:
        pay = partial(beside.coming.last_attention, x, some, end, here)
        layers[NEXT] = site(visual, {"last_attention": pay})
    if flow.entered is not None:
        entered = flow.entered.to(x.device)
        places = torch.tensor([prompt.rows[r].places for r in rows], device=x.device)
        text = entered[some[:, None], asked]
        layers[EMBEDDED] = site(entered[some[:, None], places], {}, text=text)
    return site(visual, show, prefix=prompt.rows[rows[0]].places[0], layers=layers)
