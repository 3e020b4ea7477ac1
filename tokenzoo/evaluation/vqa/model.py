"""The small LLaVA of the task `collage-vqa`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tokenzoo.evaluation.vqa import llava
from tokenzoo.evaluation.vqa.words import WORDS

WEIGHTS = "collage_vqa.safetensors"


def load_collage_llava() -> Any:
    """Return the trained model in eval mode, see `llava.load_llava`."""
    return llava.load_llava(WORDS, WEIGHTS, "train_collage_vqa.py")


def prompts(questions: Sequence[Sequence[str]]) -> Tensor:
    """Return the tokens `[q, 261]` of questions of four words: the image first, then the question.

    Raises:
        BadArgumentError: a word is not in the vocabulary.
    """
    return llava.prompts(WORDS, questions)
