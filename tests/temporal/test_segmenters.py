"""Where clips are cut, and the exact rules of each segmenter."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from tests.temporal.clips import PLACES, draws, site, still
from tokenzoo.errors import BadArgumentError
from tokenzoo.temporal import DensityRuns, FrameWindows, SceneCuts, StaticWindows
from tokenzoo.temporal.density_runs import contiguous
from tokenzoo.temporal.segmenter import by_frame, firsts, lengths

SHOTS = (3, 1, 4)
SHOT_OF = [[0, 0, 0, 1, 2, 2, 2, 2]]


@pytest.mark.parametrize("noise", [0.0, 0.1], ids=["still", "noisy"])
@pytest.mark.parametrize(
    "segmenter",
    [SceneCuts(3, -1.0), SceneCuts(1, 0.5), StaticWindows()],
    ids=["lowest", "threshold", "static"],
)
def test_shots_are_found(segmenter, noise):
    evidence = site(still(*SHOTS, noise=noise), 8)
    assert segmenter.segment(evidence).tolist() == SHOT_OF


def test_clusters_of_frames_are_shots():
    # A shot of one frame is dissolved, and joins the longer neighbour.
    evidence = site(still(*SHOTS, noise=0.1), 8)
    assert DensityRuns(3 / 8, 3).segment(evidence).tolist() == [[0, 0, 0, 1, 1, 1, 1, 1]]


def test_a_fade_has_no_lowest_cut_but_is_cut_by_the_least_number():
    a, b = draws(2, PLACES, 48)
    fade = torch.stack([a + (b - a) * step / 7 for step in range(8)]).flatten(0, 1)[None]
    assert SceneCuts(1, 0.5).segment(site(fade, 8)).max() == 0
    assert SceneCuts(4, 0.5).segment(site(fade, 8)).max() == 3


@pytest.mark.parametrize("least", [1, 3, 8, 100])
def test_the_least_number_of_segments_is_met_as_long_as_there_are_frames(least):
    segment = SceneCuts(least, -1.0).segment(site(draws(2, 6 * PLACES, 5), 6))
    assert segment.amax(1).tolist() == [min(least, 6) - 1] * 2


def test_frames_can_be_compared_by_other_features():
    x, other = still(8), still(*SHOTS)
    layers = {"frame": site(other, 8)}
    evidence = site(x, 8)
    evidence._layers = layers  # as at={"frame": ...} gives it
    assert SceneCuts(1, 0.5, "frame").segment(evidence).tolist() == SHOT_OF
    assert SceneCuts(1, 0.5).segment(evidence).tolist() == [[0] * 8]


@pytest.mark.parametrize("longest", [2, 3, 1024])
@pytest.mark.parametrize("seed", range(6))
def test_static_windows_save_as_much_as_the_best_of_all_cuts(longest, seed):
    frames = 7
    fresh = draws(3, frames, PLACES, 8, seed=seed)
    changes = draws(3, frames, PLACES, 1, seed=seed + 50) < -0.6
    shown = [fresh[:, 0]]
    for frame in range(1, frames):
        shown.append(torch.where(changes[:, frame], fresh[:, frame], shown[-1]))
    x = torch.stack(shown, 1)  # [3, f, n, c]
    evidence = site(x.flatten(1, 2), frames)
    segmenter = StaticWindows(0.5, longest)
    gain, found = segmenter.gains(evidence), segmenter.segment(evidence)
    for row in range(3):
        best = 0
        for cuts in product((False, True), repeat=frames - 1):
            ends = [i for i, cut in enumerate((*cuts, True)) if cut]
            begins = [0, *(end + 1 for end in ends[:-1])]
            if all(end - begin < longest for begin, end in zip(begins, ends, strict=True)):
                saved = sum(int(gain[row, i, j]) for i, j in zip(begins, ends, strict=True))
                best = max(best, saved)
        windows = [(found[row] == k).nonzero()[:, 0] for k in range(int(found[row].max()) + 1)]
        assert max(len(window) for window in windows) <= longest
        assert sum(int(gain[row, w[0], w[-1]]) for w in windows) == best


def test_a_window_that_saves_nothing_is_cut():
    assert StaticWindows().segment(site(draws(1, 4 * PLACES, 48), 4)).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("label", "segment"),
    [
        ("aaaa", "0000"),
        ("aabb", "0011"),
        ("abab", "0000"),  # no run of two: one segment
        ("aaab", "0000"),
        ("baaa", "0000"),
        ("aabaa", "00000"),  # both runs of a are its longest; b joins the earlier
        ("aabaaa", "000000"),  # the shorter run of a is no segment, and joins with b
        ("aacbbb", "001111"),  # the longer neighbour
        ("aaacbb", "000011"),
        ("aacbb", "00011"),  # as long: the earlier
        ("aacdbbb", "0011111"),
        ("aabbabb", "0011111"),  # the lone a joins the segment that it lies in
    ],
)
def test_clusters_become_contiguous(label, segment):
    labels = torch.tensor([["abcd".index(letter) for letter in label]])
    assert contiguous(labels).tolist() == [[int(number) for number in segment]]


def test_windows_and_what_is_known_of_segments():
    segment = FrameWindows(3).segment(site(draws(2, 7 * 2, 3), 7))
    assert segment.tolist() == [[0, 0, 0, 1, 1, 1, 2]] * 2
    assert lengths(segment)[0].tolist() == [3, 3, 3, 3, 3, 3, 1]
    assert firsts(segment)[0].tolist() == [0, 0, 0, 3, 3, 3, 6]


def test_frames_have_equally_many_tokens():
    with pytest.raises(BadArgumentError, match="10 tokens in 4 frames"):
        by_frame(draws(1, 10, 3), 4)
