"""What a recipe is trained on: batches that follow from the number of the step, and losses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation import data
from tokenzoo.evaluation.models import normalised, vision_model
from tokenzoo.evaluation.task import batches
from tokenzoo.tools import digits

VALIDATION = 7_000_003  # seed of the collages that are scored


class TrainingTask(Protocol):
    """Batches and losses.

    Attributes:
        name: for checkpoints and messages.
        model: that the recipe is attached to, in eval mode.
    """

    name: str
    model: Any

    def batch(self, step: int) -> tuple[Tensor, Any]:
        """Return images `[b, ...]` and what is known of them, as a function of the step alone."""
        ...

    def loss(self, output: Any, known: Any) -> Tensor | None:
        """Return the loss of the task, a scalar; None: there are no labels."""
        ...

    def distance(self, output: Any, teacher: Any) -> Tensor:
        """Return how far outputs are from those of the bare model, a scalar."""
        ...

    def score(self, model: Any) -> dict[str, float]:
        """Return scores on data that no batch has; the first is the most important, higher is better."""
        ...


@dataclass(frozen=True)
class Known:
    """The labels of some collages: the marked digit `[b]`, and the counts `[b, 10]`, at most 4."""

    marked: Tensor
    counts: Tensor


class DigitsTask:
    """Collages of digits, and the packaged ViT that reads them (`tokenzoo.tools.digits`).

    Args:
        batch: collages of a step.
        samples: collages of the score, of the digits of the split "validation".
        seed: of the collages.

    Raises:
        MissingDependencyError: without timm or scikit-learn.
    """

    name = "digits"

    def __init__(self, batch: int = 24, samples: int = 500, seed: int = 0) -> None:
        self.size, self.samples, self.seed = batch, samples, seed
        self.model: Any = digits.load_digits_vit()

    def batch(self, step: int) -> tuple[Tensor, Any]:
        """Draw collages of the digits of the split "train"."""
        drawn = digits.collages("train", self.size, seed=self.seed * 1_000_003 + step, augment=True)
        counts = drawn.counts.clamp(max=digits.COUNT_CLASSES - 1)
        return drawn.images, Known(drawn.answer, counts)

    def loss(self, output: Any, known: Any) -> Tensor:
        """Return the cross entropy of the marked digit, plus the mean of those of the ten counts."""
        counts = output[:, 10:].reshape(-1, digits.COUNT_CLASSES)
        return F.cross_entropy(output[:, :10], known.marked) + F.cross_entropy(
            counts, known.counts.flatten()
        )

    def distance(self, output: Any, teacher: Any) -> Tensor:
        """Return the divergence from the teacher, of the marked digit and of the ten counts."""
        pairs = ((output[:, :10], teacher[:, :10]), (_counts(output), _counts(teacher)))
        return divergence(*pairs[0]) + divergence(*pairs[1])

    def score(self, model: Any) -> dict[str, float]:
        """Return the shares of counts, of whole collages and of marked digits that are right."""
        shown = digits.collages("validation", self.samples, seed=VALIDATION)
        with torch.no_grad():
            logits = torch.cat([model(part) for part in batches(shown.images, 50)])
        found = digits.accuracy(logits, shown)
        return {name: found[name] for name in ("counts", "all counts", "marked")}


class FolderTask:
    """The images of a folder, without labels: a recipe learns to say what the bare model says.

    Args:
        model: its name, see `tokenzoo.evaluation.models.vision_model`; it returns logits or features.
        folder: with the images; a tenth of them, at least one, is for the score.
        batch: images of a step.
        size: pixels on a side; None: the model's own.
        count: how many images at most; None: all.
        seed: of the draw.

    Raises:
        BadArgumentError: fewer than ten images, or a model that returns something else.
    """

    def __init__(
        self,
        model: str,
        folder: Path,
        batch: int = 24,
        *,
        size: int | None = None,
        count: int | None = None,
        seed: int = 0,
    ) -> None:
        known = vision_model(model, size)
        images = normalised(data.photographs(folder, count, known.size, seed), known)
        if len(images) < 10:
            raise BadArgumentError(f"{len(images)} images of {folder} are too few: at least 10")
        self.name, self.model = f"{model} on {folder.name}", known.model
        self.size, self.seed = batch, seed
        tenth = len(images) // 10
        self.shown, self.images = images[:tenth], images[tenth:]
        self.bare = _outputs(self.model, self.shown, model)

    def batch(self, step: int) -> tuple[Tensor, Any]:
        """Draw images with replacement."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        index = torch.randint(len(self.images), (self.size,), generator=generator)
        return self.images[index], None

    def loss(self, output: Any, known: Any) -> None:
        """Return None: there are no labels."""
        del output, known

    def distance(self, output: Any, teacher: Any) -> Tensor:
        """Return the divergence from the teacher's classes, or one minus the cosine of features."""
        if getattr(self.model, "num_classes", 0) > 0:
            return divergence(output, teacher)
        return (1 - F.cosine_similarity(output, teacher, dim=-1)).mean()

    def score(self, model: Any) -> dict[str, float]:
        """Return minus the distance on the images that no batch has."""
        return {"likeness": -float(self.distance(_outputs(model, self.shown), self.bare))}


def divergence(output: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean KL(teacher || output) of the classes of logits `[s, k]`."""
    return F.kl_div(
        output.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean"
    )


def _counts(logits: Tensor) -> Tensor:
    return logits[:, 10:].reshape(-1, digits.COUNT_CLASSES)


def _outputs(model: Any, images: Tensor, name: str = "it") -> Tensor:
    with torch.no_grad():
        found = [model(part) for part in batches(images, 16)]
    if not all(isinstance(one, Tensor) and one.ndim == 2 for one in found):
        raise BadArgumentError(
            f"{name} returns something else than logits or features [b, c]: take a model of timm, or train "
            "in Python with tokenzoo.evaluation.training.train and a task of your own"
        )
    return torch.cat(found)
