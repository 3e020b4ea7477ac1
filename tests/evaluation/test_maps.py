"""Maps for the report: what is drawn is what the pass did, and the samples are those of the rows."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

import tokenzoo
from tests.adapters.models import VIT
from tests.evaluation.subjects import small_llava
from tests.evaluation.test_report import Parsed
from tests.evaluation.test_report import small_library as small_library
from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation import Row, Subject, TaskOptions, jobs, maps, report, run
from tokenzoo.evaluation.focus_vit import FocusViT
from tokenzoo.evaluation.maps import SIDE, TASKS, Picture, draw, owners, subject_for
from tokenzoo.evaluation.summary import Summary, summarize
from tokenzoo.evaluation.tasks import OWN_IMAGES, collage_vqa, dense, digits, prepare
from tokenzoo.token_map import TokenMap

RECIPES = ("evoprune", "random", "downsample")


@pytest.fixture
def collages(monkeypatch: pytest.MonkeyPatch) -> Subject:
    """Six collages, and a small model of 64 tokens in place of the shipped one."""
    model = VIT.build(depth=4, img_size=64, patch_size=8, num_classes=60)
    monkeypatch.setattr(digits.digits, "load_digits_vit", lambda: model)
    return prepare("digits", TaskOptions(samples=6))


def rows(subject: Subject, recipes: tuple[str, ...], keeps: tuple[int | float, ...]) -> list[Row]:
    return list(run(subject, jobs(recipes, keeps), rounds=0))


def summary(subject: Subject, recipes: tuple[str, ...], *keeps: int | float) -> Summary:
    [found] = summarize(rows(subject, recipes, keeps), ("random", "downsample"))
    return found


def pixels(picture: Picture) -> np.ndarray:
    kind, _, content = picture.url.partition(";base64,")
    assert kind == "data:image/webp"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))


def test_a_map_for_each_recipe_budget_and_sample(collages: Subject) -> None:
    one = summary(collages, RECIPES, 16, 0.5)
    found = draw(one, collages, 2)
    assert list(found.samples) == [0, 3]
    assert [line.name for line, _ in found.lines] == [line.name for line in one.lines]
    assert {line.key.keep for line, _ in found.lines} == {16, 0.5}
    for line, pictures in found.lines:
        assert [min(pixels(picture).shape[:2]) for picture in pictures] == [SIDE] * 2
        tokens = 16 if line.key.keep == 16 else 32
        for picture, place in zip(pictures, (0, 3), strict=True):
            start = f"{line.name} at {line.key.keep}, digits, sample {place}: "
            text = picture.text.removeprefix(start)
            assert text != picture.text
            if line.name == "random":
                assert text == f"64 patches in {tokens} tokens, {64 - tokens} dropped"
            elif line.name == "evoprune":
                assert text == f"64 patches in {tokens} tokens"
    assert found.size == sum(len(url) for url in _urls(found))
    assert not hasattr(collages.model, "_tokenzoo_attached")


def _urls(found: maps.Maps) -> list[str]:
    pictures = [*found.originals, *(one for _, some in found.lines for one in some)]
    return [one.url for one in pictures]


def test_the_map_is_that_of_the_pass(collages: Subject) -> None:
    """The map of the second sample is not that of the first, and equals the record of its pass."""
    seen: list[tuple[Tensor, ...]] = []

    def note(image: Tensor, plan: TokenMap, grid: Any, prefix: int, **_: Any) -> Tensor:
        seen.append((image, plan.dst[0]))
        return image.repeat_interleave(4, 1).repeat_interleave(4, 2)

    one = summary(collages, ("evoprune",), 16)
    assert collages.shown is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maps, "merged_groups", note)
        draw(one, collages, 2)
    method = tokenzoo.build("evoprune", keep=16)
    with method.attach(collages.model, trace=True) as attached, torch.no_grad():
        for (image, owner), place in zip(seen, (0, 3), strict=True):
            collages.model(collages.shown.images[place : place + 1])
            assert torch.equal(owner, attached.record.dst[0, 1:] - 1)
            assert torch.equal(image, collages.shown.images[place] / 2 + 0.5)
    assert not torch.equal(seen[0][1], seen[1][1])


def test_plans_of_tower_projector_and_language_model_are_one() -> None:
    """Prefix tokens are before the patches in the tower, and gone after it; what is dropped stays so."""
    tower = TokenMap(torch.tensor([[0, 1, 3]]), torch.tensor([[0, 1, 1, 2, -1]]))
    after = TokenMap(torch.tensor([[1]]), torch.tensor([[-1, 0]]))
    assert owners([], 4).tolist() == [0, 1, 2, 3]
    assert owners([tower], 4).tolist() == [0, 0, 1, -1]
    assert owners([tower, after], 4).tolist() == [-1, -1, 0, -1]


@pytest.mark.parametrize(("recipe", "rest"), [("trim", ""), ("fastv", ", 240 dropped")])
def test_maps_of_what_is_reduced_after_the_tower(
    recipe: str, rest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collage_vqa, "load_collage_llava", small_llava)
    subject = prepare("collage-vqa", TaskOptions(samples=2))
    [(_, [picture])] = draw(summary(subject, (recipe,), 16), subject, 1).lines
    assert picture.text.endswith(f"256 patches in 16 tokens{rest}")


def test_tasks_with_images_of_their_own_can_be_drawn() -> None:
    assert set(OWN_IMAGES) - set(TASKS) == {"clips"}  # a sample is eight images


def test_restored_features_have_the_maps_of_what_was_scored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = Dinov2Config(
        hidden_size=384, num_attention_heads=6, num_hidden_layers=2, image_size=224, patch_size=14
    )
    torch.manual_seed(0)
    monkeypatch.setattr(dense, "load_focus_vit", lambda: FocusViT(Dinov2Model(config)).eval())
    subject = prepare("dense", TaskOptions(samples=2, size=112))
    found = draw(summary(subject, ("tome", "downsample"), 16), subject, 1)
    texts = {line.name: picture.text for line, [picture] in found.lines}
    assert texts["tome"].endswith("64 patches in 16 tokens")
    assert texts["downsample"].endswith("a smaller image, 4 x 4 patches")
    assert found.refused == {}


def test_other_samples_than_those_of_the_rows_are_refused(collages: Subject, tmp_path: Any) -> None:
    one = summary(collages, ("pool",), 16)
    assert subject_for(one).facts == collages.facts
    for facts, words in (
        ({**one.facts, "split": "train"}, "'train'.*'test'.*--maps digits=PATH"),
        ({**one.facts, "samples": "six"}, "samples='six'"),
    ):
        with pytest.raises(BadArgumentError, match=words):
            subject_for(replace(one, facts=facts))
    with pytest.raises(BadArgumentError, match="maps of 'knn'; there are maps of digits"):
        subject_for(replace(one, task="knn"))
    with pytest.raises(BadArgumentError, match="its model and images are fixed"):
        subject_for(one, tmp_path)


def test_what_cannot_be_drawn(collages: Subject) -> None:
    one = summary(collages, ("pool", "uniform"), 16)
    with pytest.raises(BadArgumentError, match="maps of 7 samples of digits, which has 6"):
        draw(one, collages, 7)
    with pytest.raises(
        BadArgumentError, match=r"larger than the 4 MB .* at 1 of 2 .*--map-images 1"
    ):
        draw(one, collages, 1, room=10)
    odd = replace(one.lines[0], name="elsewhere", key=replace(one.lines[0].key, recipe="elsewhere"))
    found = draw(replace(one, lines=[odd, one.lines[1]]), collages, 1)
    assert len(found.lines) == 1
    assert "elsewhere" in found.refused["elsewhere at 16"]


def test_the_page_has_the_maps(collages: Subject) -> None:
    """Filters find a figure by the attributes of its line; it has words for those who do not see it."""
    one = summary(collages, RECIPES, 16, 0.5)
    found = draw(one, collages, 2)
    found.refused["a <b>"] = "no & why"  # type: ignore[index]
    page = Parsed(report.page([one], maps={"digits on digits-vit": found}))
    figures = page.all("figure", "data-name")
    assert [(each["data-name"], each["data-budget"]) for each in figures] == [
        (line.name, str(line.key.keep)) for line in one.lines
    ]
    assert {each["data-task"] for each in figures} == {"digits on digits-vit"}
    assert {each["data-name"] for each in figures if each["data-control"] == "1"} == {
        "random",
        "downsample",
    }
    images = page.all("img")
    assert [each["src"] for each in images] == _urls(found)
    assert all(each["alt"] for each in images)
    assert len(page.all("details")) == len(page.all("summary")) == 2
    assert len(page.all("details", "open")) == 1
    assert "no & why" in page.text("li")
