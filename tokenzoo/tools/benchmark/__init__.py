"""Benchmark of whole models: recipes and third-party code relative to the bare model, in one run.

    from tokenzoo.tools.benchmark import Candidate, Setting, Sizes, attaching, load, run

    work = load("vit-l/16-384", Sizes(batch=8), Setting("cuda", "bfloat16"))
    ours = Candidate("tome", attaching(tokenzoo.build("tome")))
    theirs = Candidate("the original", patch)      # def patch(model, tick): changes the model in place
    for row in run(work, [ours, theirs], rounds=9).rows:
        print(row.name, row.problem or row.time["encoder"])

`tokenzoo bench` is this on the command line.
"""

from tokenzoo.tools.benchmark.candidates import AGAIN, BARE, Candidate, attaching, copy_of
from tokenzoo.tools.benchmark.modes import MODES, Mode, check_mode
from tokenzoo.tools.benchmark.rows import Memory, Row, Table
from tokenzoo.tools.benchmark.running import run
from tokenzoo.tools.benchmark.shapes import NAMES, load
from tokenzoo.tools.benchmark.unfused import WRITTEN_OUT, unfused
from tokenzoo.tools.benchmark.workload import DTYPES, Setting, Sizes, Workload

__all__ = [
    "AGAIN",
    "BARE",
    "DTYPES",
    "MODES",
    "NAMES",
    "WRITTEN_OUT",
    "Candidate",
    "Memory",
    "Mode",
    "Row",
    "Setting",
    "Sizes",
    "Table",
    "Workload",
    "attaching",
    "check_mode",
    "copy_of",
    "load",
    "run",
    "unfused",
]
