"""A subject without labels, of prompts about images: scored by the bare model's own answers.

The bare model answers each prompt greedily, in up to 16 tokens. A model with a recipe is led through the
same answer, and its distribution of each next token is compared with the bare model's:

    likeness of a prompt = mean over the tokens of exp(-KL(bare || reduced))

The answer is forced token by token within `generate`. So a recipe chooses by the prompt alone, as it does
when it is used, and never by the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenzoo._core.validation import check_count
from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation.lmms.arguments import device_of
from tokenzoo.evaluation.prompts import read_prompts
from tokenzoo.evaluation.task import Outcome, Subject
from tokenzoo.evaluation.unlabelled import LEAST, divergence
from tokenzoo.evaluation.vlm import Inputs, load, moved

LONGEST = 16  # tokens of an answer
TIMED = 2  # prompts of the call that is timed
NONE = -1  # in place of the tokens that an answer does not have
GREEDY = {"do_sample": False, "num_beams": 1, "temperature": None, "top_k": None, "top_p": None}
"""A checkpoint may have others in its generation config."""


def prompted(
    model: str,
    folder: Path,
    file: Path,
    *,
    answer_tokens: int = LONGEST,
    count: int | None = None,
    seed: int = 0,
    device: str | None = None,
) -> Subject:
    """Return the subject of a vision-language model, images and prompts.

    Args:
        model: the folder of a checkpoint, or its name, see `vlm.load`.
        folder: with the images.
        file: with the prompts, see `read_prompts`.
        answer_tokens: most tokens of an answer.
        count: prompts at most; None: all.
        seed: of the draw of prompts.
        device: of torch, or "auto"; None: a GPU if there is one.

    Raises:
        BadArgumentError: fewer than 8 prompts; see `read_prompts`, `vlm.load` and `VisionLanguageModel`.
        UnsupportedModelError, MissingDependencyError: see `vlm.load`.
    """
    check_count("answer_tokens", answer_tokens)
    asked = read_prompts(file, folder, count, seed)
    if len(asked) < LEAST:
        raise BadArgumentError(
            f"{len(asked)} prompts of {file} with the images of {folder} are too few; at least {LEAST} are "
            "needed to tell recipes apart, and 100 are better"
        )
    known = load(model, device_of(device))
    given = [known.inputs(one) for one in asked]
    facts = {"data": folder.name, "prompts": file.name, "seed": seed}
    made = subject_of_prompts(known.model, given, model, facts, answer_tokens=answer_tokens)
    return replace(made, videos=all(one.frames for one in asked), frames=known.frames(asked))


def subject_of_prompts(
    model: Any,
    given: Sequence[Inputs],
    name: str,
    facts: dict[str, Any],
    *,
    answer_tokens: int = LONGEST,
) -> Subject:
    """Return the subject of a bare model.

    Args:
        model: of transformers, with `generate`.
        given: the arguments of its call for each prompt, batches of one.
        name: of the model.
        facts: what else decides the scores.
        answer_tokens: most tokens of an answer.
    """
    # The logits of all answers stay in memory: 10 MB each, for 16 tokens of a vocabulary of 150,000.
    with torch.inference_mode():
        bare = [answer(model, one, answer_tokens) for one in given]

    def score(reduced: Any, which: range, label: str) -> Outcome:
        del label
        likeness = torch.zeros(len(which), dtype=torch.float64)
        best = torch.full((len(which), answer_tokens), NONE)
        for row, place in enumerate(which):
            words, wanted = bare[place]  # [a], [a, v]
            found = forced(reduced, given[place], words)  # [a, v]
            likeness[row] = (-divergence(wanted, found)).exp().mean()
            best[row, : len(words)] = found.argmax(1)
        return Outcome({"likeness": likeness}, best)

    # The first prompt comes last: plans are for the image of the last pass.
    timed = [
        (moved(one, device=model.device), words)
        for one, (words, _) in zip(given[:TIMED], bare, strict=False)
    ][::-1]
    return Subject(
        "prompts",
        name,
        model,
        len(given),
        score,
        call=lambda one: [forced(one, inputs, words) for inputs, words in timed],
        facts={**facts, "samples": len(given), "answer": answer_tokens},
        per_patch=True,
        read_on=True,
    )


def answer(model: Any, given: Inputs, longest: int) -> tuple[Tensor, Tensor]:
    """Return a model's greedy answer of up to `longest` tokens, `[a]`, and its logits `[a, v]`."""
    return _generated(model, given, longest)


def forced(model: Any, given: Inputs, words: Tensor) -> Tensor:
    """Return the logits `[a, v]` of a model that is led through an answer `[a]`, each before its token."""
    return _generated(model, given, len(words), _leading(words))[1]


def _generated(
    model: Any, given: Inputs, longest: int, *processors: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    out = model.generate(
        **moved(given, device=model.device),
        **GREEDY,
        max_new_tokens=longest,
        logits_processor=list(processors),
        return_dict_in_generate=True,
        output_logits=True,
    )
    logits = torch.cat(out.logits)  # [a, v], before any processor
    return out.sequences[0, -len(logits) :].cpu(), logits.float().cpu()


def _leading(words: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a logits processor for one call of `generate`, which leaves the next of these words only."""
    left = iter(words)

    def lead(ids: Tensor, scores: Tensor) -> Tensor:
        del ids
        only = torch.full_like(scores, float("-inf"))
        only[:, int(next(left))] = 0
        return only

    return lead
