"""Positions of what is left of a prompt: against those of the whole prompt, written out by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenzoo_adapters.hf.vlm import mrope as hf_mrope
from tokenzoo_adapters.hf.vlm.placeholders import VisualSpan
from torch import Tensor

IMAGE, VIDEO, PAD, WORD = 4, 5, 0, 7
TYPES = {IMAGE: 1, VIDEO: 2}
KINDS = ("Qwen2VL", "Qwen2_5_VL")
EACH = pytest.mark.parametrize("kind", KINDS)


@cache
def base(kind: str) -> Any:
    """A model that is as small as can be: positions read nothing but its configuration."""
    text = {
        "hidden_size": 16,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "vocab_size": 16,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 100.0,
            "mrope_section": [2, 3, 3],
        },
    }
    vision = {"depth": 1, "hidden_size": 16, "embed_dim": 16, "num_heads": 1, "out_hidden_size": 16}
    config = getattr(transformers, f"{kind}Config")(
        text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO
    )
    return getattr(transformers, f"{kind}Model")(config)


@dataclass(frozen=True)
class Seen:
    """An image or a video of a prompt: its grid of groups, and which of them are left."""

    token: int
    grid: tuple[int, int, int]
    kept: tuple[int, ...]
    seconds: float = 1.0

    @property
    def full(self) -> int:
        t, h, w = self.grid
        return t * h * w


Row = Sequence[Seen | int]
"""A prompt: numbers are so many words."""


@dataclass(frozen=True)
class Case:
    """A batch of prompts, whole and shortened."""

    rows: Sequence[Row]
    left: bool
    mask: bool = True
    types: bool = True

    def __iter__(self) -> Iterator[Seen]:
        return (part for row in self.rows for part in row if isinstance(part, Seen))

    def written(self, short: bool) -> tuple[list[list[int]], list[list[int]]]:
        """The ids of each row, and which of the whole prompt's columns each of its tokens is."""
        ids: list[list[int]] = []
        columns: list[list[int]] = []
        for row in self.rows:
            mine: list[int] = []
            which: list[int] = []
            at = 0
            for part in row:
                seen = isinstance(part, Seen)
                size = part.full if seen else part
                left = part.kept if seen and short else range(size)
                mine += [part.token if seen else WORD] * len(left)
                which += [at + i for i in left]
                at += size
            ids.append(mine)
            columns.append(which)
        return ids, columns

    def given(self, short: bool) -> dict[str, Any]:
        """What a processor would return."""
        rows, _ = self.written(short)
        n = max(map(len, rows))
        pad = [[0] * (n - len(row)) for row in rows]
        ids = [p + row if self.left else row + p for row, p in zip(rows, pad, strict=True)]
        ones = [[1] * len(row) for row in rows]
        mask = [p + one if self.left else one + p for one, p in zip(ones, pad, strict=True)]
        found: dict[str, Any] = {"input_ids": torch.tensor(ids)}
        if self.mask:
            found["attention_mask"] = torch.tensor(mask)
        if self.types:
            types = [[TYPES.get(i, 0) for i in row] for row in ids]
            found["mm_token_type_ids"] = torch.tensor(types)
        for token, name in ((IMAGE, "image_grid_thw"), (VIDEO, "video_grid_thw")):
            grids = [seen.grid for seen in self if seen.token == token]
            if grids:
                found[name] = torch.tensor(grids) * torch.tensor([1, 2, 2])
        seconds = [seen.seconds for seen in self if seen.token == VIDEO]
        if seconds:
            found["second_per_grid_ts"] = torch.tensor(seconds)
        return found

    def visuals(self) -> dict[int, list[VisualSpan]]:
        return {
            token: [
                VisualSpan(s.full, len(s.kept), units=s.grid[0], patches=s.grid[1] * s.grid[2])
                for s in self
                if s.token == token
            ]
            for token in {s.token for s in self}
        }

    def kept(self) -> dict[int, list[Tensor]]:
        return {
            token: [torch.tensor(s.kept) for s in self if s.token == token]
            for token in self.visuals()
        }


def real(rows: Sequence[Sequence[int]], left: bool, values: Tensor) -> list[Tensor]:
    """`values [..., b, n]` of each row without its padding, `[..., k]`."""
    n = values.shape[-1]
    cut = [slice(n - len(row), n) if left else slice(0, len(row)) for row in rows]
    return [values[..., r, part] for r, part in enumerate(cut)]


def check(model: Any, case: Case, start: Tensor | None = None) -> None:
    """Compare with what the model says of the whole prompt."""
    whole = case.given(short=False)
    rope, deltas = model.get_rope_index(**whole)
    mask = whole.get("attention_mask", torch.ones_like(whole["input_ids"]))
    ahead = torch.zeros(len(rope[0]), 1, dtype=torch.int64) if start is None else start
    short = case.given(short=True)
    found, after = hf_mrope.positions(model, short, case.visuals(), case.kept(), start)
    assert found.dtype == after.dtype == torch.int64
    assert found.shape == (3, *short["input_ids"].shape)
    assert torch.equal(after, mask.sum(1, keepdim=True) + deltas + ahead)
    rows, columns = case.written(short=True)
    before = real(case.written(short=False)[0], case.left, rope)
    for r, mine in enumerate(real(rows, case.left, found)):
        assert torch.equal(mine, before[r][:, columns[r]] + ahead[r])


def found_of(kind: str, case: Case) -> tuple[Tensor, Tensor]:
    return hf_mrope.positions(base(kind), case.given(short=True), case.visuals(), case.kept())


BIG = Seen(IMAGE, (1, 3, 5), (1, 2, 6, 7, 13))
TALL = Seen(IMAGE, (1, 7, 2), (0, 13))
FILM = Seen(VIDEO, (3, 2, 4), (0, 7, 8, 11, 20, 22), 2.0)
SLOW = Seen(VIDEO, (2, 3, 3), (4, 5, 9, 12), 0.5)
MIXED: list[Row] = [[1, FILM, 1, BIG, 3], [2, TALL, 2, SLOW, 1], [5]]


@EACH
def test_without_a_mask(kind: str) -> None:
    check(base(kind), Case([[2, BIG, 1, FILM, 1]], left=True, mask=False))
    # Of the whole prompts one is longer than the other, the short ones are not: there is no padding.
    rows = [[2, BIG, 1], [2, Seen(IMAGE, (1, 2, 3), (0, 1, 3, 4, 5)), 1]]
    masked, bare = Case(rows, left=False), Case(rows, left=False, mask=False)
    check(base(kind), masked)
    assert all(map(torch.equal, found_of(kind, masked), found_of(kind, bare)))


@given(data=st.data(), kind=st.sampled_from(KINDS), left=st.booleans())
@settings(max_examples=100, deadline=None)
def test_each_token_is_where_it_was(data: st.DataObject, kind: str, left: bool) -> None:
    rows: list[Row] = []
    for _ in range(data.draw(st.integers(1, 3))):
        row: list[Seen | int] = [data.draw(st.integers(0, 3))]
        for i in range(data.draw(st.integers(0 if row[0] else 1, 3))):
            if i:  # the model takes what follows directly for one and the same image
                row.append(data.draw(st.integers(1, 3)))
            token = data.draw(st.sampled_from((IMAGE, VIDEO)))
            side = st.integers(1, 4)
            grid = (data.draw(side) if token == VIDEO else 1, data.draw(side), data.draw(side))
            some = st.sets(st.integers(0, grid[0] * grid[1] * grid[2] - 1), min_size=1)
            kept = tuple(sorted(data.draw(some)))
            row.append(Seen(token, grid, kept, data.draw(st.sampled_from((0.25, 1.0, 2.5)))))
        row.append(data.draw(st.integers(0, 3)))
        rows.append([part for part in row if part != 0])
    start = data.draw(st.sampled_from((None, torch.arange(len(rows))[:, None] * 3 + 100)))
    check(base(kind), Case(rows, left), start)


@EACH
def test_without_types_or_grids_positions_are_plain(kind: str) -> None:
    case = Case(MIXED, left=True, types=False)
    rows, columns = case.written(short=True)
    full = torch.tensor([sum(p.full if isinstance(p, Seen) else p for p in r) for r in case.rows])
    short = case.given(short=True)
    start = torch.tensor([[4], [0], [9]])
    found, after = hf_mrope.positions(base(kind), short, case.visuals(), case.kept(), start)
    assert torch.equal(after, full[:, None] + start)
    for r, mine in enumerate(real(rows, True, found)):
        assert torch.equal(mine, (torch.tensor(columns[r]) + start[r]).expand(3, -1))
    # The same, of types without grids: the images are another call's.
    typed = Case(case.rows, left=True).given(short=True)
    del typed["image_grid_thw"], typed["video_grid_thw"]
    same, _ = hf_mrope.positions(base(kind), typed, case.visuals(), case.kept(), start)
    for mine, theirs in zip(real(rows, True, same), real(rows, True, found), strict=True):
        assert torch.equal(mine, theirs)


@EACH
def test_a_row_of_nothing_but_padding(kind: str) -> None:
    rows: list[Row] = [[2, BIG, 3], [], [1, TALL, 2]]
    several, alone = Case(rows, left=True), Case([rows[0], rows[2]], left=True)
    found, after = found_of(kind, several)
    expected, expected_after = found_of(kind, alone)
    assert torch.equal(found[:, [0, 2]], expected)
    assert torch.equal(after[[0, 2]], expected_after)
    assert int(after[1]) == 0
    assert bool((found[:, 1] == 0).all())


def test_masks_types_and_tables_of_other_dtypes() -> None:
    """A mask of booleans, types and tables of kept groups of 32 bits."""
    case = Case([[2, BIG, 1, TALL, 2]], left=True)
    given = case.given(short=True)
    given["attention_mask"] = given["attention_mask"].bool()
    given["mm_token_type_ids"] = given["mm_token_type_ids"].int()
    kept = {token: [k.int() for k in several] for token, several in case.kept().items()}
    found = hf_mrope.positions(base("Qwen2_5_VL"), given, case.visuals(), kept)
    assert all(map(torch.equal, found, found_of("Qwen2_5_VL", case)))
