"""Controls of the task `clips`: the bare model is shown fewer frames, or smaller ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import interpolate

from tokenzoo.errors import BadArgumentError
from tokenzoo.evaluation.focus_vit import PATCH
from tokenzoo.evaluation.task import Control
from tokenzoo.evaluation.vqa.clip_model import TOKENS
from tokenzoo.evaluation.vqa.clip_samples import asked_of
from tokenzoo.evaluation.vqa.clips import FRAMES
from tokenzoo.evaluation.vqa.question import Question
from tokenzoo.evaluation.vqa.subject import call_of, score_of


def fewer_frames(
    images: Tensor, questions: Sequence[Sequence[Question]], keep: int | float, batch: int
) -> Control:
    """Return the control that shows whole frames in equal distances, and drops the others.

    Args:
        images: `[s, f, 3, H, W]`.
        questions: a list of those about each clip.
        keep: tokens of a frame on average, a count or a share.
        batch: prompts of the call that is timed.

    Raises:
        BadArgumentError: the budget is not a whole number of frames.
    """
    share = keep / TOKENS if isinstance(keep, int) else keep
    number = round(share * FRAMES)
    if number < 1 or abs(share * FRAMES - number) > 1e-6 or number > FRAMES:
        raise BadArgumentError(
            f"keep={keep!r} with fewer-frames: it is {share * FRAMES:.3g} of {FRAMES} frames, and whole "
            "ones are dropped; shares that fit are 0.125, 0.25, 0.375 and so on"
        )
    frames = [(2 * place + 1) * FRAMES // (2 * number) for place in range(number)]
    asked = asked_of(images[:, frames], questions, frames)
    tokens = round(TOKENS * number / FRAMES)
    return Control(score_of(asked), call_of(asked, batch), tokens, number / FRAMES)


def smaller_frames(
    images: Tensor, questions: Sequence[Sequence[Question]], keep: int | float, batch: int
) -> Control:
    """Return the control that shows all frames with fewer pixels, as `downsample` does with one image.

    Args:
        images: `[s, f, 3, H, W]`.
        questions: a list of those about each clip.
        keep: tokens of a frame, a count or a share.
        batch: prompts of the call that is timed.

    Raises:
        BadArgumentError: the budget is not a square number of patches.
    """
    tokens = keep if isinstance(keep, int) else round(keep * TOKENS)
    side = math.isqrt(tokens)
    if tokens < 1 or side**2 != tokens or tokens > TOKENS:
        squares = ", ".join(str(one**2) for one in range(1, math.isqrt(TOKENS) + 1))
        raise BadArgumentError(
            f"keep={keep!r} with smaller-frames: {tokens} patches are not a square frame; {squares} are"
        )
    small = interpolate(
        images.flatten(0, 1), (side * PATCH, side * PATCH), mode="bilinear", antialias=True
    )
    asked = asked_of(small.reshape(*images.shape[:2], *small.shape[1:]), questions)
    return Control(score_of(asked), call_of(asked, batch), tokens)
