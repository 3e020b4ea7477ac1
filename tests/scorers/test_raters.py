"""Raters: against the definition, one softmax at a time, and where there are few words, or none."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenzoo
from tests.matchers.sites import draws, pool_of, site
from tokenzoo import Evidence, Recipe, Stage, Step
from tokenzoo.errors import BadArgumentError, MissingEvidenceError
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.schedules import Once
from tokenzoo.scorers import Raters
from tokenzoo.scorers.raters import raters

B, H, N, C = 2, 5, 7, 6
STEP = Step(Stage.LLM(2), Once(), SelectAssign(TopK(Raters(2, unturned=True)), Drop()), Identity())
ZOO = tokenzoo.build(Recipe(STEP, keep=3))


def shown(t: int, *, before: int = N) -> dict[str, Any]:
    """The arguments of `reduce` for t words after N tokens, of which there were `before` at first."""
    return {
        # Some of the attention goes to other tokens.
        "text_attention": draws(B, H, t, N + 3, seed=1).softmax(-1)[..., 3:],
        "text_rotation": draws(B, t, N, seed=2),
        "at": {"embedded": {"x": draws(B, before, C, seed=3), "text": draws(B, t, C, seed=4)}},
    }


def evidence(t: int, *, before: int = N) -> Evidence:
    given = shown(t, before=before)
    embedded = given.pop("at")["embedded"]
    show = {name: lambda value=value: value for name, value in given.items()}
    layers = {"embedded": site(embedded["x"], text=embedded["text"])}
    return site(draws(B, N, C), show=show, layers=layers)


def by_definition(seen: Evidence, i: int, heads: int | None, unturned: bool) -> Tensor:
    """The scores of one image, head by head."""
    x, text = seen.at("embedded").x[i], seen.at("embedded").text[i]
    got = torch.stack([(text @ visual).softmax(0) for visual in x]).sum(0)  # [t]
    those = [j for j in range(len(text)) if got[j] > got.mean()] or [*range(len(text))]
    paid = seen.text_attention[i][:, those]  # [h, t, n]
    if unturned:
        paid = paid / seen.text_rotation[i, those]
    of_head = sorted(paid.mean(1), key=lambda one: -float(one.sum()))[:heads]
    return torch.stack(of_head).mean(0)


@pytest.mark.parametrize(("t", "before"), list(product([1, 2, 9], [N, 12])))
@pytest.mark.parametrize(("heads", "unturned"), [(None, False), (2, False), (3, True), (40, True)])
def test_it_is_what_the_definition_says(
    t: int, before: int, heads: int | None, unturned: bool
) -> None:
    seen = evidence(t, before=before)
    wanted = torch.stack([by_definition(seen, i, heads, unturned) for i in range(B)])
    torch.testing.assert_close(Raters(heads, unturned).score(seen), wanted)


def test_words_that_receive_more_than_the_mean_are_raters_or_all() -> None:
    x = torch.tensor([[[1.0, 0], [1, 0], [0, 1]]])
    text = torch.tensor([[[9.0, 0], [0, 1], [0, 9], [0, 0]]])
    assert raters(x, text).tolist() == [[True, False, True, False]]
    # A visual token that is NaN has no say: the others decide as they do without it.
    x[0, 2] = torch.nan
    assert raters(x, text).tolist() == [[True, False, False, False]]
    assert raters(0 * x[:, :2], text).tolist() == [[True] * 4]  # where no word stands out
    assert raters(x, text[:, :0]).shape == (1, 0)


def test_without_text_the_first_tokens_stay() -> None:
    seen = evidence(0)
    assert Raters().score(seen).tolist() == [[0.0] * N] * B
    assert TopK(Raters()).select(seen, pool_of(seen), 3)[0].tolist() == [[0, 1, 2]] * B


def test_on_tensors_with_a_prefix_and_one_head() -> None:
    """Prefix tokens are in front of everything about tokens, and are not asked about."""
    x, given = draws(B, N, C), shown(4)
    kept = ZOO.reduce(x, **given).plan.keep

    def longer(tokens: Tensor, dim: int) -> Tensor:
        return torch.cat([draws(*tokens.shape, seed=9).narrow(dim, 0, 2), tokens], dim)

    embedded = given["at"]["embedded"]
    again = ZOO.reduce(
        longer(x, 1),
        prefix=2,
        at={"embedded": {**embedded, "x": longer(embedded["x"], 1)}},
        **{name: longer(given[name], -1) for name in ("text_attention", "text_rotation")},
    )
    assert torch.equal(again.plan.keep[:, 2:] - 2, kept)
    one = {**given, "text_attention": given["text_attention"][:, 0]}
    assert ZOO.reduce(x, **one).plan.kept == 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"text_attention": draws(B, H, 4, N + 1)}, "text_attention"),
        ({"text_rotation": draws(B, 1, 4, N)}, "text_rotation"),
        ({"text_attention": draws(B, H, 3, N)}, "of 3 text tokens"),
        (
            {"at": {"embedded": {"x": draws(B, N, C), "text": draws(B, 4, C - 1)}}},
            "x@embedded 6",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(BadArgumentError, match=re.escape(named)):
        ZOO.reduce(draws(B, N, C), **{**shown(4), **change})


def test_what_it_needs_is_named() -> None:
    assert Raters().needs == {"text_attention", "x@embedded", "text@embedded"}
    assert Raters(unturned=True).needs - Raters().needs == {"text_rotation"}
    with pytest.raises(MissingEvidenceError, match=r"text@embedded, text_attention.*text_rotation"):
        ZOO.reduce(draws(B, N, C))
