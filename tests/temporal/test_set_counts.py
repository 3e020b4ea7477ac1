"""Counts of sets: exact and in proportion, or the authors' own."""

from __future__ import annotations

import pytest
import torch

from tokenzoo.temporal.set_counts import authors_counts, in_proportion


@pytest.mark.parametrize("total", [0, 1, 7, 20, 30])
def test_a_total_is_divided_exactly_and_within_limits(total):
    generator = torch.Generator().manual_seed(total)
    weights = torch.rand(5, 8, generator=generator)
    weights[:, 2] = 0
    limits = torch.randint(0, 10, (5, 8), generator=generator)
    limits[:, 0] = 10
    wanted = limits.sum(1, keepdim=True).clamp_max(total)
    found = in_proportion(weights, limits, wanted, 10)
    assert found.sum(1, keepdim=True).equal(wanted)
    assert bool((found <= limits).all() and (found >= 0).all())


@pytest.mark.parametrize(
    ("weights", "total", "counts"),
    [
        ((1, 1, 1), 6, (2, 2, 2)),
        ((1, 1, 1), 7, (3, 2, 2)),  # ties go to the lower index
        ((3, 1, 0), 8, (6, 2, 0)),
        ((1, 2, 4), 7, (1, 2, 4)),
        ((9, 1, 1), 14, (10, 2, 2)),  # no group gives more than it has
    ],
)
def test_shares_follow_the_weights(weights, total, counts):
    limits = torch.full((1, 3), 10)
    assert in_proportion(torch.tensor([weights]), limits, total, 10).tolist() == [[*counts]]


def test_holitom_rounds_static_sets_to_even_and_dynamic_ones_up():
    sizes = torch.tensor([[5, 11, 0, 4, 7, 3]])  # 30 units of 60 tokens
    # A quarter of 60 tokens is half of 30 units.
    assert authors_counts(sizes, 60, 0.25, "clip").tolist() == [[2, 6, 0, 2, 4, 2]]
    assert authors_counts(sizes, 60, 0.9, "clip").equal(sizes)  # no more than there are


def test_prunevid_rounds_down_and_leaves_small_sets_whole():
    sizes = torch.tensor([[14, 15, 0, 29]])
    assert authors_counts(sizes, 60, 0.5, "set").tolist() == [[14, 7, 0, 14]]
