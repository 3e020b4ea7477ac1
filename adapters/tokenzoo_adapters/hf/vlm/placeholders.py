"""Prompts with as many placeholders as visual tokens come: pure functions on token ids.

A processor writes one placeholder per token of the bare model, and the model fills them, row by row, from
left to right. When fewer tokens come, some columns of a prompt go: of each image or video the first
placeholders stay, as many as planned, and so does all that is no placeholder, in its order. Rows of a batch
then differ in length; the padding that they had is given up, and they are padded anew to the longest.

The result is an index, the same for everything that has one value per token: ids, masks, labels, positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from tokenzoo.errors import BadArgumentError
from tokenzoo.parts import check_count
from tokenzoo.recipe import Recipe

_State = Literal["full", "short"]
_STATES: tuple[_State, ...] = ("full", "short")

_PROCESSOR = (
    "Is this the processor of this model (patch size, feature strategy, grid of crops), and is everything "
    "that it returned passed on: model.generate(**inputs)?"
)


@dataclass(frozen=True)
class VisualSpan:
    """One image or video of a prompt.

    Attributes:
        full: placeholders that the model's processor writes for it.
        short: tokens that enter the language model; usually fewer, may be as many, or more.
        units: images, crops or frames that these tokens come from, each with as many.
        fixed: how many of `short` belong to none of the units (CLS, newlines).
        patches: patch tokens of one unit where the tower begins; 0: not known.
        encoded: images, crops or frames that the tower is given; 0: the units. Crops without any of the
            image are encoded, and are no units.
        run: which run of the projector encodes it, where each size has one.
        shared: whether `short` is a mean: this is a slice of a video that is reduced as a whole, and how
            many tokens are left of each slice is known when it is encoded.
    """

    full: int
    short: int
    units: int = 1
    fixed: int = 0
    patches: int = 0
    encoded: int = 0
    run: int = 0
    shared: bool = False

    def __post_init__(self) -> None:
        for name in ("full", "units"):
            check_count(name, getattr(self, name))
        for name in ("short", "fixed", "patches", "encoded", "run"):
            check_count(name, getattr(self, name), 0)

    def entering(self, recipe: Recipe, layer: int) -> int:
        """Count the tokens of this image or video that enter a layer of the language model.

        Each unit (image, crop or frame) keeps as many as the recipe's steps say; what belongs to no unit
        (newlines, a remainder) is counted as kept.
        """
        per = (self.short - self.fixed) // self.units
        if per < 1:
            return self.short
        inside = any(step.stage.name != "llm" for step in recipe.steps)
        wanted = recipe.wanted(self.patches if inside and self.patches else per)
        at = per
        for step in recipe.steps:
            if step.stage.name == "llm" and cast("int", step.stage.layer) <= layer:
                at = step.counts(at, 1, min(wanted, at), 0)[-1]
        return self.short - self.units * (per - at)


@dataclass(frozen=True)
class Shortened:
    """Which columns of a prompt are left.

    Attributes:
        index: `[b, m]` int64, the caller's column that each column is; -1: padding.
        columns: n, how many columns the caller's prompt has.
    """

    index: Tensor
    columns: int

    def take(self, values: Tensor, fill: float) -> Tensor:
        """What is left of values with one per token: `[..., b, n] -> [..., b, m]`, `fill` in padding.

        Raises:
            BadArgumentError: the values have another shape.
        """
        wanted = (self.index.shape[0], self.columns)
        if tuple(values.shape[-2:]) != wanted:
            raise BadArgumentError(
                f"values of shape {tuple(values.shape)} for a prompt {wanted}; there is one per token: "
                "[..., b, n]"
            )
        index = self.index.to(values.device)
        whole = index.clamp_min(0).expand(*values.shape[:-2], *index.shape)
        return values.gather(-1, whole).masked_fill(index < 0, fill)


def shorten(
    input_ids: Tensor,
    visuals: Mapping[int, Sequence[VisualSpan]],
    *,
    attention_mask: Tensor | None = None,
    pad_left: bool,
) -> Shortened | None:
    """Find the columns of prompts that are left when each image and video has its planned tokens.

    The result is as short as the longest row without padding allows. Zeros of the mask inside a row, or at
    the side where the batch is not padded, stay. The ids are read on the host, once.

    Args:
        input_ids: `[b, n]`.
        visuals: by the id of a placeholder, the images or videos of the whole batch, in the order in which
            the model fills them: row by row.
        attention_mask: `[b, n]`, 0 at padding; None: there is none.
        pad_left: where to pad if the mask does not show it: left if some row begins with 0, otherwise right
            if some row ends with 0.

    Returns:
        None if nothing is to do: the prompts have the planned counts already.

    Raises:
        BadArgumentError: there are neither as many placeholders as the processor writes nor as many as
            planned; or those of one image or video lie in two rows.
    """
    ids, real = _on_host(input_ids, attention_mask)
    places = {token: (ids == token).nonzero() for token in visuals}  # [p, 2] each, row by row
    states = _states(ids, places, visuals)
    state = states[0]
    if len(states) == 2:
        # Some grow by what others shrink: then the text between them says which it is.
        full, short = (_apart(places, visuals, s) for s in states)
        state = "short" if _same(visuals) or (full and not short) else "full"
    times = torch.ones_like(ids)  # how often each column is taken
    for token, number, visual, mine in _each(places, visuals, state):
        if mine[0, 0] != mine[-1, 0]:
            raise _torn(token, mine, number, visuals[token], state)
        times[mine[visual.short :, 0], mine[visual.short :, 1]] = 0
        times[mine[-1, 0], mine[-1, 1]] += max(0, visual.short - visual.full)
        real[mine[:, 0], mine[:, 1]] = True  # the model fills a placeholder whatever the mask says
    if state == "short":
        return None
    left = bool((~real[:, :1]).any()) or (pad_left and bool(real[:, -1:].all()))
    return Shortened(_index(times, real, left).to(input_ids.device), ids.shape[1])


def _on_host(input_ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The ids, and where they are no padding, both `[b, n]` on the CPU, in one transfer."""
    if input_ids.ndim != 2 or input_ids.is_floating_point():
        raise BadArgumentError(
            f"input_ids of shape {tuple(input_ids.shape)}, {input_ids.dtype}; they must be token ids [b, "
            "n], as the processor returns them"
        )
    if mask is None:
        ids = input_ids.cpu()
        return ids, torch.ones_like(ids, dtype=torch.bool)
    if mask.shape != input_ids.shape:
        raise BadArgumentError(
            f"attention_mask of shape {tuple(mask.shape)} with input_ids of {tuple(input_ids.shape)}; it "
            "has one value per token, 0 at padding, as the processor returns it"
        )
    both = torch.stack([input_ids, (mask != 0).to(input_ids)]).cpu()
    return both[0], both[1] != 0


def _states(
    ids: Tensor, places: Mapping[int, Tensor], visuals: Mapping[int, Sequence[VisualSpan]]
) -> list[_State]:
    """What the counts say: "full" (as the processor writes them), "short" (as planned), or both."""
    fitting: dict[int, list[_State]] = {}
    for token, several in visuals.items():
        found = len(places[token])
        counts = {state: [_count(v, state) for v in several] for state in _STATES}
        fitting[token] = [state for state in _STATES if sum(counts[state]) == found]
        if not fitting[token]:
            rows = [int((places[token][:, 0] == row).sum()) for row in range(len(ids))]
            raise BadArgumentError(
                f"input_ids have {found} placeholders (id {token}; by row: {_listed(rows)}). For "
                f"{len(several)} images or videos the model's processor writes {sum(counts['full'])} "
                f"({_listed(counts['full'])}), and {sum(counts['short'])} are planned "
                f"({_listed(counts['short'])}). {_PROCESSOR}"
            )
    states: list[_State] = [s for s in _STATES if all(s in fits for fits in fitting.values())]
    if not states:
        said = ", ".join(f"id {token}: {fits[0]}" for token, fits in fitting.items())
        raise BadArgumentError(
            "some images have as many placeholders as the processor writes (full), others as many as "
            f"planned (short): {said}. Shorten a prompt as a whole, or pass it as the processor wrote it"
        )
    return states


def _same(visuals: Mapping[int, Sequence[VisualSpan]]) -> bool:
    return all(v.full == v.short for several in visuals.values() for v in several)


def _count(visual: VisualSpan, state: _State) -> int:
    return visual.full if state == "full" else visual.short


def _each(
    places: Mapping[int, Tensor], visuals: Mapping[int, Sequence[VisualSpan]], state: _State
) -> Iterator[tuple[int, int, VisualSpan, Tensor]]:
    """Placeholder, number, visual and places `[p, 2]` of each image or video that has some."""
    for token, several in visuals.items():
        begin = 0
        for number, visual in enumerate(several):
            end = begin + _count(visual, state)
            if end > begin:
                yield token, number, visual, places[token][begin:end]
            begin = end


def _apart(
    places: Mapping[int, Tensor], visuals: Mapping[int, Sequence[VisualSpan]], state: _State
) -> bool:
    """Whether, read so, something lies between the placeholders of one image or video."""
    return any(
        bool(mine[0, 0] != mine[-1, 0]) or int(mine[-1, 1] - mine[0, 1]) != len(mine) - 1
        for _, _, _, mine in _each(places, visuals, state)
    )


def _torn(
    token: int, mine: Tensor, number: int, several: Sequence[VisualSpan], state: _State
) -> BadArgumentError:
    row = int(mine[0, 0])
    here = int((mine[:, 0] == row).sum())
    return BadArgumentError(
        f"row {row} of input_ids ends within image or video {number} of {len(several)} (counted from 0): "
        f"{here} of its {len(mine)} placeholders (id {token}) are in this row, the others below. In order "
        f"they take {_listed([_count(v, state) for v in several])}: pass pixel values in the order of the "
        f"prompts, and of each prompt in the order of its placeholders. {_PROCESSOR}"
    )


def _index(times: Tensor, real: Tensor, left: bool) -> Tensor:
    """Each column as often as `times [b, n]` says, without padding at one side; padded there with -1."""
    # The first (or last) real token of a row is where this count begins.
    seen = real.cumsum(1) if left else real.flip(1).cumsum(1).flip(1)
    times = times.where(seen > 0, 0)
    columns = torch.arange(times.shape[1])
    rows = [columns.repeat_interleave(row) for row in times]
    index = torch.full((len(rows), max(map(len, rows), default=0)), -1)
    for padded, row in zip(index, rows, strict=True):
        padded[len(padded) - len(row) if left else 0 :][: len(row)] = row
    return index


def _listed(numbers: Sequence[int], most: int = 8) -> str:
    return ", ".join(map(str, numbers[:most])) + (", ..." if len(numbers) > most else "")
