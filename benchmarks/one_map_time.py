"""The time of evoprune's encoder, with importance from the map of the output and with importance apart.

    python benchmarks/one_map_time.py --out docs/results/one-map-cpu.json

SigLIP so400m/14-384 of timm with random weights, to 64 of 729 tokens, in float32: both forms, `tome` and a
second bare model in turn, relative to the bare one in the same round.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from unittest import mock

import timm
import torch
from recorded import provenance

import tokenzoo
from tokenzoo.tools.benchmark.candidates import copy_of
from tokenzoo.tools.timing import interleaved

MODEL, KEEP = "vit_so400m_patch14_siglip_384", 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    bare = timm.create_model(MODEL, num_classes=0).eval()
    ours, other, again = (copy_of(bare) for _ in range(3))
    x = torch.randn(given.images, 3, 384, 384)
    floors = {
        "evoprune": tokenzoo.build("evoprune", keep=KEEP).attach(ours).plan(729).flops,
        "tome": tokenzoo.build("tome", keep=KEEP).attach(other).plan(729).flops,
    }

    def with_apart() -> torch.Tensor:
        with mock.patch("tokenzoo.hooks.tap.attend_and_receive", return_value=None):
            return ours(x)

    calls = {
        "bare": lambda: bare(x),
        "evoprune": lambda: ours(x),
        "evoprune, apart": with_apart,
        "tome": lambda: other(x),
        "bare again": lambda: again(x),
    }
    with torch.inference_mode():
        gap = (ours(x) - with_apart()).abs().max().item()
        timing = interleaved(calls, rounds=given.rounds, baseline="bare")
    rows = [
        {
            "candidate": name,
            "time": round(one.ratio, 4),
            "quartiles": [round(one.low, 4), round(one.high, 4)],
            "floor": round(floors.get(name.split(",")[0], 1.0), 4),
        }
        for name, one in timing.items()
    ]
    head = provenance("benchmarks/one_map_time.py", None)
    found = {**head, "images": given.images, "threads": given.threads, "rounds": given.rounds}
    found |= {"largest difference of the outputs": gap, "rows": rows}
    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
