"""The task `clips`: clips show what is said of them, answers are right, prompts and controls are scored."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files

import pytest
import torch
from safetensors.torch import load

import tokenzoo
from tests.evaluation.subjects import images_encoded, small_llava
from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation import Job, Subject, TaskOptions, focus_vit, jobs, run
from tokenzoo.evaluation.sweep import attach, with_controls
from tokenzoo.evaluation.tasks import OWN_CONTROLS, prepare
from tokenzoo.evaluation.tasks import clips as task
from tokenzoo.evaluation.vqa import clip_model, llava
from tokenzoo.evaluation.vqa.clip_questions import (
    CLIP_COARSE,
    CLIP_FINE,
    CLIP_KINDS,
    Timeline,
    ask_clip,
    timelines,
)
from tokenzoo.evaluation.vqa.clip_samples import questions_of
from tokenzoo.evaluation.vqa.clip_words import CLIP_WORDS
from tokenzoo.evaluation.vqa.clips import CELLS, FRAMES, GRID, SIDE, clips
from tokenzoo.evaluation.vqa.collages import COLOURS
from tokenzoo.evaluation.vqa.words import VOCABULARY
from tokenzoo.hooks.state import joins_frames


@pytest.fixture(scope="module")
def cells() -> torch.Tensor:
    """Pixels of the cells of six clips of seed 1, `[6, 8, 4, 3, 42 * 42]`."""
    images = clips("test", 6, seed=1).images
    assert images.shape == (6, FRAMES, 3, GRID * SIDE, GRID * SIDE)
    parts = images.unfold(3, SIDE, SIDE).unfold(4, SIDE, SIDE).permute(0, 1, 3, 4, 2, 5, 6)
    return parts.reshape(6, FRAMES, CELLS, 3, -1)


def test_a_clip_shows_its_colours_and_its_dot(cells: torch.Tensor) -> None:
    told = clips("test", 6, seed=1).story
    white = (cells.amin(3) > 0.8).sum(3)  # [b, f, 4]
    assert white.argmax(2).equal(told.dots)
    lit = cells.amax(3, keepdim=True) > 0.45
    seen = (cells * lit).sum(4) / lit.sum(4)  # [b, f, 4, 3]
    dot = torch.nn.functional.one_hot(told.dots, CELLS).bool()  # white pixels change the mean
    nearest = torch.cdist(seen, 0.8 * torch.tensor(list(COLOURS.values()))).argmin(3)
    assert nearest[~dot].equal(told.seen(told.colours)[~dot])


def test_cells_stay_as_they_are_but_for_their_change_and_the_dot(cells: torch.Tensor) -> None:
    told = clips("test", 6, seed=1).story
    apart = (cells[:, 1:] - cells[:, :-1]).abs().mean((3, 4))  # [b, f - 1, 4]
    dot = torch.nn.functional.one_hot(told.dots, CELLS).bool()
    still = ~dot[:, 1:] & ~dot[:, :-1]
    new = told.changes[:, None] == torch.arange(1, FRAMES)[:, None]  # [b, f - 1, 4]
    assert apart[~new & still].max() < 0.06 < apart[new & still].min()
    changed = new.sum((1, 2))
    assert changed[told.cuts == 0].unique().tolist() == [1, 2]
    assert (changed[told.cuts > 0] == CELLS).all()
    assert (told.changes == told.cuts[:, None])[told.cuts > 0].all()
    assert (told.digits[:, 0] != told.digits[:, 1]).all()


def test_clips_are_drawn_again() -> None:
    first, again, other = (clips("train", 3, seed=seed, frames=4) for seed in (5, 5, 6))
    assert first.images.shape[1] == 4
    assert first.images.equal(again.images)
    assert not first.story.digits.equal(other.story.digits)


# a1 goes from a red 3 to a green 7 in the third of four frames, b2 keeps its yellow 5.
CLIP = Timeline(
    digits=[[3, 1, 2, 5], [3, 1, 2, 5], [7, 1, 2, 5], [7, 1, 2, 5]],
    colours=[[0, 1, 2, 3], [0, 1, 2, 3], [1, 1, 2, 3], [1, 1, 2, 3]],
    changes=[2, 0, 0, 0],
    cut=0,
    dots=[0, 0, 1, 3],
)
ANSWERS = {
    "colour at a1-two": "red",
    "colour at a1-three": "green",
    "digit at b2-four": "digit5",
    "digit at a1-three": "digit7",
    "count all red-a1": "two",
    "count all green-a2": "four",
    "count all blue-a2": "none",
    "digit at a1-first": "digit3",
    "digit at a1-last": "digit7",
    "when is change-a1": "three",
    "when is change-b1": "none",
    "when is cut": "none",
    "where is dot-two": "a1",
    "where is dot-four": "b2",
}


def test_answers_are_right() -> None:
    rng = random.Random(0)
    asked = [ask_clip(kind, CLIP, rng) for kind in CLIP_KINDS for _ in range(400)]
    found = {" ".join(one.words[:-1]): one.answer for one in asked}
    assert {words: found[words] for words in ANSWERS} == ANSWERS
    cut = Timeline(CLIP.digits, CLIP.colours, [2, 2, 2, 2], 2, CLIP.dots)
    assert ask_clip("cut-when", cut, rng).answer == "three"
    assert all(CLIP_WORDS.encode(one.words) for one in asked)


def test_words_of_collages_have_the_same_tokens() -> None:
    assert CLIP_WORDS.words[: len(VOCABULARY)] == VOCABULARY


@pytest.fixture
def subject(monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setattr(task, "load_clip_llava", lambda: small_llava(CLIP_WORDS))
    return prepare("clips", TaskOptions(samples=2))


def words_of(subject: Subject, ids: list[int], frames: torch.Tensor) -> str:
    """The most likely next word after one prompt about frames `[f, 3, H, W]`."""
    logits = subject.model(input_ids=torch.tensor([ids]), pixel_values=frames).logits
    return CLIP_WORDS.words[int(logits[0, -1].argmax())]


def said(words: Sequence[str], frames: list[str], tokens: int) -> list[int]:
    """A prompt, written word by word."""
    text = ["<bos>"]
    for frame in frames:
        text += ["frame", frame, *["<image>"] * tokens]
    return CLIP_WORDS.encode([*text, *words])


NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]


@pytest.mark.parametrize("recipe", ["tome", "holitom", None])
def test_scores_are_those_of_the_words_that_are_most_likely(
    subject: Subject, recipe: str | None
) -> None:
    """Each prompt alone, frames by their numbers, with a recipe attached and without."""
    drawn = clips("test", 2, seed=0)
    images, questions = focus_vit.images_of(drawn.images), questions_of(drawn, 0)
    if recipe is not None:
        attach(Job(recipe, 9), subject)
    with torch.no_grad():
        outcome = subject.score(subject.model, range(1, 2), "")
        right = [
            float(words_of(subject, said(one.words, NUMBERS, 36), images[1]) == one.answer)
            for one in questions[1]
        ]
    scores = {name: value.item() for name, value in outcome.scores.items()}
    assert [scores[kind] for kind in CLIP_KINDS] == right
    assert scores["coarse"] == pytest.approx(sum(right[: len(CLIP_COARSE)]) / len(CLIP_COARSE))
    assert scores["fine"] == pytest.approx(sum(right[len(CLIP_COARSE) :]) / len(CLIP_FINE))


@pytest.mark.parametrize(
    ("name", "encoded"),
    [("evoprune", 8), ("divprune", 8), ("fastv", 8), (None, 8), ("cdpruner", 56), ("holitom", 8)],
)
def test_a_clip_is_encoded_once_for_all_of_its_questions(
    subject: Subject, name: str | None, encoded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the question decides which tokens are kept."""
    if name is not None:
        attach(Job(name, 16), subject)
    assert images_encoded(subject, monkeypatch) == [encoded, encoded, 56, 56]


def test_fewer_frames_are_whole_ones_under_their_own_numbers(subject: Subject) -> None:
    drawn = clips("test", 2, seed=0)
    images, questions = focus_vit.images_of(drawn.images), questions_of(drawn, 0)
    control = subject.controls["fewer-frames"](0.25)
    with torch.no_grad():
        found = control.score(subject.model, range(2), "").answers
        wanted = [
            [
                words_of(subject, said(one.words, ["three", "seven"], 36), frames[[2, 6]])
                for one in asked
            ]
            for frames, asked in zip(images, questions, strict=True)
        ]
    assert found is not None
    assert [[CLIP_WORDS.words[one] for one in row] for row in found.tolist()] == wanted
    assert (control.tokens, control.flops) == (9, 0.25)


def test_a_sweep_has_rows_of_the_controls_of_the_task(subject: Subject) -> None:
    wanted = with_controls(subject, jobs(["evoprune", "fastv"], [0.25, 16]))
    assert [job.recipe for job in wanted[:4]] == [*OWN_CONTROLS] * 2
    bare, *rows = run(subject, wanted, rounds=0)
    found = {(row.key.recipe, row.key.keep): row for row in rows}
    assert bare.agreement == [1, 1]
    tokens = {key: (row.status, row.tokens) for key, row in found.items()}
    assert tokens == {
        ("evoprune", 0.25): ("ok", 9),
        ("fastv", 0.25): ("ok", 36),  # enter the Llama
        ("evoprune", 16): ("ok", 16),
        ("fastv", 16): ("ok", 36),
        ("fewer-frames", 0.25): ("ok", 9),
        ("smaller-frames", 0.25): ("ok", 9),
        ("fewer-frames", 16): ("refused", None),
        ("smaller-frames", 16): ("ok", 16),
    }
    assert "3.56 of 8 frames" in found["fewer-frames", 16].reason
    assert found["smaller-frames", 16].scores["right"] != []
    (timed,) = list(run(subject, [Job("fewer-frames", 0.125)], rounds=1))[1:]
    assert timed.time[0] < 1  # one frame, against eight


def test_recipes_over_frames_run_on_clips_and_only_on_clips(subject: Subject) -> None:
    recipes = {name: tokenzoo.build(name, keep=0.25).recipe for name in tokenzoo.list_recipes()}
    names = [name for name, recipe in recipes.items() if any(map(joins_frames, recipe.steps))]
    assert len(names) > 2
    _, *rows = run(subject, jobs(names, [0.25]), rounds=0)
    assert [(row.reason, row.tokens) for row in rows] == [("", 9)] * len(names)
    _, *rows = run(replace(subject, videos=False), jobs(names, [0.25]), rounds=0)
    assert all("works over the frames of a video, and clips shows" in row.reason for row in rows)


def test_a_frame_of_18_patches_is_not_square(subject: Subject) -> None:
    with pytest.raises(BadArgumentError, match="18 patches are not a square frame; 1, 4, 9, 16"):
        subject.controls["smaller-frames"](0.5)


def test_weights_know_the_words_of_clips_and_the_tower_has_the_blocks_that_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = load((files("tokenzoo") / "weights" / clip_model.WEIGHTS).read_bytes())
    assert not [name for name in state if name.startswith(llava.TOWER)]
    focus = focus_vit.FocusViT(focus_vit.backbone())
    whole = copy.deepcopy(focus.backbone).eval()
    monkeypatch.setattr(focus_vit, "load_focus_vit", lambda: focus)
    made = clip_model.load_clip_llava()
    loaded = made.state_dict()
    assert all(loaded[name].equal(value.float()) for name, value in state.items())
    assert len(loaded["lm_head.weight"]) == len(CLIP_WORDS.words)
    tower, images = made.model.vision_tower, torch.randn(1, 3, 84, 84)
    with torch.no_grad():
        found, wanted = (
            one(pixel_values=images, output_hidden_states=True).hidden_states[llava.LAYER]
            for one in (tower, whole)
        )
    assert len(tower.encoder.layer) == tower.config.num_hidden_layers == 9
    assert torch.equal(found, wanted)


def test_the_model_cannot_be_chosen() -> None:
    with pytest.raises(BadArgumentError, match=r"model=.*leave model away"):
        prepare("clips", TaskOptions(model="vit"))


def test_all_kinds_are_asked_of_every_clip() -> None:
    drawn = clips("test", 8, seed=2)
    kinds = [[one.kind for one in row] for row in questions_of(drawn, 0)]
    assert kinds == [list(CLIP_KINDS)] * len(timelines(drawn.story))
