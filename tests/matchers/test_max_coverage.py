"""Maximum coverage against its formula, one pair at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import tokenzoo
from tests.matchers.sites import Given, draws, pool_of, site
from tokenzoo import Evidence
from tokenzoo.errors import BadArgumentError
from tokenzoo.matchers import MaxCoverage
from tokenzoo.scorers import FeatureNorm, Similarity

N, K = 17, 11
COSINE, LENGTH = Similarity("x"), FeatureNorm()


def cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


def softmax(row: list[float], temperature: float | None) -> list[float]:
    if temperature is None:
        return row
    terms = [math.exp(value / temperature) for value in row]
    return [term / sum(terms) for term in terms]


def by_hand(
    x: Tensor,
    weight: list[float],
    k: int,
    temperature: float | None = None,
    text: Tensor | None = None,
    text_weight: float = 0.0,
    text_temperature: float | None = None,
) -> list[int]:
    """The coverage of every set that one more token makes, from its definition."""
    n = len(x)
    tokens = [softmax([cosine(i, j) for j in x], temperature) for i in x]
    words = (
        [] if text is None else [softmax([cosine(w, j) for j in x], text_temperature) for w in text]
    )

    def coverage(chosen: list[int]) -> float:
        def mean(rows: list[list[float]]) -> float:
            return sum(max([0.0, *(row[j] for j in chosen)]) for row in rows) / max(1, len(rows))

        return mean(tokens) + text_weight * mean(words)

    chosen: list[int] = []
    while len(chosen) < k:
        before = coverage(chosen)
        gains = {j: (coverage([*chosen, j]) - before) * weight[j] for j in range(n)}
        chosen.append(max((j for j in gains if j not in chosen), key=lambda j: gains[j]))
    return chosen


@pytest.mark.parametrize("power", [0.0, 1.0, 2.5])
def test_gains_are_weighted_by_a_power_of_the_saliency(power: float) -> None:
    evidence = site(draws(2, N, 5))
    kept, rest = MaxCoverage(COSINE, LENGTH, power).select(evidence, pool_of(evidence), K)
    for i, x in enumerate(evidence.x):
        weight = [float(token.norm()) ** power for token in x]
        assert kept[i].tolist() == by_hand(x, weight, K)
        assert rest[i].tolist() == [t for t in range(N) if t not in kept[i].tolist()]


def test_a_saliency_below_zero_is_none() -> None:
    evidence = site(draws(1, N, 5))
    evidence.x[..., 0] = torch.tensor([1.0] * 9 + [-1.0] * 8)
    kept, _ = MaxCoverage(COSINE, Given(), 2.0).select(evidence, pool_of(evidence), 9)
    assert sorted(kept[0].tolist()) == list(range(9))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("temperature", "text", "text_temperature"),
    [(0.2, 0.0, None), (0.2, 2.0, 0.05), (None, 0.5, 0.1), (0.5, 30.0, None)],
)
def test_a_text_is_covered_as_well(
    temperature: float | None, text: float, text_temperature: float | None, padded: bool
) -> None:
    words, mask = draws(2, 6, 5, seed=1), torch.arange(6) < torch.tensor([[6], [4]])
    words[1, 4:] = torch.nan if padded else 5.0  # arbitrary values at padding
    evidence = site(draws(2, N, 5), text=words, text_mask=mask)
    part = MaxCoverage(
        COSINE, temperature=temperature, text=text, text_temperature=text_temperature
    )
    kept, _ = part.select(evidence, pool_of(evidence), K)
    for i, x in enumerate(evidence.x):
        given = words[i, mask[i]]
        ones = [1.0] * N
        assert kept[i].tolist() == by_hand(x, ones, K, temperature, given, text, text_temperature)


@pytest.mark.parametrize(
    "part", [MaxCoverage(COSINE, LENGTH), MaxCoverage(COSINE, temperature=0.1)]
)
def test_of_a_part_of_the_image_only_that_part_is_covered(part: MaxCoverage) -> None:
    evidence = site(draws(1, N, 5))
    pool = torch.tensor([[12, 3, 9, 0, 14, 7, 8]])
    kept, rest = part.select(evidence, pool, 4)
    x = evidence.x[0, pool[0]]
    weight = [float(token.norm()) if part.saliency else 1.0 for token in x]
    expected = by_hand(x, weight, 4, part.temperature)
    assert kept.tolist() == [pool[0, expected].tolist()]
    assert set(kept[0].tolist()) | set(rest[0].tolist()) == set(pool[0].tolist())


@pytest.mark.parametrize("temperature", [None, 0.2])
def test_a_token_that_is_no_number_is_last_and_covers_nothing(temperature: float | None) -> None:
    x = draws(1, N, 5)
    bad = [2, 3, 11]
    broken = x.clone()
    broken[:, bad] = torch.tensor([[math.nan], [math.inf], [-math.inf]]).double()
    others = [t for t in range(N) if t not in bad]
    part = MaxCoverage(COSINE, temperature=temperature)
    kept, _ = part.select(site(broken), pool_of(site(x)), N)
    alone, _ = part.select(site(x[:, others]), torch.arange(len(others))[None], len(others))
    assert kept[0, :-3].tolist() == [others[t] for t in alone[0].tolist()]
    assert kept[0, -3:].tolist() == bad


def test_a_saliency_that_is_no_number_is_last() -> None:
    evidence = site(draws(1, N, 5))
    scores = draws(1, N, seed=4).abs()
    scores[0, 5] = math.nan
    evidence = Evidence(evidence.x, mass=evidence.mass, show={"received_attention": lambda: scores})
    part = MaxCoverage(COSINE, tokenzoo.scorers.ReceivedAttention())
    assert part.select(evidence, pool_of(evidence), N)[0][0, -1] == 5


def test_a_text_of_another_width_is_refused() -> None:
    evidence = site(draws(1, N, 5), text=draws(1, 3, 4))
    with pytest.raises(BadArgumentError, match="4 channels"):
        MaxCoverage(COSINE, text=1.0).select(evidence, pool_of(evidence), 3)


def test_blocks_of_rows_make_the_same_table(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = site(draws(2, 60, 5).float())
    part = MaxCoverage(COSINE, LENGTH)
    whole, _ = part.select(evidence, pool_of(evidence), 20)
    monkeypatch.setattr("tokenzoo.matchers.max_coverage.CACHED", 500)
    assert torch.equal(part.select(evidence, pool_of(evidence), 20)[0], whole)
