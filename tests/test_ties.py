"""Repeated patches (a plain background): ties go to the lower index, whatever the batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import tokenzoo
from tokenzoo import Recipe
from tokenzoo._core.precision import fixed_point
from tokenzoo._core.sorting import first_highest
from tokenzoo.tokens import unit

RECIPES = ("dpcknn", "kmedoids", "pitome", "fopru", "cdpruner", "sparsevlm")


def repeated(n: int, c: int, images: int, seed: int, dtype: torch.dtype) -> dict[str, Any]:
    """Images of at most n // 2 different tokens, and what the recipes ask about them."""
    g = torch.Generator().manual_seed(seed)
    index = torch.randint(0, n // 2, (images, n), generator=g)[..., None]

    def tokens(width: int) -> torch.Tensor:
        some = torch.randn(images, n, width, generator=g).to(dtype)
        return some.take_along_dim(index.expand(-1, -1, width), 1)

    x, text = tokens(c), torch.randn(images, 3, c, generator=g).to(dtype)
    asked = tokens(6).softmax(1)
    shown = {
        "x": x,
        "keys": x,
        "queries": tokens(c),
        "text": text,
        "text_attention": asked[..., :3].mT,
    }
    return shown | {"received_attention": asked[..., 0]}


def decided(name: str, shown: dict[str, torch.Tensor], image: slice) -> list[Any]:
    given: dict[str, Any] = {key: value[image] for key, value in shown.items()}
    n = given["x"].shape[1]
    if name == "fopru":  # which computes it
        del given["received_attention"]
    at = {"embedded": {"x": given["x"], "text": given["text"]}}
    recipe = Recipe(tokenzoo.build(name).recipe.steps[0], keep=n * 2 // 3)
    plan = tokenzoo.build(recipe).reduce(**given, at=at, grid=(1, n), depth=0.5).plan
    return [*zip(plan.keep.tolist(), plan.dst.tolist(), strict=True)]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(
    ("n", "c", "images", "dtype"),
    [
        (9, 8, 6, torch.float32),
        (25, 16, 3, torch.float64),
        (7, 64, 9, torch.float16),
        (33, 100, 2, torch.float32),
        (81, 8, 4, torch.float32),
    ],
)
def test_an_image_of_repeated_patches_alone_and_in_a_batch(
    name: str, n: int, c: int, images: int, dtype: torch.dtype
) -> None:
    for seed in range(2):
        shown = repeated(n, c, images, seed, dtype)
        alone = [decided(name, shown, slice(i, i + 1))[0] for i in range(images)]
        assert alone == decided(name, shown, slice(None)), seed


def test_of_equal_tokens_the_first_stay() -> None:
    x = torch.randn(1, 1, 24, generator=torch.Generator().manual_seed(0)).expand(2, 23, 24)
    for name in ("dpcknn", "kmedoids", "divprune", "gprune"):
        ones = torch.full((2, 23), 1 / 23)
        plan = tokenzoo.build(name, keep=9).reduce(x, received_attention=ones).plan
        assert plan.keep.tolist() == [list(range(9))] * 2, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_inner_products_are_exact_in_any_order(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(1)
    x = (torch.randn(2, 40, 301, generator=g) * 37).to(dtype)
    shuffle = torch.randperm(301, generator=g)
    some = (fixed_point(x),) if dtype == torch.float64 else (fixed_point(x), unit(x))
    for vectors in some:
        mixed = vectors[..., shuffle].contiguous()
        assert torch.equal(vectors @ vectors.mT, mixed @ mixed.mT)
        squares = vectors.square().sum(-1)
        again = (mixed * mixed).flip(-1).cumsum(-1)[..., -1]
        assert torch.equal(squares, again)
    torch.testing.assert_close(fixed_point(x), x.double(), rtol=0, atol=2e-4)


@pytest.mark.parametrize("dim", [-1, 1])
def test_the_first_highest_is_the_same_where_it_is_compiled(dim: int) -> None:
    rows = [[1, 3, 3, 2], [-math.inf] * 4, [0, math.inf, math.nan, math.nan], [2, 1, 0, 2]]
    values = torch.tensor([rows, rows[::-1]])
    compiled = torch.compile(first_highest, backend="eager", fullgraph=True)
    assert compiled(values, dim).tolist() == first_highest(values, dim).tolist()
    assert first_highest(values)[0].tolist() == [1, 0, 2, 0]
