"""The tap: queries and keys are seen, log mass is added, and the fused attention stays what it is."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

import tokenzoo
from tests.adapters.models import DEIT3, DINO_REG, SIGLIP, VIT, Case, gap, images
from tests.adapters.models import one_thread as one_thread
from tokenzoo.hooks.tap import Tap


def qkv(b: int = 2, h: int = 3, n: int = 7, d: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, b, h, n, d, generator=generator)
    return query, key, value


def by_hand(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(q k^T * scale + bias) v, with all of the map."""
    logits = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        logits = logits + bias
    exponentials = (logits - logits.max(-1, keepdim=True).values).exp()
    return exponentials / exponentials.sum(-1, keepdim=True) @ value


class Spy(TorchFunctionMode):
    """Remember with which mask the fused attention is called in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[Tensor | None] = []

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        if func is F.scaled_dot_product_attention:
            given = dict(kwargs or {})
            self.masks.append(args[3] if len(args) > 3 else given.get("attn_mask"))
        return func(*args, **(kwargs or {}))


# ------------------------------------------------------------------------------- the tap alone


@pytest.mark.parametrize("scale", [None, 0.3])
def test_queries_and_keys_are_seen_and_nothing_changes(scale: float | None) -> None:
    query, key, value = qkv()
    bare = F.scaled_dot_product_attention(query, key, value, scale=scale)
    tap = Tap(prefix=2)
    with tap:
        out = F.scaled_dot_product_attention(query, key, value, scale=scale)
    assert torch.equal(out, bare)
    (seen,) = tap.seen
    assert seen.query is query
    assert seen.key is key
    assert seen.prefix == 2
    assert seen.key_bias is None
    assert seen.scale == pytest.approx(8**-0.5 if scale is None else scale)


@pytest.mark.parametrize("scale", [None, 0.3])
def test_the_bias_counts_every_key_as_often_as_its_mass(scale: float | None) -> None:
    query, key, value = qkv()
    mass = torch.tensor([[1, 1, 3, 2, 1, 5, 1], [1, 4, 1, 1, 1, 1, 2]]).float()
    tap = Tap(key_bias=mass.log())
    with tap:
        out = F.scaled_dot_product_attention(query, key, value, scale=scale)
    assert gap(out, by_hand(query, key, value, mass.log()[:, None, None], scale)) <= 1e-6

    # What it means: a key of mass 3 is the same key three times.
    times = mass[0].long()
    again = by_hand(
        query[:1],
        key[:1].repeat_interleave(times, 2),
        value[:1].repeat_interleave(times, 2),
        scale=scale,
    )
    assert gap(out[:1], again) <= 1e-6
    assert gap(out, F.scaled_dot_product_attention(query, key, value, scale=scale)) > 1e-2


@pytest.mark.parametrize("form", ["keyword", "positional", "none"])
def test_a_mask_of_the_models_own_is_added_to(form: str) -> None:
    query, key, value = qkv()
    bias = torch.randn(2, 7, generator=torch.Generator().manual_seed(1))
    mask = torch.randn(2, 1, 7, 7, generator=torch.Generator().manual_seed(2))
    tap = Tap(key_bias=bias)
    with tap:
        if form == "keyword":
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        elif form == "positional":
            out = F.scaled_dot_product_attention(query, key, value, mask, 0.0, False)
        else:
            out = F.scaled_dot_product_attention(query=query, key=key, value=value)
    both = bias[:, None, None] + (0 if form == "none" else mask)
    assert gap(out, by_hand(query, key, value, both)) <= 1e-6


def test_a_boolean_mask_of_the_models_own_still_hides() -> None:
    query, key, value = qkv()
    bias = torch.randn(2, 7, generator=torch.Generator().manual_seed(1))
    attend = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    attend[:, :, :, 4:] = False
    tap = Tap(key_bias=bias)
    with tap:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=attend)
    some = (query, key[:, :, :4], value[:, :, :4], bias[:, None, None, :4])
    assert gap(out, by_hand(*some)) <= 1e-6


def test_other_calls_go_through_and_nothing_outside_is_seen() -> None:
    query, key, value = qkv()
    tap = Tap()
    F.scaled_dot_product_attention(query, key, value)
    with tap:
        assert torch.equal(F.relu(query), query.clamp_min(0))
    F.scaled_dot_product_attention(query, key, value)
    assert tap.seen == []
    assert _get_current_function_mode_stack() == []


def test_close_leaves_the_mode_that_was_entered() -> None:
    tap = Tap()
    tap.__enter__()
    assert _get_current_function_mode_stack() == [tap]
    tap.close()
    assert _get_current_function_mode_stack() == []


def test_nested_taps_both_see_and_biases_add_up() -> None:
    query, key, value = qkv()
    one, two = torch.randn(2, 2, 7, generator=torch.Generator().manual_seed(1))
    outer, inner = Tap(key_bias=one), Tap(key_bias=two)
    with outer, inner:
        out = F.scaled_dot_product_attention(query, key, value)
    assert (len(outer.seen), len(inner.seen)) == (1, 1)
    assert gap(out, by_hand(query, key, value, (one + two)[:, None, None])) <= 1e-6


def test_another_thread_is_not_watched() -> None:
    query, key, value = qkv()
    tap = Tap()
    with tap:
        thread = threading.Thread(target=F.scaled_dot_product_attention, args=(query, key, value))
        thread.start()
        thread.join()
    assert tap.seen == []


def test_the_bias_takes_the_dtype_of_the_queries() -> None:
    query, key, value = (x.bfloat16() for x in qkv())
    mass = torch.arange(1.0, 8.0).expand(2, 7)
    tap = Tap(key_bias=mass.log())
    with tap:
        out = F.scaled_dot_product_attention(query, key, value)
    exact = by_hand(query.float(), key.float(), value.float(), mass.log()[:, None, None])
    assert out.dtype == torch.bfloat16
    assert gap(out.float(), exact) <= 0.02


# --------------------------------------------------------------------- proportional attention


@pytest.mark.parametrize("case", [VIT, DEIT3, DINO_REG, SIGLIP], ids=lambda case: case.name)
@pytest.mark.parametrize("proportional", [False, True])
def test_proportional_attention_is_the_softmax_with_log_mass(
    case: Case, proportional: bool
) -> None:
    """Three blocks, merges in the second: its own attention is plain, the third's has the masses."""
    model = case.build(depth=3)
    zoo = tokenzoo.build("tome", r=(0, 60, 0), proportional_attention=proportional)
    attached = zoo.attach(model)
    seen: list[tuple[Tensor, Tensor]] = []
    for block in model.blocks:
        block.attn.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        model(images(model))
        total = case.grid[0] * case.grid[1]
        assert attached.counts == (total, total - 60, total - 60)
        assert len(seen) == 3

        bias = attached.mass.log()[:, None, None]
        assert float(bias.max()) > 0
        biases = (None, None, bias if proportional else None)
        for block, (x, out), added in zip(model.blocks, seen, biases, strict=True):
            b, n, c = x.shape
            attention = block.attn
            h = attention.num_heads
            query, key, value = attention.qkv(x).view(b, n, 3, h, c // h).permute(2, 0, 3, 1, 4)
            merged = by_hand(query, key, value, added).transpose(1, 2).reshape(b, n, c)
            assert gap(out, attention.proj(merged)) <= 1e-5


@pytest.mark.parametrize("proportional", [False, True])
def test_no_bias_before_the_first_merge(proportional: bool) -> None:
    model = VIT.build(depth=4)
    zoo = tokenzoo.build("tome", r=(0, 40, 0, 40), proportional_attention=proportional)
    attached = zoo.attach(model)
    spy = Spy()
    with torch.no_grad(), spy:
        model(images(model))
    assert attached.counts == (196, 156, 156, 116)
    shapes = [None if mask is None else tuple(mask.shape) for mask in spy.masks]
    one = (2, 1, 1, 157) if proportional else None
    assert shapes == [None, None, one, one]


def test_masses_take_no_gradient() -> None:
    """A mask that requires one would cost the fused kernel."""
    model = VIT.build(depth=4)
    tokenzoo.build("tome", keep=50).attach(model)
    spy = Spy()
    with spy:
        model(images(model).requires_grad_())
    masks = [mask for mask in spy.masks if mask is not None]
    assert len(masks) == 3
    assert not any(mask.requires_grad for mask in masks)


def test_blocks_that_need_nothing_are_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mode costs time in every call: it is entered where evidence or a bias is needed."""
    entered: list[Tap] = []
    enter = Tap.__enter__
    monkeypatch.setattr(Tap, "__enter__", lambda tap: entered.append(tap) or enter(tap))
    plain, by_mass = {"proportional_attention": False}, {"proportional_attention": True}
    for name, options, times in (
        ("evoprune", plain, 4),  # the blocks that merge
        ("evoprune", by_mass, 7),  # and all after the first of them
        ("tome", plain, 8),
        ("uniform", {}, 0),
        ("random", {}, 0),
    ):
        model = VIT.build()
        x = images(model)
        tokenzoo.build(name, **options).attach(model)
        entered.clear()
        with torch.no_grad():
            model(x)
        assert len(entered) == times, name
    model = VIT.build()
    tokenzoo.build("evoprune", keep=1.0).attach(model)
    entered.clear()
    with torch.no_grad():
        model(images(model))
    assert entered == []
