"""What the measurements on collages share: a recipe's answers, kept on disk, and their intervals.

An answer is kept per collage, so that two recipes can be compared on the same ones, and a run that was
stopped goes on where it was. What is on disk belongs to one state of the library: after a change of code
or weights pass another `--cache`.
"""

from __future__ import annotations

import hashlib
import math
import platform
import shlex
import sys
import time
from argparse import ArgumentParser
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

import tokenzoo
from tokenzoo import Recipe
from tokenzoo.tools import digits

Z95 = NormalDist().inv_cdf(0.975)
BATCH = 25  # a small model is fastest where its activations fit into the cache
DEPTH, TOKENS, PREFIX, WIDTH = 12, 256, 1, 96  # of the shipped model, for the plans


@dataclass(frozen=True)
class Answers:
    """What was right on each of n collages: `marked [n]` bool, `counts [n, 10]` bool."""

    marked: Tensor
    counts: Tensor

    @property
    def all_counts(self) -> Tensor:
        """Collages with all ten counts right, `[n]` bool."""
        return self.counts.all(dim=1)

    def first(self, count: int) -> Answers:
        """Those on the first `count` collages."""
        return Answers(self.marked[:count], self.counts[:count])

    def shares(self) -> dict[str, dict[str, float]]:
        """The three accuracies with their 95 % intervals."""
        return {
            "marked": wilson(self.marked),
            "counts": mean(self.counts.double().mean(dim=1)),
            "all_counts": wilson(self.all_counts),
        }


@dataclass(frozen=True)
class Collages:
    """The same collages for every recipe, and the folder where the answers on them are kept."""

    split: str
    images: int
    seed: int
    cache: Path | None = None

    @cached_property
    def data(self) -> digits.Collages:
        return digits.collages(self.split, self.images, seed=self.seed)

    @cached_property
    def model(self) -> torch.nn.Module:
        return digits.load_digits_vit()

    def answers(self, recipe: Recipe | None) -> Answers:
        """The answers of the model with a recipe attached (None: of the bare model)."""
        path = None if self.cache is None else self.cache / f"{self._key(recipe)}.pt"
        if path is not None and path.exists():
            return Answers(**torch.load(path, weights_only=True))
        start = time.perf_counter()
        if recipe is None:
            logits = self._logits()
        else:
            with tokenzoo.build(recipe).attach(self.model):
                logits = self._logits()
        answers = right(logits, self.data)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"marked": answers.marked, "counts": answers.counts}, path)
        seconds = time.perf_counter() - start
        counted = 100 * answers.all_counts.double().mean().item()
        print(
            f"{self.split} {counted:5.1f} ({seconds:.0f} s) {recipe!r}", file=sys.stderr, flush=True
        )
        return answers

    def _logits(self) -> Tensor:
        model = self.model  # made here, for what is made in inference mode stays of that kind
        with torch.inference_mode():
            return torch.cat([model(batch) for batch in self.data.images.split(BATCH)])

    def _key(self, recipe: Recipe | None) -> str:
        text = f"{tokenzoo.__version__} {self.split} {self.images} {self.seed} {recipe!r}"
        return hashlib.sha256(text.encode()).hexdigest()[:24]


def right(logits: Tensor, data: digits.Collages) -> Answers:
    """Which answers of `[n, 60]` logits are right; `tokenzoo.tools.digits.accuracy` is their mean."""
    target = data.counts.clamp(max=digits.COUNT_CLASSES - 1)  # [n, 10]
    guess = logits[:, 10:].reshape(-1, 10, digits.COUNT_CLASSES).argmax(dim=2)  # [n, 10]
    return Answers(logits[:, :10].argmax(dim=1) == data.answer, guess == target)


def wilson(hits: Tensor, z: float = Z95) -> dict[str, float]:
    """The share of hits `[n]`, with Wilson's interval."""
    n, p = len(hits), hits.double().mean().item()
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return {"value": p, "low": centre - half, "high": centre + half}


def mean(values: Tensor, z: float = Z95) -> dict[str, float]:
    """The mean of values `[n]`, n > 1, with its normal interval (the ten counts hang together)."""
    value, half = values.mean().item(), z * standard_error(values)
    return {"value": value, "low": value - half, "high": value + half}


def paired(ours: Tensor, other: Tensor, z: float = Z95) -> dict[str, float]:
    """The mean of ours - other `[n]` on the same collages, with its interval."""
    return mean(ours.double() - other.double(), z)


def standard_error(values: Tensor) -> float:
    """Of the mean of values `[n]`, n > 1."""
    return values.double().std().item() / math.sqrt(len(values))


def flops(recipe: Recipe) -> float:
    """Operations of the blocks by the plan, relative to the bare model's."""
    return recipe.budget(TOKENS, DEPTH, prefix=PREFIX, width=WIDTH).flops


def common(parser: ArgumentParser) -> None:
    """The options that all measurements have."""
    parser.add_argument("--keep", type=int, nargs="+", help="patch tokens of 256")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("build/collage-runs"))


def conditions(threads: int, **collages: Collages) -> dict[str, Any]:
    """What a file of results says about how it came to be."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "versions": {
            "tokenzoo": tokenzoo.__version__,
            "torch": torch.__version__,
            "timm": version("timm"),
            "python": platform.python_version(),
        },
        "threads": threads,
        "collages": {
            name: {"split": c.split, "images": c.images, "seed": c.seed}
            for name, c in collages.items()
        },
    }


def rounded(value: Any) -> Any:
    """The same figures with five decimals: more than the collages can show, and shorter files."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return round(value, 5) if isinstance(value, float) else value
