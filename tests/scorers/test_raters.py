"""Raters: against the definition, one softmax at a time, and where there are few words, or none."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenzoo
from tokenzoo import Evidence, Recipe, Stage, Step
from tokenzoo.errors import BadArgumentError, MissingEvidenceError
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.schedules import Once
from tokenzoo.scorers import Raters
from tokenzoo.scorers.raters import raters

B, H, N, C = 2, 5, 7, 6


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shown(t: int, *, before: int = N, **more: Tensor) -> dict[str, Any]:
    """The arguments of `reduce` for t words after N tokens, of which there were `before` at first."""
    paid = draws(B, H, t, N + 3, seed=1).softmax(-1)[..., 3:]  # some of it goes to other tokens
    rotation = draws(B, t, N, seed=2)
    embedded = {"x": draws(B, before, C, seed=3), "text": draws(B, t, C, seed=4)}
    return {
        "text_attention": paid,
        "text_rotation": rotation,
        "at": {"embedded": embedded},
        **more,
    }


def evidence(t: int, *, before: int = N) -> Evidence:
    given = shown(t, before=before)
    x, text = given["at"]["embedded"]["x"], given["at"]["embedded"]["text"]
    show = {name: lambda name=name: given[name] for name in ("text_attention", "text_rotation")}
    layer = Evidence(x, mass=torch.ones(B, before), text=text)
    mass = torch.ones(B, N)
    return Evidence(draws(B, N, C), mass=mass, show=show, layers={"embedded": layer})


def by_definition(seen: Evidence, i: int, heads: int | None, unturned: bool) -> list[float]:
    """The scores of one image, number by number."""
    x, text = seen.at("embedded").x[i], seen.at("embedded").text[i]
    t = len(text)
    got = [0.0] * t
    for v in x:
        weights = [math.exp(float(v @ word)) for word in text]
        got = [a + w / sum(weights) for a, w in zip(got, weights, strict=True)]
    those = [j for j in range(t) if got[j] > sum(got) / t] or list(range(t))

    def paid(h: int, n: int) -> float:
        values = [float(seen.text_attention[i, h, j, n]) for j in those]
        if unturned:
            turned = [float(seen.text_rotation[i, j, n]) for j in those]
            values = [value / turn for value, turn in zip(values, turned, strict=True)]
        return sum(values) / len(those)

    totals = {h: sum(paid(h, n) for n in range(N)) for h in range(H)}
    best = sorted(totals, key=lambda h: -totals[h])[:heads]
    return [sum(paid(h, n) for h in best) / len(best) for n in range(N)]


@pytest.mark.parametrize("t", [1, 2, 9])
@pytest.mark.parametrize(("heads", "unturned"), [(None, False), (2, False), (3, True), (40, True)])
@pytest.mark.parametrize("before", [N, 12])
def test_it_is_what_the_definition_says(
    t: int, heads: int | None, unturned: bool, before: int
) -> None:
    seen = evidence(t, before=before)
    scores = Raters(heads, unturned).score(seen)
    for i in range(B):
        wanted = torch.tensor(by_definition(seen, i, heads, unturned), dtype=torch.float64)
        torch.testing.assert_close(scores[i], wanted)


def test_words_that_receive_more_than_the_mean_are_raters() -> None:
    x = torch.tensor([[[1.0, 0], [1, 0], [0, 1]]])
    text = torch.tensor([[[9.0, 0], [0, 1], [0, 9], [0, 0]]])
    assert raters(x, text).tolist() == [[True, False, True, False]]
    # A visual token that is NaN has no say: the others decide as they do without it.
    x[0, 2] = torch.nan
    assert raters(x, text).tolist() == [[True, False, False, False]]


def test_where_no_word_stands_out_all_are_raters() -> None:
    x = draws(1, 4, C)
    assert raters(x, draws(1, 1, C, seed=1)).tolist() == [[True]]
    assert raters(0 * x, draws(1, 4, C, seed=1)).tolist() == [[True] * 4]
    assert raters(x, draws(1, 0, C)).shape == (1, 0)


def test_without_text_the_first_tokens_stay() -> None:
    seen = evidence(0)
    assert Raters().score(seen).tolist() == [[0.0] * N] * B
    pool = torch.arange(N).expand(B, N)
    assert TopK(Raters()).select(seen, pool, 3)[0].tolist() == [[0, 1, 2]] * B


STEP = Step(Stage.LLM(2), Once(), SelectAssign(TopK(Raters(2, unturned=True)), Drop()), Identity())


def test_on_tensors_with_a_prefix_and_one_head() -> None:
    """Prefix tokens are in front of everything about tokens, and are not asked about."""
    zoo = tokenzoo.build(Recipe(STEP, keep=3))
    given = shown(4)
    kept = zoo.reduce(draws(B, N, C), **given).plan.keep
    longer = {
        name: torch.cat([draws(*given[name].shape[:-1], 2, seed=9), given[name]], -1)
        for name in ("text_attention", "text_rotation")
    }
    embedded = given["at"]["embedded"]
    before = {**embedded, "x": torch.cat([draws(B, 2, C, seed=8), embedded["x"]], 1)}
    x = torch.cat([draws(B, 2, C, seed=7), draws(B, N, C)], 1)
    again = zoo.reduce(x, prefix=2, at={"embedded": before}, **longer)
    assert torch.equal(again.plan.keep[:, 2:] - 2, kept)
    one = {**given, "text_attention": given["text_attention"][:, 0]}
    assert zoo.reduce(draws(B, N, C), **one).plan.kept == 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"text_attention": draws(B, H, 4, N + 1)}, ["text_attention", "[b, h, t, N]", "N = 7"]),
        ({"text_rotation": draws(B, 1, 4, N)}, ["text_rotation", "[b, t, N]"]),
        ({"text_attention": draws(B, H, 3, N)}, ["of 3 text tokens", "text@embedded of 4"]),
        (
            {"at": {"embedded": {"x": draws(B, N, C), "text": draws(B, 4, C - 1)}}},
            ["5 channels", "x@embedded 6"],
        ),
    ],
)
def test_shapes_that_do_not_fit_are_named(change: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(BadArgumentError) as caught:
        tokenzoo.build(Recipe(STEP, keep=3)).reduce(draws(B, N, C), **{**shown(4), **change})
    assert all(part in str(caught.value) for part in named), str(caught.value)


def test_what_it_needs_is_named() -> None:
    assert Raters().needs == {"text_attention", "x@embedded", "text@embedded"}
    assert Raters(unturned=True).needs - Raters().needs == {"text_rotation"}
    with pytest.raises(MissingEvidenceError, match=r"text@embedded, text_attention.*text_rotation"):
        tokenzoo.build(Recipe(STEP, keep=3)).reduce(draws(B, N, C))
    for options, named in (({"heads": 0}, "heads=0"), ({"unturned": 1}, "unturned=1")):
        with pytest.raises(BadArgumentError, match=named):
            Raters(**options)
