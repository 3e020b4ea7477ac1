"""The attention of a packed tower, per token: against the dense map of all patches, masked by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenzoo import Evidence
from tokenzoo.errors import MissingEvidenceError
from tokenzoo.layouts.group_attention import PackedAttention, seen
from tokenzoo.scorers import ReceivedAttention

close: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-12}


@dataclass(frozen=True)
class Case:
    """A packed sequence.

    Attributes:
        windows: of each unit, the tokens of its windows; in a pass without windows their sum counts.
        windowed: whether there are any.
    """

    packed: PackedAttention
    windows: tuple[tuple[int, ...], ...]
    windowed: bool
    mass: Tensor

    def lots(self, seed: int = 0) -> list[Tensor]:
        """The tokens `[b, n]` of the units of each size, each unit's in an order of its own."""
        generator = torch.Generator().manual_seed(seed)
        found: dict[int, list[Tensor]] = {}
        begin = 0
        for n in map(sum, self.windows):
            found.setdefault(n, []).append(begin + torch.randperm(n, generator=generator))
            begin += n
        return [torch.stack(units) for units in found.values()]

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


unit = st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any).map(tuple)
cases = st.builds(
    case,
    st.lists(unit, min_size=1, max_size=4).map(tuple),
    windowed=st.booleans(),
    patches=st.sampled_from([1, 4]),
    heads=st.integers(1, 3),
    width=st.integers(1, 4),
    biased=st.booleans(),
    slack=st.sampled_from([0, 0, 5]),
    seed=st.integers(0, 99),
)


def shown(made: Case, tokens: Tensor) -> Tensor:
    """The map between the tokens `[b, n]` of some units: `[b, h, n, p, n, p]`."""
    p, whole = made.packed.patches, made.map()
    patches = (tokens[..., None] * p + torch.arange(p)).flatten(1)  # [b, n * p]
    maps = torch.stack([whole[:, at][:, :, at] for at in patches])
    b, n = tokens.shape
    return maps.reshape(b, -1, n, p, n, p)


@given(cases, st.sampled_from([1, 2, 3, 20]), st.integers(1, 99))
@example(case(((0, 3, 0), (2, 0), (0, 0, 1))), 2, 1)
@example(case(((1,),), patches=1), 1, 2)
@settings(max_examples=120)
def test_it_shows_what_the_map_of_all_patches_shows(made: Case, stride: int, seed: int) -> None:
    """A stride asks some tokens of each unit, and all of a window."""
    for tokens in made.lots(seed):
        (b, n), attention = tokens.shape, seen(made.packed, tokens).made()
        maps = shown(made, tokens)  # [b, h, n, p, n, p]
        mean = maps.mean((1, 3)).sum(-1)  # [b, n, n]
        for queries in ("all", "patches"):
            received = attention.received(queries)
            torch.testing.assert_close(received, mean.mean(1), **close)
        torch.testing.assert_close(received.sum(-1), torch.ones(b).double(), **close)
        mass = made.mass[tokens]
        expected = (mean * mass[..., None]).sum(1) / mass.sum(1, keepdim=True)
        torch.testing.assert_close(attention.received(mass=mass), expected, **close)
        asked = slice(min(stride, n) // 2, None, stride)
        some = mean if made.packed.bounds is not None else mean[:, asked]
        torch.testing.assert_close(attention.received(stride=stride), some.mean(1), **close)
        index = torch.randint(n, (b, 1 + seed % (n + 1)))
        rows = maps.mean(3).sum(-1)  # [b, h, n, n]
        expected = torch.stack([row[:, at] for row, at in zip(rows, index, strict=True)])
        torch.testing.assert_close(attention.rows(index), expected, **close)


@given(cases)
@settings(max_examples=30)
def test_queries_and_keys_have_a_tokens_patches_side_by_side(made: Case) -> None:
    p, (h, _, d) = made.packed.patches, made.packed.key.shape
    for tokens in made.lots(2):
        attention, x = seen(made.packed, tokens).made(), torch.zeros(*tokens.shape, 2)
        evidence = Evidence(x, mass=made.mass[tokens], attention=attention)
        for found, values in (
            (evidence.queries, made.packed.query),
            (evidence.keys, made.packed.key),
        ):
            expected = torch.stack([values[:, tokens * p + i] for i in range(p)], -2)
            assert torch.equal(found, expected.transpose(0, 1).reshape(len(tokens), h, -1, p * d))
        assert torch.equal(evidence.received_attention, attention.received())
        by_mass = ReceivedAttention(by_mass=True).score(evidence)
        assert torch.equal(by_mass, attention.received(mass=made.mass[tokens]))
        assert "cls_attention" not in evidence.provides
        with pytest.raises(MissingEvidenceError, match="no CLS"):
            attention.cls()
        bias = made.packed.key_bias
        assert (attention.key_bias is None) == (bias is None)
        if bias is not None and attention.key_bias is not None:
            assert torch.equal(attention.key_bias, bias[::p][tokens])


@pytest.mark.parametrize("windowed", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, windowed: bool) -> None:
    made = case(((3, 0, 4), (2, 5)), windowed=windowed, dtype=dtype, biased=True)
    made = replace(made, packed=replace(made.packed, key_bias=made.packed.key_bias.float()))
    tokens = torch.arange(14).view(2, 7)
    maps = shown(made, tokens)
    attention = seen(made.packed, tokens).made()
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
    leaves = [getattr(made.packed, name).clone().requires_grad_() for name in ("query", "key")]
    packed = replace(made.packed, query=leaves[0], key=leaves[1])
    score = seen(packed, torch.arange(6).view(2, 3)).made().received()
    (score * torch.arange(3)).sum().backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().sum() > 1e-6


def test_all_lots_read_the_windows_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = case(((3, 1), (2,), (4, 0)))
    calls: list[object] = []
    whole = PackedAttention.in_windows

    def counted(self: PackedAttention, weight: Tensor) -> Tensor:
        calls.append(weight)
        return whole(self, weight)

    monkeypatch.setattr(PackedAttention, "in_windows", counted)
    for tokens in made.lots():
        seen(made.packed, tokens).made().received()
    assert len(calls) == 1


@pytest.mark.parametrize("windowed", [True, False])
def test_nothing_waits_for_the_device(windowed: bool) -> None:
    """A tensor without values can be computed with, and not looked at."""
    made = case(((3, 0, 4), (2, 5)), windowed=windowed, biased=True).packed
    names = ("query", "key", "key_bias", *(("bounds",) if windowed else ()))
    packed = replace(made, **{name: getattr(made, name).to("meta") for name in names})
    tokens = torch.arange(14, device="meta").view(2, 7)
    attention = seen(packed, tokens).made()
    assert attention.received().shape == (2, 7)
    assert attention.received(mass=torch.ones(2, 7, device="meta")).shape == (2, 7)
    assert attention.rows(tokens).shape == (2, 2, 7, 7)
