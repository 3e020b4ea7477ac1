"""EvoPrune's parts: what has no weight is not computed, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import tokenzoo
from tokenzoo import Recipe
from tokenzoo.errors import BadArgumentError
from tokenzoo.matchers import Bipartite, Protect
from tokenzoo.parts import walk
from tokenzoo.scorers import Diversity, ReceivedAttention, Similarity

PENALTY = Diversity("x").discount(0.0)
HOLDS_NONE = Protect(ReceivedAttention(), 0.0)


@pytest.mark.parametrize(
    ("options", "left_out"),
    [
        ({"lam": 0.0}, {Diversity}),
        ({"ctr": 0.0}, {Protect, ReceivedAttention}),
        ({"lam": 0, "ctr": 0}, {Diversity, Protect, ReceivedAttention}),
    ],
)
def test_a_part_without_weight_is_left_out_and_decides_nothing(options, left_out):
    whole, found = (
        tokenzoo.build("evoprune", keep=40, **own).recipe.steps[0] for own in ({}, options)
    )
    kinds = {type(part) for part in walk(whole)} - {type(part) for part in walk(found)}
    assert left_out <= kinds
    assert ("received_attention" in found.needs) == (Protect not in left_out)
    matcher = found.matcher
    assert isinstance(matcher, Bipartite)
    # The same with the parts there, and a weight of 0.
    if Diversity in left_out:
        matcher = replace(matcher, pairs=Similarity("x").nonnegative() * PENALTY)
    if Protect in left_out:
        matcher = replace(matcher, protect=HOLDS_NONE)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 64, 12, generator=generator)
    received = torch.rand(2, 64, generator=generator)
    plans = [
        tokenzoo.build(Recipe(step, keep=40)).reduce(x, received_attention=received).plan
        for step in (found, replace(found, matcher=matcher))
    ]
    assert plans[0].dst.equal(plans[1].dst)


@pytest.mark.parametrize(
    "options", [{"lam": 0, "k": 0}, {"lam": 0, "density": "values"}, {"ctr": 0, "stride": 0}]
)
def test_options_of_a_part_without_weight_are_checked(options):
    with pytest.raises(BadArgumentError):
        tokenzoo.build("evoprune", **options)
