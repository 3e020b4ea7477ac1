"""A subject without labels: the user's own model and images, scored by what the bare model says of them.

classifier (logits)             "likeness" = exp(-KL(bare || reduced)), and agreement of the top class
features `[b, c]`               "likeness" = their cosine
vision tower of transformers    "likeness" = mean cosine of the features of all patches, put back on the
                                grid (`restore=True`)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation import data
from tokenzoo.evaluation.models import normalised, vision_model
from tokenzoo.evaluation.patch_grid import enlarged
from tokenzoo.evaluation.task import Outcome, Subject, batches
from tokenzoo.hooks.attach import find_adapter

LEAST = 8  # images
BATCH = 4


def unlabelled(
    model: str, folder: Path, *, size: int | None = None, count: int | None = None, seed: int = 0
) -> Subject:
    """Return the subject.

    Args:
        model: its name, see `models.vision_model`.
        folder: with the images.
        size: pixels on a side; None: the model's own.
        count: how many images at most; None: all.
        seed: of the draw of images.

    Raises:
        BadArgumentError: fewer than 8 images, no such folder, or a vision-language model (see `answers`).
        UnknownNameError, MissingDependencyError: see `models.vision_model`.
    """
    known = vision_model(model, size)
    images = data.photographs(folder, count, known.size, seed)
    if len(images) < LEAST:
        raise BadArgumentError(
            f"{len(images)} images of {folder} are too few; at least {LEAST} are needed to tell recipes "
            "apart, and 100 are better"
        )
    return subject_of(
        known.model, normalised(images, known), model, {"data": folder.name, "seed": seed}
    )


def subject_of(model: Any, images: Tensor, name: str, facts: dict[str, Any]) -> Subject:
    """Return the subject of a bare model and normalised images `[s, 3, H, W]`."""
    with torch.inference_mode():
        first = model(images[:1])
        dense = not isinstance(first, Tensor)
        bare = _outputs(model, images)  # [s, prefix + n, c] or [s, c]
    prefix = find_adapter(model).prefix if dense else 0
    classes = not dense and getattr(model, "num_classes", 0) > 0

    def score(reduced: Any, which: range, label: str) -> Outcome:
        del label
        part = slice(which.start, which.stop)
        found, wanted = _outputs(reduced, images[part]), bare[part]
        if classes:
            gap = divergence(wanted, found)
            return Outcome({"likeness": (-gap).exp()}, found.argmax(1))
        if dense:
            patches = enlarged(found[:, prefix:], wanted.shape[1] - prefix)
            found = torch.cat([found[:, :prefix], patches], 1)
        likeness = cosine_similarity(found.double(), wanted.double(), dim=-1)
        return Outcome({"likeness": likeness.mean(1) if dense else likeness})

    return Subject(
        "unlabelled",
        name,
        model,
        len(images),
        score,
        call=lambda one: one(images[:BATCH]),
        facts={**facts, "samples": len(images), "size": list(images.shape[-2:])},
        attach={"restore": True} if dense else {},
        per_patch=dense,
    )


def _outputs(model: Any, images: Tensor) -> Tensor:
    """Return logits or features `[b, c]`, or the features of all tokens `[b, n, c]`."""
    found: list[Tensor] = []
    for batch in batches(images, BATCH):
        out = model(batch)
        found.append(out if isinstance(out, Tensor) else out.last_hidden_state)
    return torch.cat(found)


def divergence(bare: Tensor, other: Tensor) -> Tensor:
    """Return KL(bare || other) of the classes' probabilities, from logits `[s, k]`: `[s]` nats."""
    ours, theirs = bare.double().log_softmax(1), other.double().log_softmax(1)
    return (ours.exp() * (ours - theirs)).sum(1)
