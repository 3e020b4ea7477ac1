"""`collage-vqa`: questions about collages of digits, answered by a small LLaVA.

A sample is a collage with one question of each kind, each in a prompt of its own: coarse ones about
colours, which fill a cell, and fine ones about digits and a dot of less than a patch. An answer is one
word, the most likely next token. See `tokenzoo.evaluation.vqa`.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from tokenzoo.evaluation.focus_vit import channels, images_of
from tokenzoo.evaluation.task import Outcome, Shown, Subject, TaskOptions
from tokenzoo.evaluation.vqa.collages import Collages, collages
from tokenzoo.evaluation.vqa.model import load_collage_llava, prompts
from tokenzoo.evaluation.vqa.one_image import encode_once, shown
from tokenzoo.evaluation.vqa.questions import COARSE, FINE, KINDS, ask, scenes
from tokenzoo.evaluation.vqa.words import encode

SAMPLES = 40
BATCH = 8


def prepare(task: str, options: TaskOptions) -> Subject:
    """Return the task, on collages of the digits that had no part in the training.

    Raises:
        BadArgumentError: another model, other data or another size was given.
        MissingDependencyError: see `load_collage_llava`; or scikit-learn is not installed.
    """
    options.refuse_choices(task)
    return subject_of("test", options.count(SAMPLES), seed=options.seed, batch=options.batch(BATCH))


def subject_of(
    split: str,
    samples: int,
    *,
    seed: int = 0,
    batch: int = BATCH,
) -> Subject:
    """Return the task on collages of one split of the digits: no digit is in two of them.

    Args:
        split: "train", "validation" or "test".
        samples: number of collages.
        seed: of collages and questions.
        batch: prompts of the call that is timed.

    Raises:
        BadArgumentError: no such split, or a number below 1.
        MissingDependencyError: see `load_collage_llava`; or scikit-learn is not installed.
    """
    drawn = collages(split, samples, seed=seed)
    images = images_of(drawn.images)
    words, right = questions_of(drawn, seed)

    def score(model: Any, which: range, label: str) -> Outcome:
        del label
        found = torch.stack([answers(model, images[sample], words[sample]) for sample in which])
        hits = found == right[which.start : which.stop]  # [s, 8]
        kinds = dict(zip(KINDS, hits.unbind(1), strict=True))
        groups = {"coarse": COARSE, "fine": FINE}
        means = {
            name: torch.stack([kinds[kind] for kind in group], 1).double().mean(1)
            for name, group in groups.items()
        }
        return Outcome({"right": hits.double().mean(1), **means, **kinds}, found)

    model = load_collage_llava()
    encode_once(model)
    prompt = torch.arange(batch)
    timed = {
        "input_ids": words[prompt % samples, prompt % len(KINDS)],
        "pixel_values": images[prompt % samples],
    }
    return Subject(
        "collage-vqa",
        "collage-llava",
        model,
        samples,
        score,
        call=lambda model: model(**timed),
        facts={"split": split, "samples": samples, "seed": seed},
        shown=Shown(
            images,
            lambda model, place: model(
                input_ids=words[place, :1], pixel_values=images[place : place + 1]
            ),
            *channels(),
        ),
    )


def questions_of(drawn: Collages, seed: int) -> tuple[Tensor, Tensor]:
    """Ask one question of each kind of each collage.

    Args:
        drawn: collages.
        seed: of the questions.

    Returns:
        Prompts `[s, 8, t]` and the tokens of the right answers `[s, 8]`, in the order of `KINDS`.
    """
    rng = random.Random(seed)
    words, right = list[Tensor](), list[list[int]]()
    for scene in scenes(drawn):
        asked = [found for kind in KINDS if (found := ask(kind, scene, rng)) is not None]
        words.append(prompts([one.words for one in asked]))
        right.append(encode([one.answer for one in asked]))
    return torch.stack(words), torch.tensor(right)


def answers(model: Any, image: Tensor, words: Tensor) -> Tensor:
    """Return the most likely next token `[q]` of prompts `[q, t]` about one image `[3, H, W]`."""
    pixels = shown(model, image, len(words))
    return model(input_ids=words, pixel_values=pixels).logits[:, -1].argmax(1)
