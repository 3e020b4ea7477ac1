"""What lmms-eval asks for: batches of requests, the options of their answers, where an answer ends."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from tokenzoo._core.quoting import quote
from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation.lmms.chat import Answer

Options = Mapping[str, Any]
"""The `generation_kwargs` of a task."""

LONGEST = 1024
"""Tokens of an answer, where the task does not say."""

UNTIL = "until"
SAMPLING = ("temperature", "top_k", "top_p")
GENERATE = ("do_sample", "max_new_tokens", "num_beams", *SAMPLING)
"""What is passed on to `generate`."""

COUNTS = {
    "prompt_tokens": "prompt",
    "visual_tokens": "visual",
    "visual_tokens_last_layers": "last",
    "visual_tokens_bare": "whole",
}
"""Names in the results of lmms-eval, and the fields of `Answer`."""


def batches(options: Sequence[Options], size: int) -> Iterator[tuple[Options, list[int]]]:
    """Yield the options of a batch and the places of its requests: all have these options.

    Args:
        options: of each request.
        size: the most requests of a batch.
    """
    groups: dict[str, list[int]] = {}
    for place, one in enumerate(options):
        groups.setdefault(json.dumps(one, sort_keys=True, default=str), []).append(place)
    for places in groups.values():
        for start in range(0, len(places), size):
            yield options[places[0]], places[start : start + size]


def generate_options(given: Options) -> dict[str, Any]:
    """Return the arguments of `generate`; without a temperature the most likely token is taken."""
    options = {"max_new_tokens": LONGEST} | {k: v for k, v in given.items() if k in GENERATE}
    options.setdefault("do_sample", bool(options.get("temperature")))
    if not options["do_sample"]:
        # A checkpoint may have these in its generation config, and transformers warns of them.
        options |= dict.fromkeys(SAMPLING)
    return options


def unused(options: Sequence[Options]) -> list[str]:
    """Return the names of the options that nothing is done with, sorted."""
    return sorted({name for one in options for name in one} - {*GENERATE, UNTIL})


def cut(text: str, until: str | Sequence[str] | None) -> str:
    """Cut a text before the first of some strings; empty ones count for nothing."""
    ends = [until] if isinstance(until, str) else until or ()
    places = [text.find(end) for end in ends if end]
    return text[: min((place for place in places if place >= 0), default=len(text))]


def mean_counts(answers: Sequence[Answer]) -> dict[str, float]:
    """Return the mean number of tokens of a prompt, by the names of `COUNTS`; {} without answers."""
    if not answers:
        return {}
    return {name: fmean(getattr(one, what) for one in answers) for name, what in COUNTS.items()}


def refused(tasks: Sequence[str], kind: str) -> BadArgumentError:
    """Return the error for tasks whose requests are of a kind that is not supported."""
    names = ", ".join(sorted(set(tasks)))
    return BadArgumentError(
        f"tasks {quote(names, 200)} ask for {kind}; only generate_until is supported: choose tasks with "
        "output_type: generate_until"
    )


def refuse_audio(messages: Sequence[Mapping[str, Any]], task: str) -> None:
    """Raise if there is sound in a conversation of lmms-eval.

    Raises:
        BadArgumentError: there is.
    """
    if any(part["type"] == "audio" for message in messages for part in message["content"]):
        raise BadArgumentError(
            f"the task {quote(task)} has sound in it; choose one with images or videos"
        )
