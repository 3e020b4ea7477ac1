"""The frames of a video as one image: what a step over frames reads, and what is left of them.

A pass has a row for each frame, each with n tokens. A step over frames has a row for each video, with f * n
tokens, frame after frame. An image is a video of one frame, left whole unless the tower has reduced it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tokenzoo.errors import AttachError
from tokenzoo.evidence import Evidence
from tokenzoo.layouts.base import SizeBucket
from tokenzoo.token_map import TokenMap


def side_by_side(values: Tensor, rows: Tensor, step: int = 0, axis: int = 1) -> Tensor:
    """Put the tokens of several rows after each other: of `values [b, n]`, `[v, f * n]`.

    Args:
        values: their tokens are in dimension `axis`.
        rows: `[v, f]`, which rows of `values` each row of the result is made of.
        step: is added to the values of the second row, twice of the third, and so on; negative ones stay.
        axis: of the tokens.
    """
    apart = values[rows.to(values.device)]  # [v, f, ..., n, ...]
    if step:
        shape = (1, rows.shape[1], *[1] * (apart.ndim - 2))
        more = step * torch.arange(rows.shape[1], device=values.device).view(shape)
        apart = torch.where(apart < 0, apart, apart + more)
    order = [0, *range(2, axis + 1), 1, *range(axis + 1, apart.ndim)]
    return apart.permute(order).flatten(axis, axis + 1)


def map_of_videos(plan: TokenMap, rows: Tensor) -> TokenMap:
    """The token maps of the frames `rows [v, f]` as one map of all tokens of each video."""
    return TokenMap(
        side_by_side(plan.keep, rows, plan.tokens),
        side_by_side(plan.dst, rows, plan.kept),
        held=None if plan.held is None else side_by_side(plan.held, rows),
        complete=plan.complete,
    )


def evidence_of_videos(evidence: Evidence, rows: Tensor) -> Evidence:
    """The evidence of the frames `rows [v, f]` as one, about all tokens of each video.

    There is no softmax over them. The text is that of the first frame.
    """
    shown, first = evidence.provides, rows[:, 0]
    grid = evidence.grid if "grid" in shown else None
    text, mask = evidence.text if "text" in shown else None, evidence.text_mask
    return evidence.moved(
        lambda value, axis: side_by_side(value, rows, axis=axis),
        grid=None if grid is None else (rows.shape[1] * grid[0], grid[1]),
        frames=rows.shape[1],
        text=None if text is None else text[first],
        text_mask=None if mask is None else mask[first],
    )


def pooled_evidence(evidence: Evidence, pool: Callable[[Tensor], Tensor]) -> Evidence:
    """The evidence of the tokens that a model pools these to, without a grid.

    Args:
        evidence: of n tokens.
        pool: of values `[b, n, k]`, as the model pools its features: `[b, m, k]`.
    """

    def small(value: Tensor, axis: int) -> Tensor:
        apart = value.transpose(axis, 1)  # [b, n, ...]
        made = pool(apart.reshape(*apart.shape[:2], -1))  # [b, m, k]
        return made.reshape(*made.shape[:2], *apart.shape[2:]).transpose(axis, 1)

    return evidence.moved(small)


def bucket_of_videos(
    bucket: SizeBucket, rows: Tensor, videos: tuple[int, ...] = (), prefix: int = 0
) -> SizeBucket:
    """The videos of a bucket of frames.

    Args:
        bucket: of the frames.
        rows: `[v, f]`, which of them are the frames of each video.
        videos: which videos of the pass these are; (): all.
        prefix: prefix tokens of a frame; those of a video are none.
    """
    f, one = rows.shape[1], bucket
    whole = f == 1 and one.features == one.first
    plan = None if one.plan is None else without_prefix(one.plan, prefix)
    return replace(
        one,
        first=f * one.first,
        tokens=f * one.tokens,
        images=videos,
        grid=None if one.grid is None else (f * one.grid[0], one.grid[1]),
        features=f * one.features,
        projected=None if one.projected is None or whole else f * one.projected,
        mass=None if one.mass is None else side_by_side(one.mass[:, prefix:], rows),
        held=None if one.held is None else side_by_side(one.held[:, prefix:], rows),
        places=None if one.places is None else side_by_side(one.places, rows, one.first),
        plan=None if plan is None else map_of_videos(plan, rows),
        evidence=None if one.evidence is None else evidence_of_videos(one.evidence, rows),
        layers=tuple((name, evidence_of_videos(shown, rows)) for name, shown in one.layers),
        frames=f,
    )


def packed_videos(
    buckets: Sequence[SizeBucket],
    orders: Sequence[Tensor | None],
    ranks: Sequence[Tensor | None],
    videos: Sequence[int],
) -> tuple[tuple[SizeBucket, ...], tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """The buckets of a packed sequence, with their orders and ranks (`PackedLayout`), of videos.

    Raises:
        AttachError: there are more or fewer frames, or those of one video differ in size.
    """
    made: list[SizeBucket] = []
    new_orders: list[Tensor | None] = []
    new_ranks: list[Tensor | None] = []
    for (i, frames), several in rows_of_videos(buckets, videos).items():
        own, order, rank = buckets[i], orders[i], ranks[i]
        rows = torch.tensor([at for _, at in several])  # [v, f]
        made.append(bucket_of_videos(own, rows, tuple(video for video, _ in several)))
        if order is not None:
            order = side_by_side(order[None], rows.new_zeros(1, frames), own.first)[0]
        new_orders.append(order)
        new_ranks.append(None if rank is None else side_by_side(rank, rows, own.tokens))
    return tuple(made), tuple(new_orders), tuple(new_ranks)


def rows_of_videos(
    buckets: Sequence[SizeBucket], videos: Sequence[int]
) -> dict[tuple[int, int], list[tuple[int, list[int]]]]:
    """By bucket and number of frames: the videos, each with the rows of the bucket that are its frames.

    Args:
        buckets: of the frames of a pass.
        videos: frames of each video, in order.

    Raises:
        AttachError: there are more or fewer frames, or those of one video differ in size.
    """
    places = {unit: (i, row) for i, b in enumerate(buckets) for row, unit in enumerate(b.images)}
    if sum(videos) != len(places):
        raise AttachError(
            f"the images and videos of this call have {sum(videos)} frames ({tuple(videos)}), and "
            f"{len(places)} were encoded: call the whole model with what its processor returned"
        )
    found: dict[tuple[int, int], list[tuple[int, list[int]]]] = {}
    begin = 0
    for video, frames in enumerate(videos):
        mine = [places[unit] for unit in range(begin, begin + frames)]
        begin += frames
        if len({bucket for bucket, _ in mine}) > 1:
            raise AttachError(f"the frames of video {video} (counted from 0) differ in size")
        found.setdefault((mine[0][0], frames), []).append((video, [row for _, row in mine]))
    return found


def without_prefix(plan: TokenMap, prefix: int) -> TokenMap:
    """Undo `TokenMap.after_prefix`."""
    keep, dst = plan.keep[:, prefix:], plan.dst[:, prefix:]
    keep = torch.where(keep < 0, keep, keep - prefix)
    dst = torch.where(dst < 0, dst, dst - prefix)
    held = None if plan.held is None else plan.held[:, prefix:]
    return TokenMap(keep, dst, held=held, complete=plan.complete)
