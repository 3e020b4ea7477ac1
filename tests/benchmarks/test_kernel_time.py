"""The measurement of the kernels: its forms agree, and its file says what was run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import kernel_time as bench
import plot_growth
import pytest
import torch

from tokenzoo.tools.timing import Timing


@pytest.mark.parametrize("kernel", bench.KERNELS)
def test_all_forms_of_a_kernel_return_the_same(kernel: str) -> None:
    inputs = bench.tensors(kernel, 2, 40, "cpu", torch.float32)
    first, *others = (form(*inputs) for form in bench.KERNELS[kernel].values())
    for other in others:
        torch.testing.assert_close(tuple(other), tuple(first), rtol=1e-4, atol=1e-5)


def test_one_site_of_evoprune_keeps_what_it_says() -> None:
    x, mass = bench.selection(*bench.tensors("selection", 2, 60, "cpu", torch.float32))
    assert x.shape == (2, 56, bench.HEADS * bench.WIDTH)
    assert mass.sum(-1).tolist() == [60, 60]


def test_a_roofline_is_the_least_time_at_the_rates_of_the_same_run() -> None:
    b, n, item = 2, 100, 4
    operations, traffic = bench.work("best_match", b, n, item)
    assert operations == 2 * b * 50 * 50 * 1152
    rates = {"matrix product": 2 * operations, "copy": 100 * traffic}
    times = {"best_match, kernel": 4.0, "matrix product": 1.0, "copy": 1.0}
    ratios = {name: Timing((time,)) for name, time in times.items()}
    # Its products take half of the matrix product's time, an eighth of what it took; its bytes less.
    found = bench.roofline("best_match, kernel", ratios, rates, b, n, item)
    assert found == {"bound_by": "matrix product", "of_ceiling": pytest.approx(0.125)}
    slow = {**rates, "copy": traffic}
    found = bench.roofline("best_match, kernel", ratios, slow, b, n, item)
    assert found == {"bound_by": "copy", "of_ceiling": pytest.approx(0.25)}
    assert bench.roofline("best_match, whole matrix", ratios, rates, b, n, item) == {}


def test_slopes_of_the_log_log_plot() -> None:
    rows = [
        {"kernel": "a", "tokens": n, "time": {"median": n * n / 100}, "megabytes": 3.0 * n}
        for n in (10, 40)
    ]
    other = {**rows[0], "kernel": "b"}
    (slope,) = bench.exponents([*rows, other])
    assert slope["tokens"] == [10, 40]
    assert (slope["time"], slope["memory"]) == (pytest.approx(2), pytest.approx(1))


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from Linux")
def test_the_file_says_what_was_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two peaks is measured: each is an interpreter of its own."""
    peak = bench.peak
    monkeypatch.setattr(
        bench, "peak", lambda kernel, n, given: peak(kernel, 16, given) if n == 16 else 1.0
    )
    out = tmp_path / "times.json"
    given = ["--kernel", "best_match", "--tokens", "16", "--batch", "1", "--rounds", "2"]
    threads = torch.get_num_threads()
    try:
        bench.main([*given, "--sizes", "16", "32", "--threads", "1", "--out", str(out)])
    finally:
        torch.set_num_threads(threads)
    content = json.loads(out.read_text())
    assert content["command"].startswith("python benchmarks/kernel_time.py --kernel best_match")
    assert [row["what"] for row in content["against"]] == [
        *("block", "best_match, kernel", "best_match, whole matrix", "block again"),
        *("matrix product", "copy"),
    ]
    roofs = [row for row in content["against"] if "of_ceiling" in row]
    assert [row["what"] for row in roofs] == ["best_match, kernel"]
    assert roofs[0]["of_ceiling"] > 0
    assert content["against"][0]["median"] == 1
    assert [row["tokens"] for row in content["growth"]] == [16, 32]
    assert len(content["exponents"]) == 1
    assert content["form"] == ("triton" if torch.cuda.is_available() else "torch")
    assert "| best_match | 32 |" in capsys.readouterr().out
    picture = tmp_path / "growth.png"
    plot_growth.main(["--json", str(out), "--out", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_plot_has_a_line_per_kernel_with_its_figures() -> None:
    rows = [
        {"kernel": k, "tokens": n, "time": {"median": n / 10}, "megabytes": float(n)}
        for k in ("best_match", "selection")
        for n in (10, 40)
    ]
    time, memory = plot_growth.draw(rows, "here").axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in time.get_lines()}
    assert drawn == {"best match": [1, 4], "evoprune, one site": [1, 4], "quadratic": [1, 16]}
    assert [list(line.get_ydata()) for line in memory.get_lines()] == [[10, 40], [10, 40], [1, 4]]
