"""The tap: queries and keys are seen, log mass is added, and the fused attention stays what it is."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenzoo_adapters.hf import attention as hf_attention
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

import tokenzoo
from tests.adapters.models import VIT, gap, images
from tests.hooks.running import made
from tokenzoo.hooks import tap as tap_file
from tokenzoo.hooks.key_bias import fits, widened
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


@pytest.mark.parametrize("scale", [None, 0.3])
def test_queries_and_keys_are_seen_and_nothing_changes(scale: float | None) -> None:
    query, key, value = qkv()
    bare = F.scaled_dot_product_attention(query, key, value, scale=scale)
    tap = Tap(prefix=2)
    with tap:
        out = F.scaled_dot_product_attention(query, key, value, scale=scale)
    assert torch.equal(out, bare)
    (seen,) = tap.seen
    assert (seen.query is query, seen.key is key) == (True, True)
    assert (seen.prefix, seen.key_bias) == (2, None)
    assert seen.scale == pytest.approx(8**-0.5 if scale is None else scale)


ATTEND = torch.arange(7).expand(2, 1, 7, 7) < 4
MASK = torch.randn(2, 1, 7, 7, generator=torch.Generator().manual_seed(2))
CALLS: dict[str, tuple[Any, Any]] = {  # a call with a mask of the model's own, and what that adds
    "keyword": (partial(F.scaled_dot_product_attention, attn_mask=MASK), MASK),
    "positional": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, MASK, 0.0, False), MASK),
    "boolean": (
        partial(F.scaled_dot_product_attention, attn_mask=ATTEND),
        torch.zeros(2, 1, 7, 7).masked_fill(~ATTEND, -torch.inf),
    ),
    "none": (lambda q, k, v: F.scaled_dot_product_attention(query=q, key=k, value=v), 0),
    "scale": (partial(F.scaled_dot_product_attention, scale=0.3), 0),
}


@pytest.mark.parametrize("form", CALLS)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_the_bias_is_added_to_a_mask_of_the_models_own(
    form: str, dtype: torch.dtype, close: float
) -> None:
    call, added = CALLS[form]
    query, key, value = (x.to(dtype) for x in qkv())
    mass = torch.tensor([[1, 1, 3, 2, 1, 5, 1], [1, 4, 1, 1, 1, 1, 2]]).float()
    if dtype != torch.float32 and form in ("keyword", "positional"):
        pytest.skip("torch takes masks of the dtype of the queries alone")
    with Tap(key_bias=mass.log()):
        out = call(query, key, value)
    exact = [x.float() for x in (query, key, value)]
    scale = 0.3 if form == "scale" else None
    assert out.dtype == dtype
    assert gap(out.float(), by_hand(*exact, mass.log()[:, None, None] + added, scale)) <= close


def test_what_is_received_is_computed_with_the_output() -> None:
    query, key, value = qkv()
    bias = torch.tensor([[1, 1, 3, 2, 1, 5, 1], [1, 4, 1, 1, 1, 1, 2]]).log()
    with Tap(2, bias, receives=True) as tap:
        out = F.scaled_dot_product_attention(query, key, value)
    with Tap(2, bias) as other:
        torch.testing.assert_close(out, F.scaled_dot_product_attention(query, key, value))
    column = tap.seen[0].column
    assert column is not None
    assert torch.equal(tap.seen[0].received(), column[:, 2:])
    for given in ({}, {"queries": "patches"}, {"stride": 2}, {"mass": bias[:, 2:] + 1}):
        assert torch.equal(tap.seen[0].received(**given), other.seen[0].received(**given))


@pytest.mark.parametrize(
    "given", [{"attn_mask": MASK}, {"dropout_p": 0.5}, {"is_causal": True}, {"enable_gqa": True}]
)
def test_an_attention_with_more_than_a_bias_is_torchs_own(given: dict[str, Any]) -> None:
    torch.manual_seed(0)
    bare = F.scaled_dot_product_attention(*qkv(), **given)
    torch.manual_seed(0)
    with Tap(receives=True) as tap:
        assert torch.equal(F.scaled_dot_product_attention(*qkv(), **given), bare)
    assert tap.seen[0].column is None


def test_another_mode_sees_torchs_own_attention() -> None:
    spy = Spy()
    with spy, Tap(receives=True):
        F.scaled_dot_product_attention(*qkv())
    assert spy.masks == [None]


def test_other_calls_go_through_and_nothing_outside_is_seen() -> None:
    query, key, value = qkv()
    tap = Tap()
    F.scaled_dot_product_attention(query, key, value)
    with tap:
        assert torch.equal(F.relu(query), query.clamp_min(0))
    F.scaled_dot_product_attention(query, key, value)
    assert tap.seen == []
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
    with Tap() as tap:
        thread = threading.Thread(target=F.scaled_dot_product_attention, args=qkv())
        thread.start()
        thread.join()
    assert tap.seen == []


# ------------------------- proportional attention; what it computes: test_site.py, written out


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
        ("evoprune", {"keep": 1.0}, 0),
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


@pytest.mark.parametrize("d", [8, 62, 63, 64, 72])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_as_channels_is_the_bias(d: int, dtype: torch.dtype) -> None:
    """In bfloat16 no worse than twice a bias of that dtype is, both against exact arithmetic."""
    generator = torch.Generator().manual_seed(d)
    q, k, v = (torch.randn(2, 3, 11, d, generator=generator).to(dtype) for _ in range(3))
    bias = (1 + 20 * torch.rand(2, 11, generator=generator)).log()
    scale = d**-0.5
    exact = F.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), bias.double()[:, None, None], scale=scale
    )
    wide = widened(q, k, v, bias, scale)
    assert {x.shape[-1] for x in wide} == {-(-(d + 2) // 8) * 8}
    assert {x.dtype for x in wide} == {dtype}
    # Two channels hold it more exactly than one of this dtype could.
    held = (wide[0][..., :1, d:] * wide[1][..., d:]).double().sum(-1) * scale  # [b, h, n]
    assert gap(held, bias.double()[:, None].expand_as(held)) <= 1e-5
    out = F.scaled_dot_product_attention(*wide, scale=scale)
    assert not out[..., d:].any()
    masked = F.scaled_dot_product_attention(q, k, v, bias[:, None, None].to(dtype), scale=scale)
    allowed = 1e-6 if dtype == torch.float32 else 2 * gap(masked.double(), exact)
    assert gap(out[..., :d].double(), exact) <= allowed


def test_a_bias_of_minus_infinity_fits_into_channels() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 9, 16, generator=generator) for _ in range(3))
    mass = torch.tensor([[1.0, 2, 3, 1, 1, 0, 0, 1, 0]]).expand(2, -1)
    expected = F.scaled_dot_product_attention(q, k, v, mass.log()[:, None, None])
    for dtype, close in ((torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 3e-2)):
        wide = widened(*(x.to(dtype) for x in (q, k, v)), mass.log(), 0.25)
        out = F.scaled_dot_product_attention(*wide, scale=0.25)[..., :16]
        assert gap(out.float(), expected) <= close


@pytest.mark.parametrize(
    ("device", "dtype", "d", "expected"),
    [
        ("cpu", torch.bfloat16, 64, False),
        ("cuda", torch.float32, 64, False),
        ("cuda", torch.bfloat16, 64, True),
        ("cuda", torch.float16, 254, True),
        ("cuda", torch.float16, 256, False),
    ],
)
def test_where_it_is_taken(device: str, dtype: torch.dtype, d: int, expected: bool) -> None:
    class There(Tensor):  # no such device may be here
        device = property(lambda self: torch.device(device))  # type: ignore[assignment]

    assert fits(torch.empty(1, 1, 2, d, dtype=dtype).as_subclass(There)) is expected


@pytest.mark.parametrize("name", ["timm ViT", "clip"])
def test_a_tower_without_masks_returns_what_one_with_them_returns(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, run = made(name, 5)
    with tokenzoo.build("tome", keep=0.4).attach(model), torch.inference_mode():
        expected = run()
        for module in (tap_file, hf_attention):
            monkeypatch.setattr(module, "fits", lambda query: True)
        with Spy() as spy:
            found = run()
    assert gap(found, expected) <= 1e-5
    assert len(spy.masks) > 2
    assert spy.masks == [None] * len(spy.masks)
