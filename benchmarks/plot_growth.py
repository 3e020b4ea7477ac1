"""How the kernels grow, from their JSON: docs/growth.png, log-log.

python benchmarks/plot_growth.py          # docs/results/kernel-time-cpu.json -> docs/growth.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

FILES = [
    Path("docs/results/kernel-time-cpu.json"),
    Path("docs/results/selection-growth-cpu.json"),
]
NAMES = {
    "received_attention": "received attention",
    "neighbour_density": "neighbour density",
    "best_match": "best match",
    "selection": "evoprune, one site",
}


def draw(rows: Sequence[dict[str, Any]], where: str) -> Figure:
    """Time relative to the smallest size, and memory without the inputs; dotted: linear, quadratic."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for kernel in dict.fromkeys(row["kernel"] for row in rows):
        own = [row for row in rows if row["kernel"] == kernel]
        tokens = [row["tokens"] for row in own]
        label = NAMES.get(kernel, kernel)
        left.loglog(tokens, [row["time"]["median"] for row in own], "o-", ms=3, label=label)
        # What is below a tenth of a megabyte is noise of the allocator.
        memory = [max(row["megabytes"], 0.1) for row in own]
        right.loglog(tokens, memory, "o-", ms=3, label=label)
    sizes = sorted({row["tokens"] for row in rows})
    ratio = [n / sizes[0] for n in sizes]
    left.loglog(sizes, [r**2 for r in ratio], ":", color="grey", label="quadratic")
    right.loglog(sizes, ratio, ":", color="grey", label="linear")
    left.set_title(f"time, relative to {sizes[0]} tokens ({where})")
    right.set_title("memory without the inputs, MB")
    for axes in (left, right):
        axes.set_xticks(sizes, [str(n) for n in sizes], minor=False)
        axes.set_xlabel("tokens")
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=8)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, nargs="+", default=FILES)
    parser.add_argument("--out", type=Path, default=Path("docs/growth.png"))
    given = parser.parse_args(arguments)
    mpl.rcParams["font.size"] = 9
    contents = [json.loads(path.read_text()) for path in given.json]
    content = contents[0]
    where = f"{content['device']}, {content['dtype']}, {content['threads']} threads"
    rows = [row for one in contents for row in one["growth"]]
    draw(rows, where).savefig(given.out, dpi=110)


if __name__ == "__main__":
    main()
