"""What a pass did, as the user reads it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo.errors import AttachError
from tokenzoo.hooks.state import ReductionState
from tokenzoo.token_map import TokenMap


@dataclass(frozen=True)
class PassReport:
    """What the last pass did with its images of one grid.

    Attributes:
        tokens: patch tokens of an image before the first block.
        images: which images of the pass these are (of a video, each slice in time); (): all.
        counts: patch tokens after each block.
        features: patch tokens that left the tower, and the projector.
        mass: how many input tokens each token stands for, `[b, n]`, prefix included; None: one each.
        record: from the first tokens to the last ones, where plans are kept (`trace=True`) and something
            was reduced; otherwise None. Where all tokens come back after the blocks: to the last ones
            inside of them.
    """

    tokens: int
    images: tuple[int, ...]
    counts: tuple[int, ...]
    features: int
    mass: Tensor | None
    record: TokenMap | None


def reports(state: ReductionState) -> tuple[PassReport, ...]:
    """What a pass did, by the grid of its images; of a batch there is one."""
    found: list[PassReport] = []
    for i, one in enumerate(state.layout.buckets):
        fired = tuple(counts[i] for counts in state.fired)
        counts = (*one.counts[: len(one.counts) - len(fired)], *fired)
        left = one.tokens if state.finished else 0
        record = one.plan if one.inside is None else one.inside
        found.append(PassReport(one.first, one.images, counts, left, one.mass, record))
    return tuple(found)


def left_of(state: ReductionState) -> tuple[Tensor, ...]:
    """Of each image of a pass, which of its patch tokens are left: `[m]`, in the order of the tokens.

    Raises:
        AttachError: it was not recorded, or a token is a new one.
    """
    prefix, found = state.layout.prefix, dict[int, Tensor]()
    for one in state.layout.buckets:
        places, record = one.places, one.plan if one.inside is None else one.inside
        if record is not None:
            places = record.keep[:, prefix:] - prefix  # [b, m]
            if bool((places < 0).any()):
                raise AttachError(
                    "some tokens that are left are none of the image's: the recipe makes new ones "
                    "(means, clusters), which have no place"
                )
        elif places is None and one.tokens != one.first:
            raise AttachError(
                f"{one.tokens} of {one.first} tokens are left, and it was not recorded which: "
                "attach(..., trace=True)"
            )
        elif places is None and not one.images:
            raise AttachError("nothing was reduced in the last forward pass: all tokens are left")
        if places is None:
            places = torch.arange(one.first).expand(len(one.images), -1)
        found.update(zip(one.images or range(len(places)), places, strict=True))
    return tuple(found[image] for image in sorted(found))
