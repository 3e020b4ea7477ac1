"""Tokens: what they refuse, how the prefix comes off and back on, and precision."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError

import pytest
import torch

from tokenzoo import Tokens
from tokenzoo.tokens import full_precision, norm, unit


def test_a_missing_mass_is_one_each() -> None:
    x = torch.randn(2, 5, 3, dtype=torch.bfloat16)
    tokens = Tokens.of(x, prefix=1)
    assert tokens.x is x
    assert tokens.prefix == 1
    assert tokens.held is None
    assert torch.equal(tokens.mass, torch.ones(2, 5))
    assert tokens.mass.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_mass_in_half_precision_is_widened(dtype: torch.dtype) -> None:
    mass = torch.full((1, 4), 3.0, dtype=dtype)
    tokens = Tokens.of(torch.randn(1, 4, 2), mass=mass)
    assert tokens.mass.dtype == torch.float32
    assert torch.equal(tokens.mass, mass.float())


def test_the_prefix_comes_off_and_back_on() -> None:
    x, mass = torch.randn(2, 6, 3), torch.rand(2, 6) + 0.5
    held = torch.tensor([[False, False, True, False, True, False]] * 2)
    tokens = Tokens(x, mass, prefix=2, held=held)
    patches = tokens.patches
    assert patches.prefix == 0
    assert torch.equal(patches.x, x[:, 2:])
    assert patches.x.data_ptr() == x[:, 2:].data_ptr()  # a view
    assert torch.equal(patches.mass, mass[:, 2:])
    assert patches.held is not None
    assert torch.equal(patches.held, held[:, 2:])
    back = patches.with_prefix_of(tokens)
    assert back.prefix == 2
    assert torch.equal(back.x, x)
    assert torch.equal(back.mass, mass)
    assert back.held is not None
    assert torch.equal(back.held, held)


def test_without_prefix_nothing_is_copied() -> None:
    tokens = Tokens.of(torch.randn(1, 3, 2))
    assert tokens.patches is tokens
    assert tokens.with_prefix_of(tokens) is tokens


def test_tokens_are_frozen() -> None:
    tokens = Tokens.of(torch.randn(1, 3, 2))
    with pytest.raises(FrozenInstanceError, match=re.escape("'prefix'")):
        tokens.prefix = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_precision_is_at_least_float32() -> None:
    for dtype, wide in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        values = torch.randn(2, 3, 4).to(dtype)
        assert full_precision(values).dtype == wide
        assert norm(values).dtype == unit(values).dtype == torch.float64  # on the CPU


def test_unit_vectors_have_length_one_and_zero_stays_zero() -> None:
    vectors = torch.randn(2, 5, 7, dtype=torch.float64)
    vectors[0, 0] = 0
    lengths = norm(unit(vectors))
    assert lengths[0, 0] == 0
    torch.testing.assert_close(lengths.flatten()[1:], torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close(norm(vectors), vectors.norm(dim=-1))
    large = unit(torch.full((1, 1, 4), 6e4, dtype=torch.float16))  # its square is no float16
    torch.testing.assert_close(large, torch.full((1, 1, 4), 0.5).double())
