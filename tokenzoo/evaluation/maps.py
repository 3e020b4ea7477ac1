"""Maps for the report: which patches of a task's own samples share a token, by each recipe and budget.

A row of results has no pictures. So the task is prepared again, on the samples that the rows are about, and
each recipe runs on a few of them. A map covers all that a recipe does with the patches of an image: in the
blocks, after them, and in the language model.
"""

from __future__ import annotations

import io
import json
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenzoo._core.needs import need
from tokenzoo._core.quoting import quote
from tokenzoo.errors import BadArgumentError, TokenzooError
from tokenzoo.evaluation.summary import Line, Summary
from tokenzoo.evaluation.sweep import Job, attach, patch_tokens
from tokenzoo.evaluation.task import Shown, Subject, TaskOptions
from tokenzoo.evaluation.tasks import prepare
from tokenzoo.hooks.handle import Attached
from tokenzoo.hooks.reduction import Event
from tokenzoo.recipe import Stage
from tokenzoo.token_map import TokenMap
from tokenzoo.tools.tracing import grid_of
from tokenzoo.tools.viz import merged_groups, shrunk_image

TASKS = ("digits", "dense", "collage-vqa", "documents")
"""Tasks whose samples can be drawn."""

SIDE = 224  # pixels of the shorter side of a picture in the page
QUALITY = 60  # of WebP
SEE_THROUGH = 0.35  # of the photograph, as `tokenzoo viz` draws it
LIMIT = 4_000_000  # characters of all pictures in a page


@dataclass(frozen=True)
class Picture:
    """A picture of one sample.

    Attributes:
        url: a `data:` URL that holds it.
        text: what it shows, in words.
    """

    url: str
    text: str


@dataclass(frozen=True)
class Maps:
    """The maps of a task.

    Attributes:
        samples: indices of the samples that are drawn.
        originals: their images.
        lines: each recipe at each budget, with a map for each sample.
        refused: why a line has no maps, by its name and budget.
    """

    samples: Sequence[int]
    originals: Sequence[Picture]
    lines: Sequence[tuple[Line, Sequence[Picture]]]
    refused: Mapping[str, str]

    @property
    def size(self) -> int:
        """Characters of all pictures."""
        pictures = [*self.originals, *(one for _, some in self.lines for one in some)]
        return sum(len(one.url) for one in pictures)


def subject_for(one: Summary, data: Path | None = None) -> Subject:
    """Prepare the task that rows are about, with their very samples.

    Args:
        one: the rows.
        data: the images, for a task that takes images; None: those that are the task's default.

    Raises:
        BadArgumentError: there are no maps of the task, or the samples are others.
        MissingDependencyError: the task needs a library that is not installed.
    """
    if one.task not in TASKS:
        raise BadArgumentError(f"maps of {quote(one.task)}; there are maps of {', '.join(TASKS)}")
    facts = one.facts
    options = TaskOptions(
        data=data,
        samples=facts.get("samples"),
        size=facts.get("size"),
        seed=facts.get("seed", 0),
    )
    subject = prepare(one.task, options)
    if json.loads(json.dumps(subject.facts)) != dict(facts) or subject.model_name != one.model:
        raise BadArgumentError(
            f"the rows of {one.task} on {one.model} are about {quote(dict(facts))}, and these samples are "
            f"{quote(dict(subject.facts))}: name the images that were measured, --maps {one.task}=PATH"
        )
    return subject


def draw(
    one: Summary,
    subject: Subject,
    count: int,
    room: int = LIMIT,
    tell: Callable[[str], object] = lambda text: None,
) -> Maps:
    """Draw the maps of all recipes and budgets of a task, of a seed each.

    Args:
        one: the rows.
        subject: see `subject_for`.
        count: how many samples, evenly spaced.
        room: characters that the pictures may have.
        tell: receives what is being drawn.

    Raises:
        BadArgumentError: the task has no images to draw, fewer samples, or no room for the pictures.
    """
    shown = subject.shown
    if shown is None or count > subject.samples:
        have = 0 if shown is None else subject.samples
        raise BadArgumentError(
            f"maps of {count} samples of {one.task}, which has {have} that can be drawn: ask for fewer"
        )
    samples = [place * subject.samples // count for place in range(count)]
    patches = patch_tokens(subject)
    originals = [
        Picture(encoded(shown.light(shown.images[place])), f"{one.task}, sample {place}, the image")
        for place in samples
    ]
    found: list[tuple[Line, Sequence[Picture]]] = []
    refused: dict[str, str] = {}
    maps = Maps(samples, originals, found, refused)
    for line in one.lines:
        tell(f"{line.name} at {line.key.keep}")
        try:
            found.append((line, pictures_of(line, subject, shown, samples, patches)))
        except TokenzooError as error:
            refused[f"{line.name} at {line.key.keep}"] = str(error)
        if maps.size > room:
            raise BadArgumentError(
                f"the maps are larger than the {LIMIT / 1e6:g} MB that a page may have of them, at "
                f"{len(found)} of {len(one.lines)} recipes and budgets of {one.task}: draw fewer samples "
                "(--map-images 1), fewer tasks, or report fewer rows"
            )
    return maps


def pictures_of(
    line: Line, subject: Subject, shown: Shown, samples: Sequence[int], patches: int
) -> list[Picture]:
    """Draw the maps of one recipe at one budget.

    Args:
        line: the recipe and its budget.
        subject: to whose model it is attached.
        shown: its images.
        samples: indices of the samples.
        patches: patch tokens of an image.

    Raises:
        TokenzooError: the recipe cannot run here.
    """
    key = line.key
    job = Job(str(key.recipe), key.keep or 1.0, key.seed, json.loads(key.options))
    found = drawn(job, replace(subject, shown=shown), samples, patches)
    return [
        Picture(
            encoded(picture), f"{line.name} at {key.keep}, {subject.task}, sample {place}: {text}"
        )
        for place, (picture, text) in zip(samples, found, strict=True)
    ]


def drawn(
    job: Job, subject: Subject, samples: Sequence[int], patches: int
) -> list[tuple[Tensor, str]]:
    """Draw what a recipe leaves of samples, and say how much that is.

    Args:
        job: the recipe and its budget.
        subject: to whose model it is attached; it has `shown`.
        samples: indices of the samples.
        patches: patch tokens of an image.

    Returns:
        A picture `[3, H, W]` in 0..1 of each, and a few words.

    Raises:
        BadArgumentError: the subject has no images to draw.
        TokenzooError: the recipe cannot run here.
    """
    shown = subject.shown
    if shown is None:
        raise BadArgumentError(f"{subject.task} has no images that can be drawn")
    plans: list[TokenMap] = []
    seen: list[Tensor] = []
    found: list[tuple[Tensor, str]] = []

    def note(event: Event) -> None:
        plans.append(event.plan)

    def look(module: Any, args: tuple[Tensor, ...]) -> None:
        del module
        seen.append(args[0])

    noted = {**subject.attach, "on_reduce": note}
    with attach(job, replace(subject, attach=noted)) as attached, torch.inference_mode():
        first = next(one for one in subject.model.modules() if isinstance(one, nn.Conv2d))
        handle = first.register_forward_pre_hook(look)
        try:
            for place in samples:
                plans.clear()
                seen.clear()
                shown.call(subject.model, place)
                owner = owners(plans, patches)
                found.append(_picture(attached, shown, place, owner, seen[0][0]))
        finally:
            handle.remove()
    return found


def owners(plans: Sequence[TokenMap], patches: int) -> Tensor:
    """Return the last token that each patch of the first image is part of, `[patches]`; -1: dropped.

    Args:
        plans: of one pass, one after the other. A plan may begin with prefix tokens, and the next one
            without them: what comes after a tower reads its patches only.
        patches: patch tokens of an image.
    """
    owner, count = torch.arange(patches), patches
    for plan in plans:
        prefix = plan.tokens - count
        later = plan.dst[0, prefix:].cpu() - prefix  # [count]; below 0: dropped
        owner = torch.where(owner < 0, owner, later[owner.clamp_min(0)].clamp_min(-1))
        count = plan.kept - prefix
    return owner


def _picture(
    attached: Attached, shown: Shown, place: int, owner: Tensor, read: Tensor
) -> tuple[Tensor, str]:
    """Draw the map of a sample, or the smaller image that the model read."""
    image = shown.light(shown.images[place])
    if attached.recipe.step_at(Stage.IMAGE) is not None:
        small = shown.light(read)
        grid = grid_of(attached.counts[0], small.shape[1:])
        return shrunk_image(small, grid), f"a smaller image, {grid[0]} x {grid[1]} patches"
    tokens = len(owner)
    grid = attached.adapter.grid(tokens) or grid_of(tokens, image.shape[1:])
    left, dropped = int(owner.max()) + 1, int((owner < 0).sum())
    plan = TokenMap(torch.full((1, left), -1), owner[None])
    picture = merged_groups(image, plan, grid, 0, see_through=SEE_THROUGH)
    return picture, f"{tokens} patches in {left} tokens" + f", {dropped} dropped" * (dropped > 0)


def encoded(picture: Tensor) -> str:
    """Return a picture `[3, H, W]` in 0..1 as a `data:` URL of WebP, its shorter side `SIDE` pixels."""
    pil: Any = need("PIL.Image", "eval")
    h, w = picture.shape[1:]
    scale = SIDE / min(h, w)
    image = pil.fromarray((picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())
    # Pixels of a smaller image stay visible.
    filtered = pil.Resampling.LANCZOS if scale < 1 else pil.Resampling.NEAREST
    image = image.resize((round(w * scale), round(h * scale)), filtered)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{b64encode(file.getvalue()).decode()}"
