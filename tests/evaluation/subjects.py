"""Small models that know nothing: a ViT as a subject, which takes milliseconds, and a LLaVA."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from tests.adapters.models import VIT
from tokenzoo.evaluation import Outcome, Subject
from tokenzoo.evaluation.task import batches
from tokenzoo.evaluation.vqa import llava
from tokenzoo.evaluation.vqa import subject as vqa
from tokenzoo.evaluation.vqa.vocabulary import Vocabulary
from tokenzoo.evaluation.vqa.words import WORDS

SAMPLES, TOKENS = 6, 49


def subject(**options: Any) -> Subject:
    """Six images of 7 x 7 patches, labelled with the bare model's own answers, one of them wrong."""
    model = VIT.build(**{"depth": 4, "img_size": 112, **options})
    images = torch.randn(SAMPLES, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[0] = (labels[0] + 1) % 10

    def score(model: Any, which: range, label: str) -> Outcome:
        del label
        part = slice(which.start, which.stop)
        logits = torch.cat([model(batch) for batch in batches(images[part], 4)])  # [s, 10]
        answers = logits.argmax(1)
        loud = logits.gather(1, labels[part, None])[:, 0]
        return Outcome({"right": answers == labels[part], "logit": loud}, answers)

    return Subject(
        "toy", "vit", model, SAMPLES, score, lambda model: model(images[:2]), {"seed": 0}
    )


def small_llava(words: Vocabulary = WORDS) -> Any:
    """A small LLaVA with a tower of 9 narrow blocks, the last of which is not read."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_attention_heads=2, num_hidden_layers=9, image_size=224, patch_size=14
    )
    vlm = llava.untrained(words, Dinov2Model(config))
    for value in vlm.parameters():
        if value.ndim == 2:
            torch.nn.init.normal_(value, std=value.shape[1] ** -0.5)
    return vlm


def images_encoded(subject: Subject, patch: pytest.MonkeyPatch) -> list[int]:
    """Count the images that the tower of a LLaVA encodes for each of two samples, and count again.

    The second time every question of a sample has its own copy of the images, which changes no answer.
    """
    vlm, sizes = subject.model, list[int]()
    tower = vlm.model.vision_tower
    tower.embeddings.register_forward_hook(lambda module, args, out: sizes.append(len(out)))
    with torch.no_grad():
        found = subject.score(vlm, range(2), "").answers
        patch.setattr(vqa, "shown", lambda model, image, q: image.repeat(q, 1, 1, 1))
        apart = subject.score(vlm, range(2), "").answers
    assert found is not None
    assert apart is not None
    assert torch.equal(found, apart)
    return sizes
