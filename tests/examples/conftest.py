"""A place where a plugin can really be installed: an environment of its own on top of this one."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
WARM = Path(__file__).parent / "warm.py"

# What is installed here is seen there: `addsitedir`, because an editable install is a .pth file, too.
SEES = "import site; site.addsitedir({!r})\n"

# A command is run by a process that has imported torch: see warm.py.
PYTHON = """#!/bin/sh
exec "{outer}" -I -S "{warm}" "{socket}" "$@"
"""

TOKENZOO = """#!/bin/sh
exec python -c 'from tokenzoo.cli import app; app(prog_name="tokenzoo")' "$@"
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

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables of its processes."""
        ours = ("VIRTUAL_ENV", "TOKENZOO_PLUGINS", "PYTHONHOME", "PYTEST_ADDOPTS")
        variables = {name: value for name, value in os.environ.items() if name not in ours}
        return variables | {
            "PATH": f"{self.environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'adapters'}",  # this tree, as in all tests
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }

    def run(self, command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a shell command there; stdout and stderr come together."""
        return subprocess.run(
            ["bash", "-e", "-c", command],
            cwd=self.folder,
            env=self.variables,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A fresh place, with nothing of a plugin in it."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, symlinks=True)
    paths = sysconfig.get_paths()
    (packages,) = environment.glob("lib/python*/site-packages")
    sees = {SEES.format(paths[kind]) for kind in ("purelib", "platlib")}
    (packages / "outer.pth").write_text("".join(sorted(sees)))
    python = (environment / "bin" / "python").rename(environment / "bin" / "cold")
    names = {
        "python": python,
        "outer": sys.executable,
        "isolation": "--no-build-isolation" if find_spec("hatchling") else "",
        "warm": WARM,
        "socket": environment / "commands",
    }
    for name, text in {"tokenzoo": TOKENZOO, "pip": PIP, "python": PYTHON}.items():
        script = environment / "bin" / name
        script.write_text(text.format(**names))
        script.chmod(0o755)
    made = Place(environment, tmp_path_factory.mktemp("folder"))
    command = [python, WARM, environment / "commands"]
    warm = subprocess.Popen(command, cwd=made.folder, env=made.variables)
    try:
        while not (environment / "commands").exists():
            assert warm.poll() is None, "the process that runs the commands has ended"
            time.sleep(0.05)
        yield made
    finally:
        warm.kill()
        warm.wait()
