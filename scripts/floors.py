"""Print the floors of pyproject.toml, `name==X` for each requirement `name>=X`, one a line."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

# Floors that another package's floor raises: transformers 5.20 asks for this safetensors.
RAISED = {"safetensors": "0.8.0"}


def read_floors(path: Path = Path(__file__).parents[1] / "pyproject.toml") -> dict[str, str]:
    """Return the lowest version allowed of every direct dependency, extras included, by name."""
    project = tomllib.loads(path.read_text())["project"]
    wanted = chain(project["dependencies"], *project["optional-dependencies"].values())
    found = (re.match(r"([\w.-]+)(?:\[.*\])?\s*>=\s*([\w.]+)", one) for one in wanted)
    return dict(sorted((floor[1], floor[2]) for floor in found if floor))


if __name__ == "__main__":
    for name, version in (read_floors() | RAISED).items():
        print(f"{name}=={version}")
