"""The page in a browser, where one is installed: its script runs, and draws what the scores can be."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.evaluation.test_summary import row
from tokenzoo.evaluation import report
from tokenzoo.evaluation.summary import summarize

pytest.importorskip("plotly")
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_the_plot_of_a_few_samples_ends_where_scores_end(tmp_path: Path) -> None:
    """The interval of two scores is several times as wide as the scale."""
    half = [0.25, 0.75]
    rows = [row(None, half), row("tome", half, time=[0.6, 0.5, 0.7])]
    page = tmp_path / "page.html"
    page.write_text(report.page(summarize(rows, set())), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'own'}"]
    command = [str(BROWSER), *options, "--virtual-time-budget=5000", "--dump-dom", page.as_uri()]
    drawn = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    ticks = re.findall(r'class="ytick">.*?<text[^>]*>([^<]+)<', drawn, re.DOTALL)
    values = [float(text.replace("\N{MINUS SIGN}", "-")) for text in ticks]
    assert (min(values), max(values)) == (0, 1)
