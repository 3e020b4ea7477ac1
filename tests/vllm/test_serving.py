"""A server of vLLM with a recipe answers as transformers does with the same recipe, token by token.

Needs vLLM, in an environment of its own: `scripts/test_vllm`.
"""

from __future__ import annotations

import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.checkpoints import KINDS, Answer, Question, Reference, questions, recipe
from tests.vllm.serving import SHARED, Server, failing, serving

pytest.importorskip("vllm", reason="vLLM is not installed: scripts/test_vllm", exc_type=ImportError)


@pytest.fixture(scope="module", params=KINDS)
def served(request: Any, tmp_path_factory: Any) -> Iterator[tuple[Server, Reference]]:
    folder: Path = tmp_path_factory.mktemp(request.param)
    method = recipe("evoprune", keep=0.4)
    method.save(folder / "recipe.json")
    reference = Reference(request.param, method, folder / "checkpoint")
    with serving(reference.folder, folder / "recipe.json", folder / "log") as server:
        yield server, reference


def same(found: Answer, wanted: Answer) -> None:
    assert found.prompt == wanted.prompt
    assert found.words == wanted.words
    assert found.logprobs == pytest.approx(wanted.logprobs, abs=2e-3)


def test_answers_are_those_of_transformers(served: tuple[Server, Reference]) -> None:
    """In parts, from caches of prefixes and images, with several images, and all at once."""
    server, reference = served
    asked = questions()
    wanted = [reference.answer(question) for question in asked]
    for question, answer in zip(asked, wanted, strict=True):
        same(server.answer(question), answer)
    with ThreadPoolExecutor(len(asked)) as pool:
        for found, answer in zip(pool.map(server.answer, asked), wanted, strict=True):
            same(found, answer)
    with reference.attached.paused():
        whole = [reference.answer(question) for question in asked]
    for question, answer, bare in zip(asked, wanted, whole, strict=True):
        assert (answer.prompt < bare.prompt) == bool(question.images)


def test_a_video_is_refused(served: tuple[Server, Reference]) -> None:
    server, _ = served
    content = [{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}]
    with pytest.raises(urllib.error.HTTPError, match="400"):
        server.ask({"model": "tiny", "messages": [{"role": "user", "content": content}]})
    same(server.answer(questions()[3]), served[1].answer(questions()[3]))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("fastv", SHARED, "in the language model, whose cache and attention are vLLM's own"),
        ("evoprune", SHARED[2:], "add --model-impl transformers"),
        (
            "evoprune",
            (*SHARED, "--speculative-config", '{"method": "ngram", "num_speculative_tokens": 2}'),
            "speculative decoding with a recipe was not tried",
        ),
    ],
    ids=["llm", "native", "speculative"],
)
def test_a_server_that_cannot_honour_a_recipe_does_not_start(
    name: str, options: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    recipe(name).save(tmp_path / "recipe.json")
    reference = Reference("llava", recipe("evoprune"), tmp_path / "checkpoint")
    said = failing(reference.folder, tmp_path / "recipe.json", options)
    assert words in said


def test_without_a_recipe_the_server_is_bare(tmp_path: Path) -> None:
    reference = Reference("llava", recipe("evoprune"), tmp_path / "checkpoint")
    question: Question = questions()[0]
    with reference.attached.paused():
        wanted = reference.answer(question)
    with serving(reference.folder, None, tmp_path / "log") as server:
        same(server.answer(question), wanted)
