"""What a task gives to a sweep: a model, samples, and the score of each answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenzoo._core.validation import check_count, check_flag
from tokenzoo.errors import BadArgumentError

QUICK = 10  # a first look has that many times fewer samples


@dataclass(frozen=True)
class TaskOptions:
    """What the user chooses about a task; None: the task's own default.

    Args:
        model: name of the model, as `tokenzoo.tools.model_loading.create` takes it.
        data: folder or parquet file of the images.
        samples: number of samples that are scored.
        size: pixels on a side of an image.
        seed: of everything that is drawn: samples, collages.
        quick: fewer samples, for a first look.

    Raises:
        BadArgumentError: a number below 1, or another type.
    """

    model: str | None = None
    data: Path | None = None
    samples: int | None = None
    size: int | None = None
    seed: int = 0
    quick: bool = False

    def __post_init__(self) -> None:
        for name in ("samples", "size"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_count("seed", self.seed, least=0)
        check_flag("quick", self.quick)

    def count(self, default: int, quick: int | None = None) -> int:
        """Return the number of samples: the chosen one, or the default; `quick` of them for a first look.

        Args:
            default: of the whole task.
            quick: None: a tenth of it.
        """
        if self.samples is not None:
            return self.samples
        return self.batch(default) if quick is None or not self.quick else quick

    def refuse_choices(self, task: str) -> None:
        """Refuse a choice of model, data or size, for a task whose model and images are fixed.

        Raises:
            BadArgumentError: one of them was chosen.
        """
        for name in ("model", "data", "size"):
            if getattr(self, name) is not None:
                raise BadArgumentError(
                    f"{name}={getattr(self, name)!r} with the task {task}: its model and images are "
                    f"fixed; leave {name} away"
                )

    def batch(self, default: int) -> int:
        """Return the number of images of the call that is timed."""
        return max(default // QUICK, 2) if self.quick else default


def batches(x: Tensor, size: int) -> list[Tensor]:
    """Cut `[s, ...]` into parts of `size`; the last may be shorter."""
    return [x[start : start + size] for start in range(0, len(x), size)]


@dataclass(frozen=True)
class Outcome:
    """What a model did on s samples.

    Attributes:
        scores: by metric, `[s]`: bool if an answer is right or wrong, else float; the higher, the better.
            The first metric is the main one.
        answers: `[s, ...]`, compared with the bare model's: the share of samples whose answers are all
            equal is the agreement. None: the task has no discrete answers.
    """

    scores: Mapping[str, Tensor]
    answers: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Shown:
    """The images of a task, for pictures.

    Attributes:
        images: `[s, 3, H, W]`, one of each sample, as the model reads them.
        call: one forward pass of a model on the sample of an index.
        mean: of the channels, `[3, 1, 1]`: with `std` what undoes the normalisation.
        std: standard deviation of the channels, `[3, 1, 1]`.
    """

    images: Tensor
    call: Callable[[Any, int], object]
    mean: Tensor
    std: Tensor

    def light(self, image: Tensor) -> Tensor:
        """Return an image `[3, h, w]` that the model reads in 0..1."""
        return (image * self.std + self.mean).clamp(0, 1)


def agreement(outcome: Outcome, bare: Outcome) -> Tensor | None:
    """Return whether all answers of each sample are the bare model's, `[s]` bool; None: no answers."""
    if outcome.answers is None or bare.answers is None:
        return None
    same = outcome.answers == bare.answers  # [s, ...]
    return same.flatten(1).all(1) if same.ndim > 1 else same


@dataclass(frozen=True, eq=False)
class Control:
    """Another way to fewer tokens: the bare model is shown less, and nothing is attached to it.

    Attributes:
        score: as that of a `Subject`.
        call: as that of a `Subject`, with less to see.
        tokens: of an image, or of a frame on average.
        flops: operations of the tower's blocks relative to the bare model's; None: not known.
    """

    score: Callable[[Any, range, str], Outcome]
    call: Callable[[Any], object]
    tokens: int
    flops: float | None = None


@dataclass(frozen=True, eq=False)
class Subject:
    """A task that is ready to be run.

    Args:
        task: name of the task.
        model_name: name of the model, for the rows.
        model: bare, in eval mode. Recipes are attached to it and detached again.
        samples: number of samples.
        score: from a model, a range of samples and a label, the `Outcome` on these samples. The label
            names what is attached: what was computed under a label may be used again under it.
        call: one forward pass of a model on a fixed batch; it is timed.
        facts: what else decides the scores (data, sizes, seeds), for the rows.
        attach: further arguments of `attach`.
        videos: whether every sample is a video. Recipes over frames are for these: they leave images whole.
        frames: how many images of a call, one after the other, are the frames of a video: an argument of
            `attach` for recipes over frames. None: no videos, or a model that knows its videos itself.
        per_patch: whether the output has a vector for each patch, so that a token that is removed after
            the last block saves something, or loses it, in what reads the output.
        read_on: whether a language model reads the tokens within `call`, so that the operations of a plan,
            which are the tower's, say little of the time.
        shown: its images; None: they cannot be drawn.
        controls: of its own, by name: from a budget the `Control`, or a BadArgumentError that says which
            budgets it has. They have rows of their own, as recipes have, at each budget.
    """

    task: str
    model_name: str
    model: Any
    samples: int
    score: Callable[[Any, range, str], Outcome]
    call: Callable[[Any], object]
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    attach: Mapping[str, Any] = field(default_factory=dict[str, Any])
    videos: bool = False
    frames: int | None = None
    per_patch: bool = False
    read_on: bool = False
    shown: Shown | None = None
    controls: Mapping[str, Callable[[int | float], Control]] = field(
        default_factory=dict[str, Callable[[int | float], Control]]
    )
