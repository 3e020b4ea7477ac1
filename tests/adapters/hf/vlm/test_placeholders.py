"""Prompts are cut to the planned counts: against a plain model of what is left, row by row."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenzoo_adapters.hf.vlm.placeholders import Shortened, VisualSpan, shorten
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tokenzoo.errors import BadArgumentError

IMAGE, VIDEO, PAD = 4, 5, 0


@dataclass(frozen=True)
class Batch:
    """Rows of text (ints) and (placeholder, visual) pairs; padded at the `left` or not, by `extra` more."""

    rows: tuple[tuple[Any, ...], ...]
    left: bool
    extra: int = 0

    def visuals(self) -> dict[int, list[VisualSpan]]:
        parts = [part for row in self.rows for part in row if not isinstance(part, int)]
        return {token: [v for t, v in parts if t == token] for token in (IMAGE, VIDEO)}

    def written(self, state: str) -> tuple[Tensor, Tensor]:
        """Ids and mask, as the processor writes them or as short as planned."""
        rows = []
        for row in self.rows:
            rows.append([])
            for part in row:
                rows[-1] += [part] if isinstance(part, int) else [part[0]] * getattr(part[1], state)
        return padded(rows, self.left, self.extra)


def padded(rows: list[list[int]], left: bool, extra: int = 0) -> tuple[Tensor, Tensor]:
    n = max(map(len, rows)) + extra
    ids = [[PAD] * (n - len(r)) + r if left else r + [PAD] * (n - len(r)) for r in rows]
    mask = [
        [0] * (n - len(r)) + [1] * len(r) if left else [1] * len(r) + [0] * (n - len(r))
        for r in rows
    ]
    return torch.tensor(ids, dtype=torch.int64), torch.tensor(mask)


counts = st.integers(1, 6)
visual = st.tuples(st.sampled_from((IMAGE, VIDEO)), st.builds(VisualSpan, counts, counts))
# Text never stands for a placeholder; in it 0 is a word, too: only the mask says what is padding.
row = st.lists(st.one_of(st.sampled_from((0, 7, 8, 9)), visual), min_size=1, max_size=6)
batches = st.builds(
    Batch,
    st.lists(row.map(tuple), min_size=1, max_size=4).map(tuple),
    st.booleans(),
    st.integers(0, 3),
)


def changes(batch: Batch) -> bool:
    return any(v.full != v.short for several in batch.visuals().values() for v in several)


def separate(batch: Batch) -> bool:
    """Whether the counts alone say what is full and what is short."""
    found = batch.visuals()
    return not changes(batch) or all(
        sum(v.full for v in several) != sum(v.short for v in several)
        or all(v.full == v.short for v in several)
        for several in found.values()
    )


def expected_index(batch: Batch) -> list[list[int]]:
    """Of each row, which columns stay: of a visual the first ones, and the last one again."""
    n = len(batch.written("full")[0][0])
    rows = []
    for parts in batch.rows:
        at = n - length(parts, "full") if batch.left else 0
        rows.append([])
        for part in parts:
            full, keep = (1, 1) if isinstance(part, int) else (part[1].full, part[1].short)
            rows[-1] += [at + min(j, full - 1) for j in range(keep)]
            at += full
    m = max(map(len, rows))
    pads = [[-1] * (m - len(row)) for row in rows]
    return [pad + row if batch.left else row + pad for pad, row in zip(pads, rows, strict=True)]


def length(parts: tuple[Any, ...], state: str) -> int:
    return sum(1 if isinstance(part, int) else getattr(part[1], state) for part in parts)


@given(batches, st.booleans())
def test_what_is_left_is_what_the_processor_would_have_written(batch: Batch, masked: bool) -> None:
    """Of each row as if it were alone; without a mask, padding is text. All else follows the ids."""
    ids, mask = batch.written("full")
    if not masked:
        pads = [(0,) * (len(ids[0]) - length(parts, "full")) for parts in batch.rows]
        rows = [pad + r if batch.left else r + pad for pad, r in zip(pads, batch.rows, strict=True)]
        batch = Batch(tuple(rows), batch.left)
    own = mask if masked else None
    short = shorten(ids, batch.visuals(), attention_mask=own, pad_left=batch.left)
    if not changes(batch):
        assert short is None
        return
    assert short is not None
    assert short.index.tolist() == expected_index(batch)
    wanted, wanted_mask = Batch(batch.rows, batch.left).written("short")
    assert short.take(ids, PAD).tolist() == wanted.tolist()
    assert short.take(mask if masked else torch.ones_like(ids), 0).tolist() == wanted_mask.tolist()
    columns = torch.arange(ids.shape[1]).expand(3, *ids.shape)  # as positions are, [3, b, n]
    assert torch.equal(short.take(columns, -1), short.index.expand(3, -1, -1))


@given(batches)
def test_a_prompt_that_is_short_already_stays(batch: Batch) -> None:
    ids, mask = batch.written("short")
    for kept in (mask, None):
        short = shorten(ids, batch.visuals(), attention_mask=kept, pad_left=True)
        if separate(batch):
            assert short is None
        elif short is not None:
            # Neighbours of a kind, one grows by what the other shrinks: read either way it is the same.
            shown = [[i for i in row if i >= 0] for row in short.index.tolist()]
            real = torch.ones_like(ids) if kept is None else kept
            assert [ids[r, i].tolist() for r, i in enumerate(shown)] == [
                one[some != 0].tolist() for one, some in zip(ids, real, strict=True)
            ]


def cut(
    rows: list[list[int]], visuals: list[VisualSpan], mask: Any = None, left: bool = True
) -> Any:
    mask = None if mask is None else torch.tensor(mask)
    return shorten(torch.tensor(rows), {IMAGE: visuals}, attention_mask=mask, pad_left=left)


UNEQUAL = [[4, 4, 4, 9], [7, 8, 9, 9]]
THREE_TO_TWO, EITHER = [VisualSpan(3, 2)], [VisualSpan(4, 2), VisualSpan(2, 4)]
# Ids, images, mask, and the columns that are left; None: nothing is to be done.
EXAMPLES: list[tuple[list[list[int]], list[VisualSpan], Any, Any]] = [
    # Padding at both sides, zeros inside a row, a placeholder that is masked.
    (UNEQUAL, [VisualSpan(3, 1)], [[1, 1, 1, 0], [0, 1, 1, 1]], [[-1, 0, 3], [1, 2, 3]]),
    ([[0, 7, 0, 8, 4, 4, 4]], THREE_TO_TWO, [[0, 1, 0, 1, 1, 1, 1]], [[1, 2, 3, 4, 5]]),
    ([[4, 4, 4, 9]], THREE_TO_TWO, [[0, 0, 0, 1]], [[0, 1, 3]]),
    # A separator after every line of tokens, as some processors write it, is text: it stays.
    ([[4, 4, 7, 4, 4, 9]], [VisualSpan(4, 3)], None, [[0, 1, 2, 3, 5]]),
    # Counts that fit both are told by the text between.
    ([[4, 4, 4, 4, 7, 4, 4]], EITHER, None, [[0, 1, 4, 5, 6, 6, 6]]),
    ([[4, 4, 7, 4, 4, 4, 4]], EITHER, None, None),
    ([[4, 4, 4, 4], [8, 7, 4, 4]], EITHER, None, [[-1] * 4 + [0, 1], [0, 1, 2, 3, 3, 3]]),
    ([[8, 7, 4, 4], [4, 4, 4, 4]], EITHER, None, None),
    ([[4, 4, 7, 7, 7, 7], [7, 7, 4, 4, 4, 4]], EITHER, None, None),
    # Text between, either way: as the processor wrote it.
    ([[4, 8, 4, 4, 4, 7, 4, 4]], EITHER, None, [[0, 1, 2, 5, 6, 7, 7, 7]]),
    ([[7, 8]], [], None, None),
]


@pytest.mark.parametrize(("rows", "visuals", "mask", "expected"), EXAMPLES)
def test_examples(rows: Any, visuals: list[VisualSpan], mask: Any, expected: Any) -> None:
    short = cut(rows, visuals, mask)
    assert (None if short is None else short.index.tolist()) == expected
    assert short is None or (short.index.dtype, short.columns) == (torch.int64, len(rows[0]))
    if mask is not None:  # which says where padding is, whatever is asked for
        assert cut(rows, visuals, mask, left=False).index.tolist() == expected


def test_an_image_that_stays_does_not_hide_a_video_that_shrinks() -> None:
    found = {IMAGE: [VisualSpan(2, 2)], VIDEO: [VisualSpan(3, 1)]}
    short = shorten(torch.tensor([[4, 4, 5, 5, 5]]), found, pad_left=True)
    assert short is not None
    assert short.index.tolist() == [[0, 1, 2]]
    assert shorten(torch.tensor([[4, 4, 5]]), found, pad_left=True) is None
    assert shorten(torch.tensor([[7, 8]]), {}, pad_left=True) is None


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32])
def test_masks_of_any_type(dtype: torch.dtype) -> None:
    ids, mask = torch.tensor([[0, 4, 4, 4]]), torch.tensor([[0, 1, 1, 1]]).to(dtype)
    short = shorten(ids, {IMAGE: [VisualSpan(3, 2)]}, attention_mask=mask, pad_left=True)
    assert short is not None
    assert short.index.tolist() == [[1, 2]]
    assert short.take(mask, 0).dtype == dtype


def test_the_ids_are_read_once_from_their_device() -> None:
    """A meta tensor stands for one on another device: what goes from there to the host is counted."""

    class Transfers(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            kwargs = kwargs or {}
            if args and isinstance(args[0], Tensor) and args[0].device.type == "meta":
                to = kwargs.get("device")
                if to is not None and torch.device(to).type == "cpu":
                    Transfers.count += 1
                    values = [[0, 4, 4, 4], [7, 8, 9, 9]], [[0, 1, 1, 1], [1, 1, 1, 1]]
                    return torch.tensor(values)
            return func(*args, **kwargs)

    ids = torch.empty(2, 4, dtype=torch.int64, device="meta")
    with Transfers():
        short = shorten(ids, {IMAGE: [VisualSpan(3, 1)]}, attention_mask=ids, pad_left=True)
    assert Transfers.count == 1
    assert short is not None
    assert short.index.device.type == "meta"
    assert short.index.shape == (2, 4)


TWO = [VisualSpan(4, 2), VisualSpan(4, 2)]
ERRORS: dict[str, tuple[Any, dict[int, list[VisualSpan]], str]] = {
    "too many": (
        [[4, 4, 4, 4, 4, 9]],
        {IMAGE: [VisualSpan(4, 2)]},
        r"have 5 placeholders \(id 4; by row: 5\).*processor writes 4 \(4\), and 2 are planned \(2\)\. "
        r"Is this the processor of this model",
    ),
    "by row": ([[4, 4, 9], [9, 9, 4]], {IMAGE: TWO}, r"by row: 2, 1.*writes 8 \(4, 4\), and 4 are"),
    "none": ([[7, 8]], {IMAGE: [VisualSpan(4, 2)]}, r"have 0 placeholders .*by row: 0\)"),
    "no visual": ([[7, 4]], {IMAGE: []}, r"have 1 placeholders .* 0 images or videos"),
    "many rows": ([[4]] * 20, {IMAGE: [VisualSpan(1, 1)] * 9}, r"by row: (1, ){8}\.\.\.\)"),
    "modalities": (
        [[4, 4, 5, 5]],
        {IMAGE: [VisualSpan(2, 1)], VIDEO: [VisualSpan(4, 2)]},
        r"id 4: full, id 5: short\. Shorten a prompt as a whole",
    ),
    "torn": (
        [[4, 4, 4, 4, 4, 9], [4, 4, 4, 9, 9, 9]],
        {IMAGE: TWO},
        r"row 0 of input_ids ends within image or video 1 of 2 \(counted from 0\): 1 of its 4 .* 4, 4:",
    ),
    "torn, short": (
        [[4, 4, 4, 9], [4, 9, 9, 9]],
        {IMAGE: TWO},
        r"row 0 of input_ids ends within image or video 1 of 2 .*: 1 of its 2 .* take 2, 2:",
    ),
    "torn over a row": ([[4, 4], [7, 8], [4, 4]], {IMAGE: [VisualSpan(4, 2)]}, r"row 0 .*the others below"),
    "no rows": ([4, 4], {IMAGE: [VisualSpan(2, 1)]}, r"shape \(2,\), torch.int64; they must be token ids"),
    "embeddings": ([[4.0, 4.0]], {IMAGE: [VisualSpan(2, 1)]}, r"torch.float32; they must be token ids"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_is_an_error(case: str) -> None:
    ids, visuals, text = ERRORS[case]
    with pytest.raises(BadArgumentError, match=text):
        shorten(torch.tensor(ids), visuals, pad_left=True)


def test_a_mask_of_another_shape() -> None:
    with pytest.raises(BadArgumentError, match=re.escape("shape (1, 3) with input_ids of (1, 2)")):
        cut([[4, 4]], [VisualSpan(2, 1)], [[1, 1, 1]])


@pytest.mark.parametrize("shape", [(2, 4), (1, 5), (4,), (1, 4, 8)])
def test_values_that_are_not_one_per_token(shape: tuple[int, ...]) -> None:
    short = Shortened(torch.tensor([[0, 3]]), 4)
    with pytest.raises(BadArgumentError, match=r"for a prompt \(1, 4\); there is one per token"):
        short.take(torch.zeros(shape), 0)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"full": 0}, "full=0; it must be an int >= 1"),
        ({"short": -1}, "short=-1"),
        ({"short": 2.0}, "short=2.0"),
        ({"units": 0}, "units=0"),
        ({"fixed": -1}, "fixed=-1; it must be an int >= 0"),
        ({"patches": -1}, "patches=-1"),
    ],
)
def test_a_visual_has_counts(options: dict[str, Any], text: str) -> None:
    with pytest.raises(BadArgumentError, match=re.escape(text)):
        VisualSpan(**{"full": 4, "short": 2, **options})
