"""`digits`: collages of handwritten digits, read by the ViT that is shipped with tokenzoo.

Two questions of each collage: which digit is marked (one detail), and how many there are of each digit (the
whole image). See `tokenzoo.tools.digits`.
"""

from __future__ import annotations

from typing import Any

import torch

from tokenzoo.evaluation.task import Outcome, Shown, Subject, TaskOptions, batches
from tokenzoo.tools import digits

SAMPLES, QUICK_SAMPLES = 600, 50
HALF = torch.full((3, 1, 1), 0.5)  # mean and deviation of its images, which are in -1..1
BATCH = 25  # a small model is fastest where its activations fit into the cache


def prepare(task: str, options: TaskOptions) -> Subject:
    """Return the task, on collages of the digits that had no part in the training.

    Raises:
        BadArgumentError: another model, other data or another size was given.
        MissingDependencyError: without timm or scikit-learn.
    """
    options.refuse_choices(task)
    return subject_of(
        "test", options.count(SAMPLES, QUICK_SAMPLES), seed=options.seed, batch=options.batch(BATCH)
    )


def subject_of(split: str, samples: int, *, seed: int = 0, batch: int = BATCH) -> Subject:
    """Return the task on collages of one split of the digits: no digit is in two of them.

    Args:
        split: "train", "validation" or "test".
        samples: number of collages.
        seed: of the collages.
        batch: collages of the call that is timed.

    Raises:
        BadArgumentError: no such split, or a number below 1.
        MissingDependencyError: without timm or scikit-learn.
    """
    data = digits.collages(split, samples, seed=seed)

    def score(model: Any, which: range, label: str) -> Outcome:
        del label
        images = data.images[which.start : which.stop]
        logits = torch.cat([model(batch) for batch in batches(images, BATCH)])  # [s, 60]
        guess = logits[:, 10:].reshape(-1, 10, digits.COUNT_CLASSES).argmax(2)  # [s, 10]
        counts = data.counts[which.start : which.stop].clamp(max=digits.COUNT_CLASSES - 1)
        marked = logits[:, :10].argmax(1)  # [s]
        right = guess == counts  # [s, 10]
        return Outcome(
            {
                "all counts": right.all(1),
                "counts": right.double().mean(1),
                "marked": marked == data.answer[which.start : which.stop],
            },
            torch.cat([guess, marked[:, None]], 1),
        )

    return Subject(
        "digits",
        "digits-vit",
        digits.load_digits_vit(),
        samples,
        score,
        call=lambda model: model(data.images[:batch]),
        facts={"split": split, "samples": samples, "seed": seed},
        shown=Shown(
            data.images,
            lambda model, place: model(data.images[place : place + 1]),
            HALF,
            HALF,
        ),
    )
