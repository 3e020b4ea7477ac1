"""Two rankings and what a choice loses: known answers, and a run from end to end."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rank_agreement as ranks
import tune_validation as validation

from tests.evaluation.subjects import small_llava
from tokenzoo.evaluation import ResultsFile
from tokenzoo.evaluation.tasks import collage_vqa

pytest.importorskip("scipy")
ROOT = Path(__file__).parents[2]

RESULTS = ROOT / "docs" / "results"


def hits(*shares: float, images: int = 200, seed: int = 7) -> np.ndarray:
    """Right and wrong of candidates whose true accuracies are given."""
    random = np.random.default_rng(seed)
    return (random.random((len(shares), images)) < np.array(shares)[:, None]).astype(float)


@pytest.mark.parametrize(
    ("other", "value"), [((0.1, 0.4, 0.7, 1.0), 1), ((1.0, 0.7, 0.4, 0.1), -1)]
)
def test_order_alone_counts(other: tuple[float, ...], value: float) -> None:
    found = ranks.agreement(hits(0.1, 0.5, 0.6, 1.0, images=2000), hits(*other, images=100))
    assert (found.candidates, found.value) == (4, value)
    assert found.over_images is not None
    low, high = found.over_images
    assert low <= value <= high
    assert high - low < 0.4


def test_what_images_cannot_tell_apart_is_unreliable() -> None:
    clear, alike = hits(0.1, 0.3, 0.5, 0.7, 0.9), hits(0.50, 0.51, 0.52, 0.53, 0.54)
    sure, unsure = ranks.agreement(clear, clear), ranks.agreement(alike, alike)
    assert sure.reliability is not None
    assert unsure.reliability is not None
    assert min(sure.reliability) > 0.95 > 0.8 > max(unsure.reliability)
    assert sure.ceiling == pytest.approx(sure.reliability[0], abs=0.01)
    assert unsure.over_images is not None
    assert unsure.over_images[1] - unsure.over_images[0] > 0.5


def test_ties_alone_have_no_order() -> None:
    found = ranks.agreement(np.ones((3, 9)), hits(0.1, 0.5, 0.9, images=9))
    assert (found.value, found.over_images, found.reliability, found.ceiling) == (None,) * 4


def test_regret_of_a_choice() -> None:
    scores = hits(0.9, 0.6, images=1000)
    assert ranks.regret(scores, 0) == ranks.Regret(0.0, 0.0)
    found = ranks.regret(scores, 1)
    assert found.seen == pytest.approx(0.3, abs=0.05)
    assert found.crossed == pytest.approx(found.seen, abs=1e-3)
    # Of many that are equally good one is the best by luck: on other images it is not.
    lucky = hits(*[0.5] * 50, images=200)
    found = ranks.regret(lucky, int(lucky.mean(1).argsort()[25]))
    assert found.seen > 0.06
    assert abs(found.crossed) < 0.5 * found.seen


def test_from_end_to_end_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run measures no rows, tunes as the first, and its comparisons are the same."""
    monkeypatch.setattr(validation, "QUICK", ("tome", "fopru"))
    monkeypatch.setattr(validation, "RUNS", ((validation.DIGITS, 16),))
    found: list[Any] = []

    def tune(*given: Any, **options: Any) -> Any:
        found[:] = found or [validation_tune(*given, **options)]
        return found[0]

    validation_tune = validation.tune
    monkeypatch.setattr(validation, "tune", tune)
    out, rows = tmp_path / "out.json", tmp_path / "rows.jsonl"
    command = ["--quick", "--samples", "6", "--images", "8", "--rounds", "1"]
    command += ["--rows", str(rows), "--out", str(out)]
    validation.main(command)
    first, lines = json.loads(out.read_text()), rows.read_text()
    assert [one["metric"] for one in first["comparisons"]] == ["all counts", "counts", "marked"]
    for one in first["comparisons"]:
        assert set(one["candidates"]) == {"tome", "random", "uniform", "pool", "downsample"}
        assert one["images"] == {"labelled": 6, "unlabelled": 8}
        assert set(one["agreement"]) == {"likeness", "same answer"}
    validation.main([*command, "--known", str(rows)])
    again: Any = json.loads(out.read_text())
    assert rows.read_text() == lines
    assert [one["candidates"] for one in again["comparisons"]] == [
        one["candidates"] for one in first["comparisons"]
    ]


def test_prompts_of_the_small_llava(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes that save nothing in the tower save in the language model: all that fit are candidates."""
    monkeypatch.setattr(validation, "QUICK", ("tome", "fastv", "divprune"))
    for module in (validation, collage_vqa):
        monkeypatch.setattr(module, "load_collage_llava", small_llava)
    out = tmp_path / "out.json"
    command = ["--quick", "--only", "collage-vqa", "--samples", "2", "--images", "8"]
    validation.main(
        [*command, "--rounds", "1", "--rows", str(tmp_path / "r.jsonl"), "--out", str(out)]
    )
    found = json.loads(out.read_text())["comparisons"]
    assert [one["metric"] for one in found] == ["right", "coarse", "fine"]
    for one in found:
        assert set(one["candidates"]) == {"tome", "fastv", "divprune", "random", "uniform", "pool"}
        assert one["agreement"]["likeness"]["methods that save"]["candidates"] == 3


def test_the_ranking_of_prompts_in_the_document_is_that_of_the_rows() -> None:
    rows = ResultsFile(RESULTS / "tune-prompts.jsonl").rows()
    document = (ROOT / "docs" / "evaluation.md").read_text()
    found = {metric: validation.ranking(rows, metric) for metric in ("right", "coarse", "fine")}
    for metric, one in found.items():
        assert one.over_images is not None
        low, high = one.over_images
        line = f"| {metric} | {one.value:.2f}, {low:.2f} to {high:.2f} | {one.ceiling:.2f} |"
        assert line in document


def test_the_tables_of_the_document_are_those_of_the_results() -> None:
    images, prompts = (
        json.loads((RESULTS / f"tune-{name}.json").read_text())
        for name in ("validation", "prompts")
    )
    document = (ROOT / "docs" / "evaluation.md").read_text()
    lines = itertools.chain(
        validation.rankings(images), *map(validation.regrets, (images, prompts))
    )
    missing = [line for line in lines if line not in document]
    assert not missing
