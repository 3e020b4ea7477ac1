"""How long importing tokenzoo takes, next to torch, and how large its files are.

scripts/build_release 0.2.0
python -m benchmarks.import_time --out docs/results/import-time.json

Every import runs in an interpreter of its own; all in turn, relative to `import torch`. The sizes are those
of the files in dist/, if a release was built.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from collections import Counter
from functools import partial
from importlib.metadata import version
from pathlib import Path

from benchmarks.recorded import show
from tokenzoo.tools.timing import interleaved

BASELINE = "import torch"
STATEMENTS = (
    BASELINE,
    "import tokenzoo",
    "import tokenzoo; tokenzoo.build('evoprune')",
    "import tokenzoo.cli",
    "import timm",
    "import transformers",
)


def run(statement: str) -> None:
    """Run a statement in an interpreter of its own."""
    subprocess.run([sys.executable, "-c", statement], check=True)


def sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of the files of a release, and those of each kind of file in the wheel."""
    found = {path.name: path.stat().st_size for path in sorted(folder.glob("tokenzoo-*"))}
    for wheel in folder.glob("*.whl"):
        kinds = Counter[str]()
        for member in zipfile.ZipFile(wheel).infolist():
            kinds[f"in the wheel: {Path(member.filename).suffix or 'other'}"] += (
                member.compress_size
            )
        found |= dict(kinds.most_common(4))
    return found


def main() -> None:
    """Measure, show and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dist", type=Path, default=Path("dist"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    calls = {statement: partial(run, statement) for statement in STATEMENTS}
    timings = interleaved(calls, rounds=given.rounds, baseline=BASELINE)
    found = {
        "command": f"python -m benchmarks.import_time --rounds {given.rounds}",
        "versions": {name: version(name) for name in ("tokenzoo", "torch", "timm", "transformers")},
        "time relative to import torch": {
            name: [round(value, 3) for value in (one.ratio, one.low, one.high)]
            for name, one in timings.items()
        },
        "bytes": sizes(given.dist),
    }
    show(found, given.out)


if __name__ == "__main__":
    main()
