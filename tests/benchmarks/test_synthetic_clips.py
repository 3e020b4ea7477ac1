"""Of clips whose redundancy is known, what should be merged over frames is merged, and nothing else."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from benchmarks import synthetic_clips
from benchmarks.synthetic_clips import CUT, FRAMES, N, Share, alike, apply, clips, mixed, share

EVERY = torch.ones(FRAMES, N, dtype=torch.bool)
CLIPS = clips()
found = cache(lambda recipe, clip: apply(recipe, CLIPS[clip]))


@pytest.mark.parametrize("recipe", ["holitom", "prunevid"])
def test_what_is_still_is_merged_over_frames_and_what_moves_is_not(recipe: str) -> None:
    moving = CLIPS["moving"]
    assert share(found(recipe, "moving"), moving.still) == Share(1, 0)
    assert share(found(recipe, "moving"), moving.square).merged == 0
    assert share(found(recipe, "noise"), EVERY).merged == 0
    # What the static tokens of one frame leave of the budget are tokens of single frames.
    assert share(found(recipe, "static"), EVERY) == Share(1 - 1 / FRAMES, 0)


@pytest.mark.parametrize("recipe", ["evs", "longvu"])
def test_what_differs_from_another_frame_is_not_dropped(recipe: str) -> None:
    assert share(found(recipe, "moving"), CLIPS["moving"].square) == Share(0, 0)
    assert share(found(recipe, "moving"), CLIPS["moving"].still).dropped > 0.8


def test_what_moves_can_be_merged_with_itself() -> None:
    """VidToMe's tokens join any place of another frame."""
    assert share(found("vidtome", "moving"), CLIPS["moving"].square).merged == 1
    assert alike(found("vidtome", "moving"), CLIPS["moving"]) > 0.9


@pytest.mark.parametrize("recipe", ["holitom", "prunevid", "fastvid", "earlytom"])
def test_a_cut_separates_segments(recipe: str) -> None:
    cut = found(recipe, "cut")
    assert (cut.starts, mixed(cut, CLIPS["cut"])) == ((0, CUT), 0)


@pytest.mark.parametrize(("recipe", "static", "noise"), [("holitom", 1, 2), ("prunevid", 0.5, 4)])
def test_the_authors_own_counts_follow_the_clip(recipe: str, static: float, noise: float) -> None:
    """In tokens of a frame."""
    for clip, count in (("static", static), ("noise", noise)):
        retained = synthetic_clips.OWN[recipe]
        assert apply(recipe, CLIPS[clip], keep=1.0, retained=retained).tokens == count * N


def test_a_slow_fade_is_static_for_neighbours() -> None:
    """Nothing of the first frame is in the last; each is like the frame before."""
    assert found("holitom", "fade").starts == (0,)
    assert share(found("holitom", "fade"), EVERY).merged == 1 - 1 / FRAMES


def test_each_recipe_over_frames_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic_clips, "OWN", {})
    monkeypatch.setattr(synthetic_clips, "over_frames", lambda: ["every_kth_frame", "random"])
    rows = synthetic_clips.table(tower=False)
    assert rows[2] == "| every_kth_frame |" + " 0 + 75 |" * 3 + "  | 0 | 0 + 75 | 0 + 75 |"
    assert rows[3].startswith("| random | 0 + 75 |")


def test_recipes_over_frames_are_found_and_the_controls_come_last() -> None:
    names = synthetic_clips.over_frames()
    assert {"holitom", "evs", "prunevid"} < set(names)
    assert tuple(names[-2:]) == synthetic_clips.CONTROLS
