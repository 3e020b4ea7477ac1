"""A place where a plugin can really be installed: an environment of its own on top of this one."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

# What is installed here is seen there: `addsitedir`, because an editable install is a .pth file, too.
SEES = "import site; site.addsitedir({!r})\n"

TOKENZOO = """#!/bin/sh
exec "{python}" -c 'from tokenzoo.cli import app; app(prog_name="tokenzoo")' "$@"
"""

# Nothing but the plugin itself is installed, and nothing is fetched if its build backend is here.
PIP = """#!/bin/sh
case $1 in install) shift; set -- install --no-deps {isolation} "$@" ;; esac
exec "{outer}" -m pip --disable-pip-version-check --python "{python}" "$@"
"""


@dataclass(frozen=True)
class Place:
    """An environment, and a folder to work in.

    Attributes:
        environment: of Python, with the commands `python`, `pip` and `tokenzoo`.
        folder: where commands are run.
    """

    environment: Path
    folder: Path

    def run(self, command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a shell command there; stdout and stderr come together."""
        ours = ("VIRTUAL_ENV", "TOKENZOO_PLUGINS", "PYTHONHOME", "PYTEST_ADDOPTS")
        variables = {name: value for name, value in os.environ.items() if name not in ours}
        variables |= {
            "PATH": f"{self.environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'adapters'}",  # this tree, as in all tests
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }
        return subprocess.run(
            ["bash", "-e", "-c", command],
            cwd=self.folder,
            env=variables,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A fresh place, with nothing of a plugin in it."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, symlinks=True)
    paths = sysconfig.get_paths()
    (packages,) = environment.glob("lib/python*/site-packages")
    sees = {SEES.format(paths[kind]) for kind in ("purelib", "platlib")}
    (packages / "outer.pth").write_text("".join(sorted(sees)))
    names = {
        "python": environment / "bin" / "python",
        "outer": sys.executable,
        "isolation": "--no-build-isolation" if find_spec("hatchling") else "",
    }
    for name, text in {"tokenzoo": TOKENZOO, "pip": PIP}.items():
        script = environment / "bin" / name
        script.write_text(text.format(**names))
        script.chmod(0o755)
    return Place(environment, tmp_path_factory.mktemp("folder"))
