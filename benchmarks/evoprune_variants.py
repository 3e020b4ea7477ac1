"""What the ablation of EvoPrune tries: the values of every open number, and recipes made of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokenzoo import Recipe
from tokenzoo.matchers import Alternate, Bipartite, Every, Parity
from tokenzoo.matchers.split import Split
from tokenzoo.recipes.evoprune import evoprune
from tokenzoo.recipes.tome import tome
from tokenzoo.schedules import Decreasing, First, Geometric, Increasing, Last, Mean, Skip
from tokenzoo.scorers import ReceivedAttention, Similarity

Options = dict[str, Any]

HOME: Options = {
    "ctr": 0.25,
    "features": "x",
    "curve": "nonnegative",
    "beta": 1.0,
    "density": "x",
    "k": 5,
    "tau": "image",
    "lam": 0.1,
    "queries": "all",
    "by_mass": False,
    "sticky": False,
    "split": "alternate",
    "merger": "weighted_mean",
    "proportional_attention": True,
}
ALTERNATIVES: dict[str, list[Options]] = {
    "ctr": [{"ctr": 0.0}, {"ctr": 0.1}, {"ctr": 0.5}],
    "features": [{"features": name} for name in ("keys", "all_keys", "queries")],
    "curve": [
        {"curve": "cosine", "beta": 1.0},
        {"curve": "exp", "beta": 1.0},
        {"curve": "exp", "beta": 5.0},
        {"curve": "sigmoid", "beta": 1.0},
        {"curve": "sigmoid", "beta": 5.0},
    ],
    "density": [{"density": name} for name in ("keys", "all_keys", "queries")],
    "k": [{"k": 1}, {"k": 10}, {"k": 20}],
    "tau": [{"tau": tau} for tau in (5.0, 10.0, 20.0, 40.0)],
    "lam": [{"lam": lam} for lam in (0.0, 0.05, 0.3, 1.0)],
    "queries": [{"queries": "patches"}],
    "by_mass": [{"by_mass": True}],
    "sticky": [{"sticky": True}],
    "split": [{"split": name} for name in ("swapped", "shuffled", "halves")],
    "merger": [{"merger": "mean"}],
    "proportional_attention": [{"proportional_attention": False}],
}
JOINT: list[Options] = [
    {"features": "keys", "density": "keys"},
    {"features": "all_keys", "density": "all_keys"},
    {"features": "queries", "density": "queries"},
    {"lam": 0.3, "k": 1},
    {"lam": 0.3, "k": 10},
    {"lam": 0.3, "k": 20},
    {"lam": 0.3, "tau": 10.0},
    {"lam": 0.3, "tau": 20.0},
    {"lam": 0.3, "tau": 40.0},
    {"lam": 0.3, "curve": "exp", "beta": 5.0},
    {"lam": 1.0, "curve": "exp", "beta": 5.0},
    {"lam": 0.3, "curve": "sigmoid", "beta": 1.0},
    {"lam": 0.3, "ctr": 0.0},
    {"lam": 0.0, "ctr": 0.0},
    {"lam": 0.0, "ctr": 0.5},
    {"ctr": 0.25, "sticky": True},
    {"ctr": 0.5, "sticky": True},
    {"queries": "patches", "by_mass": True},
    {"merger": "mean", "proportional_attention": False},
    {"ctr": 0.0, "split": "parity"},
    {"split": "every third"},
    {"start": 0},
    {"every": 1},
    {"start": 2, "every": 3},
]
TABLE_3: dict[str, Options] = {
    "full": {},
    "without diversity": {"lam": 0.0},
    "without attention protection": {"ctr": 0.0},
    "without both": {"lam": 0.0, "ctr": 0.0},
    "full, with the paper's ctr": {"ctr": 0.25},
}
FIGURE_4: dict[str, Options] = {
    "skip": {},
    **{
        name: {"schedule": name}
        for name in ("mean", "first 6", "last 6", "increasing", "decreasing")
    },
}


@dataclass(frozen=True)
class Halves(Split):
    """The upper half of the image proposes to the lower half."""

    def sides(self, free: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
        middle = (free.shape[1] + 1) // 2
        return free[:, :middle], free[:, middle:]

    def limit(self, tokens: int) -> int:
        return tokens // 2


@dataclass(frozen=True)
class Shuffled(Split):
    """Any half proposes to the other half; which one depends on the number of tokens alone."""

    def sides(self, free: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
        count = free.shape[1]
        order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
        middle = (count + 1) // 2
        sides = order[:middle].sort().values, order[middle:].sort().values
        return free[:, sides[0]], free[:, sides[1]]

    def limit(self, tokens: int) -> int:
        return tokens // 2


SPLITS: dict[str, Split] = {
    "alternate": Alternate(),
    "swapped": Alternate("even"),
    "halves": Halves(),
    "shuffled": Shuffled(),
    "every third": Every(3),
    "parity": Parity(),
}
SCHEDULES = {
    "skip": None,
    "mean": Mean(),
    "first 6": First(6),
    "last 6": Last(6),
    "first 4": First(4),
    "last 4": Last(4),
    "increasing": Increasing(),
    "increasing slowly": Increasing(0.5),
    "decreasing": Decreasing(),
    "geometric": Geometric((0.1, 0.25, 0.4, 0.6, 0.75, 0.9)),
}
RANKS = {"received attention": ReceivedAttention(stride=4)}


def changed(recipe: Recipe, **parts: Any) -> Recipe:
    """The recipe with other parts in its only step."""
    step = replace(recipe.steps[0], **parts)
    proportional = recipe.proportional_attention
    return Recipe(step, keep=recipe.keep, proportional_attention=proportional)


def recipe_of(options: Options, keep: int) -> Recipe:
    """EvoPrune with these options, and the split, the rank and the schedule that they name."""
    parts = ("split", "rank", "schedule")
    own = {name: value for name, value in options.items() if name not in parts}
    recipe = evoprune(keep=keep, schedule=SCHEDULES[options.get("schedule", "skip")], **own)
    matcher = recipe.steps[0].matcher
    if not isinstance(matcher, Bipartite):
        raise TypeError(f"evoprune matches by {matcher!r}, no more by Bipartite")
    split = options.get("split", "alternate")
    if split != "alternate":
        # A split by parity knows no protection: only with ctr=0 does it mean the same as without.
        protect = None if split == "parity" else matcher.protect
        matcher = replace(matcher, split=SPLITS[split], protect=protect)
    if "rank" in options:
        matcher = replace(matcher, rank=RANKS[options["rank"]])
    return changed(recipe, matcher=matcher)


def ladder(base: Options, keep: int) -> dict[str, Recipe]:
    """The steps from tome to evoprune, one at a time."""
    bare = tome(keep=keep)
    on_x = changed(bare, matcher=Bipartite(Similarity("x"), split=Parity(), order="tome"))
    return {
        "tome": bare,
        "hidden states instead of keys": on_x,
        "... and in every other block": changed(on_x, schedule=Skip()),
        "... and outputs by position": recipe_of(base | {"lam": 0.0, "ctr": 0.0}, keep),
        "... and protection": recipe_of(base | {"lam": 0.0}, keep),
        "... and diversity: evoprune": recipe_of(base, keep),
        "evoprune, in every block": recipe_of(base | {"schedule": "mean"}, keep),
        "evoprune, in every block but the first": recipe_of(base | {"every": 1}, keep),
        "evoprune, with keys": recipe_of(base | {"features": "keys", "density": "keys"}, keep),
        "tome, in every block but the first": changed(bare, schedule=Skip(every=1)),
        "tome, in every other block": changed(bare, schedule=Skip()),
        "tome, outputs by position": changed(bare, matcher=Bipartite(Similarity("keys"))),
        "tome, hidden states, outputs by position": changed(
            bare, matcher=Bipartite(Similarity("x"))
        ),
    }
