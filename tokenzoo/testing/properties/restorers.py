"""Properties of restorers: all tokens come back, and those that were left are what they are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenzoo.matchers import Drop, SelectAssign, Strided
from tokenzoo.parts import Restorer
from tokenzoo.testing.broken import demand, text
from tokenzoo.testing.example import Example
from tokenzoo.testing.property import property_of
from tokenzoo.token_map import TokenMap, take

READ = "tokenzoo.parts.Restorer.restore"


def brought_back(
    subject: Restorer, example: Example, left: Tensor | None = None
) -> tuple[Tensor, TokenMap]:
    """What comes back of an example of which every second token was dropped, and the token map.

    Args:
        subject: the restorer.
        example: of which all patch tokens are what entered the block.
        left: `[b, m, c]`, the tokens that are left, as they are now; None: as they were.
    """
    x = example.tokens.patches.x
    keep = math.ceil(example.patches / 2)
    plan = SelectAssign(Strided(), Drop()).match(example.evidence(), keep)
    now = take(x, plan.keep) if left is None else left
    return subject.restore(now, x, plan, subject.prepare(x, plan)), plan


@property_of("restorer", read=READ)
def restored_formed(subject: Restorer, example: Example) -> None:
    """All n tokens come back in the dtype of the tokens, also in bfloat16; those left are unchanged."""
    for case in (example, example.to(torch.bfloat16)):
        x = case.tokens.patches.x
        left = x[:, : math.ceil(case.patches / 2)].flip(1) * 2
        found, plan = brought_back(subject, case, left)
        expected = (x.dtype, x.shape)
        demand((found.dtype, found.shape) == expected, f"dtype, shape = {expected}", found)
        there = take(found, plan.keep)
        demand(torch.equal(there, left), f"the tokens that are left: {text(left)}", there)


@property_of("restorer", read=READ)
def restored_unmoved(subject: Restorer, example: Example) -> None:
    """Where no token has changed since, a dropped token comes back as it was."""
    x = example.tokens.patches.x
    found, _ = brought_back(subject, example)
    demand(
        torch.allclose(found, x, rtol=1e-6, atol=1e-6), f"the tokens as they were: {text(x)}", found
    )


@property_of("restorer", read=READ)
def restored_alone(subject: Restorer, example: Example) -> None:
    """Dropped tokens of an image come back alone as in a batch, and NaN in one token left never raises."""
    example = example.double()
    left = example.tokens.patches.x[:, : math.ceil(example.patches / 2)].flip(1) * 2
    whole, _ = brought_back(subject, example, left)
    for i in range(example.images):
        found, _ = brought_back(subject, example.image(i), left[i : i + 1])
        same = torch.allclose(found, whole[i : i + 1], rtol=1e-6, atol=1e-6)
        demand(same, f"image {i} alone as in the batch, {text(whole[i])}", found)
    spoilt = left.clone()
    spoilt[:, 0] = torch.nan
    found, plan = brought_back(subject, example, spoilt)
    rest = take(found, plan.keep)[:, 1:]
    demand(torch.equal(rest, left[:, 1:]), "NaN in its own token alone among those left", rest)
