"""Questions about images as a subject of `tokenzoo eval`, each in a prompt of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenzoo.evaluation.focus_vit import channels
from tokenzoo.evaluation.task import Outcome, Shown, Subject
from tokenzoo.evaluation.vqa.one_image import encode_once, shown


@dataclass(frozen=True)
class Asked:
    """Images, and what is asked about them.

    Attributes:
        images: `[s, 3, H, W]`, as the model reads them.
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
    task: str, name: str, model: Any, asked: Asked, *, batch: int, facts: Mapping[str, Any]
) -> Subject:
    """Return the task of a LLaVA that answers.

    Args:
        task: its name.
        name: of the model, for the rows.
        model: a LLaVA of transformers in eval mode.
        asked: the samples.
        batch: prompts of the call that is timed.
        facts: what else decides the scores, for the rows.
    """
    samples, kinds = len(asked.images), asked.kinds

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

    encode_once(model)
    turn = torch.arange(batch)
    timed = {
        "input_ids": asked.prompts[turn % samples, turn % len(kinds)],
        "pixel_values": asked.images[turn % samples],
    }
    return Subject(
        task,
        name,
        model,
        samples,
        score,
        call=lambda model: model(**timed),
        facts=facts,
        shown=Shown(
            asked.images,
            lambda model, place: model(
                input_ids=asked.prompts[place, :1], pixel_values=asked.images[place : place + 1]
            ),
            *channels(),
        ),
    )


def answers(model: Any, asked: Asked, sample: int) -> Tensor:
    """Return the most likely next token `[q]` of each prompt about one image."""
    prompts = asked.prompts[sample]
    pixels = shown(model, asked.images[sample], len(prompts))
    return model(input_ids=prompts, pixel_values=pixels).logits[:, -1].argmax(1)
