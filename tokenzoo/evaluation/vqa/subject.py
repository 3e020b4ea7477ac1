"""Questions about images as a subject of `tokenzoo eval`, each in a prompt of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenzoo.evaluation.focus_vit import channels
from tokenzoo.evaluation.task import Control, Outcome, Shown, Subject
from tokenzoo.evaluation.vqa.one_image import encode_once, shown


@dataclass(frozen=True)
class Asked:
    """Images, and what is asked about them.

    Attributes:
        images: `[s, 3, H, W]`, as the model reads them; or clips `[s, f, 3, H, W]`, whose frames are images
            of one prompt.
        prompts: tokens `[s, q, t]`, a question of each kind.
        right: the token of each right answer, `[s, q]`.
        groups: the kinds of each group of kinds; the groups together have the q kinds, in their order.
    """

    images: Tensor
    prompts: Tensor
    right: Tensor
    groups: Mapping[str, Sequence[str]]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of questions, q of them."""
        return tuple(kind for group in self.groups.values() for kind in group)


def subject_of(
    task: str,
    name: str,
    model: Any,
    asked: Asked,
    *,
    batch: int,
    facts: Mapping[str, Any],
    controls: Mapping[str, Callable[[int | float], Control]] | None = None,
) -> Subject:
    """Return the task of a LLaVA that answers.

    Args:
        task: its name.
        name: of the model, for the rows.
        model: a LLaVA of transformers in eval mode.
        asked: the samples.
        batch: prompts of the call that is timed.
        facts: what else decides the scores, for the rows.
        controls: of the task's own.
    """
    encode_once(model)
    images, prompts = asked.images, asked.prompts
    shown = Shown(
        images,
        lambda model, place: model(
            input_ids=prompts[place, :1], pixel_values=images[place : place + 1]
        ),
        *channels(),
    )
    return Subject(
        task,
        name,
        model,
        len(images),
        score_of(asked),
        call=call_of(asked, batch),
        facts=facts,
        videos=images.ndim == 5,
        frames=images.shape[1] if images.ndim == 5 else None,
        per_patch=True,
        shown=shown if images.ndim == 4 else None,  # a clip is not one picture
        controls=controls or {},
    )


def score_of(asked: Asked) -> Callable[[Any, range, str], Outcome]:
    """Return what scores the answers of a model."""
    kinds = asked.kinds

    def score(model: Any, which: range, label: str) -> Outcome:
        del label
        found = torch.stack([answers(model, asked, sample) for sample in which])
        hits = found == asked.right[which.start : which.stop]  # [s, q]
        of_kind = dict(zip(kinds, hits.unbind(1), strict=True))
        means = {
            group: torch.stack([of_kind[kind] for kind in some], 1).double().mean(1)
            for group, some in asked.groups.items()
        }
        return Outcome({"right": hits.double().mean(1), **means, **of_kind}, found)

    return score


def call_of(asked: Asked, batch: int) -> Callable[[Any], object]:
    """Return one forward pass on so many prompts: a kind of question after another, about other images."""
    turn, samples = torch.arange(batch), len(asked.images)
    ids = asked.prompts[turn % samples, turn % len(asked.kinds)]
    pixels = asked.images[turn % samples].reshape(-1, *asked.images.shape[-3:])
    return lambda model: model(input_ids=ids, pixel_values=pixels)


def answers(model: Any, asked: Asked, sample: int) -> Tensor:
    """Return the most likely next token `[q]` of each prompt about one image or clip."""
    prompts = asked.prompts[sample]
    pixels = shown(model, asked.images[sample], len(prompts))
    return model(input_ids=prompts, pixel_values=pixels).logits[:, -1].argmax(1)
