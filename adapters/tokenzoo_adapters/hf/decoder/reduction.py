"""The reduction before a decoder layer: prompts with equally many visual tokens are reduced together.

Rows of a batch may lose different numbers of tokens. All become as long as the longest; the surplus places
are filled with dropped tokens ("filler"), which no other token attends to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from tokenzoo.evidence import Evidence
from tokenzoo.hooks import Event, Options
from tokenzoo.recipe import Recipe, Step
from tokenzoo.reduce import reduce_site
from tokenzoo.token_map import take
from tokenzoo.tokens import Tokens
from tokenzoo_adapters.hf.decoder.call import LayerCall
from tokenzoo_adapters.hf.decoder.evidence import LayerContext, prompt_evidence
from tokenzoo_adapters.hf.decoder.state import Prompt, Row
from tokenzoo_adapters.hf.gather import put_back


@dataclass(frozen=True)
class _Group:
    """Prompts whose visual tokens are reduced together.

    Attributes:
        count: visual tokens of each that are left.
        keep: how many of them to keep.
        words: tokens of text after them.
        embedded: visual tokens that entered, where their embeddings are evidence; otherwise 0.
    """

    count: int
    keep: int
    words: int
    embedded: int


def reduced(call: LayerCall, context: LayerContext, recipe: Recipe, options: Options) -> LayerCall:
    """Reduce the visual tokens that enter a layer with a step.

    Args:
        call: of the layer.
        context: what its step needs in addition to the tokens.
        recipe: whose step it is.
        options: of the attachment.
    """
    state, step = call.state, call.steps.by_layer[call.layer]
    prompt = cast("Prompt", state.prompt)
    full = call.x
    if state.full is not None and state.index is not None:
        full = put_back(state.full, state.index, state.valid, call.x)
    left = _left(call, full)  # [b, m]
    kept = list(state.kept)
    if not kept:
        places = [row.places for row in prompt.rows]
        kept = [torch.tensor(at, dtype=torch.int64, device=call.x.device) for at in places]
    groups: dict[_Group, list[int]] = {}
    lengths: list[int] = []  # without padding
    for r, (row, group) in enumerate(_groups(call, kept, recipe)):
        groups.setdefault(group, []).append(r)
        lengths.append(row.tokens - len(row.places) + group.keep)
    x = call.x.clone()
    for group, rows in groups.items():
        if group.keep == group.count:
            continue
        columns = torch.stack([kept[r] for r in rows])  # [g, n], of the tokens that entered
        places = state.find(rows, columns)  # [g, n], of those that are left
        g = torch.tensor(rows, device=x.device)[:, None]  # [g, 1]
        left[g, places] = False
        if group.keep == 0:  # the last token, which is always kept, is all that was planned
            for r in rows:
                kept[r] = columns[0, :0]
            continue
        evidence = prompt_evidence(call, rows, places, group.words, context)
        values, chosen = _reduce_group(step, evidence, group.keep, call.layer, options)
        new = take(places, chosen)
        x[g, new] = values
        left[g, new] = True
        for r, at in zip(rows, take(columns, chosen), strict=True):
            kept[r] = at
    return _shortened(call, x, full, left, lengths, kept)


def _left(call: LayerCall, full: Tensor) -> Tensor:
    """Which of the tokens `[b, m]` are neither padding nor filler."""
    state = call.state
    left = cast("Prompt", state.prompt).real(full)
    if state.index is not None:
        left = take(left, state.index.to(call.x.device))
    return left if state.valid is None else left & state.valid.to(call.x.device)


def _groups(call: LayerCall, kept: list[Tensor], recipe: Recipe) -> Iterator[tuple[Row, _Group]]:
    """Each prompt of the batch with its group."""
    for row, places in zip(cast("Prompt", call.state.prompt).rows, kept, strict=True):
        words = row.last - row.places[-1] if row.places and not row.ends else 0
        planned = sum(visual.entering(recipe, call.layer) for visual in row.visuals)
        keep = min(len(places), planned - row.ends)
        embedded = 0 if call.state.embedded is None else len(row.places)
        yield row, _Group(len(places), keep, max(0, words), embedded)


def _reduce_group(
    step: Step, evidence: Evidence, keep: int, layer: int, options: Options
) -> tuple[Tensor, Tensor]:
    """Features `[g, m, c]` of the tokens that stay, and which of the n tokens they are, `[g, m]`."""
    tokens = Tokens(evidence.x, evidence.mass, 0)
    after, plan = reduce_site(step, tokens, evidence, keep, check=options.debug)
    if options.on_reduce is not None:
        options.on_reduce(Event(layer, plan, tokens, after, "llm"))
    order = plan.keep.argsort(dim=-1, stable=True)  # a causal mask needs them in order
    # With positions numbered anew they may be in the matcher's order, in the places of those that stay.
    values = after.x if step.positions == "compact" else take(after.x, order)
    return values, take(plan.keep, order)


def _shortened(
    call: LayerCall,
    x: Tensor,
    full: Tensor,
    left: Tensor,
    lengths: list[int],
    kept: list[Tensor],
) -> LayerCall:
    """The call with the tokens that are `left [b, m]`, as many for each row as for the longest."""
    m, ragged = max(lengths), len(set(lengths)) > 1
    # The tokens that are left come first, then some that are not: all in their order again.
    index = (~left).to(torch.uint8).argsort(dim=-1, stable=True)[:, :m].sort(-1).values
    valid = take(left, index) if ragged else None
    first = index if call.state.index is None else take(call.state.index, index)
    state = replace(call.state, recorded=(), index=first, valid=valid, full=full, kept=tuple(kept))
    return replace(call, x=take(x, index), state=state)
