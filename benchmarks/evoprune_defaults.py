"""A first look at EvoPrune's open numbers, on validation digits: the table of docs/evoprune.md.

Each line changes something of the defaults. It is no ablation: one split, a few hundred collages, one small
model. Run it with `python benchmarks/evoprune_defaults.py`; it takes about five minutes on two cores.
"""

from __future__ import annotations

import argparse

import torch

import tokenzoo
from tokenzoo import digits

BASE = {"features": "x", "density": "x", "proportional_attention": True}
KEYS = {"features": "keys", "density": "keys", "proportional_attention": True}
VARIANTS: list[tuple[str, dict[str, object]]] = [
    ("evoprune", {**BASE, "lam": 0.1}),
    ("evoprune", {**BASE, "lam": 0.0}),
    ("evoprune", {**BASE, "lam": 0.3}),
    ("evoprune", {**BASE, "lam": 0.3, "k": 10}),
    ("evoprune", {**BASE, "lam": 0.3, "ctr": 0.0}),
    ("evoprune", {**BASE, "lam": 0.3, "sticky": True}),
    ("evoprune", {**BASE, "lam": 1.0}),
    ("evoprune", {**BASE, "lam": 0.3, "proportional_attention": False}),
    ("evoprune", {**KEYS, "lam": 0.1}),
    ("evoprune", {**KEYS, "lam": 1.0}),
    ("tome", {}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--keep", type=int, nargs="+", default=[32, 16])
    arguments = parser.parse_args()
    model = digits.load_digits_vit()
    collages = digits.collages("validation", arguments.images, seed=arguments.seed)

    def score() -> str:
        with torch.inference_mode():
            logits = torch.cat([model(batch) for batch in collages.images.split(50)])
        return "  ".join(
            f"{k} {100 * v:5.1f}" for k, v in digits.accuracy(logits, collages).items()
        )

    print(f"bare  {score()}")
    for keep in arguments.keep:
        for name, options in VARIANTS:
            with tokenzoo.build(name, keep=keep, **options).attach(model):
                print(f"{keep:3d}  {score()}  {name} {options}", flush=True)


if __name__ == "__main__":
    main()
