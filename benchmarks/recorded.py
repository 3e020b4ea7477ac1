"""What every file of figures says first: how it was made, and with what."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import tokenzoo


def provenance(script: str, arguments: Sequence[str] | None) -> dict[str, Any]:
    """The command and the versions, as the head of a file of figures.

    Args:
        script: its path in the repository.
        arguments: those that `main` was called with; None: those of the command line.
    """
    said = sys.argv if arguments is None else [script, *arguments]
    return {
        "command": shlex.join(["python", *said]),
        "versions": {
            "tokenzoo": tokenzoo.__version__,
            "torch": torch.__version__,
            "timm": version("timm"),
            "python": platform.python_version(),
        },
    }


def show(found: Mapping[str, Any], out: Path | None) -> None:
    """Print figures as JSON, and write them to a file, if one is given."""
    text = json.dumps(found, indent=1) + "\n"
    print(text)
    if out is not None:
        out.write_text(text)
