"""Received attention from one query in so many: what it saves, how it ranks, and what evoprune makes of it.

    python benchmarks/estimate_received.py          # -> docs/results/estimate-received.json

Per stride, on collages of the test split and the shipped digits model with evoprune (64 of 256 tokens):

    rank        Spearman's correlation with the scores from all queries, mean over images and sites
    critical    the share of the tokens held with all queries (the upper tenth) that is held still
    accuracy    all ten counts right, evoprune with that stride; and the difference on the same collages
    time        of the estimate, relative to all queries in the same round, for one image of 729 tokens in
                16 heads of 72 (SigLIP so400m); "again" is the noise

The scores that are compared are those that evoprune with all queries comes to, site by site.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from collage_runs import BATCH, Collages, common, conditions, paired, rounded, wilson
from kernel_time import WIDTH, figures, tensors
from torch import Tensor

import tokenzoo
from tokenzoo.attention import SeenAttention
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Scorer
from tokenzoo.scorers import ReceivedAttention
from tokenzoo.tools.timing import interleaved

SITES = 64  # tokens that are kept of 256, and so the sites at which scores are compared
CTR = 0.1  # what the recorded figures were measured with, the choice of the ablation
ALL = ReceivedAttention()


class Watched(Scorer):
    """The scores from all queries; and what each stride makes of the same attention, written down.

    Args:
        strides: those to compare.
        share: of the tokens that are held.
    """

    def __init__(self, strides: list[int], share: float) -> None:
        self.require("attention")
        self.strides, self.share = strides, share
        self.rank: dict[int, list[Tensor]] = {stride: [] for stride in strides}
        self.critical: dict[int, list[Tensor]] = {stride: [] for stride in strides}

    def score(self, evidence: Evidence) -> Tensor:
        score = ALL.score(evidence)
        held = max(1, round(self.share * score.shape[1]))
        for stride in self.strides:
            estimate = ReceivedAttention(stride=stride).score(evidence)
            self.rank[stride].append(spearman(score, estimate))
            self.critical[stride].append(overlap(score, estimate, held))
        return score


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """The correlation of the ranks of `[b, n]`, image by image: `[b]`."""
    ranks = [x.argsort(-1).argsort(-1).double() for x in (a, b)]
    first, second = (rank - rank.mean(-1, keepdim=True) for rank in ranks)
    return (first * second).sum(-1) / (first.norm(dim=-1) * second.norm(dim=-1))


def overlap(a: Tensor, b: Tensor, count: int) -> Tensor:
    """The share of the `count` highest of `a [b, n]` that are among those of `b`: `[b]`."""
    marks = [torch.zeros_like(x).scatter(1, x.topk(count).indices, 1.0) for x in (a, b)]
    return (marks[0] * marks[1]).sum(-1) / count


def agreement(collages: Collages, strides: list[int]) -> dict[int, dict[str, float]]:
    """How the estimates rank the tokens of the same passes."""
    recipe = tokenzoo.build("evoprune", keep=SITES, ctr=CTR).recipe
    step = recipe.steps[0]
    matcher: Any = step.matcher
    watched = Watched(strides, matcher.protect.share)
    protect = type(matcher.protect)(watched, matcher.protect.share)
    match = type(matcher)(matcher.pairs, split=matcher.split, protect=protect)
    own = tokenzoo.Recipe(
        tokenzoo.Step(step.stage, step.schedule, match, step.merger),
        keep=SITES,
        proportional_attention=recipe.proportional_attention,
    )
    with tokenzoo.build(own).attach(collages.model), torch.inference_mode():
        watched.rank = {stride: [] for stride in strides}  # without the proof of attach
        watched.critical = {stride: [] for stride in strides}
        for batch in collages.data.images.split(BATCH):
            collages.model(batch)
    return {
        stride: {
            "rank": torch.cat(watched.rank[stride]).mean().item(),
            "critical": torch.cat(watched.critical[stride]).mean().item(),
        }
        for stride in strides
    }


def times(strides: list[int], tokens: int, rounds: int) -> dict[int | str, dict[str, Any]]:
    """The time of each stride relative to all queries."""
    query, key = tensors("received_attention", 1, tokens, "cpu", torch.float32)
    seen = SeenAttention(query, key, WIDTH**-0.5)
    functions: dict[Any, Callable[[], object]] = {1: seen.received}
    functions |= {stride: partial(seen.received, stride=stride) for stride in strides}
    functions["again"] = seen.received
    timings = interleaved(functions, rounds=rounds, warmup=2, baseline=1)  # pyright: ignore[reportArgumentType]
    return {name: figures(one) for name, one in timings.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common(parser)
    parser.add_argument("--strides", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--tokens", type=int, default=729)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--out", type=Path, default=Path("docs/results/estimate-received.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    collages = Collages("test", given.images, given.seed, given.cache)
    ranked = agreement(collages, given.strides)
    clock = times(given.strides, given.tokens, given.rounds)
    whole = collages.answers(tokenzoo.build("evoprune", keep=SITES, ctr=CTR).recipe).all_counts
    rows: list[dict[str, Any]] = [{"stride": 1, "accuracy": wilson(whole), "again": clock["again"]}]
    for stride in given.strides:
        recipe = tokenzoo.build("evoprune", keep=SITES, ctr=CTR, stride=stride).recipe
        right = collages.answers(recipe).all_counts
        rows.append(
            {
                "stride": stride,
                **ranked[stride],
                "accuracy": wilson(right),
                "to_all_queries": paired(right, whole),
                "time": clock[stride],
            }
        )
    content = {**conditions(given.threads, of=collages), "tokens": given.tokens, "rows": rows}
    given.out.write_text(json.dumps(rounded(content), indent=1, allow_nan=False) + "\n")
    for row in rows:
        print(json.dumps(rounded(row)))


if __name__ == "__main__":
    main()
