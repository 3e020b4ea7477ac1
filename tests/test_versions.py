"""Scripts, workflows and constraints: what tries the library on its oldest and newest versions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from floors import APART, RAISED, read_floors  # noqa: E402

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SCRIPTS = [
    ROOT / ".ci" / "run",
    ROOT / "benchmarks" / "gpu.sh",
    *(path for path in sorted((ROOT / "scripts").iterdir()) if path.suffix in ("", ".sh")),
]
PATHS = r"(?<![\w/.])(?:\./)?((?:\.ci|\.github|scripts|benchmarks|tests)/[\w./-]+)"
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
)


def test_a_direct_dependency_is_pinned_where_pyproject_allows_it() -> None:
    pins = {canonicalize_name(name): version for name, version in PINS.items()}
    for name, floor in read_floors().items():
        assert Version(pins[canonicalize_name(name)]) >= Version(floor), name


def test_every_floor_is_read() -> None:
    """A requirement in another form than `name>=X` would be tried by neither script."""
    text = (ROOT / "pyproject.toml").read_text().partition("[project.scripts]")[0]
    for extra in APART:
        text, found = re.subn(rf"^{extra} = \[.*?^\]$", "", text, flags=re.MULTILINE | re.DOTALL)
        assert found == 1
    names = re.findall(
        r'^(?: +|\w+ = \[)"([\w.-]+)(?:\[.*?\])?>=|, "([\w.-]+)(?:\[.*?\])?>=', text, re.MULTILINE
    )
    assert sorted(set(read_floors())) == sorted({first or later for first, later in names})
    assert set(RAISED) <= set(read_floors())


def test_constraints_are_versions_alone() -> None:
    """No local paths, no build of torch, and nothing that torch's wheels pin themselves."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    for line in lines[2:]:
        assert re.fullmatch(r"[\w.-]+==[\w.]+", line), line
    assert all(line.startswith("# ") for line in lines[:2])
    assert not [name for name in PINS if name.startswith(("nvidia", "cuda", "triton"))]


def fake(folder: Path, name: str, text: str) -> None:
    """Put a command into a folder."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_what_is_written_as_constraints(tmp_path: Path) -> None:
    """The filter of renew_constraints, on what pip may print."""
    frozen = "b_c==1.0\\n# Editable\\ntorch==2.14.1+cpu\\nnvidia-x==1\\na @ file:///somewhere\\nA-d==2\\n"
    fake(tmp_path / "bin", "pip", f"printf '{frozen}'")
    fake(tmp_path / "bin", "python", "echo Python 3")
    script = f"source scripts/environment.sh; print_constraints {tmp_path}"
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    assert lines == ["A-d==2", "b_c==1.0", "torch==2.14.1"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-x", path], check=True, cwd=ROOT)
    assert path.suffix == ".sh" or os.access(path, os.X_OK)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_what_is_there(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["name"] == path.stem
    assert workflow[True]  # the key `on`, as YAML reads it
    for job in workflow["jobs"].values():
        steps = job.get("steps", [])
        assert "uses" in job or ("runs-on" in job and steps)
        needs = job.get("needs", [])
        assert set([needs] if isinstance(needs, str) else needs) <= set(workflow["jobs"])
        assert all(("run" in step) != ("uses" in step) for step in steps)
        called = [step.get("run", "") for step in steps] + [job.get("uses", "")]
        for name in re.findall(PATHS, "\n".join(called)):
            assert (ROOT / name).exists(), name


def test_the_workflows_that_there_are() -> None:
    assert [path.stem for path in WORKFLOWS] == [
        "gpu",
        "newest",
        "oldest",
        "release",
        "site",
        "tests",
        "vllm",
    ]


@pytest.mark.parametrize(("found", "asked"), [("", "issue create"), ("7", "issue comment 7")])
def test_a_failing_night_has_one_issue(found: str, asked: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("\n".join(map(str, range(100))))
    said = tmp_path / "said"
    fake(tmp_path, "gh", f'[ "$2" = list ] && echo "{found}" || echo "$@" >>"{said}"')
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RUN": "the run"}
    command = [ROOT / "scripts" / "report_failure", tmp_path / "log"]
    subprocess.run(command, env=environment, check=True)
    text = said.read_text()
    assert text.startswith(asked)
    assert "the run" in text
    assert "\n99\n" in text
    assert "\n39\n" not in text  # the end of the log alone
