"""Where the tokens of a shortened prompt are in the whole one, for Qwen's rotary embedding with three axes.

A token of an image has a time, a row and a column, and what follows the image begins after its longer
side: positions are a matter of grids, not of counts. So the whole prompt is written out again from the
short one, the model says its positions, and each token that is left has its own of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tokenzoo.errors import BadArgumentError
from tokenzoo_adapters.hf.names import MASK
from tokenzoo_adapters.hf.vlm.cached_prompt import kept_positions
from tokenzoo_adapters.hf.vlm.placeholders import Shortened, VisualSpan

GRIDS = ("image_grid_thw", "video_grid_thw")


def positions(
    base: Any,
    given: Mapping[str, Any],
    visuals: Mapping[int, Sequence[VisualSpan]],
    kept: Mapping[int, Sequence[Tensor]],
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The positions of a short prompt's tokens in the whole prompt, and of what comes after it.

    Ids, mask and types are read on the host, once, and the grids; the model counts there, too.

    Args:
        base: the model that has `get_rope_index`.
        given: the arguments of a call with the short prompt: `input_ids`, `attention_mask`,
            `mm_token_type_ids` `[b, m]`, the grids and `second_per_grid_ts`. Without types or grids
            positions are plain ones, as `generate` makes them then.
        visuals: by placeholder, the images or videos of the batch, in the order of the prompts. Of each as
            many placeholders as it is short follow each other in one row.
        kept: by placeholder, of each of them: which of its first tokens are left, `[short]`, ascending.
        start: `[b, 1]`, what is added to all positions; None: nothing.

    Returns:
        Positions `[3, b, m]`, arbitrary values at padding, and `[b, 1]`, one more than the largest of the
        whole prompt.

    Raises:
        BadArgumentError: mask or types are not those of all tokens.
    """
    ids: Tensor = given["input_ids"]
    if any(visual.short == 0 for several in visuals.values() for visual in several):
        raise BadArgumentError(
            "of a slice of a video no token is left, and the prompt was shortened before the call, so the "
            "place of the slice is not known: pass the prompt as the processor wrote it"
        )
    for name in (MASK, "mm_token_type_ids"):
        value = given.get(name)
        if value is not None and value.shape != ids.shape:
            raise BadArgumentError(
                f"{name} of shape {tuple(value.shape)} with shortened input_ids {tuple(ids.shape)}: "
                "it needs one value per token; with a cache, for all tokens of the conversation"
            )
    rows, mask, types = _on_host(ids, given.get(MASK), given.get("mm_token_type_ids"))
    times = torch.ones_like(rows)  # for how many tokens of the whole prompt each column stands
    for token, several in visuals.items():
        places = (rows == token).flatten().nonzero()[:, 0]
        last = torch.tensor([visual.short for visual in several]).cumsum(0) - 1
        times.view(-1)[places[last]] += torch.tensor([v.full - v.short for v in several])
    columns = [torch.arange(len(row)).repeat_interleave(row) for row in times]
    whole = Shortened(pad_sequence(columns, batch_first=True, padding_value=-1), ids.shape[1])
    axes, after = _whole(base, given, *(whole.take(part, 0) for part in (rows, mask, types)))
    # The placeholders that stayed are the first of their image; the tokens they stand for are further on.
    index = (times.cumsum(1) - times).to(ids.device)
    for token, several in kept.items():
        further = [left.to(index) - torch.arange(len(left), device=ids.device) for left in several]
        here = ids == token
        index = index + torch.zeros_like(index).masked_scatter(here, torch.cat(further))
    found, after = axes.to(ids.device).gather(2, index.expand(3, -1, -1)), after.to(ids.device)
    return (found, after) if start is None else (found + start.to(found), after + start.to(after))


def of_columns(
    base: Any,
    whole: Mapping[str, Any],
    index: Tensor,
    ids: Tensor,
    kept: Mapping[int, list[Tensor]],
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `positions`, where the caller's prompt is at hand.

    Args:
        base: the model that has `get_rope_index`.
        whole: the arguments of a call with the caller's prompt `[b, n]`.
        index: `[b, m]`, the caller's column of each, -1 at padding.
        ids: `[b, m]`, the short prompt.
        kept: by placeholder, which of its columns are left of each image.
        start: `[b, 1]`, what is added to all positions; None: nothing.
    """
    full: Tensor = whole["input_ids"]
    rows = _on_host(full, whole.get(MASK), whole.get("mm_token_type_ids"))
    axes, after = _whole(base, whole, *rows)
    found = kept_positions(axes.to(ids.device), index, ids, kept)
    after = after.to(ids.device)
    return (found, after) if start is None else (found + start.to(found), after + start.to(after))


def _on_host(ids: Tensor, mask: Tensor | None, types: Tensor | None) -> tuple[Tensor, ...]:
    """Ids, mask and types `[b, m]` on the CPU, in one transfer; types of -1: there are none."""
    mask = torch.ones_like(ids) if mask is None else (mask != 0).to(ids)
    types = torch.full_like(ids, -1) if types is None else types.to(ids)
    return torch.stack([ids, mask, types]).cpu().unbind()


def _whole(
    base: Any, given: Mapping[str, Any], ids: Tensor, mask: Tensor, types: Tensor
) -> tuple[Tensor, Tensor]:
    """Positions `[3, b, n]` of a whole prompt on the CPU, 0 at padding, and of what follows `[b, 1]`."""
    names = ("second_per_grid_ts", *GRIDS)
    more = {name: _moved(given[name]) for name in names if given.get(name) is not None}
    if bool((types < 0).any()) or not any(name in more for name in GRIDS):
        plain = (mask.cumsum(1) - 1) * mask
        return plain.expand(3, -1, -1), mask.sum(1, keepdim=True)
    none = mask.sum(1, keepdim=True) == 0
    some = mask.clone()
    some[:, :1] += none.to(mask)  # the model cannot count a row without tokens
    axes = base.get_rope_index(ids, mm_token_type_ids=types, attention_mask=some, **more)[0]
    return axes, (axes.amax((0, 2))[:, None] + 1).masked_fill(none, 0)


def _moved(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value
