"""Log mass as channels of the heads: equal to a bias, and taken where flash attention would be lost."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tokenzoo_adapters.hf import attention as hf_attention
from torch import Tensor

import tokenzoo
from tests.adapters.hf.models import pixels, tower
from tests.adapters.models import VIT, gap, images
from tests.adapters.models import one_thread as one_thread
from tests.hooks.test_tap import Spy
from tokenzoo.hooks import tap
from tokenzoo.hooks.key_bias import fits, widened


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


@pytest.mark.parametrize("kind", ["timm", "transformers"])
def test_a_tower_without_masks_returns_what_one_with_them_returns(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "timm":
        model = VIT.build()
        run = partial(model, images(model))
    else:
        model = tower("clip")
        run = lambda: model(**pixels(model)).last_hidden_state  # noqa: E731
    with tokenzoo.build("tome", keep=0.4).attach(model), torch.inference_mode():
        expected = run()
        for module in (tap, hf_attention):
            monkeypatch.setattr(module, "fits", lambda query: True)
        with Spy() as spy:
            found = run()
    assert gap(found, expected) <= 1e-5
    assert len(spy.masks) > 2
    assert spy.masks == [None] * len(spy.masks)
