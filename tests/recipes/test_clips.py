"""Recipes for clips, on clips of known redundancy: what is merged is what should be."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

import tokenzoo
from tests.temporal.clips import CHANNELS, PLACES, draws, moving, still
from tokenzoo.errors import BadArgumentError, MissingEvidenceError
from tokenzoo.token_map import take

MERGING = ("holitom", "fastvid", "prunevid", "flashvid", "moviechat", "vidtome")
PRUNING = ("evs", "longvu", "vidcom2", "earlytom", "every_kth_frame")
RECIPES = (*MERGING, *PRUNING)


def reduce(name, x, frames, keep, **options):
    """The clip reduced; every token is attended to equally but for a little noise."""
    paid = 1 + 1e-3 * torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(5))
    shown = {"cls_attention": paid, "received_attention": paid}
    found = tokenzoo.build(name, keep=keep, **options).reduce(x, frames=frames, **shown)
    found.plan.check()
    return found


def groups(plan):
    """The sets of tokens that are one output, of a single clip."""
    return [set((plan.dst[0] == slot).nonzero()[:, 0].tolist()) for slot in range(plan.kept)]


def test_the_list_has_every_recipe_of_one_step_that_needs_frames():
    made = {name: tokenzoo.build(name).recipe for name in tokenzoo.list_recipes()}
    needing = {name for name, one in made.items() if "frames" in one.needs and len(one.steps) == 1}
    assert needing == {*RECIPES}


@pytest.mark.parametrize("name", RECIPES)
def test_without_frames_it_is_an_error_that_asks_for_them(name):
    x = still(3)
    shown = {"cls_attention": torch.rand(1, 36), "received_attention": torch.rand(1, 36)}
    with pytest.raises(MissingEvidenceError, match=r"needs .*frames.*: pass .*frames="):
        tokenzoo.build(name, keep=12).reduce(x, **shown)
    with pytest.raises(BadArgumentError, match="frames=5"):
        tokenzoo.build(name, keep=12).reduce(x, frames=5, **shown)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("keep", [1, 5, 12, 13, 30, 59, 72])
def test_the_count_of_a_clip_is_exact(name, keep):
    for x in (still(6), draws(2, 6 * PLACES, CHANNELS), moving(6, 0.1).x):
        assert reduce(name, x, 6, keep).x.shape[:2] == (x.shape[0], keep)


# A still clip costs one frame ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["holitom", "prunevid", "moviechat"])
def test_a_still_clip_becomes_one_frame(name):
    x = still(6, noise=1e-3)
    found = reduce(name, x, 6, PLACES)
    places = [{place + PLACES * frame for frame in range(6)} for place in range(PLACES)]
    assert sorted(map(sorted, groups(found.plan))) == sorted(map(sorted, places))
    assert torch.allclose(found.x, take(x, found.plan.keep), atol=1e-2)
    assert found.mass.tolist() == [[6.0] * PLACES]


@pytest.mark.parametrize(
    ("name", "options", "most"),
    [
        ("holitom", {"retained": 1.0}, PLACES),  # all units of it
        ("holitom", {"retained": 1 / 12}, PLACES // 2),
        ("prunevid", {"retained": 1.0}, PLACES),
        ("longvu", {"threshold": 0.6}, PLACES),
    ],
)
def test_a_still_clip_costs_the_authors_counts_a_frame(name, options, most):
    found = reduce(name, still(6, noise=0.01), 6, 1.0, **options)
    assert found.plan.lengths.tolist() == [most]
    assert not bool(found.mass[:, most:].any())


def test_what_a_still_clip_has_room_for_stays_on_its_own():
    """One frame and a half: the tokens that differ most from the mean of their place stay, too."""
    x = still(4, noise=1e-3).clone()
    odd = [PLACES + 3, 2 * PLACES + 5]
    x[0, odd] += 0.1 * draws(2, CHANNELS, seed=9)
    found = reduce("holitom", x, 4, PLACES + 2)
    alone = [group for group in groups(found.plan) if len(group) == 1]
    assert sorted(map(sorted, alone)) == [[token] for token in odd]


@pytest.mark.parametrize("name", ["evs", "longvu", "every_kth_frame"])
def test_of_a_still_clip_one_frame_is_whole(name):
    found = reduce(name, still(6, noise=1e-3), 6, PLACES)
    frames = {token // PLACES for token in found.plan.keep[0].tolist()}
    assert len(frames) == 1


# What moves --------------------------------------------------------------------------------------


def test_evs_keeps_the_first_frame_and_what_changes():
    clip = moving(5, noise=1e-3)
    # The patch in its new place, and the place that it left.
    changed = {*clip.tokens[1:].tolist(), *(clip.tokens[:-1] + PLACES).tolist()}
    found = reduce("evs", clip.x, 5, PLACES + len(changed))
    assert {*found.plan.keep[0].tolist()} == {*range(PLACES), *changed}


def test_longvu_keeps_what_differs_from_the_first_frame_of_a_window():
    clip = moving(6, noise=1e-3)
    found = reduce("longvu", clip.x, 6, 1.0, threshold=0.6, window=3)
    first = {*range(PLACES), *range(3 * PLACES, 4 * PLACES)}
    # Behind the patch, the place of the first frame of the window has changed, too.
    left = {int(clip.patch[frame // 3 * 3]) + PLACES * frame for frame in range(6)}
    kept = {*found.plan.keep[0, : int(found.plan.lengths)].tolist()}
    assert kept == first | left | {*clip.tokens.tolist()}


def test_longvu_keeps_frames_unlike_the_others_of_their_window():
    x = still(3, 1, 4, noise=1e-3)  # the middle frames of the windows are 2 and 6
    found = reduce("longvu", x, 8, 1.0, of="frames", window=4, threshold=0.7)
    kept = found.plan.keep[0, : int(found.plan.lengths)] // PLACES
    assert kept.bincount(minlength=8).tolist() == [0, 0, 12, 12, 0, 0, 12, 0]
    exact = reduce("longvu", x, 8, 3 * PLACES, of="frames", window=4)
    assert exact.plan.keep[0].tolist() == found.plan.keep[0, : 3 * PLACES].tolist()


def test_longvu_compares_tokens_of_the_site_only():
    with pytest.raises(BadArgumentError, match='layer=-2 applies to of="frames" only'):
        tokenzoo.build("longvu", layer=-2)


def test_static_places_merge_over_time_and_the_patch_does_not():
    clip = moving(4, noise=1e-3)
    crossed = {*clip.patch.tolist()}
    still_places = [place for place in range(PLACES) if place not in crossed]
    units = len(still_places) + 4 * len(crossed)
    plan = reduce("holitom", clip.x, 4, units).plan
    for place in still_places:
        tokens = [place + PLACES * frame for frame in range(4)]
        assert len({int(plan.dst[0, token]) for token in tokens}) == 1
    alone = [group for group in groups(plan) if len(group) == 1]
    assert {*clip.tokens.tolist()} <= set().union(*alone)


@pytest.mark.parametrize("name", ["flashvid", "vidtome"])
def test_a_patch_that_moves_merges_with_itself(name):
    """Merging at the same place cannot do this."""
    clip = moving(4, noise=1e-3)
    options = {"selected": 0.0, "segments": 1, "cut": 0.0} if name == "flashvid" else {}
    plan = reduce(name, clip.x, 4, PLACES + 3, **options).plan
    assert len({int(plan.dst[0, token]) for token in clip.tokens.tolist()}) == 1
    slot = int(plan.dst[0, clip.tokens[0]])
    assert groups(plan)[slot] == {*clip.tokens.tolist()}
    assert len({int(s) for s in reduce("holitom", clip.x, 4, 30).plan.dst[0, clip.tokens]}) > 1


# Cuts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["holitom", "fastvid", "prunevid", "flashvid", "moviechat"])
@pytest.mark.parametrize("noise", [1e-3, 0.1], ids=["still", "noisy"])
def test_nothing_merges_over_a_cut(name, noise):
    x = still(3, 5, noise=noise)
    options = {"segments": 2} if name in ("fastvid", "flashvid") else {}
    found = reduce(name, x, 8, 2 * PLACES, **options)
    before = 3 * PLACES
    for group in groups(found.plan):
        assert len({token < before for token in group}) == 1
    # Each shot is there.
    assert len({token < before for token in found.plan.keep[0].tolist()}) == 2


def test_fastvid_leaves_salient_tokens_and_merges_the_others_into_anchors():
    x = still(4, noise=1e-3)
    found = reduce("fastvid", x, 4, 20, segments=1, every=4, context=0.4)
    held = found.plan.held[0]
    kept = found.plan.keep[0]
    assert held.sum() == 12
    assert torch.equal(found.x[0, held], x[0, kept[held]])
    assert (kept[held] // PLACES).bincount().tolist() == [3, 3, 3, 3]
    assert (kept[~held] // PLACES).tolist() == [3] * 8  # the last frame of the segment
    # No token is lost.
    assert float(found.mass.sum()) == 4 * PLACES


def test_a_frame_unlike_the_others_keeps_more():
    x = still(3, 1, 4, noise=0.1)
    kept = reduce("vidcom2", x, 8, 24).plan.keep[0] // PLACES
    counts = kept.bincount(minlength=8).tolist()
    assert counts[3] == max(counts) > max(counts[:3] + counts[4:])
    assert min(counts) >= 1


def test_the_memory_keeps_short_shots_and_shortens_long_ones():
    found = reduce("moviechat", still(1, 6, 1, noise=0.1), 8, 3 * PLACES)
    frames = [{token // PLACES for token in group} for group in groups(found.plan)]
    assert frames == [*[{0}] * PLACES, *[{1, 2, 3, 4, 5, 6}] * PLACES, *[{7}] * PLACES]


@pytest.mark.parametrize("left", [1, 2, 4, 6])
def test_the_memory_is_a_loop_over_merges(left):
    x = draws(1, 7, PLACES, 6, seed=left).cumsum(1)  # frames that drift
    memory = [(x[0, frame], 1) for frame in range(7)]
    while len(memory) > left:
        alike = [
            F.cosine_similarity(one, other, dim=-1).mean()
            for (one, _), (other, _) in pairwise(memory)
        ]
        at = int(torch.stack(alike).argmax())
        (one, a), (other, b) = memory[at : at + 2]
        memory[at : at + 2] = [((a * one + b * other) / (a + b), a + b)]
    found = reduce("moviechat", x.flatten(1, 2), 7, left * PLACES)
    assert torch.allclose(found.x[0], torch.cat([frame for frame, _ in memory]))


def test_the_most_similar_tokens_join_the_middle_frame_of_their_chunk():
    x = draws(1, 6 * PLACES, CHANNELS)
    plan = reduce("vidtome", x, 6, 5 * PLACES, chunk=3).plan
    cosine = F.normalize(x[0], dim=-1) @ F.normalize(x[0], dim=-1).T
    frame = torch.arange(6 * PLACES) // PLACES
    middle = frame // 3 * 3 + 1
    cosine = cosine.masked_fill(frame != middle[:, None], -2)
    best, partner = cosine.max(-1)
    gone = best.masked_fill(frame == middle, -2).topk(PLACES).indices
    expected = torch.arange(6 * PLACES)
    expected[gone] = partner[gone]
    assert torch.equal(plan.keep[0, plan.dst[0]], expected)


def test_every_kth_frame_is_evenly_spaced():
    kept = reduce("every_kth_frame", still(9), 9, 3 * PLACES + 4).plan.keep[0]
    frames = (kept // PLACES).bincount(minlength=9).tolist()
    assert frames == [0, 12, 0, 12, 0, 12, 0, 4, 0]


# Batches and copies ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MERGING)
def test_a_clip_is_copied_back(name):
    """What was merged takes the value of what it was merged into; a still clip comes back as it was."""
    x = still(4)
    found = reduce(name, x, 4, PLACES)
    back = found.unmerge(found.x)
    kept = found.plan.dst[0] >= 0
    if name in ("moviechat", "vidtome"):
        assert bool(kept.all())
        assert torch.allclose(back, x)
    assert bool(torch.isfinite(back).all())
