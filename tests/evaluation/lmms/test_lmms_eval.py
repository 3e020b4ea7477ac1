"""A task of three local images, through lmms-eval, in this process; nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip(
    "lmms_eval", reason="lmms-eval is not installed; scripts/test_lmms_eval runs this file"
)

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import list_available_models
from lmms_eval.tasks import TaskManager
from loguru import logger

import tokenzoo
from tests.adapters.hf import models as hf
from tests.evaluation.lmms.checkpoints import conversation, save
from tokenzoo.errors import BadArgumentError, UnknownNameError
from tokenzoo.evaluation.lmms import NAME
from tokenzoo.evaluation.lmms.arguments import parse
from tokenzoo.evaluation.lmms.chat import load

TASK = """
task: flowers
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/data.json
  cache_dir: {folder}/cache
test_split: test
output_type: {kind}
doc_to_visual: !function functions.images
doc_to_text: !function functions.question
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 5
  temperature: 0
  until: ["zzz"]
  image_aspect_ratio: pad
process_results: !function functions.score
metric_list:
  - metric: said
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 0.0
"""
FUNCTIONS = """
from PIL import Image

def images(doc):
    return [Image.open(path).convert("RGB") for path in doc["images"]]

def question(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def score(doc, results):
    return {"said": float(doc["answer"] in results[0])}
"""
QUESTIONS = (("what is this ?", 1), ("describe the big red flower", 2), ("a cat", 1))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("llava"), hf.llava())


@pytest.fixture
def evaluate(llava: str, tmp_path: Path) -> Any:
    """Run the task: `evaluate(model_args, kind=, batch_size=)`."""
    docs: list[dict[str, Any]] = []
    for question, images in QUESTIONS:
        paths = [str(tmp_path / f"{i}.png") for i in range(images)]
        docs.append({"images": paths, "question": question, "answer": "flower"})
    for i, photo in enumerate(hf.photos()[:2]):
        photo.save(tmp_path / f"{i}.png")
    (tmp_path / "data.json").write_text(json.dumps(docs))
    (tmp_path / "functions.py").write_text(FUNCTIONS)

    def run(arguments: str, kind: str = "generate_until", batch_size: int = 2) -> Any:
        (tmp_path / "flowers.yaml").write_text(TASK.format(folder=tmp_path, kind=kind))
        return simple_evaluate(
            model=NAME,
            model_args=f"pretrained={llava},{arguments}",
            tasks=["flowers"],
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
            batch_size=batch_size,
            device="cpu",
        )

    return run


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What is logged."""
    lines: list[str] = []
    sink = logger.add(lines.append, level="INFO", format="{message}")
    yield lines
    logger.remove(sink)


def test_the_entry_point_is_found() -> None:
    assert NAME in list_available_models()


@pytest.mark.parametrize("recipe", ["evoprune", "fastv", "none"])
def test_a_task_with_a_recipe(
    recipe: str, evaluate: Any, llava: str, tmp_path: Path, said: list[str]
) -> None:
    if recipe == "evoprune":
        saved = tmp_path / "saved.json"
        tokenzoo.build("evoprune", keep=16).save(saved)
        given: dict[str, Any] = {"recipe": str(saved)}
    else:
        given = {"recipe": recipe} | ({} if recipe == "none" else {"keep": 0.25})
    found = evaluate(",".join(f"{name}={value}" for name, value in given.items()))
    model = load(parse({"pretrained": llava, "device": "cpu", **given}))
    photos = hf.photos()
    wanted = model.answer(
        [conversation(question, *photos[:images]) for question, images in QUESTIONS],
        {"max_new_tokens": 5, "do_sample": False},
    )
    samples = sorted(found["samples"]["flowers"], key=lambda sample: sample["doc_id"])
    assert [sample["filtered_resps"] for sample in samples] == [[one.text] for one in wanted]
    assert [sample["token_counts"] for sample in samples] == [
        [{"input_tokens": one.prompt, "output_tokens": 5}] for one in wanted
    ]
    share = sum("flower" in one.text for one in wanted) / 3
    assert found["results"]["flowers"]["said,none"] == pytest.approx(share)
    throughput = found["throughput"]
    assert throughput["total_gen_tokens"] == 15
    assert throughput["avg_visual_tokens_bare"] == pytest.approx(4 * 64 / 3)
    before, last = {"evoprune": (16, 16), "fastv": (64, 16), "none": (64, 64)}[recipe]
    assert throughput["avg_visual_tokens"] == pytest.approx(4 * before / 3)
    assert throughput["avg_visual_tokens_last_layers"] == pytest.approx(4 * last / 3)
    assert "generation_kwargs that are not used: image_aspect_ratio\n" in said
    begins = "recipe=none, the bare model" if recipe == "none" else "model       Llava"
    assert [line for line in said if line.startswith(begins)]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ("keep=0.25", BadArgumentError, "recipe is missing"),
        ("recipe=evoprun", UnknownNameError, "did you mean 'evoprune'"),
        ("recipe=evoprune,kep=8", UnknownNameError, "no option of evoprune 'kep'"),
    ],
)
def test_arguments_that_are_refused(
    arguments: str, error: type[Exception], words: str, evaluate: Any
) -> None:
    with pytest.raises(error, match=words):
        evaluate(arguments)


def test_tasks_of_another_kind_are_refused(evaluate: Any) -> None:
    with pytest.raises(BadArgumentError, match="'flowers' ask for generate_until_multi_round"):
        evaluate("recipe=none", kind="generate_until_multi_round")
