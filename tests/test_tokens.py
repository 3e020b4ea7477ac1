"""Tokens: how the prefix comes off and back on, and precision."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch

from tokenzoo import Tokens
from tokenzoo.tokens import full_precision, norm, unit


def test_a_missing_mass_is_one_each_and_one_in_half_precision_is_widened() -> None:
    x = torch.randn(2, 5, 3, dtype=torch.bfloat16)
    for mass in (None, torch.ones(2, 5, dtype=torch.float16), torch.ones(2, 5).long()):
        tokens = Tokens.of(x, mass=mass, prefix=1)
        assert tokens.x is x
        assert (tokens.prefix, tokens.held, tokens.mass.dtype) == (1, None, torch.float32)
        assert torch.equal(tokens.mass, torch.ones(2, 5))
    with pytest.raises(FrozenInstanceError, match="'prefix'"):
        tokens.prefix = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_the_prefix_comes_off_and_back_on() -> None:
    x, mass = torch.randn(2, 6, 3), torch.rand(2, 6) + 0.5
    held = torch.tensor([[False, False, True, False, True, False]] * 2)
    tokens = Tokens(x, mass, prefix=2, held=held)
    patches = tokens.patches
    assert patches.x.data_ptr() == x[:, 2:].data_ptr()  # a view
    for part, start in ((patches, 2), (patches.with_prefix_of(tokens), 0)):
        assert part.prefix == 2 - start
        assert torch.equal(part.x, x[:, start:])
        assert torch.equal(part.mass, mass[:, start:])
        assert part.held is not None
        assert torch.equal(part.held, held[:, start:])


def test_without_prefix_nothing_is_copied() -> None:
    tokens = Tokens.of(torch.randn(1, 3, 2))
    assert tokens.patches is tokens
    assert tokens.with_prefix_of(tokens) is tokens


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision_is_at_least_float32(dtype: torch.dtype) -> None:
    values = torch.randn(2, 3, 4).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
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
