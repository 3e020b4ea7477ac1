"""`documents`: questions about pages of a form, answered by a small LLaVA.

A sample is a page with one question of each kind, each in a prompt of its own: coarse ones about lines,
frame and stamp, and fine ones about words of three or four letters, some of which differ in one letter. An
answer is one word, the most likely next token. See `tokenzoo.evaluation.vqa`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokenzoo.evaluation.focus_vit import images_of
from tokenzoo.evaluation.task import Subject, TaskOptions
from tokenzoo.evaluation.vqa import llava
from tokenzoo.evaluation.vqa import subject as vqa
from tokenzoo.evaluation.vqa.documents import Page, pages, printed
from tokenzoo.evaluation.vqa.page_questions import COARSE, FINE, KINDS, WORDS, ask
from tokenzoo.evaluation.vqa.subject import Asked

WEIGHTS = "documents.safetensors"
SAMPLES = 24
BATCH = 4


def prepare(task: str, options: TaskOptions) -> Subject:
    """Return the task, on pages that had no part in the training.

    Raises:
        BadArgumentError: another model, other data or another size was given.
        MissingDependencyError: see `load_documents_llava`; or matplotlib is not installed.
    """
    options.refuse_choices(task)
    batch = 1 if options.quick else BATCH  # a first look at all tasks is to take minutes
    return subject_of("test", options.count(SAMPLES), seed=options.seed, batch=batch)


def subject_of(split: str, samples: int, *, seed: int = 0, batch: int = BATCH) -> Subject:
    """Return the task on pages of one split.

    Args:
        split: "train", "validation" or "test".
        samples: number of pages.
        seed: of pages and questions.
        batch: prompts of the call that is timed.

    Raises:
        BadArgumentError: no such split, or a number below 1.
        MissingDependencyError: see `load_documents_llava`; or matplotlib is not installed.
    """
    drawn = pages(split, samples, seed=seed)
    groups = {"coarse": tuple(COARSE), "fine": tuple(FINE)}
    asked = Asked(images_of(printed(drawn, seed=seed)), *questions_of(drawn, seed), groups)
    facts = {"split": split, "samples": samples, "seed": seed}
    model = load_documents_llava()
    return vqa.subject_of("documents", "documents-llava", model, asked, batch=batch, facts=facts)


def load_documents_llava() -> Any:
    """Return the trained model in eval mode, see `llava.load_llava`; its tower ends where it is read."""
    return llava.load_llava(WORDS, WEIGHTS, "train_documents.py", blocks=llava.LAYER)


def questions_of(drawn: Sequence[Page], seed: int) -> tuple[Tensor, Tensor]:
    """Ask one question of each kind of each page.

    Args:
        drawn: pages.
        seed: of the questions.

    Returns:
        Prompts `[s, 8, t]` and the tokens of the right answers `[s, 8]`, in the order of `KINDS`.
    """
    rng = random.Random(seed)
    words, right = list[Tensor](), list[list[int]]()
    for page in drawn:
        asked = [found for kind in KINDS if (found := ask(kind, page, rng)) is not None]
        words.append(llava.prompts(WORDS, [one.words for one in asked]))
        right.append(WORDS.encode([one.answer for one in asked]))
    return torch.stack(words), torch.tensor(right)
