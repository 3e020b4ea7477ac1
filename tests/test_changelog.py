"""The fragments of changelog.d become a section of CHANGELOG.md."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_fragments_become_a_section_above_the_last_version(tmp_path: Path) -> None:
    """Those in changelog.d, too: one of an unknown kind is an error."""
    shutil.copytree(ROOT / "changelog.d", tmp_path / "changelog.d")
    for name in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    kinds = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]["type"]
    for kind in kinds:
        path = tmp_path / "changelog.d" / f"+try.{kind['directory']}.md"
        path.write_text(f"Something of the kind {kind['name']}.")
    command = [sys.executable, "-m", "towncrier", "build", "--version", "99.0.0", "--keep"]
    done = subprocess.run(
        [*command, "--date", "2030-01-01"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "CHANGELOG.md").read_text().splitlines()
    headings = [line for line in lines if line.startswith("## ")]
    assert headings[0] == "## 99.0.0 (2030-01-01)"
    assert headings[1].startswith("## 0.")
    section = lines[: lines.index(headings[1])]
    assert [f"- Something of the kind {kind['name']}." for kind in kinds] == [
        line for line in section if line.startswith("- Something")
    ]
    readme = (ROOT / "changelog.d" / "README.md").read_text()
    assert all(f"| `{kind['directory']}` |" in readme for kind in kinds)
