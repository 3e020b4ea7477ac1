"""The tasks of small LLaVAs, `collage-vqa` and `documents`: prompts are scored, weights are their own."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

import tokenzoo
from tests.evaluation.subjects import images_encoded, small_llava
from tokenzoo.errors import MissingDependencyError
from tokenzoo.evaluation import Subject, TaskOptions, focus_vit, jobs, run
from tokenzoo.evaluation.tasks import collage_vqa, documents, prepare
from tokenzoo.evaluation.vqa import llava, model, page_questions, questions, words
from tokenzoo.evaluation.vqa.collages import collages
from tokenzoo.evaluation.vqa.documents import pages, printed
from tokenzoo.evaluation.vqa.vocabulary import Vocabulary


@dataclass(frozen=True)
class Case:
    """A task: the module that loads its model, its words and kinds, and two samples of it."""

    name: str
    task: ModuleType
    loader: str
    weights: ModuleType
    script: str
    blocks: int
    words: Vocabulary
    groups: Mapping[str, Mapping[str, Any]]
    ask: Callable[..., Any]
    samples: Callable[[], tuple[Tensor, list[Any]]]

    @property
    def load(self) -> Callable[[], Any]:
        return getattr(self.task, self.loader)


def of_collages() -> tuple[Tensor, list[Any]]:
    drawn = collages("test", 2, seed=0)
    return drawn.images, questions.scenes(drawn)


def of_pages() -> tuple[Tensor, list[Any]]:
    drawn = pages("test", 2, seed=0)
    return printed(drawn, seed=0), list(drawn)


def groups(module: ModuleType) -> dict[str, Mapping[str, Any]]:
    return {"coarse": module.COARSE, "fine": module.FINE}


CASES = [
    Case(
        *("collage-vqa", collage_vqa, "load_collage_llava", model, "train_collage_vqa", 12),
        *(words.WORDS, groups(questions), questions.ask, of_collages),
    ),
    Case(
        *("documents", documents, "load_documents_llava", documents, "train_documents", 8),
        *(page_questions.WORDS, groups(page_questions), page_questions.ask, of_pages),
    ),
]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def subject(case: Case, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setattr(case.task, case.loader, lambda: small_llava(case.words))
    return prepare(case.name, TaskOptions(samples=2))


def test_scores_are_those_of_the_words_that_are_most_likely(case: Case, subject: Subject) -> None:
    """Each prompt alone, with a recipe attached, against the answers of the scene."""
    drawn, scenes = case.samples()
    images, rng = focus_vit.images_of(drawn), random.Random(0)
    kinds = [(group, kind) for group, some in case.groups.items() for kind in some]
    right: list[tuple[str, str, float]] = []
    with tokenzoo.build("tome", keep=16).attach(subject.model), torch.no_grad():
        outcome = subject.score(subject.model, range(1, 2), "")
        for index, scene in enumerate(scenes):
            for group, kind in kinds:
                one = case.ask(kind, scene, rng)
                ids = llava.prompts(case.words, [one.words])
                logits = subject.model(input_ids=ids, pixel_values=images[index, None]).logits
                hit = case.words.words[int(logits[0, -1].argmax())] == one.answer
                right += [(group, kind, float(hit))] if index == 1 else []
    scores = {name: value.item() for name, value in outcome.scores.items()}
    assert [scores[kind] for _, kind, _ in right] == [hit for _, _, hit in right]
    assert scores["right"] == sum(hit for _, _, hit in right) / len(right)
    for group, some in case.groups.items():
        mean = sum(hit for of, _, hit in right if of == group) / len(some)
        assert scores[group] == pytest.approx(mean)


@pytest.mark.parametrize(
    ("name", "encoded"),
    [("evoprune", 1), ("divprune", 1), ("fastv", 1), (None, 1), ("cdpruner", 8)],
)
@pytest.mark.parametrize("case", CASES[:1], indirect=True, ids=["collage-vqa"])
def test_an_image_is_encoded_once_for_all_of_its_questions(
    subject: Subject, name: str | None, encoded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the question decides which tokens are kept."""
    if name is not None:
        tokenzoo.build(name, keep=64).attach(subject.model)
    assert images_encoded(subject, monkeypatch) == [encoded, encoded, 8, 8]


def test_a_sweep_of_the_tower_and_of_the_llama(subject: Subject) -> None:
    recipes = ["evoprune", "fastv", "downsample"]
    bare, *rows = run(subject, jobs(recipes, [16]), rounds=0)
    assert bare.agreement == [1, 1]
    assert [(row.key.recipe, row.status, row.tokens) for row in rows[:2]] == [
        ("evoprune", "ok", 16),
        ("fastv", "ok", 256),  # enter the Llama
    ]
    assert rows[2].status == "refused"  # its prompt would be for a larger image


def test_weights_are_those_of_projector_and_llama_alone(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = files("tokenzoo") / "weights" / case.weights.WEIGHTS
    state = load(path.read_bytes())
    assert len(path.read_bytes()) < 2_000_000
    assert not [name for name in state if name.startswith(llava.TOWER)]
    focus = focus_vit.FocusViT(focus_vit.backbone())
    monkeypatch.setattr(focus_vit, "load_focus_vit", lambda: focus)
    vlm = case.load()
    assert len(vlm.model.vision_tower.encoder.layer) == case.blocks
    loaded = vlm.state_dict()
    assert all(loaded[name].equal(value.float()) for name, value in state.items())
    assert loaded["lm_head.weight"].equal(loaded["model.language_model.embed_tokens.weight"])
    tower = focus.backbone.state_dict()
    assert all(loaded[llava.TOWER + name].equal(value) for name, value in tower.items())


def test_weights_that_are_not_there(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case.weights, "WEIGHTS", "other.safetensors")
    with pytest.raises(MissingDependencyError, match=rf"weights/other\.safetensors.*{case.script}"):
        case.load()
