"""What is asked about clips: a question of each kind, each in a prompt of its own."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from tokenzoo.evaluation.focus_vit import PATCH
from tokenzoo.evaluation.vqa.clip_model import prompts
from tokenzoo.evaluation.vqa.clip_questions import (
    CLIP_COARSE,
    CLIP_FINE,
    CLIP_KINDS,
    ask_clip,
    timelines,
)
from tokenzoo.evaluation.vqa.clip_words import CLIP_WORDS
from tokenzoo.evaluation.vqa.clips import FRAMES, Clips
from tokenzoo.evaluation.vqa.question import Question
from tokenzoo.evaluation.vqa.subject import Asked


def questions_of(drawn: Clips, seed: int) -> list[list[Question]]:
    """Ask one question of each kind of each clip, in the order of `CLIP_KINDS`.

    Args:
        drawn: clips.
        seed: of the questions.
    """
    rng = random.Random(seed)
    return [[ask_clip(kind, clip, rng) for kind in CLIP_KINDS] for clip in timelines(drawn.story)]


def asked_of(
    images: Tensor,
    questions: Sequence[Sequence[Question]],
    frames: Sequence[int] = range(FRAMES),
) -> Asked:
    """Return the samples of clips.

    Args:
        images: `[s, f, 3, H, W]`, as the model reads them.
        questions: a list of those about each clip.
        frames: the indices of the f frames that are shown.
    """
    tokens = (images.shape[-1] // PATCH) ** 2
    words = [prompts([one.words for one in asked], frames, tokens) for asked in questions]
    right = [CLIP_WORDS.encode([one.answer for one in asked]) for asked in questions]
    groups = {"coarse": tuple(CLIP_COARSE), "fine": tuple(CLIP_FINE)}
    return Asked(images, torch.stack(words), torch.tensor(right), groups)
