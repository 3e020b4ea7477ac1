"""EarlyTom's parts against its rules written out, one frame and one token after another."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenzoo.errors import BadArgumentError, BudgetError
from tokenzoo.evidence import Evidence
from tokenzoo.matchers import EndsAndMiddles, NeighbourPairs
from tokenzoo.matchers.neighbour_pairs import best_pairs
from tokenzoo.mergers import NeighbourBlend
from tokenzoo.recipes.earlytom import earlytom
from tokenzoo.scorers import ReceivedAttention
from tokenzoo.temporal import StreamingCuts
from tokenzoo.tokens import Tokens

SEEDS = pytest.mark.parametrize("seed", range(6))
THRESHOLD, LONGEST, MEMORY = 0.6, 7, 0.9


def clip(seed: int, frames: int = 12, tokens: int = 5) -> Tensor:
    """Frames that drift, with cuts: `[f, n, c]`."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, tokens, 6, generator=generator, dtype=torch.float64)
    shown = [x[0]]
    for frame in range(1, frames):
        step = 3.0 if frame in (5, 6) else 0.4
        drift = torch.randn(tokens, 6, generator=generator, dtype=torch.float64)
        shown.append(shown[-1] + step * drift)
    return torch.stack(shown)


def alike(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a, b, -1).mean())


def segments(x: Tensor) -> list[tuple[int, int]]:
    """The first and last frame of each."""
    found, start, running = list[tuple[int, int]](), 0, 1.0
    for i in range(1, len(x)):
        running = MEMORY * alike(x[start], x[i]) + (1 - MEMORY) * running
        if running < THRESHOLD or i - start + 1 >= LONGEST:
            found.append((start, i - 1))
            start, running = i, 1.0
    return [*found, (start, len(x) - 1)]


def evidence(x: Tensor, **shown: Tensor) -> Evidence:
    tokens = x.flatten(0, 1)[None]
    told = {name: (lambda value=value: value) for name, value in shown.items()}
    return Evidence(tokens, mass=torch.ones(tokens.shape[:2]), show=told, frames=len(x))


@SEEDS
def test_segments(seed: int) -> None:
    x = clip(seed)
    found = StreamingCuts(THRESHOLD, LONGEST, MEMORY).segment(evidence(x))[0]
    numbers = [i for i, (a, b) in enumerate(segments(x)) for _ in range(a, b + 1)]
    assert found.tolist() == numbers
    assert len(set(numbers)) > 2


@SEEDS
def test_pairs_that_share_nobody_have_the_highest_sum(seed: int) -> None:
    score = torch.randn(3, 8, generator=torch.Generator().manual_seed(seed)).double()
    for r in range(1, 5):
        found = best_pairs(score, r)
        sums = score.gather(1, found).sum(1)
        apart = [c for c in combinations(range(8), r) if all(b - a > 1 for a, b in pairwise(c))]
        best = torch.stack([score[:, list(c)].sum(1) for c in apart]).amax(0)
        assert torch.allclose(sums, best)
        assert bool((found.diff(dim=1) > 1).all())


def test_more_pairs_than_there_are() -> None:
    with pytest.raises(BudgetError, match="3 are the fewest"):
        NeighbourPairs().match(evidence(clip(0, 5, 1)), 2)


@SEEDS
def test_frames_that_the_rule_merges_come_first(seed: int) -> None:
    """Of the middle of each segment of four and more: pairs that are more alike than its ends."""
    x = clip(seed)
    flat = F.normalize(x, dim=-1).flatten(1)
    shown = Evidence(flat[None], mass=torch.ones(1, len(x)))
    wanted: set[int] = set()
    for a, b in segments(x):
        ends = alike(x[a], x[b])
        i = a + 1
        while i < b - 1:
            later = -1.0 if i + 1 == b - 1 else alike(x[i + 1], x[i + 2])
            here = alike(x[i], x[i + 1])
            if here > ends and here > later:
                wanted.add(i)
                i += 1
            i += 1
    assert wanted
    plan = NeighbourPairs(THRESHOLD, LONGEST, MEMORY).match(shown, len(x) - len(wanted))
    gone = set(range(len(x))) - set(plan.keep[0].tolist())
    assert gone == {i + 1 for i in wanted}


@SEEDS
def test_blends(seed: int) -> None:
    """y = w x_i + (1 - w) x_(i+1), w = s_i / (s_i + s_(i+1)); frames without a partner stay."""
    x = clip(seed)[:6].flatten(1)[None]  # [1, 6, d]
    shown = Evidence(x, mass=torch.ones(1, 6))
    plan = NeighbourPairs().match(shown, 4)
    found = NeighbourBlend().merge(Tokens.of(x), plan, shown)
    s = [max(0.0, float(F.cosine_similarity(x[0, i], x[0, i + 1], 0))) for i in range(5)] + [0.0]
    for slot, i in enumerate(plan.keep[0].tolist()):
        joined = i + 1 < 6 and int(plan.dst[0, i + 1]) == slot
        w = 1.0 if not joined or s[i] + s[i + 1] == 0 else s[i] / (s[i] + s[i + 1])
        expected = w * x[0, i] + (1 - w) * x[0, min(i + 1, 5)]
        assert torch.allclose(found.x[0, slot], expected)
        assert float(found.mass[0, slot]) == 1 + joined


@SEEDS
@pytest.mark.parametrize("keep", [12, 31, 42])
def test_ends_keep_the_attended_and_middles_one_of_each_window(seed: int, keep: int) -> None:
    x = clip(seed)
    f, n = x.shape[:2]
    attention = torch.rand(1, f * n, generator=torch.Generator().manual_seed(seed)).double()
    shown = evidence(x, received_attention=attention)
    pool = torch.arange(f * n)[None]
    cuts = StreamingCuts(THRESHOLD, LONGEST, MEMORY)
    kept, _ = EndsAndMiddles(ReceivedAttention(), cuts).select(shown, pool, keep)
    wanted: list[int] = []
    middle = {i for a, b in segments(x) for i in range(a + 1, b)}
    for i in range(f):
        count = keep // f + (i < keep % f)
        own = attention[0, i * n : (i + 1) * n]
        if i in middle:
            sizes = [n // count + (w < n % count) for w in range(count)]
            starts = [sum(sizes[:w]) for w in range(count)]
            best = [
                a + int(own[a : a + size].argmax()) for a, size in zip(starts, sizes, strict=True)
            ]
        else:
            best = own.argsort(descending=True)[:count].tolist()
        wanted += [i * n + place for place in best]
    assert sorted(kept[0].tolist()) == sorted(wanted)


@pytest.mark.parametrize("blocks", [(3, 2), (0,), 4, (2, 2), (1.5,)])
def test_bad_blocks(blocks: object) -> None:
    with pytest.raises(BadArgumentError, match="blocks="):
        earlytom(blocks=blocks)  # pyright: ignore[reportArgumentType]
