"""Make `tests/golden/tome_model.npz`: what ToMe's own patch returns on whole timm models.

    git clone https://github.com/facebookresearch/ToMe tome
    python benchmarks/make_tome_golden.py --tome tome --out tests/golden/tome_model.npz

ToMe (CC-BY-NC 4.0) is imported and run as its README tells, and nothing of it is copied: the file has
numbers only. Weights and images are rebuilt from numpy seeds by `tests/golden_mappings.py`.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from golden_mappings import images, numpy_model

SOURCE = "facebookresearch/ToMe"
MODELS = ("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224")
REMOVALS: tuple[Any, ...] = (8, 16, (13, -1.0), (16, 1.0), [20, 0, 30, 0, 10])
# The schedules whose removals are recorded for each depth.
TABLE = (*REMOVALS[:2], 13, *REMOVALS[2:4], (10, 0.5), (7, -0.3), (16, 0.0), [5, 3, 1])
DEPTHS = (12, 24, 32)
NOTE = (
    "Whole-model runs of the original's patch on timm models in eval mode. base_logits: before the patch; "
    "logits: with it; counts: tokens after each block, prefix included; size and source: tokens merged "
    "into each output, and the output that each input token is in. Weights and images: numpy_parameter "
    "and images of tests/golden_mappings.py."
)


def run(tome: Any, model: Any, x: Tensor, r: Any, prop_attn: bool) -> dict[str, Tensor]:
    """One pass of the original; the model is copied, for its patch cannot be taken off."""
    model = copy.deepcopy(model).to(x.dtype)
    counts: list[int] = []
    with torch.no_grad():
        result = {"base_logits": model(x)}
        tome.patch.timm(model, trace_source=True, prop_attn=prop_attn)
        model.r = r
        for block in model.blocks:
            block.register_forward_hook(lambda m, args, out: counts.append(out.shape[1]))
        result["logits"] = model(x)
    adjacency = model._tome_info["source"]  # [b, m, n]
    result["counts"] = torch.tensor(counts)
    result["size"] = model._tome_info["size"][..., 0]
    result["source"] = adjacency.argmax(1).to(torch.int16)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tome", type=Path, required=True, help="a checkout of " + SOURCE)
    parser.add_argument("--commit", help="of that checkout; without it, git is asked")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the images")
    args = parser.parse_args()
    sys.path.insert(0, str(args.tome))
    tome = import_module("tome")
    commit = args.commit or subprocess.check_output(
        ["git", "-C", str(args.tome), "rev-parse", "HEAD"], text=True
    )

    x = images(args.seed)
    nudge = 1e-6 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    arrays: dict[str, np.ndarray] = {}
    cases: list[dict[str, Any]] = []
    runs = [(name, r, prop) for name in MODELS for r in REMOVALS for prop in (True, False)]
    for name, r, prop in runs:
        model = numpy_model(name, 0)
        key = f"case{len(cases):02d}"
        result = run(tome, model, x, r, prop)
        double = run(tome, model, x.double(), r, prop)
        nudged = run(tome, model, x + nudge, r, prop)
        arrays |= {f"{key}/{output}": value.numpy() for output, value in result.items()}
        gap = (result["logits"] - double["logits"]).abs().max()
        entry = {"key": key, "model": name, "seed": 0, "r": r, "prop_attn": prop}
        entry["f64_index_equal"] = torch.equal(result["source"], double["source"])
        entry["f64_float_maxdiff"] = float(gap)
        entry["stable_1e-6"] = torch.equal(result["source"], nudged["source"])
        cases.append(entry)
        print(json.dumps(entry))
    meta = {
        "method": "tome_model",
        "source": f"{SOURCE}@{commit.strip()} tome.patch.timm",
        "note": NOTE,
        "images": "numpy",
        "images_seed": args.seed,
        "timm": timm.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "parse_r": [[depth, r, tome.utils.parse_r(depth, r)] for depth in DEPTHS for r in TABLE],
        "cases": cases,
    }
    np.savez_compressed(args.out, **arrays, meta_json=np.array(json.dumps(meta)))


if __name__ == "__main__":
    main()
