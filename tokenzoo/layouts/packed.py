"""Images of different sizes in one sequence of patches `[r, c]`, without a batch dimension.

The units of a pass (images, and slices in time of a video) never see each other. Those with the same grid
are one bucket, reduced as a batch `[b, n, p * c]` is, its tokens in raster order; the sequence may have
another order (by windows), in which the tokens that are left stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import ClassVar, Self

import torch
from torch import Tensor

from tokenzoo.attention import DeferredAttention, SeenAttention
from tokenzoo.errors import AttachError
from tokenzoo.layouts.base import Grid, ProofCase, SizeBucket, TokenLayout, Windows
from tokenzoo.layouts.group_attention import PackedAttention, seen
from tokenzoo.layouts.videos import packed_videos


@dataclass(frozen=True)
class PackedLayout(TokenLayout):
    """Images of different sizes in one sequence of patches `[r, c]`, the p patches of a token side by side.

    Attributes:
        orders: of each bucket `[N]`, where each of the first tokens, in raster order, was in its unit's
            part of the sequence; None: there.
        ranks: of each bucket `[b, n]`, the same of the tokens that are left; None: in their order.
        kept: `[t]` int64, ascending: which of the first tokens of the sequence are left; None: all.
        videos: frames of each video, where the frames of one have become one unit; (): they have not.
    """

    orders: tuple[Tensor | None, ...] = ()
    ranks: tuple[Tensor | None, ...] = ()
    kept: Tensor | None = None
    videos: tuple[int, ...] = ()

    ordered: ClassVar[bool] = True
    pads: ClassVar[bool] = False
    fixed: ClassVar[bool] = False
    owned: ClassVar[bool] = True
    segmented: ClassVar[bool] = True

    @classmethod
    def of(
        cls, grids: Sequence[Grid], orders: Mapping[Grid, Tensor] | None = None, *, group: int = 1
    ) -> Self:
        """The layout before the first block.

        Args:
            grids: (rows, columns) of the tokens of each unit.
            orders: of the units of a grid, where each token, in raster order, is in their part of the
                sequence `[N]`; those that are left out are in raster order.
            group: patches of a token.
        """
        buckets: list[SizeBucket] = []
        ranks: list[Tensor | None] = []
        known: Mapping[Grid, Tensor] = {} if orders is None else orders
        for grid in dict.fromkeys(grids):
            units = tuple(unit for unit, own in enumerate(grids) if own == grid)
            tokens, order = grid[0] * grid[1], known.get(grid)
            buckets.append(SizeBucket(tokens, tokens, units, grid))
            ranks.append(None if order is None else order.expand(len(units), -1))
        places = tuple(known.get(grid) for grid in dict.fromkeys(grids))
        return cls(tuple(buckets), group, 0, places, tuple(ranks))

    @classmethod
    def checked(
        cls, x: Tensor, grids: Sequence[Grid], order: Callable[[Grid], Tensor | None], group: int
    ) -> Self:
        """The layout of what enters the first block: patches `x [r, c]`.

        Args:
            x: the patches.
            grids: as in `of`.
            order: of a grid, as `orders` of `of`, or None.
            group: as in `of`.

        Raises:
            AttachError: the units have another number of patches.
        """
        known = {grid: at.to(x.device) for grid in {*grids} if (at := order(grid)) is not None}
        layout = cls.of(grids, known, group=group)
        found, wanted = x.shape[0], layout.rows()
        if found != wanted:
            raise AttachError(
                f"{found} patches enter the first block, but the images of this call have {wanted}: call "
                "the whole tower, with its grid_thw"
            )
        return layout

    @property
    def places(self) -> Tensor | None:
        """`kept`."""
        return self.kept

    @property
    def total(self) -> int:
        """Tokens that are left of all units (t)."""
        return sum(one.tokens * len(one.images) for one in self.buckets)

    @property
    def whole(self) -> int:
        """Tokens of all units before the first block."""
        return sum(one.first * len(one.images) for one in self.buckets)

    def at(self, index: int, device: torch.device) -> Tensor:
        """Where the tokens of a bucket, in raster order, are in the sequence: `[b, n]`."""
        bucket, rank = self.buckets[index], self.ranks[index]
        begin = _column(bucket, self._begins(first=False), device)
        return begin + (
            torch.arange(bucket.tokens, device=device) if rank is None else rank.to(device)
        )

    def split(self, x: Tensor) -> list[Tensor]:
        """Out of the sequence `[t * p, c]`."""
        if self._alone:
            return [x.reshape(len(self.buckets[0].images), self.buckets[0].tokens, -1)]
        tokens = x.reshape(self.total, -1)
        return [tokens[self.at(i, x.device)] for i in range(len(self.buckets))]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The sequence `[t * p, c]`."""
        tokens = self.join_tokens(parts)
        return tokens.reshape(tokens.shape[0] * self.group, -1)

    def join_tokens(self, parts: Sequence[Tensor]) -> Tensor:
        """The sequence `[t, ...]` of values `[b, n, ...]` of each bucket's tokens."""
        if self._alone:
            return parts[0].flatten(0, 1)
        values = torch.cat([part.flatten(0, 1) for part in parts])
        rows = torch.cat([self.at(i, values.device).flatten() for i in range(len(self.buckets))])
        return torch.empty_like(values).index_copy(0, rows, values)

    @property
    def _alone(self) -> bool:
        """Whether the sequence is one bucket, in raster order."""
        return len(self.buckets) == 1 and self.ranks[0] is None

    def reduced(self, buckets: Iterable[SizeBucket]) -> Self:
        """The tokens that are left keep the order of the sequence."""
        buckets = tuple(buckets)
        ranks = list(self.ranks)
        for i, (bucket, order) in enumerate(zip(buckets, self.orders, strict=True)):
            if bucket is not self.buckets[i] and order is not None and bucket.places is not None:
                at = order.to(bucket.places.device)[bucket.places]  # [b, n]
                ranks[i] = at.argsort(-1).argsort(-1)
        layout = replace(self, buckets=buckets, ranks=tuple(ranks))
        if all(bucket.places is None for bucket in buckets):
            return layout
        begins, device = layout._begins(first=True), layout.device()
        found: list[Tensor] = []
        for bucket, order in zip(buckets, self.orders, strict=True):
            places = _places(bucket, device)
            at = places if order is None else order.to(device)[places]
            found.append(_column(bucket, begins, device) + at)
        return replace(layout, kept=layout.join_tokens(found))

    def begun(self) -> Self:
        """All tokens."""
        buckets = tuple(
            SizeBucket(b.first, b.first, b.images, b.grid, frames=b.frames) for b in self.buckets
        )
        ranks = tuple(
            None if order is None else order.expand(len(bucket.images), -1)
            for bucket, order in zip(buckets, self.orders, strict=True)
        )
        return replace(self, buckets=buckets, ranks=ranks, kept=None)

    def raster(self, device: torch.device) -> Tensor:
        """Which of all first tokens are left, in raster order, unit by unit: `[t]`."""
        begins = self._begins(first=True)
        plain = replace(self, ranks=(None,) * len(self.buckets))
        return plain.join_tokens(
            [_column(bucket, begins, device) + _places(bucket, device) for bucket in self.buckets]
        )

    def left(self) -> list[Tensor]:
        """Of each unit, which of its first tokens, in raster order, are left: `[n]` each."""
        found: dict[int, Tensor] = {}
        for bucket in self.buckets:
            found.update(zip(bucket.images, _places(bucket, self.device()), strict=True))
        return [found[unit] for unit in sorted(found)]

    @staticmethod
    def length(x: Tensor) -> int:
        """Patches of the sequence."""
        return x.shape[0]

    def rows(self) -> int:
        """Patches of all units that are left (r)."""
        return self.total * self.group

    def spread(self, branch: Tensor, length: int) -> Tensor:
        """The first row, `length` times."""
        return branch[:1].expand(length, -1)

    def log_mass(self, device: torch.device) -> Tensor | None:
        """`[1, r]`."""
        known = next((bucket.mass for bucket in self.buckets if bucket.mass is not None), None)
        if known is None:
            return None
        parts = [
            known.new_ones(len(bucket.images), bucket.tokens, device=device)
            if bucket.mass is None
            else bucket.mass.to(device)
            for bucket in self.buckets
        ]
        return self.join_tokens(parts).log().repeat_interleave(self.group)[None]

    def check_calls(self, calls: Sequence[SeenAttention], where: str) -> str:
        """Each patch is in one call."""
        found = sum(call.key.shape[2] for call in calls)
        if found == self.rows():
            return ""
        return f"the attention of {found} patches was seen in {where}, and {self.rows()} are there"

    def attention(
        self, calls: Sequence[SeenAttention], windows: Windows | None, device: torch.device
    ) -> list[SeenAttention | DeferredAttention]:
        """The calls, one a segment, are one attention."""
        query = torch.cat([call.query[0] for call in calls], 1)
        key = torch.cat([call.key[0] for call in calls], 1)
        biases = [call.key_bias[0] for call in calls if call.key_bias is not None]
        bias = torch.cat(biases) if biases else None
        bounds, longest = windows or (None, 0)
        known = [call.column[0] for call in calls if call.column is not None]
        more = (bias, bounds, longest, torch.cat(known) if len(known) == len(calls) else None)
        packed = PackedAttention(query, key, calls[0].scale, self.group, *more)
        return [seen(packed, self.at(i, device)) for i in range(len(self.buckets))]

    def projected(self, reaching: int) -> PackedLayout:
        """`[t, c']`."""
        del reaching
        return replace(self, group=1)

    def by_video(self, videos: Sequence[int]) -> Self:
        """Units that follow each other, and have one grid, become one."""
        if self.videos:
            return self
        buckets, orders, ranks = packed_videos(self.buckets, self.orders, self.ranks, videos)
        return replace(self, buckets=buckets, orders=orders, ranks=ranks, videos=(*videos,))

    @staticmethod
    def before_projector(
        x: Tensor, output: Tensor, prefix: int, reaching: int, group: int
    ) -> Tensor:
        """An empty tensor with all patches: the projector may be given one row for each group."""
        del x, prefix, reaching
        return output.new_empty(output.shape[0] * group, 0)

    @classmethod
    def of_trial(cls, tokens: int, prefix: int, group: int, *, positional: bool = False) -> Self:
        """One unit with one row of tokens."""
        del prefix, positional
        return cls.of([(1, tokens)], group=group)

    def moved_case(self, positional: bool, device: torch.device) -> ProofCase:
        """The second half is a segment: without the first it is what it was."""
        del positional
        n = self.total
        end = list(range(n // 2, n))
        places = torch.tensor([end], device=device)
        left = self.reduced([replace(self.buckets[0], tokens=len(end), places=places)])
        return ProofCase(end, left, end, "the second half of the random tokens is left")

    def among(self, x: Tensor, draw: Callable[[int, int], Tensor]) -> list[tuple[Tensor, slice]]:
        """The second half, a segment of its own, after other tokens."""
        half = x.shape[1] // 2
        mixed = [torch.cat([draw(seed, 1)[:, :half], x[:, half:]], 1) for seed in (1, 2, 3)]
        return [(one, slice(half, None)) for one in mixed]

    def _begins(self, *, first: bool) -> list[int]:
        """Where each unit begins in the sequence, now or when the pass began."""
        lengths: dict[int, int] = {}
        for bucket in self.buckets:
            count = bucket.first if first else bucket.tokens
            lengths.update(dict.fromkeys(bucket.images, count))
        return [0, *accumulate(lengths[unit] for unit in sorted(lengths))]

    def device(self) -> torch.device:
        """Where it is known which tokens are left; the CPU where all are."""
        known = (bucket.places for bucket in self.buckets)
        return next((places.device for places in known if places is not None), torch.device("cpu"))


def _column(bucket: SizeBucket, begins: Sequence[int], device: torch.device) -> Tensor:
    """Where the units of a bucket begin: `[b, 1]`."""
    return torch.tensor([[begins[unit]] for unit in bucket.images], device=device)


def _places(bucket: SizeBucket, device: torch.device) -> Tensor:
    """`SizeBucket.places`, written out: `[b, n]`."""
    if bucket.places is not None:
        return bucket.places.to(device)
    return torch.arange(bucket.tokens, device=device).expand(len(bucket.images), -1)
