"""Batches of requests, options of `generate`, ends of answers; lmms-eval is not needed."""

from __future__ import annotations

from typing import Any

import pytest

from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation.lmms.chat import Answer
from tokenzoo.evaluation.lmms.requests import (
    LONGEST,
    batches,
    cut,
    generate_options,
    mean_counts,
    refuse_audio,
    refused,
    unused,
)

GREEDY = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_a_batch_has_one_set_of_options_and_each_request_is_in_one(size: int) -> None:
    one, other = {"max_new_tokens": 4, "until": ["."]}, {"max_new_tokens": 8}
    options = [one, other, one, one, dict(reversed(one.items())), other, one]
    found = list(batches(options, size))
    assert sorted(place for _, places in found for place in places) == [*range(7)]
    for given, places in found:
        assert 1 <= len(places) <= size
        assert places == sorted(places)
        assert all(options[place] == given for place in places)
    assert len(found) == {1: 7, 2: 4, 3: 3, 10: 2}[size]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"max_new_tokens": LONGEST, **GREEDY}),
        ({"temperature": 0, "top_p": 1.0, "max_new_tokens": 4}, {"max_new_tokens": 4, **GREEDY}),
        ({"temperature": 0.5, "do_sample": False}, {"max_new_tokens": LONGEST, **GREEDY}),
        (
            {"temperature": 0.5, "top_k": 3},
            {"max_new_tokens": LONGEST, "temperature": 0.5, "top_k": 3, "do_sample": True},
        ),
        ({"num_beams": 2, "until": ["x"]}, {"max_new_tokens": LONGEST, "num_beams": 2, **GREEDY}),
        ({"image_aspect_ratio": "pad"}, {"max_new_tokens": LONGEST, **GREEDY}),
    ],
)
def test_what_generate_gets(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert generate_options(given) == wanted


def test_what_is_not_used_or_refused_is_named() -> None:
    assert unused([{"until": [], "temperature": 0, "b": 1}, {"a": 1, "b": 2}]) == ["a", "b"]
    assert "'a, b' ask for loglikelihood" in str(refused(["b", "a", "a"], "loglikelihood"))
    parts: list[dict[str, Any]] = [{"type": "image"}, {"type": "text", "text": "audio"}]
    refuse_audio([{"role": "user", "content": parts}], "task")
    with pytest.raises(BadArgumentError, match="'task' has sound"):
        refuse_audio([{"role": "user", "content": [*parts, {"type": "audio"}]}], "task")


@pytest.mark.parametrize(
    ("until", "wanted"),
    [
        *[(until, "one. two\n\nthree") for until in (None, [], "", ["four"])],
        *[("\n\n", "one. two"), (["\n\n", ". "], "one"), (["one"], "")],
    ],
)
def test_an_answer_ends_before_the_first_stop(until: Any, wanted: str) -> None:
    assert cut("one. two\n\nthree", until) == wanted


def test_means_of_the_counts() -> None:
    answers = [Answer("", 20, 16, 64, 8, 3), Answer("", 30, 32, 128, 8, 5)]
    assert mean_counts(answers) == {
        "prompt_tokens": 25,
        "visual_tokens": 24,
        "visual_tokens_last_layers": 8,
        "visual_tokens_bare": 96,
    }
    assert mean_counts([]) == {}
