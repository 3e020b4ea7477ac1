"""EvoPrune's open numbers: chosen on validation collages, then reported on test collages.

    python benchmarks/ablate_evoprune.py choose     # -> docs/results/evoprune-choose.json
    python benchmarks/ablate_evoprune.py joint      # -> docs/results/evoprune-joint.json
    python benchmarks/ablate_evoprune.py report     # -> docs/results/evoprune-report.json

THE RULE, written down before anything was measured with this script. A collage's score is the share of
the budgets (32 and 16 of 256 tokens) at which all its ten counts are right. `HOME` has the value of the
paper where it gives one, else that of ToMe, or the simplest; `lam` 0.1 comes from a first look at 400
other validation collages, as the paper wants it above 0 and says no more. Around a base, which is `HOME`
at first, every alternative of `ALTERNATIVES` is compared with its home value, paired, on the same
validation collages. A home value gives way only to an alternative that is better at 95 % after
Bonferroni's correction for all comparisons of the round; if several are, to the best of them. All that
gave way make the next base, and the comparisons are made again around it, until nothing changes (three
rounds at most; what still changes then stays at home). Test collages play no part in it.

Options that change the operations (start, every, schedule) are not chosen in this way: accuracy that is
bought with operations is no gain. They are the paper's (docs/budgets.md has the evidence for start=1),
and `joint` and `report` say what others give.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from collage_runs import (
    Answers,
    Collages,
    common,
    conditions,
    flops,
    paired,
    rounded,
    standard_error,
)
from evoprune_variants import (
    ALTERNATIVES,
    FIGURE_4,
    HOME,
    JOINT,
    TABLE_3,
    Options,
    ladder,
    recipe_of,
)
from merged_pairs import pairs
from torch import Tensor

RESULTS = Path("docs/results")
ROUNDS = 3
BUDGETS = [32, 16]


def bound(comparisons: int) -> float:
    """How many standard errors a difference must have for 95 % over so many comparisons."""
    return NormalDist().inv_cdf(1 - 0.05 / (2 * comparisons))


def errors(difference: Tensor) -> float:
    """How many standard errors of its mean a difference `[n]` has."""
    error = standard_error(difference)
    return difference.mean().item() / error if error > 0 else 0.0


@dataclass(frozen=True)
class Choice:
    """The outcome of the rule: the options, the comparisons of every round, and the bound."""

    options: Options
    rounds: list[list[dict[str, Any]]]
    bound: float
    settled: bool


def choose(
    score: Callable[[Options], Tensor],
    home: Options,
    alternatives: Mapping[str, Sequence[Options]],
    limit: float | None = None,
) -> Choice:
    """Apply the rule; `score(options)` is `[n]`, one number per collage.

    `limit` is how many standard errors a gain needs; None: `bound` of all comparisons, for many samples.
    """
    limit = limit or bound(sum(map(len, alternatives.values())))
    base, rounds = dict(home), []
    for _ in range(ROUNDS):
        chosen, comparisons = dict(base), []
        for changes in alternatives.values():
            names = {name for change in changes for name in change}
            staying = {name: home[name] for name in names}
            best, gain = staying, 0.0
            for change in changes:
                difference = score(base | change).double() - score(base | staying).double()
                value, ratio = difference.mean().item(), errors(difference)
                comparisons.append({"change": change, "difference": value, "errors": ratio})
                if ratio > limit and value > gain:
                    best, gain = change, value
            chosen |= best
        rounds.append(comparisons)
        if chosen == base:
            return Choice(base, rounds, limit, True)
        before, base = base, chosen
    undecided = {name for name in base if base[name] != before[name]}
    return Choice(base | {name: home[name] for name in undecided}, rounds, limit, False)


def scored(collages: Collages, options: Options, budgets: Sequence[int]) -> Tensor:
    """The score of the rule, `[n]`: the share of the budgets at which all ten counts are right."""
    right = [collages.answers(recipe_of(options, keep)).all_counts for keep in budgets]
    return torch.stack(right).double().mean(dim=0)


def row(
    collages: Collages, base: Options, change: Options, budgets: Sequence[int]
) -> dict[str, Any]:
    """What a change of the base gives at each budget, and its difference to the base there."""
    found: dict[str, Any] = {"change": change}
    for keep in budgets:
        recipe = recipe_of(base | change, keep)
        ours, other = collages.answers(recipe), collages.answers(recipe_of(base, keep))
        found[str(keep)] = {"flops": flops(recipe), **ours.shares(), **differences(ours, other)}
    theirs = scored(collages, base, budgets)
    found["all_counts_mean_difference"] = paired(scored(collages, base | change, budgets), theirs)
    return found


def differences(ours: Answers, other: Answers) -> dict[str, Any]:
    """Of the three accuracies, on the same collages."""
    return {
        "difference": {
            "marked": paired(ours.marked, other.marked),
            "counts": paired(ours.counts.double().mean(1), other.counts.double().mean(1)),
            "all_counts": paired(ours.all_counts, other.all_counts),
        }
    }


def chosen_by(collages: Collages, budgets: Sequence[int]) -> dict[str, Any]:
    """The part `choose`: the rule's outcome, and every comparison that led to it."""
    choice = choose(lambda options: scored(collages, options, budgets), HOME, ALTERNATIVES)
    base = choice.options
    tried = [
        change
        for changes in ALTERNATIVES.values()
        for change in ({name: HOME[name] for name in changes[0]}, *changes)
        if base | change != base
    ]
    return {
        "home": HOME,
        "chosen": base,
        "settled": choice.settled,
        "comparisons": len(choice.rounds[-1]),
        "standard_errors_needed": choice.bound,
        "rounds": choice.rounds,
        "bare": collages.answers(None).shares(),
        "base": row(collages, base, {}, budgets),
        "alternatives": [row(collages, base, change, budgets) for change in tried],
    }


def joined(collages: Collages, base: Options, budgets: Sequence[int]) -> dict[str, Any]:
    """The part `joint`: two changes at once, and those that change the operations."""
    return {
        "base": row(collages, base, {}, budgets),
        "joint": [row(collages, base, change, budgets) for change in JOINT],
    }


def reported(collages: Collages, base: Options, budgets: Sequence[int]) -> dict[str, Any]:
    """The part `report`: analogues of the paper's Table 3 and Figure 4, and the way from tome."""

    def several(changes: Mapping[str, Options], base: Options = base) -> dict[str, Any]:
        return {name: row(collages, base, change, budgets) for name, change in changes.items()}

    return {
        "base": base,
        "bare": collages.answers(None).shares(),
        "table_3": several(TABLE_3),
        "table_3_mean": several(TABLE_3, base | {"schedule": "mean"}),
        "figure_4": several(FIGURE_4),
        "ladder": climbed(collages, base, budgets),
    }


def climbed(collages: Collages, base: Options, budgets: Sequence[int]) -> dict[str, Any]:
    """What each recipe between tome and evoprune gives and merges, and its difference to tome."""
    found: dict[str, Any] = {}
    few = replace(collages, images=min(200, collages.images))
    for keep in budgets:
        recipes = ladder(base, keep)
        tome = collages.answers(recipes["tome"])
        for name, recipe in recipes.items():
            ours = collages.answers(recipe)
            at = {"flops": flops(recipe), **ours.shares(), **differences(ours, tome)}
            at["pairs"] = pairs(few, recipe)
            found.setdefault(name, {})[str(keep)] = at
    return found


# What each part looks at: split, collages, seed, budgets.
PARTS: dict[str, tuple[str, int, int, list[int]]] = {
    "choose": ("validation", 1500, 11, BUDGETS),
    "joint": ("validation", 400, 13, BUDGETS),
    "report": ("test", 1000, 14, BUDGETS),
}


def main() -> int:
    parser = argparse.ArgumentParser(description="EvoPrune's open numbers; see the file's head")
    parser.add_argument("part", choices=PARTS)
    common(parser)
    parser.add_argument("--images", type=int, help="collages")
    parser.add_argument("--seed", type=int, help="of the collages")
    parser.add_argument("--choice", type=Path, default=RESULTS / "evoprune-choose.json")
    parser.add_argument("--out", type=Path, help="default: docs/results/evoprune-PART.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    split, images, seed, budgets = PARTS[given.part]
    seed = seed if given.seed is None else given.seed
    collages = Collages(split, given.images or images, seed, given.cache)
    budgets = given.keep or budgets
    if given.part == "choose":
        found = chosen_by(collages, budgets)
    else:
        base = json.loads(given.choice.read_text())["chosen"]
        found = (joined if given.part == "joint" else reported)(collages, base, budgets)
    content = {**conditions(given.threads, of=collages), "budgets": budgets, **found}
    out = given.out or RESULTS / f"evoprune-{given.part}.json"
    out.write_text(json.dumps(rounded(content), indent=1, allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
