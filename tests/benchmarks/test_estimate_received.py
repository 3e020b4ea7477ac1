"""The measurement of the estimate: its two figures of agreement, and one small run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import estimate_received


def test_spearman_is_that_of_scipy_image_by_image() -> None:
    a, b = torch.rand(2, 3, 40, generator=torch.Generator().manual_seed(0))
    found = estimate_received.spearman(a, a + 0.3 * b)
    expected = [spearmanr(x, x + 0.3 * y).statistic for x, y in zip(a, b, strict=True)]
    assert found.tolist() == pytest.approx(expected)


def test_overlap_is_the_share_of_the_highest_that_both_have() -> None:
    a = torch.tensor([[5.0, 4, 3, 2, 1], [1, 2, 3, 4, 5]])
    b = torch.tensor([[9.0, 0, 8, 0, 1], [9, 8, 0, 0, 1]])
    assert estimate_received.overlap(a, b, 2).tolist() == [0.5, 0.0]


def test_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.json"
    given = ["--images", "30", "--tokens", "64", "--rounds", "2", "--strides", "2", "16"]
    folders = ["--cache", str(tmp_path / "cache"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["estimate_received.py", *given, *folders])
    estimate_received.main()
    every, two, sixteen = json.loads(out.read_text())["rows"]
    assert (every["stride"], two["stride"], sixteen["stride"]) == (1, 2, 16)
    assert 0.99 < two["rank"] < 1  # it looks at half of what it estimates
    assert sixteen["rank"] < two["rank"]
    assert sixteen["critical"] < two["critical"] < 1
    assert two["accuracy"]["value"] - every["accuracy"]["value"] == pytest.approx(
        two["to_all_queries"]["value"], abs=1e-4
    )
