"""The site is built without a warning, and its API pages have every public name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import tokenzoo

ROOT = Path(__file__).parent.parent


def test_every_link_and_every_anchor_is_found(tmp_path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    # Material announces its end in 2027 on standard error.
    told = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "https://fonts." not in (tmp_path / "index.html").read_text()
    # A link to a file outside of docs/ leads to a page that has its code.
    text = (tmp_path / "source" / "tokenzoo" / "zoo.py" / "index.html").read_text()
    assert "class" in text
    assert 'href="../source/tokenzoo/zoo.py/"' in (tmp_path / "how-it-works/index.html").read_text()


def test_the_page_of_the_package_has_every_public_name() -> None:
    page = (ROOT / "docs" / "api" / "tokenzoo.md").read_text()
    shown = [line.split()[1] for line in page.splitlines() if line.startswith(":::")]
    assert sorted(shown) == sorted(f"tokenzoo.{name}" for name in tokenzoo.__all__)
