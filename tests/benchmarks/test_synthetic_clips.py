"""Of clips whose redundancy is known, what should be merged over frames is merged, and nothing else."""

from __future__ import annotations

from functools import cache

import pytest

from benchmarks.synthetic_clips import CUT, FRAMES, RECIPES, Seen, clips, own_count, seen


@pytest.fixture(scope="module")
def found():
    """What a recipe makes of a clip."""
    made = clips()

    @cache
    def of(clip: str, recipe: str) -> Seen:
        return seen(recipe, made[clip])

    return of


@pytest.mark.parametrize("recipe", ["holitom", "prunevid"])
def test_what_is_still_is_merged_over_frames_and_what_moves_is_not(found, recipe) -> None:
    for clip in ("static", "moving", "cut"):
        assert found(clip, recipe).still == 1, clip
    assert found("moving", recipe).square == 0
    assert found("noise", recipe).others == 0


def test_fastvid_merges_all_but_salient_tokens_over_the_frames_of_a_segment(found) -> None:
    moving = found("moving", "fastvid")
    assert 0.85 < moving.still < 1
    assert moving.square > 0.9


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_cut_separates_segments(found, recipe) -> None:
    assert found("moving", recipe).starts == (0, *([CUT] if recipe == "prunevid" else []))
    cut = found("cut", recipe)
    assert (cut.starts, cut.mixed) == ((0, CUT), 0)


@pytest.mark.parametrize(
    ("recipe", "static", "noise"), [("holitom", 1, 0.25), ("prunevid", 0.5, 0.5)]
)
def test_the_authors_own_counts_follow_the_clip(recipe, static, noise) -> None:
    """A static clip costs a frame, or half of one; noise that share of all frames."""
    made = clips()
    assert own_count(recipe, made["static"]) == static
    assert own_count(recipe, made["noise"]) == FRAMES * noise


def test_a_slow_fade_is_static_for_neighbours(found) -> None:
    """Nothing of the first frame is in the last; each is like the frame before."""
    fade = found("fade", "holitom")
    assert (fade.starts, fade.others) == ((0,), 1)
    assert found("fade", "prunevid").starts == (0, CUT)
