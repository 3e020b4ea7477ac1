"""Print the floors of pyproject.toml, `name==X` for each requirement `name>=X`, one a line."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

# Floors that another package's floor raises: transformers 5.20 asks for this safetensors.
RAISED = {"safetensors": "0.8.0"}

# Extras that need other versions than the newest, and so are not in `dev`: scripts/test_lmms_eval.
APART = ("lmms-eval",)


def read_floors(path: Path = Path(__file__).parents[1] / "pyproject.toml") -> dict[str, str]:
    """Return the lowest version allowed of direct dependencies, by name; those of `APART` are left out."""
    project = tomllib.loads(path.read_text())["project"]
    extras = project["optional-dependencies"]
    here = (needs for extra, needs in extras.items() if extra not in APART)
    wanted = chain(project["dependencies"], *here)
    found = (re.match(r"([\w.-]+)(?:\[.*\])?\s*>=\s*([\w.]+)", one) for one in wanted)
    return dict(sorted((floor[1], floor[2]) for floor in found if floor))


if __name__ == "__main__":
    for name, version in (read_floors() | RAISED).items():
        print(f"{name}=={version}")
