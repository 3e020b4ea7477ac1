"""The attention of a packed tower, per token: against the dense map of all patches, masked by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenzoo import Evidence
from tokenzoo.errors import MissingEvidenceError
from tokenzoo.layouts.group_attention import GroupAttention, PackedAttention, seen
from tokenzoo.scorers import ReceivedAttention

close = {"rtol": 1e-11, "atol": 1e-12}


@dataclass(frozen=True)
class Case:
    """A packed sequence: tokens of each unit, or of each window of each unit, and how they are asked for.

    Attributes:
        windows: of each unit, the tokens of its windows; in a pass without windows their sum counts.
        windowed: whether there are any.
        lots: units with equally many tokens, as they are asked for together.
    """

    packed: PackedAttention
    windows: tuple[tuple[int, ...], ...]
    windowed: bool
    mass: Tensor

    @property
    def sizes(self) -> list[int]:
        return [sum(unit) for unit in self.windows]

    def lots(self, seed: int = 0) -> list[Tensor]:
        """The tokens `[b, n]` of the units of each size, each unit's in an order of its own."""
        generator = torch.Generator().manual_seed(seed)
        begins = torch.tensor([0, *self.sizes]).cumsum(0).tolist()
        found: list[Tensor] = []
        for n in dict.fromkeys(self.sizes):
            units = [i for i, size in enumerate(self.sizes) if size == n]
            found.append(
                torch.stack([begins[i] + torch.randperm(n, generator=generator) for i in units])
            )
        return found

    def map(self) -> Tensor:
        """The attention `[h, r, r]` of all patches, zero between units and between windows."""
        p, packed = self.packed.patches, self.packed
        groups = [n for unit in self.windows for n in (unit if self.windowed else (sum(unit),))]
        of = torch.arange(len(groups)).repeat_interleave(torch.tensor(groups) * p)
        logits = packed.query.double() @ packed.key.double().mT * packed.scale
        if packed.key_bias is not None:
            logits = logits + packed.key_bias.double()
        return logits.masked_fill(of[:, None] != of, -torch.inf).softmax(-1)


def case(
    windows: tuple[tuple[int, ...], ...],
    *,
    windowed: bool = True,
    patches: int = 4,
    heads: int = 2,
    width: int = 3,
    biased: bool = False,
    slack: int = 0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    flat = torch.tensor([n for unit in windows for n in unit])
    tokens = int(flat.sum())
    r = tokens * patches
    mass = draw(tokens).exp()
    packed = PackedAttention(
        (2 * draw(heads, r, width)).to(dtype),
        (2 * draw(heads, r, width)).to(dtype),
        width**-0.5,
        patches,
        mass.log().repeat_interleave(patches) if biased else None,
        torch.cat([flat.new_zeros(1), flat.cumsum(0)]).int() * patches if windowed else None,
        int(flat.max()) * patches + slack if windowed else 0,
    )
    return Case(packed, windows, windowed, mass)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    unit = st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any).map(tuple)
    return case(
        tuple(draw(st.lists(unit, min_size=1, max_size=4))),
        windowed=draw(st.booleans()),
        patches=draw(st.sampled_from([1, 4])),
        heads=draw(st.integers(1, 3)),
        width=draw(st.integers(1, 4)),
        biased=draw(st.booleans()),
        slack=draw(st.sampled_from([0, 0, 5])),
        seed=draw(st.integers(0, 99)),
    )


def shown(made: Case, tokens: Tensor, whole: Tensor) -> Tensor:
    """The map between the tokens `[b, n]` of some units: `[b, h, n, p, n, p]`."""
    p = made.packed.patches
    patches = (tokens[..., None] * p + torch.arange(p)).flatten(1)  # [b, n * p]
    maps = torch.stack([whole[:, at][:, :, at] for at in patches])
    b, n = tokens.shape
    return maps.reshape(b, -1, n, p, n, p)


@given(cases(), st.booleans(), st.sampled_from(["all", "patches"]))
@example(case(((0, 3, 0), (2, 0), (0, 0, 1))), True, "all")
@example(case(((1,),), patches=1), False, "all")
@settings(max_examples=80)
def test_received_is_the_column_mean_of_the_map(made: Case, by_mass: bool, queries: str) -> None:
    whole = made.map()
    for tokens in made.lots():
        maps = shown(made, tokens, whole)
        mass = made.mass[tokens] if by_mass else None
        weight = torch.ones(tokens.shape, dtype=torch.float64) if mass is None else mass
        expected = torch.einsum("bhmpnq,bm->bn", maps, weight)
        expected /= maps.shape[1] * made.packed.patches * weight.sum(-1, keepdim=True)
        found = seen(made.packed, tokens).received(queries, mass)
        torch.testing.assert_close(found, expected, **close)
        torch.testing.assert_close(found.sum(-1), torch.ones(len(tokens)).double(), **close)


@given(cases(), st.data())
@settings(max_examples=60)
def test_a_stride_asks_some_tokens_of_each_unit_and_all_of_a_window(
    made: Case, data: st.DataObject
) -> None:
    stride = data.draw(st.sampled_from([1, 2, 3, 20]))
    whole = made.map()
    for tokens in made.lots():
        n = tokens.shape[1]
        asked = slice(min(stride, n) // 2, None, stride)
        maps = shown(made, tokens, whole)
        if made.packed.bounds is None:
            maps = maps[:, :, asked]
        expected = maps.mean((1, 2, 3)).sum(-1)
        torch.testing.assert_close(
            seen(made.packed, tokens).received(stride=stride), expected, **close
        )


@given(cases(), st.data())
@settings(max_examples=60)
def test_rows_are_means_over_the_patches_of_a_query(made: Case, data: st.DataObject) -> None:
    whole = made.map()
    for tokens in made.lots(1):
        b, n = tokens.shape
        q = data.draw(st.integers(1, n + 1))
        index = torch.randint(n, (b, q), generator=torch.Generator().manual_seed(q))
        rows = shown(made, tokens, whole).mean(3).sum(-1)  # [b, h, n, n]
        expected = torch.stack([row[:, at] for row, at in zip(rows, index, strict=True)])
        found = seen(made.packed, tokens).rows(index)
        torch.testing.assert_close(found, expected, **close)
        torch.testing.assert_close(
            found.sum(-1), torch.ones(b, found.shape[1], q).double(), **close
        )


@given(cases())
@settings(max_examples=30)
def test_queries_and_keys_have_a_tokens_patches_side_by_side(made: Case) -> None:
    p, (h, _, d) = made.packed.patches, made.packed.key.shape
    for tokens in made.lots(2):
        attention = seen(made.packed, tokens)
        evidence = Evidence(
            torch.zeros(*tokens.shape, 2), mass=made.mass[tokens], attention=attention
        )
        for name in ("query", "key"):
            values = getattr(made.packed, name)
            expected = torch.stack([values[:, tokens * p + i] for i in range(p)], -2)
            expected = expected.transpose(0, 1).reshape(len(tokens), h, -1, p * d)
            assert torch.equal(getattr(attention, name), expected)
        assert torch.equal(evidence.keys, attention.key)
        assert torch.equal(evidence.queries, attention.query)
        assert torch.equal(evidence.received_attention, attention.received())
        assert torch.equal(
            ReceivedAttention(by_mass=True).score(evidence),
            attention.received(mass=made.mass[tokens]),
        )
        assert "cls_attention" not in evidence.provides
        bias = made.packed.key_bias
        assert (attention.key_bias is None) == (bias is None)
        if bias is not None and attention.key_bias is not None:
            assert torch.equal(attention.key_bias, bias[::p][tokens])


def test_the_order_of_the_tokens_is_that_of_what_is_returned() -> None:
    made = case(((3, 0, 4, 1), (8,)), biased=True)
    tokens = torch.arange(16).view(2, 8)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    one, other = seen(made.packed, tokens), seen(made.packed, tokens[:, order])
    torch.testing.assert_close(other.received(), one.received()[:, order], **close)
    index = torch.tensor([[0, 5], [7, 7]])
    torch.testing.assert_close(other.rows(index), one.rows(order[index])[..., order], **close)


@pytest.mark.parametrize("windowed", [True, False])
def test_a_unit_receives_what_it_receives_alone(windowed: bool) -> None:
    units = ((2, 3, 1), (1, 1), (4, 2))
    made = case(units, windowed=windowed, biased=True)
    begin = 0
    for windows in units:
        n = sum(windows)
        own = slice(begin * 4, (begin + n) * 4)
        alone = case((windows,), windowed=windowed)
        packed = made.packed
        assert packed.key_bias is not None
        lone = replace(
            alone.packed,
            query=packed.query[:, own],
            key=packed.key[:, own],
            key_bias=packed.key_bias[own],
        )
        tokens = torch.arange(n)[None]
        mass = made.mass[begin : begin + n][None]
        for weight in (None, mass):
            torch.testing.assert_close(
                seen(packed, begin + tokens).received(mass=weight),
                seen(lone, tokens).received(mass=weight),
                **close,
            )
        begin += n


def test_one_window_a_unit_is_no_window() -> None:
    made = case(((5,), (5,), (2,)), biased=True)
    free = replace(made.packed, bounds=None)
    for tokens in made.lots():
        for mass in (None, made.mass[tokens]):
            torch.testing.assert_close(
                seen(made.packed, tokens).received(mass=mass),
                seen(free, tokens).received(mass=mass),
                **close,
            )


@pytest.mark.parametrize("windowed", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, windowed: bool) -> None:
    made = case(((3, 0, 4), (2, 5)), windowed=windowed, dtype=dtype, biased=True)
    made = replace(made, packed=replace(made.packed, key_bias=made.packed.key_bias.float()))
    tokens = torch.arange(14).view(2, 7)
    maps = shown(made, tokens, made.map())
    attention = seen(made.packed, tokens)
    assert attention.key.dtype == dtype
    for found, expected in (
        (attention.received(), maps.mean((1, 2, 3)).sum(-1)),
        (attention.rows(tokens % 7), maps.mean(3).sum(-1)),
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    by_mass = attention.received(mass=made.mass[tokens].float())
    assert by_mass.dtype == torch.float32
    assert by_mass.isfinite().all()


def test_gradients_reach_queries_and_keys_past_empty_windows() -> None:
    made = case(((0, 3, 0), (2, 1)))
    query = made.packed.query.clone().requires_grad_()
    key = made.packed.key.clone().requires_grad_()
    packed = replace(made.packed, query=query, key=key)
    score = seen(packed, torch.arange(6).view(2, 3)).received()
    (score * torch.arange(3)).sum().backward()
    for leaf in (query, key):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().sum() > 1e-6


def test_there_is_no_cls() -> None:
    made = case(((2, 1),))
    attention: GroupAttention = seen(made.packed, torch.arange(3)[None])
    with pytest.raises(MissingEvidenceError, match="no CLS"):
        attention.cls()


def test_all_lots_read_the_windows_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = case(((3, 1), (2,), (4, 0)))
    calls: list[object] = []
    whole = PackedAttention.in_windows

    def counted(self: PackedAttention, weight: Tensor) -> Tensor:
        calls.append(weight)
        return whole(self, weight)

    monkeypatch.setattr(PackedAttention, "in_windows", counted)
    for tokens in made.lots():
        seen(made.packed, tokens).received()
    assert len(calls) == 1


@pytest.mark.parametrize("windowed", [True, False])
def test_nothing_waits_for_the_device(windowed: bool) -> None:
    """A tensor without values can be computed with, and not looked at."""
    made = case(((3, 0, 4), (2, 5)), windowed=windowed, biased=True).packed
    bounds = None if made.bounds is None else made.bounds.to("meta")
    assert made.key_bias is not None
    packed = replace(
        made,
        query=made.query.to("meta"),
        key=made.key.to("meta"),
        key_bias=made.key_bias.to("meta"),
        bounds=bounds,
    )
    tokens = torch.arange(14, device="meta").view(2, 7)
    attention = seen(packed, tokens)
    assert attention.received().shape == (2, 7)
    assert attention.received(mass=torch.ones(2, 7, device="meta")).shape == (2, 7)
    assert attention.rows(tokens).shape == (2, 2, 7, 7)
