"""Energy has the properties of a scorer, and scores loud tokens higher."""

import torch
from tokenzoo_energy import Energy, energetic

import tokenzoo
from tokenzoo.testing import check_recipe, check_scorer


def test_energy_keeps_every_law() -> None:
    """Exact counts, NaN last, each image for itself, nothing read that is not declared, ..."""
    check_scorer(Energy(power=1.0), examples=10)
    check_recipe(energetic(), examples=10)


def test_a_louder_token_stays() -> None:
    """The meaning of the score, which the properties do not cover."""
    x = torch.tensor([[[1.0, 1.0], [0.0, 3.0], [2.0, 0.0]]])
    assert tokenzoo.build("energetic", keep=1).reduce(x).plan.keep.tolist() == [[1]]
