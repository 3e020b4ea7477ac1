"""A memory of the frames of a video that arrive one by one, of a fixed size.

memory = tokenzoo.stream(frames=64)
for frame in camera:
    memory.add(projector(tower(frame)))            # [n, c]
memory.tokens                                      # [m * n, c], m <= 64: what a language model reads

The rule is MovieChat's (arXiv 2307.16449): when there is a frame too many, the two
neighbouring frames that are most similar merge, place by place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokenzoo._core.precision import comparable, precise
from tokenzoo._core.validation import check_count, is_kind
from tokenzoo.errors import BadArgumentError
from tokenzoo.tokens import shape_of, unit


class FrameMemory:
    """At most so many frames of a video, each the mean of consecutive ones; made by `stream`.

    Features are detached, and neither memory nor the time of a frame grows with the video. Each frame waits
    for the device. Frames whose tokens are not finite are similar to none.

    Departures:
        - Frames merge whenever there is one too many; the authors first gather 16 frames in a short-term
          memory.
        - A merged frame is the mean of all its frames; the authors' is the mean of the two that merge, in
          which later frames weigh more.
    """

    def __init__(self, frames: int) -> None:
        self._most = check_count("frames", frames)
        self._frames: list[Tensor] = []  # each [n, c]
        self._sizes: list[int] = []
        self._alike: list[float] = []  # of each frame and the next

    def add(self, frame_tokens: Tensor) -> None:
        """Add the next frame.

        Args:
            frame_tokens: `[n, c]`, as many as of the frames before.

        Raises:
            BadArgumentError: another shape, dtype or device than the first frame's.
        """
        self._check(frame_tokens)
        self._frames.append(frame_tokens.detach().clone())
        self._sizes.append(1)
        if len(self._frames) > 1:
            self._alike.append(self._similarity(len(self._frames) - 2))
        if len(self._frames) > self._most:
            self._merge(max(range(len(self._alike)), key=self._alike.__getitem__))

    @property
    def tokens(self) -> Tensor:
        """The tokens of all frames in order of time, `[m * n, c]`.

        Raises:
            BadArgumentError: no frame was added.
        """
        if not self._frames:
            raise BadArgumentError("a memory without a frame has no tokens: add one first")
        return torch.cat(self._frames)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many frames of the video each frame of the memory stands for, in order of time."""
        return tuple(self._sizes)

    def _merge(self, at: int) -> None:
        """Merge a frame with the next."""
        one, other = (precise(frame) for frame in self._frames[at : at + 2])
        mass, more = self._sizes[at : at + 2]
        mean = (one * mass + other * more) / (mass + more)
        self._frames[at : at + 2] = [mean.to(self._frames[at].dtype)]
        self._sizes[at : at + 2] = [mass + more]
        del self._alike[at]
        for pair in (at - 1, at):
            if 0 <= pair < len(self._alike):
                self._alike[pair] = self._similarity(pair)

    def _similarity(self, at: int) -> float:
        """The mean cosine of the tokens of a frame and the next, at the same place."""
        one, other = (unit(frame) for frame in self._frames[at : at + 2])
        mean = float(comparable((one * other).sum(-1).mean()))
        return mean if mean == mean else -torch.inf  # NaN is like nothing

    def _check(self, given: Tensor) -> None:
        if not is_kind(given, Tensor) or given.ndim != 2 or not given.is_floating_point():
            raise BadArgumentError(
                f"frame_tokens have shape {shape_of(given)} and dtype {getattr(given, 'dtype', None)}; the "
                "tokens of one frame are a float tensor [n, c]"
            )
        first = self._frames[0] if self._frames else given
        wanted = (first.shape, first.dtype, first.device)
        if (given.shape, given.dtype, given.device) != wanted:
            raise BadArgumentError(
                f"frame_tokens have shape {shape_of(given)}, {given.dtype}, on {given.device}; those of "
                f"the first frame {shape_of(first)}, {first.dtype}, on {first.device}: all must be alike"
            )


def stream(*, frames: int = 64) -> FrameMemory:
    """Make a memory for the frames of a video that arrive one by one.

    Args:
        frames: the most frames that it holds.

    Raises:
        BadArgumentError: `frames` is not an int >= 1.
    """
    return FrameMemory(frames)
