"""`tune`: targets, halving, who wins, and what is promised of the winner."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from tokenzoo_adapters.common.image_size import resized, smaller_grid

import tokenzoo
from tests.adapters.hf import models as hf
from tests.adapters.models import GAP, VIT
from tokenzoo.budget import TokenBudget
from tokenzoo.errors import BadArgumentError, BudgetError
from tokenzoo.evaluation import Job, Subject, candidates
from tokenzoo.evaluation import tune as tuning
from tokenzoo.evaluation.candidates import MORE, Candidate
from tokenzoo.evaluation.largest_share import SLACK
from tokenzoo.evaluation.models import vision_model
from tokenzoo.evaluation.patch_grid import enlarged
from tokenzoo.evaluation.target import Target, parse_target
from tokenzoo.evaluation.tune import VARIANTS, rungs, tune
from tokenzoo.evaluation.unlabelled import divergence, subject_of, unlabelled
from tokenzoo.recipes.controls import CONTROLS

IMAGES = torch.randn(24, 3, 112, 112, generator=torch.Generator().manual_seed(0))


def toy(images: int = 24) -> Subject:
    model = VIT.build(depth=6, img_size=112)
    return subject_of(model, IMAGES[:images], "vit", {})


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is what the plan costs, and a tenth more."""

    def relative_time(subject: Subject, twin: Any, rounds: int) -> list[float]:
        del twin, rounds
        return [1.1 * subject.model._tokenzoo_attached.plan(49).flops] * 3

    monkeypatch.setattr(candidates, "relative_time", relative_time)


def test_targets() -> None:
    for text, kind, value in (
        *[("0.5x", "time", 0.5), (".25x", "time", 0.25), ("64", "tokens", 64)],
        *[(" 1 ", "tokens", 1), ("0.25", "tokens", 0.25)],
    ):
        found = parse_target(text)
        assert (found, type(found.value)) == (Target(kind, value), type(value))
    for text in ("", "x", "1x", "0x", "2x", "0", "1.5", "-3", "50%", "9" * 30, "nan"):
        with pytest.raises(BadArgumentError, match=r"0\.5x"):
            parse_target(text)


@pytest.mark.parametrize("samples", [8, 9, 16, 24, 31, 32, 100])
def test_rungs_show_every_image_once(samples: int) -> None:
    steps = list(rungs(samples))
    assert (steps[0][0], steps[-1][1]) == (0, samples)
    assert all(before[1] == after[0] for before, after in pairwise(steps))
    assert all(more - seen >= 8 for seen, more in steps)


@pytest.mark.usefixtures("steady")
def test_a_time_is_met_with_the_most_tokens(tmp_path: Path) -> None:
    found = tune(toy(), Target("time", 0.7), ["evoprune", "tome", "fastv"], rounds=1)
    assert set(found.refused) >= {"fastv"}
    assert {"random", "uniform", "pool"} <= {one.job.recipe for one in found.finalists}
    for one in (*found.finalists, *found.dropped):
        assert one.time[0] <= 0.7 * SLACK
        assert one.budget.flops > 0.45
    assert len(found.dropped) >= 2
    assert all(len(one.scores) == 24 for one in found.finalists)
    assert {len(one.scores) for one in found.dropped} == {8, 16}
    winner = found.winner
    winner.job.method().save(tmp_path / "recipe.json")
    model = VIT.build(depth=6, img_size=112)
    with tokenzoo.load(tmp_path / "recipe.json").attach(model) as attached, torch.no_grad():
        model(IMAGES[:1])
        assert attached.counts == winner.budget.blocks


@pytest.mark.filterwarnings("error:.*takes images of several sizes")
def test_budgets_are_those_of_the_images_that_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the configured image a recipe may not reach them, which is no news to the user."""
    model = hf.tower("dinov2", image_size=196)  # 14 x 14 patches
    images = hf.pixels(hf.tower("dinov2"), batch=8)["pixel_values"]  # 8 x 8
    subject = subject_of(model, images, "dinov2", {})

    def relative_time(subject: Subject, *_: object) -> list[float]:
        with torch.no_grad():
            subject.call(subject.model)
        return [0.6] * 3

    monkeypatch.setattr(candidates, "relative_time", relative_time)
    found = tune(subject, Target("time", 0.6), ["tome"], rounds=1)
    tokens = {one.job.recipe: one.tokens for one in found.finalists}
    assert set(tokens) == {"tome", *CONTROLS}
    assert tokens["downsample"] == 40  # 41 cost 0.6 of the operations, and are not a rectangle


def test_the_times_of_the_finalists_are_not_the_luckiest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rounds see four fifths of the time; after more of them there are fewer tokens, scored anew."""
    shown: list[int] = []

    def relative_time(subject: Subject, twin: object, rounds: int) -> list[float]:
        del twin
        return [(1.1 if rounds == MORE else 0.9) * subject.model._tokenzoo_attached.plan(49).flops]

    whole = toy(8)

    def score(model: Any, which: range, label: str) -> Any:
        shown.append(len(which))
        return whole.score(model, which, label)

    monkeypatch.setattr(candidates, "relative_time", relative_time)
    found = tune(replace(whole, score=score), Target("time", 0.7), ["tome"], rounds=1)
    for one in found.finalists:
        assert 0.9 * 0.7 < one.time[0] == 1.1 * one.budget.flops <= 0.7 * SLACK
        assert len(one.scores) == 8
    assert shown[-len(found.finalists) :] == [8] * len(found.finalists)

    def slow(subject: Subject, twin: object, rounds: int) -> list[float]:
        return [0.9] if rounds == MORE else relative_time(subject, twin, rounds)

    monkeypatch.setattr(candidates, "relative_time", slow)
    with pytest.raises(BadArgumentError, match=r"tome came down to 0\.90 of the time, not to 0\.7"):
        tune(whole, Target("time", 0.7), ["tome"], rounds=1)


@pytest.mark.usefixtures("steady")
def test_a_count_is_the_same_for_all() -> None:
    found = tune(toy(8), Target("tokens", 16), ["tome"], rounds=1)
    assert {one.budget.visual for one in (*found.finalists, *found.dropped)} == {16}
    assert found.against is not None
    fastest, *others = found.front
    assert all(fastest.time[0] <= one.time[0] and fastest.mean < one.mean for one in others)
    with pytest.raises(BadArgumentError, match="no recipe meets the target on vit"):
        tune(toy(8), Target("time", 0.05), ["evoprune"], rounds=1)


def ranked(*scores: float, times: tuple[float, ...], names: tuple[str, ...]) -> list[Candidate]:
    budget = TokenBudget.__new__(TokenBudget)  # only its place is needed
    return [
        Candidate(Job(name, 16), budget, [time], tuple(score + 0.01 * i for i in range(8)))
        for score, time, name in zip(scores, times, names, strict=True)
    ]


@pytest.mark.parametrize(
    ("scores", "noise", "winner"),
    [
        ((0.9, 0.899, 0.8), 0.0, "evoprune"),  # faster, and loses a hundredth of the way to `pool`
        ((0.9, 0.89, 0.8), 0.0, "tome"),  # a tenth of it
        ((0.9, 0.899, 0.8), 0.2, "tome"),  # not told apart, which shows nothing
    ],
)
def test_a_faster_winner_is_shown_to_lose_little(
    scores: tuple[float, ...], noise: float, winner: str
) -> None:
    best, faster, pool = ranked(*scores, times=(0.6, 0.5, 0.1), names=("tome", "evoprune", "pool"))
    noisy = tuple(score + noise * (-1) ** i for i, score in enumerate(faster.scores))
    assert tuning._winner([best, replace(faster, scores=noisy), pool]).job.recipe == winner
    control = ranked(0.9, 0.9, times=(0.6, 0.5), names=("pool", "evoprune"))
    assert tuning._winner(control).job.recipe == "pool"


def test_variants_are_options_of_their_recipes() -> None:
    for name, variants in VARIANTS.items():
        for options in variants:
            assert tokenzoo.build(name, keep=16, **options).options == {"keep": 16, **options}


def test_likeness_of_a_classifier() -> None:
    subject = toy(8)
    whole = subject.score(subject.model, range(8), "")
    assert torch.allclose(whole.scores["likeness"], torch.ones(8).double())
    with tokenzoo.build("random", keep=4).attach(subject.model):
        less = subject.score(subject.model, range(2, 5), "")
    assert less.answers is not None
    assert less.answers.shape == (3,)
    assert bool((less.scores["likeness"] < 1).all())
    even, sure = torch.zeros(1, 2), torch.tensor([[0.0, -100.0]])
    assert divergence(sure, even).item() == pytest.approx(0.6931472)


@pytest.mark.parametrize("kind", ["features", "dense"])
def test_likeness_of_features(kind: str) -> None:
    if kind == "features":
        model = GAP.build(depth=4, img_size=112, num_classes=0)
        subject = subject_of(model, IMAGES[:8], "gap", {})
    else:
        model = hf.tower("dinov2")
        subject = subject_of(model, hf.pixels(model, batch=8)["pixel_values"], "dinov2", {})
    assert subject.score(model, range(8), "").answers is None
    with tokenzoo.build("tome", keep=0.5).attach(model, **subject.attach):
        found = subject.score(model, range(8), "").scores["likeness"]
    assert found.shape == (8,)
    assert bool((found < 0.9999).all())


def test_a_folder_of_images(tmp_path: Path) -> None:
    good, broken, empty = (tmp_path / name for name in ("good", "broken", "empty"))
    for folder in (good, broken, empty):
        folder.mkdir()
    for index in range(9):
        Image.new("RGB", (40, 30), (index * 20, 100, 50)).save(good / f"{index}.png")
        (broken / f"{index}.png").write_bytes(b"no image")
    subject = unlabelled("vit_tiny_patch16_224", good, size=None, count=8)
    assert (subject.samples, subject.facts["size"]) == (8, [224, 224])
    for folder, count, named in (
        *[(good, 7, "7 images"), (broken, 8, "[0-9].png")],
        *[(tmp_path / "none", 8, "not a folder"), (empty, 8, "holds no image")],
    ):
        with pytest.raises(BadArgumentError, match=named):
            unlabelled("vit_tiny_patch16_224", folder, count=count)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_mean": [0.5, 0.25, 0.125], "image_std": [0.5, 0.5, 0.5]}, (0.125, 0.5)),
        ({"do_normalize": False}, (0.0, 1.0)),
    ],
)
def test_a_checkpoint_folder_says_how_images_are_normalised(
    options: dict[str, Any], said: tuple[float, float], tmp_path: Path
) -> None:
    hf.tower("siglip").save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="does not say how its images are normalised"):
        vision_model(str(tmp_path))
    transformers.SiglipImageProcessor(**options).save_pretrained(tmp_path)
    found = vision_model(str(tmp_path))
    assert (found.mean[2].item(), found.std[2].item()) == said


@pytest.mark.filterwarnings("ignore:.*does not say how")
def test_a_checkpoint_folder_has_its_own_weights(tmp_path: Path) -> None:
    model = hf.tower("dinov2")
    model.save_pretrained(tmp_path)
    found = vision_model(str(tmp_path)).model
    assert all(
        torch.equal(ours, own)
        for ours, own in zip(found.parameters(), model.parameters(), strict=True)
    )


@pytest.mark.parametrize("keep", [16, 40])
def test_what_a_smaller_image_leaves_is_compared_on_the_whole_grid(keep: int) -> None:
    model = hf.tower("dinov2")  # 8 x 8 patches
    subject = subject_of(model, hf.pixels(model, batch=8)["pixel_values"], "dinov2", {})
    with tokenzoo.build("downsample", keep=keep).attach(model, **subject.attach):
        found = subject.score(model, range(8), "").scores["likeness"]
    assert found.shape == (8,)
    assert bool((found < 0.9999).all())


def test_the_grid_of_a_smaller_image_is_that_of_the_adapter() -> None:
    """Features are where the patches were: of a ramp to the right every row is the same."""
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    for keep in range(1, 256):
        try:
            rows, columns = smaller_grid((16, 16), keep)
        except BudgetError:
            with pytest.raises(BadArgumentError, match=f"{keep} of 256 patches are left"):
                enlarged(torch.zeros(1, keep, 1), 256)
            continue
        found = enlarged(resized(ramp, rows, columns).flatten(2).mT, 256)  # [1, 256, 1]
        assert bool((found.view(16, 16).diff(dim=0).abs() < 1e-3).all())


@pytest.mark.usefixtures("steady")
def test_a_candidate_whose_outputs_cannot_be_compared_is_refused() -> None:
    subject = toy(8)
    bare = subject.score

    def score(model: Any, which: range, label: str) -> Any:
        if "uniform" in label:
            raise BadArgumentError("no square grid")
        return bare(model, which, label)

    found = tune(replace(subject, score=score), Target("tokens", 16), ["tome"], rounds=1)
    assert found.refused == {"uniform": "no square grid"}
    assert all(one.job.recipe != "uniform" for one in (*found.finalists, *found.dropped))


@pytest.mark.parametrize("per_patch", [True, False])
@pytest.mark.usefixtures("steady")
def test_a_recipe_that_saves_nothing_is_no_candidate_for_a_class(per_patch: bool) -> None:
    """After the last block CLS has seen all tokens: its answer would be perfect, and nothing faster."""
    found = tune(
        replace(toy(8), per_patch=per_patch), Target("tokens", 16), ["tome", "fopru"], rounds=1
    )
    assert ("fopru" in found.refused) != per_patch
    assert ("fopru" in {one.job.recipe for one in found.finalists}) == per_patch
