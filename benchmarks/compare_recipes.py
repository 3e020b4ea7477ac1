"""The table of docs/evoprune.md: every recipe of the encoder at equal tokens, on test collages.

    python benchmarks/compare_recipes.py            # -> docs/results/evoprune-comparison.json

Accuracies are over all collages, and differences paired with evoprune's on the same ones. Times are
ratios to the bare model in the same round; "bare model again" shows what noise alone does.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from ablate_evoprune import BUDGETS, RESULTS, differences
from collage_runs import Collages, common, conditions, flops, rounded
from torch import nn

import tokenzoo
from tokenzoo import Recipe
from tokenzoo.tools.timing import interleaved

RECIPES = ["evoprune", "tome", "random", "uniform", "pool", "downsample"]
# What the recorded figures were measured with, the choice of the ablation.
OPTIONS: dict[str, dict[str, Any]] = {"evoprune": {"ctr": 0.1}}
AGAIN = "bare model again"


def rows(keep: int) -> dict[str, Recipe]:
    """The recipes at one budget, by their names; evoprune first."""
    return {
        name: tokenzoo.build(name, keep=keep, **OPTIONS.get(name, {})).recipe for name in RECIPES
    }


def timed(recipes: Mapping[str, Recipe], images: int, rounds: int) -> dict[str, dict[str, Any]]:
    """The time of every recipe for so many images, relative to the bare model in the same round."""
    shown = Collages("test", images, seed=0)
    batches = shown.data.images.split(25)
    models: dict[str, nn.Module] = {"bare model": shown.model}
    for name, recipe in recipes.items():
        models[name] = deepcopy(shown.model)
        tokenzoo.build(recipe).attach(models[name])
    names = list(models)
    # Half a round away from its twin: next to it, it would not see how the machine drifts.
    names.insert(len(names) // 2, AGAIN)

    def showing(model: nn.Module) -> Callable[[], None]:
        def show() -> None:
            with torch.inference_mode():
                for batch in batches:
                    model(batch)

        return show

    functions = {name: showing(models.get(name, shown.model)) for name in names}
    timings = interleaved(functions, rounds=rounds, baseline="bare model")
    return {
        name: {"median": t.ratio, "quartiles": [t.low, t.high], "rounds": rounds}
        for name, t in timings.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    common(parser)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=9, help="of the timing; 0: none")
    parser.add_argument("--timed-images", type=int, default=50, help="per round")
    parser.add_argument("--out", type=Path, default=RESULTS / "evoprune-comparison.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    collages = Collages("test", given.images, given.seed, given.cache)
    bare = collages.answers(None)
    table: list[dict[str, Any]] = [
        {"recipe": "bare model", "keep": None, "flops": 1.0, **bare.shares()}
    ]
    recipes: dict[str, Recipe] = {}
    for keep in given.keep or [64, *BUDGETS]:
        evoprune = collages.answers(rows(keep)["evoprune"])
        for name, recipe in rows(keep).items():
            answers = collages.answers(recipe)
            recipes[f"{name} {keep}"] = recipe
            table.append(
                {
                    "recipe": name,
                    "keep": keep,
                    "flops": flops(recipe),
                    **answers.shares(),
                    "to_bare": differences(answers, bare)["difference"],
                    "to_evoprune": differences(answers, evoprune)["difference"],
                }
            )
    content: dict[str, Any] = {**conditions(given.threads, of=collages), "rows": table}
    if given.rounds:
        times = timed(recipes, given.timed_images, given.rounds)
        content["bare_model_again"] = times[AGAIN]
        content["images_per_round"] = given.timed_images
        for row in table[1:]:
            row["time"] = times[f"{row['recipe']} {row['keep']}"]
    given.out.write_text(json.dumps(rounded(content), indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
