"""The small LLaVA of the task `clips`: the frames of a clip are images of one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokenzoo.evaluation import focus_vit
from tokenzoo.evaluation.vqa import llava
from tokenzoo.evaluation.vqa.clip_words import CLIP_WORDS, TIMES
from tokenzoo.evaluation.vqa.clips import GRID, SIDE
from tokenzoo.evaluation.vqa.vocabulary import BOS, IMAGE

WEIGHTS = "clips.safetensors"
BLOCKS = (
    llava.LAYER + 1
)  # of the tower: the last hidden state may come after a norm, so it is not read
TOKENS = (GRID * SIDE // focus_vit.PATCH) ** 2  # of a frame: 36


def load_clip_llava() -> Any:
    """Return the trained model in eval mode, see `llava.load_llava`."""
    return llava.load_llava(CLIP_WORDS, WEIGHTS, "train_clips.py", BLOCKS)


def heading(frame: int) -> list[int]:
    """Return the tokens before the frame of an index: its number in words.

    A frame is known by these words, not by its place: a shorter prompt has other places.
    """
    return CLIP_WORDS.encode(("frame", TIMES[frame]))


def prompts(
    questions: Sequence[Sequence[str]], frames: Sequence[int], tokens: int = TOKENS
) -> Tensor:
    """Return the tokens `[q, t]` of questions of w words: each frame after its number, then the question.

    Args:
        questions: words of each.
        frames: the indices of the frames that are shown, in order.
        tokens: of a frame.

    Raises:
        BadArgumentError: a word is not in the vocabulary.
    """
    shown = [CLIP_WORDS.index[BOS]]
    for frame in frames:
        shown += [*heading(frame), *[CLIP_WORDS.index[IMAGE]] * tokens]
    return torch.tensor([[*shown, *CLIP_WORDS.encode(one)] for one in questions])
