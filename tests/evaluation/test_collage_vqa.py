"""The task `collage-vqa`: collages show what is said of them, answers are right, prompts are scored."""

from __future__ import annotations

import random
from importlib.resources import files

import pytest
import torch
from safetensors.torch import load

import tokenzoo
from tests.evaluation.subjects import small_llava
from tokenzoo.errors import BadArgumentError, MissingDependencyError
from tokenzoo.evaluation import Subject, TaskOptions, focus_vit, jobs, run
from tokenzoo.evaluation.tasks import collage_vqa, prepare
from tokenzoo.evaluation.vqa import llava, model
from tokenzoo.evaluation.vqa import subject as vqa
from tokenzoo.evaluation.vqa.collages import CELLS, COLOURS, GRID, SIDE, collages
from tokenzoo.evaluation.vqa.questions import COARSE, FINE, KINDS, Scene, ask, scenes
from tokenzoo.evaluation.vqa.words import PLACES, VOCABULARY, encode


def test_a_collage_shows_its_colours_and_its_dot() -> None:
    drawn = collages("test", 6, seed=1)
    cells = drawn.images.unfold(2, SIDE, SIDE).unfold(3, SIDE, SIDE)  # [b, 3, 4, 4, 56, 56]
    cells = cells.permute(0, 2, 3, 1, 4, 5).reshape(6, CELLS, 3, -1)
    white = (cells.amin(2) > 0.9).sum(2)  # [b, 16]
    assert white.argmax(1).equal(drawn.dots)
    assert white.sort(1).values[:, -2].max() < white.amax(1).min() / 4
    lit = cells.amax(2, keepdim=True) > 0.5
    seen = (cells * lit).sum(3) / lit.sum(3)  # [b, 16, 3]
    dot = torch.nn.functional.one_hot(drawn.dots, CELLS).bool()  # white pixels change the mean
    nearest = torch.cdist(seen, 0.9 * torch.tensor(list(COLOURS.values()))).argmin(2)
    assert nearest[~dot].equal(drawn.colours[~dot])


def test_collages_are_drawn_again_and_answer_every_kind() -> None:
    first, again, other = (collages("train", 12, seed=seed) for seed in (5, 5, 6))
    assert first.images.equal(again.images)
    assert not first.digits.equal(other.digits)
    for scene in scenes(first):
        assert all(ask(kind, scene, random.Random(0)) for kind in KINDS)


DIGITS = [0, 1, 1, 2] * 3 + [4, 4, 4, 7]  # 0: 3 times, 1: 6, 2: 3, 4: 3, 7: once, at d4
PAINTS = [0, 1, 2, 3] * 3 + [3, 3, 3, 3]  # yellow: 7 times
ANSWERS = {
    "most common colour": "yellow",
    "where is digit7": "d4",
    "where is dot": "b2",
    "digit at d4": "digit7",
    "colour at a2": "green",
    "count all digit1": "six",
    "count all digit9": "none",
    "count all yellow": "seven",
    "a1 like b1": "yes",
}


def test_answers_are_right() -> None:
    scene, rng = Scene(range(CELLS), DIGITS, PAINTS, GRID + 1), random.Random(0)
    asked = [ask(kind, scene, rng) for kind in KINDS for _ in range(400)]
    found = {" ".join(one.words[:-1]): one.answer for one in asked if one is not None}
    assert {words: found[words] for words in ANSWERS} == ANSWERS
    for words in (words.split() for words in found if "like" in words):
        first, second = (DIGITS[PLACES.index(words[place])] for place in (0, 2))
        assert found[" ".join(words)] == ("yes" if first == second else "no")


def test_a_part_of_a_collage_has_no_answer_to_some() -> None:
    part = Scene([5, 6], [3, 3], [0, 1], None)
    unanswered = {kind for kind in KINDS if ask(kind, part, random.Random(2)) is None}
    assert {"colour-most", "digit-where", "dot-where"} <= unanswered


@pytest.fixture
def subject(monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setattr(collage_vqa, "load_collage_llava", small_llava)
    return prepare("collage-vqa", TaskOptions(samples=2))


def test_scores_are_those_of_the_words_that_are_most_likely(subject: Subject) -> None:
    """Each prompt alone, with a recipe attached, against the answers of the scene."""
    drawn = collages("test", 2, seed=0)
    images, rng = focus_vit.images_of(drawn.images), random.Random(0)
    right: list[float] = []
    with tokenzoo.build("tome", keep=16).attach(subject.model), torch.no_grad():
        outcome = subject.score(subject.model, range(1, 2), "")
        for index, scene in enumerate(scenes(drawn)):
            for one in (ask(kind, scene, rng) for kind in KINDS):
                assert one is not None
                ids = model.prompts([one.words])
                logits = subject.model(input_ids=ids, pixel_values=images[index, None]).logits
                hit = VOCABULARY[int(logits[0, -1].argmax())] == one.answer
                right += [float(hit)] if index == 1 else []
    scores = {name: value.item() for name, value in outcome.scores.items()}
    assert [scores[kind] for kind in KINDS] == right
    assert scores["right"] == sum(right) / len(right)
    assert scores["coarse"] == pytest.approx(sum(right[: len(COARSE)]) / len(COARSE))
    assert scores["fine"] == pytest.approx(sum(right[len(COARSE) :]) / len(FINE))


@pytest.mark.parametrize(
    ("name", "encoded"),
    [("evoprune", 1), ("divprune", 1), ("fastv", 1), (None, 1), ("cdpruner", 8)],
)
def test_an_image_is_encoded_once_for_all_of_its_questions(
    subject: Subject, name: str | None, encoded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the question decides which tokens are kept."""
    vlm, sizes = subject.model, list[int]()
    if name is not None:
        tokenzoo.build(name, keep=64).attach(vlm)
    tower = vlm.model.vision_tower
    tower.embeddings.register_forward_hook(lambda module, args, out: sizes.append(len(out)))
    with torch.no_grad():
        found = subject.score(vlm, range(2), "").answers
        assert sizes == [encoded, encoded]
        monkeypatch.setattr(vqa, "shown", lambda model, image, q: image.repeat(q, 1, 1, 1))
        apart = subject.score(vlm, range(2), "").answers
    assert sizes[2:] == [8, 8]
    assert found is not None
    assert torch.equal(found, apart)


def test_a_sweep_of_the_tower_and_of_the_llama(subject: Subject) -> None:
    recipes = ["evoprune", "fastv", "downsample"]
    bare, *rows = run(subject, jobs(recipes, [16]), rounds=0)
    assert bare.agreement == [1, 1]
    assert [(row.key.recipe, row.status, row.tokens) for row in rows[:2]] == [
        ("evoprune", "ok", 16),
        ("fastv", "ok", 256),  # enter the Llama
    ]
    assert rows[2].status == "refused"  # its prompt would be for a larger image


def test_weights_are_those_of_projector_and_llama_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    state = load((files("tokenzoo") / "weights" / model.WEIGHTS).read_bytes())
    assert not [name for name in state if name.startswith(llava.TOWER)]
    focus = focus_vit.FocusViT(focus_vit.backbone())
    monkeypatch.setattr(focus_vit, "load_focus_vit", lambda: focus)
    loaded = model.load_collage_llava().state_dict()
    assert all(loaded[name].equal(value.float()) for name, value in state.items())
    assert loaded["lm_head.weight"].equal(loaded["model.language_model.embed_tokens.weight"])
    tower = focus.backbone.state_dict()
    assert all(loaded[llava.TOWER + name].equal(value) for name, value in tower.items())


def test_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadArgumentError, match=r"'purple' is not in the vocabulary.* red"):
        encode(["count", "purple"])
    with pytest.raises(BadArgumentError, match="split='all'"):
        collages("all", 1, seed=0)
    monkeypatch.setattr(model, "WEIGHTS", "other.safetensors")
    with pytest.raises(MissingDependencyError, match=r"weights/other\.safetensors.*train_collage"):
        model.load_collage_llava()
