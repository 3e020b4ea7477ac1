"""What is shown of rows: seeds pooled, comparisons corrected together, contradictions named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation import Key, Row
from tokenzoo.evaluation.statistics import difference, holm
from tokenzoo.evaluation.summary import BARE, BEST, CONTROL, REFERENCE, Summary, summarize

N = 40


def hits(right: int) -> list[int]:
    return [1] * right + [0] * (N - right)


def row(recipe: str | None, right: Any, keep: Any = 0.5, seed: int = 0, **options: Any) -> Row:
    """A row of `N` samples, so many of them right; or of these scores."""
    key = Key("read", "vit", recipe, None if recipe is None else keep, seed)
    word = hits(right) if isinstance(right, int) else list(right)
    return Row(key, {"seed": 0}, **{"scores": {"word": word}, **options})


ROWS = [
    row(None, 38, agreement=[1] * N),
    row("tome", 36, time=[0.6, 0.5, 0.7], tokens=32, flops=0.7, command="tokenzoo eval"),
    row("evoprune", 37),
    row("pool", 20),
    row("random", 4),
    row("tome", 30, keep=16),
    row("pool", 31, keep=16),
]


def summary(*rows: Row) -> Summary:
    [found] = summarize(rows, {"pool", "random"})
    return found


def test_budget_by_budget_the_best_first() -> None:
    found = summary(*ROWS)
    assert [(one.name, one.key.keep) for one in found.lines] == [
        *[("evoprune", 0.5), ("tome", 0.5), ("pool", 0.5), ("random", 0.5)],
        *[("pool", 16), ("tome", 16)],
    ]
    assert (found.samples, found.metrics, found.commands) == (N, ["word"], ["tokenzoo eval"])
    more = summary(*(row("tome", 20, keep) for keep in (1, 0.25, 64, 1.0)))
    assert [repr(one.key.keep) for one in more.lines] == ["1.0", "0.25", "64", "1"]
    tome = found.lines[1]
    assert (tome.tokens, tome.flops, tome.time) == (32, 0.7, [0.6, 0.5, 0.7])
    assert tome.of_bare == pytest.approx(36 / 38)
    assert [one.control for one in found.lines] == [False, False, True, True, True, False]


def test_each_is_compared_with_others_of_its_budget() -> None:
    evoprune, tome, pool, random, pool16, tome16 = summary(*ROWS).lines
    assert list(evoprune.against) == [BARE, CONTROL, REFERENCE]
    assert list(tome.against) == [BARE, CONTROL, BEST]
    assert list(pool.against) == [BARE, REFERENCE, BEST]
    assert list(random.against) == [BARE, CONTROL, REFERENCE, BEST]
    assert list(pool16.against) == [BARE, REFERENCE]
    assert evoprune.against[REFERENCE].value == pytest.approx(1 / N)
    assert tome.against[BEST].value == -evoprune.against[REFERENCE].value
    assert tome.against[BEST].low == -evoprune.against[REFERENCE].high
    assert tome16.against[CONTROL].value == pytest.approx(-1 / N)


def test_p_values_are_corrected_over_the_pairs_of_the_task() -> None:
    found = summary(*ROWS)
    # Numbers of hits: each line and the bare model; at 0.5 each two lines, at 16 pool and tome.
    of_half = [(37, 20), (37, 36), (36, 20), (4, 20), (4, 36), (4, 37)]
    pairs = [*((right, 38) for right in (37, 36, 20, 4, 31, 30)), *of_half, (31, 30)]
    expected = holm([difference(hits(ours), hits(other)).p for ours, other in pairs])
    shown = {one.p for line in found.lines for one in line.against.values()}
    assert sorted(shown) == pytest.approx(sorted(set(expected)))


def test_those_not_distinguishable_from_the_best() -> None:
    among = {(one.name, one.key.keep) for one in summary(*ROWS).lines if one.among_best}
    assert among == {("evoprune", 0.5), ("tome", 0.5), ("tome", 16), ("pool", 16)}


def test_seeds_are_pooled_sample_by_sample() -> None:
    one = row("random", 10, agreement=hits(10), time=[0.4, 0.3, 0.5])
    two = row("random", 20, seed=1, agreement=hits(30), time=[0.6, 0.5, 0.7])
    [line] = summary(row(None, 38), one, two).lines
    assert line.seeds == 2
    assert line.scores["word"] == [1] * 10 + [0.5] * 10 + [0] * 20
    assert line.estimates["word"].value == pytest.approx(15 / N)
    assert line.agreement == pytest.approx(0.5)
    assert line.time == pytest.approx([0.5, 0.4, 0.6])
    # All right of forty is no proof of perfection, whether the seeds are one or two.
    [line] = summary(row("random", N), row("random", N, seed=1)).lines
    assert line.estimates["word"].low < 1


def test_options_are_recipes_of_their_own() -> None:
    plain, other = row("evoprune", 30), row("evoprune", 31)
    other = replace(other, key=replace(other.key, options='{"lam": 0}'))
    assert [one.name for one in summary(plain, other).lines] == ["evoprune (lam=0)", "evoprune"]


def test_what_did_not_run() -> None:
    never = row("fastv", 0, status="refused", scores={}, reason="no language model")
    far = row("tome", 0, keep=2, status="refused", scores={}, reason="out of reach")
    found = summary(never, *ROWS, far)
    assert found.refused == {"fastv": "no language model", "tome at 2": "out of reach"}
    assert found.metrics == ["word"]
    only = summary(never)
    assert (only.metrics, only.samples, only.lines, only.bare) == ([], 0, [], None)


def test_without_a_bare_model_nothing_is_relative_to_it() -> None:
    found = summary(*ROWS[1:])
    assert found.bare is None
    assert all(one.of_bare is None and BARE not in one.against for one in found.lines)
    zero = summary(row(None, 0), row("tome", 1))
    assert zero.lines[0].of_bare is None


def test_a_row_that_comes_again_counts_once() -> None:
    assert summary(*ROWS, *(replace(one, time=[1, 1, 1]) for one in ROWS)) == summary(*ROWS)


def test_tasks_and_models_are_apart() -> None:
    other = [replace(one, key=replace(one.key, model="vit-l"), facts={}) for one in ROWS]
    assert [one.model for one in summarize([*ROWS, *other])] == ["vit", "vit-l"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (replace(ROWS[1], facts={"seed": 1}), "other facts: .*'seed': 0.*'seed': 1"),
        (row("tome", 35), "other scores under the same key .*tome"),
        (row("dart", 0, scores={"words": hits(1)}), "other metrics .*word"),
        (row("dart", 0, scores={"word": [1, 0]}), "numbers of samples: .*40.* 2"),
        (row("tome", 0, status="refused", scores={}), "other scores"),
    ],
)
def test_contradictions_are_errors(wrong: Row, message: str) -> None:
    with pytest.raises(BadArgumentError, match=message):
        summarize([*ROWS, wrong])
