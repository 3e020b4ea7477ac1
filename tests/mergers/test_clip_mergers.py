"""Mergers of clips against loops over tokens."""

from __future__ import annotations

import pytest
import torch

from tests.temporal.clips import draws, site
from tokenzoo.mergers import AnchorBlend, CentreBlend, RunningMean
from tokenzoo.temporal import FrameWindows
from tokenzoo.token_map import TokenMap
from tokenzoo.tokens import Tokens, unit

FRAMES, PLACES = 4, 5
N = FRAMES * PLACES


def plan_of(keep, seed=0, dropped=True):
    """Kept tokens, and the others anywhere."""
    generator = torch.Generator().manual_seed(seed)
    keep = torch.tensor(keep)[None]
    rest = torch.tensor([[i for i in range(N) if i not in keep[0].tolist()]])
    low = -1 if dropped else 0
    slots = torch.randint(low, keep.shape[1], rest.shape, generator=generator)
    return TokenMap.from_slots(keep, rest, slots, N)


def members(plan, slot):
    return (plan.dst[0] == slot).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("seed", range(4))
def test_running_mean_is_a_loop_in_order_of_position(seed):
    x, plan = draws(1, N, 6, seed=seed), plan_of([3, 8, 19], seed)
    expected = x[0, plan.keep[0]].clone()
    for token in range(N):
        slot = int(plan.dst[0, token])
        if slot >= 0 and token != plan.keep[0, slot]:
            expected[slot] = (expected[slot] + x[0, token]) / 2
    merged = RunningMean().merge(Tokens.of(x), plan, site(x, FRAMES))
    assert torch.allclose(merged.x[0], expected)


def test_a_new_token_begins_with_its_first_member():
    x = draws(1, N, 6)
    plan = TokenMap(torch.tensor([[0, -1]]), torch.ones(1, N, dtype=torch.int64))
    plan.dst[0, 0] = 0
    expected = x[0, 1]
    for token in range(2, N):
        expected = (expected + x[0, token]) / 2
    merged = RunningMean().merge(Tokens.of(x), plan, site(x, FRAMES))
    assert torch.allclose(merged.x[0, 1], expected)


@pytest.mark.parametrize("weight", [0.0, 0.6, 1.0])
def test_a_centre_is_all_members_at_its_place(weight):
    x, plan = draws(1, N, 6), plan_of([0, 1, 2, 19], 3)
    merged = CentreBlend(weight).merge(Tokens.of(x), plan, site(x, FRAMES))
    kinds = set()
    for slot, token in enumerate(plan.keep[0].tolist()):
        own = [i for i in members(plan, slot) if i % PLACES == token % PLACES]
        others = [i for i in members(plan, slot) if i % PLACES != token % PLACES]
        kinds.add((len(own) > 1, bool(others)))
        expected = x[0, own].mean(0)
        if others:
            expected = weight * expected + (1 - weight) * x[0, others].mean(0)
        assert torch.allclose(merged.x[0, slot], expected)
    assert (True, True) in kinds


@pytest.mark.parametrize("every", [1, 2, 4])
def test_a_token_is_merged_into_a_target_of_every_anchor_frame(every):
    """Two segments of two frames; the last token of each frame is held."""
    x = draws(1, N, 6, seed=every)
    anchors = [frame for frame in range(FRAMES) if (1 - frame % 2) % every == 0]
    held = [PLACES * frame + 4 for frame in range(FRAMES)]
    targets = [PLACES * frame + place for frame in anchors for place in (0, 2)]
    keep = sorted([*held, *targets])
    marks = torch.tensor([[token in held for token in keep]])
    base = plan_of(keep, dropped=False)
    plan = TokenMap(base.keep, base.dst, held=marks)
    # What is held has no members.
    for token in range(N):
        if token not in keep and marks[0, plan.dst[0, token]]:
            plan.dst[0, token] = -1
    merged = AnchorBlend(FrameWindows(2), every, 0.3).merge(Tokens.of(x), plan, site(x, FRAMES))
    cosine = unit(x[0]) @ unit(x[0]).T
    for slot, token in enumerate(keep):
        if token in held:
            assert torch.equal(merged.x[0, slot], x[0, token])
            continue
        frame = token // PLACES
        pool = range(N) if every > 1 else range(frame * PLACES, (frame + 1) * PLACES)
        pool = [i for i in pool if i // PLACES // 2 == frame // 2 and i not in held]
        own = [i for i in targets if i // PLACES == frame]
        joined = [i for i in pool if max(own, key=lambda j, i=i: cosine[i, j]) == token]
        share = max(1 / (len(joined) + 1), 0.3)
        expected = share * x[0, token] + (1 - share) * x[0, joined].mean(0)
        assert torch.allclose(merged.x[0, slot], expected)
