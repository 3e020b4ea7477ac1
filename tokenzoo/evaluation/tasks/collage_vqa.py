"""`collage-vqa`: questions about collages of digits, answered by a small LLaVA.

A sample is a collage with one question of each kind, each in a prompt of its own: coarse ones about
colours, which fill a cell, and fine ones about digits and a dot of less than a patch. An answer is one
word, the most likely next token. See `tokenzoo.evaluation.vqa`.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from tokenzoo.evaluation.focus_vit import images_of
from tokenzoo.evaluation.task import Subject, TaskOptions
from tokenzoo.evaluation.vqa import subject as vqa
from tokenzoo.evaluation.vqa.collages import Collages, collages
from tokenzoo.evaluation.vqa.model import load_collage_llava, prompts
from tokenzoo.evaluation.vqa.questions import COARSE, FINE, KINDS, ask, scenes
from tokenzoo.evaluation.vqa.subject import Asked
from tokenzoo.evaluation.vqa.words import encode

SAMPLES, QUICK_SAMPLES = 40, 2
BATCH = 4


def prepare(task: str, options: TaskOptions) -> Subject:
    """Return the task, on collages of the digits that had no part in the training.

    Raises:
        BadArgumentError: another model, other data or another size was given.
        MissingDependencyError: see `load_collage_llava`; or scikit-learn is not installed.
    """
    options.refuse_choices(task)
    batch = 1 if options.quick else BATCH  # a first look at all tasks is to take minutes
    samples = options.count(SAMPLES, QUICK_SAMPLES)
    return subject_of("test", samples, seed=options.seed, batch=batch)


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
    groups = {"coarse": tuple(COARSE), "fine": tuple(FINE)}
    asked = Asked(images_of(drawn.images), *questions_of(drawn, seed), groups)
    facts = {"split": split, "samples": samples, "seed": seed}
    model = load_collage_llava()
    return vqa.subject_of("collage-vqa", "collage-llava", model, asked, batch=batch, facts=facts)


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
