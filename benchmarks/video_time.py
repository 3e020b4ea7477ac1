"""Time to the first token of a video model with recipes for videos, beside each floor.

python -m benchmarks.video_time --frames 16 --depth 13 --layers 12 --rounds 1 --out FILE.json

LLaVA-OneVision at 0.5B shapes with random weights; a frame has 729 patches, pooled to 196. All recipes keep
`keep` tokens of a frame on average. EvoPrune and its compositions reduce inside the tower; frames merge
inside it with `earlytom` and `evoprune_over_time, frames`; all others reduce after it. Blocks of a tower of
another depth are at the same share of it as in the authors' code.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

import torch
from rich.console import Console

import tokenzoo
from tokenzoo.cli import bench_report
from tokenzoo.tools.benchmark.candidates import Candidate, attaching
from tokenzoo.tools.benchmark.running import run
from tokenzoo.tools.benchmark.shapes import load
from tokenzoo.tools.benchmark.workload import Setting, Sizes

AUTHORS = (9, 15, 21)
"""Blocks of 26 before which EarlyTom merges frames."""


def candidates(keep: int, depth: int) -> list[Candidate]:
    """The recipes, all with so many tokens of a frame."""
    blocks = tuple(dict.fromkeys(max(1, round(block * depth / 26)) for block in AUTHORS))
    made = {
        "evoprune": ("evoprune", {}),
        "earlytom": ("earlytom", {"blocks": blocks}),
        "evs": ("evs", {}),
        "vidcom2": ("vidcom2", {}),
        "holitom": ("holitom", {}),
        "fastvid": ("fastvid", {}),
        "prunevid": ("prunevid", {}),
        "evoprune_over_time": ("evoprune_over_time", {}),
        "evoprune_over_time, frames": ("evoprune_over_time", {"frames_left": 0.5}),
        "evoprune_over_time, frames, stride 4": (
            "evoprune_over_time",
            {"frames_left": 0.5, "stride": 4},
        ),
        "random": ("random", {}),
        "every_kth_frame": ("every_kth_frame", {}),
    }
    return [
        Candidate(label, attaching(tokenzoo.build(name, keep=keep, **options)), keep)
        for label, (name, options) in made.items()
    ]


def main() -> None:
    """Measure, show and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="llava-onevision-0.5b")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--depth", type=int, default=26)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--keep", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1, help="0: for models that take minutes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    sizes = Sizes(frames=given.frames, depth=given.depth, layers=given.layers)
    work = load(given.model, sizes, Setting("cpu"))
    table = run(work, candidates(given.keep, given.depth), rounds=given.rounds, warmup=given.warmup)
    bench_report.show(Console(highlight=False, width=160), work, table)
    if given.out is not None:
        bench_report.write_json(given.out, work, [table], 1)


if __name__ == "__main__":
    main()
