"""A batch `[b, prefix + n * p, c]` of images of one size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from tokenzoo.attention import DeferredAttention, SeenAttention
from tokenzoo.errors import AttachError, BadArgumentError
from tokenzoo.layouts.base import Grid, ProofCase, SizeBucket, TokenLayout, Windows
from tokenzoo.layouts.group_attention import grouped
from tokenzoo.layouts.videos import bucket_of_videos


@dataclass(frozen=True)
class BatchedLayout(TokenLayout):
    """A batch `[b, prefix + n * p, c]` of images of one size: the layout of most towers.

    With groups of g x g patches (p = g * g) the patches are in raster order before the first reduction, and
    group by group after it: groups in raster order, or as the matcher orders them, and the patches of each
    in raster order.

    Attributes:
        raster: (rows, columns) of the groups while the patches are in raster order; None: group by group.
        tracked: whether positions act inside the attention, so that each token must know its place.
        absent: of the prefix tokens, how many are not in the tensor (a projector dropped them).
        frames: rows of the tensor that are one image, after each other: the frames of a video.
        apart: whether each frame of a video has places of its own in a prompt.
        slots: rows of the tensor that is made of what is left of a video; 0: as many as frames.
    """

    raster: Grid | None = None
    tracked: bool = False
    absent: int = 0
    frames: int = 1
    slots: int = 0
    apart: bool = False
    _places: Tensor | None = None

    @classmethod
    def of(
        cls,
        tokens: int,
        *,
        prefix: int = 0,
        group: int = 1,
        grid: Grid | None = None,
        positional: bool = False,
    ) -> Self:
        """The layout before the first block.

        Args:
            tokens: of an image, prefix tokens and the patches inside of groups not counted.
            prefix: prefix tokens.
            group: patches of a token: 1, 4, 9, ...
            grid: (rows, columns) of the tokens; groups of several patches need it.
            positional: see `tracked`.

        Raises:
            BadArgumentError: the groups are not square, or several patches make a token and the tokens are
                not a whole grid.
        """
        if group > 1 and (grid is None or grid[0] * grid[1] != tokens):
            raise BadArgumentError(
                f"grid={grid!r} for {tokens} tokens of {group} patches each; if several patches form a "
                "token, the tokens must fill a grid: Adapter.grid(tokens) returns its (rows, columns)"
            )
        if math.isqrt(group) ** 2 != group:
            raise BadArgumentError(
                f"group={group}; it must be the number of patches in a square: 1, 4, 9, 16, ..."
            )
        raster = grid if group > 1 else None
        bucket = SizeBucket(tokens, tokens, grid=grid)
        return cls((bucket,), group, prefix, raster, positional)

    @property
    def bucket(self) -> SizeBucket:
        """The only one."""
        return self.buckets[0]

    @property
    def positional(self) -> bool:
        """As the adapter says."""
        return self.tracked

    @property
    def places(self) -> Tensor | None:
        """`[b, prefix + n * p]`, of the patches in raster order."""
        return self._places

    def split(self, x: Tensor) -> list[Tensor]:
        """One tensor; the row of a prefix token repeats its channels p times."""
        if self.frames > 1:
            x = x.reshape(x.shape[0] // self.frames, -1, x.shape[2])
        if self.absent:
            x = torch.cat([x.new_zeros(x.shape[0], self.absent, x.shape[2]), x], 1)
        if self.group == 1:
            return [x]
        b, (_, _, c), p = x.shape[0], x.shape, self.group
        patches = x[:, self.prefix :]
        if self.raster is None:
            tokens = patches.reshape(b, -1, p * c)
        else:
            rows, columns, g = *self.raster, math.isqrt(p)
            apart = patches.reshape(b, rows, g, columns, g, c).transpose(2, 3)
            tokens = apart.reshape(b, rows * columns, p * c)
        if not self.prefix:
            return [tokens]
        return [torch.cat([x[:, : self.prefix].repeat(1, 1, p), tokens], 1)]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of `split`."""
        (x,) = parts
        if self.frames > 1 or self.slots:
            x = x.reshape(x.shape[0] * (self.slots or self.frames), -1, x.shape[2])
        if self.absent:
            return x[:, self.absent :]
        if self.group == 1:
            return x
        b, p, c = x.shape[0], self.group, x.shape[2] // self.group
        tokens = x[:, self.prefix :]
        if self.raster is None:
            patches = tokens.reshape(b, -1, c)
        else:
            rows, columns, g = *self.raster, math.isqrt(p)
            apart = tokens.reshape(b, rows, columns, g, g, c).transpose(2, 3)
            patches = apart.reshape(b, -1, c)
        return torch.cat([x[:, : self.prefix, :c], patches], 1) if self.prefix else patches

    def reduced(self, buckets: Iterable[SizeBucket]) -> Self:
        """Patches are group by group now."""
        (bucket,) = buckets
        return replace(self, buckets=(bucket,), raster=None, _places=self._patch_places(bucket))

    def _patch_places(self, bucket: SizeBucket) -> Tensor | None:
        """`places` of a bucket's tokens."""
        places = bucket.places
        if not self.tracked or places is None:
            return None
        if self.group > 1 and bucket.grid is not None:
            g, width = math.isqrt(self.group), bucket.grid[1]
            side = torch.arange(g, device=places.device)
            inside = (side[:, None] * (width * g) + side).flatten()  # [p]
            corner = places // width * (width * self.group) + places % width * g  # [b, n]
            places = (corner[..., None] + inside).flatten(1)
        if not self.prefix:
            return places
        own = torch.arange(self.prefix, device=places.device).expand(places.shape[0], -1)
        return torch.cat([own, places + self.prefix], 1)

    def begun(self) -> Self:
        """All tokens, in raster order."""
        bucket = SizeBucket(self.bucket.first, self.bucket.first, grid=self.bucket.grid)
        raster = bucket.grid if self.group > 1 else None
        return replace(self, buckets=(bucket,), raster=raster, _places=None)

    @staticmethod
    def length(x: Tensor) -> int:
        """Rows of an image."""
        return x.shape[1]

    def rows(self) -> int:
        """Prefix tokens and patches."""
        return self.prefix - self.absent + self.bucket.tokens * self.group

    def counted(self, x: Tensor) -> tuple[int, ...]:
        """As the tensor has them."""
        return ((x.shape[1] - self.prefix + self.absent) // self.group,)

    def spread(self, branch: Tensor, length: int) -> Tensor:
        """The first row of each image, `length` times."""
        return branch[:, :1].expand(-1, length, -1)

    def log_mass(self, device: torch.device) -> Tensor | None:
        """`[b, prefix + n * p]`."""
        mass = self.bucket.mass
        if mass is None:
            return None
        bias = mass.to(device).log()
        if self.group == 1:
            return bias
        patches = bias[:, self.prefix :].repeat_interleave(self.group, 1)
        return torch.cat([bias[:, : self.prefix], patches], 1)

    def check_calls(self, calls: Sequence[SeenAttention], where: str) -> str:
        """There is one call."""
        if len(calls) == 1:
            return ""
        return f"{len(calls)} fused attention calls were seen in {where}, and exactly one is needed"

    def attention(
        self, calls: Sequence[SeenAttention], windows: Windows | None, device: torch.device
    ) -> list[SeenAttention | DeferredAttention]:
        """The call itself; where there are groups, what it shows about these."""
        del windows
        (seen,) = calls
        if self.group == 1:
            return [seen]
        order = None
        if self.raster is not None:
            patches = self.raster[0] * self.raster[1] * self.group
            place = torch.arange(patches, device=device).view(1, -1, 1)
            tokens = replace(self, prefix=0).split(place)[0].flatten()
            own = torch.arange(self.prefix, device=device)
            order = torch.cat([own, tokens + self.prefix])
        return [grouped(seen, self.group, order)]

    def projected(self, reaching: int) -> BatchedLayout:
        """`[b, reaching + n, c']`; masses and plans count all prefix tokens."""
        absent = self.prefix - reaching
        return replace(self, group=1, raster=None, tracked=self.apart, absent=absent, _places=None)

    def by_video(self, videos: Sequence[int]) -> BatchedLayout:
        """Rows that follow each other become one; without prefix tokens.

        Raises:
            AttachError: the videos differ in their numbers of frames, or prefix tokens reach the projector.
        """
        frames = max(videos, default=1)
        if frames == 1:
            whole = self.bucket.features == self.bucket.first
            projected = None if whole else self.bucket.projected
            return replace(self, buckets=(replace(self.bucket, projected=projected, frames=1),))
        if set(videos) != {frames}:
            raise AttachError(
                f"the videos of one batch have {tuple(videos)} frames: this model takes videos of equally "
                "many frames alone; call it once for each number"
            )
        rows = torch.arange(sum(videos)).view(-1, frames)
        bucket = bucket_of_videos(self.bucket, rows, prefix=self.prefix)
        bucket = replace(bucket, apart=self.apart)
        return replace(
            self,
            buckets=(bucket,),
            prefix=0,
            absent=0,
            raster=None,
            tracked=self.apart,
            frames=frames,
            _places=None,
        )

    @staticmethod
    def before_projector(
        x: Tensor, output: Tensor, prefix: int, reaching: int, group: int
    ) -> Tensor:
        """An empty tensor with the rows of one image."""
        del x
        return output.new_empty(1, prefix + (output.shape[1] - reaching) * group, 0)

    @classmethod
    def of_trial(cls, tokens: int, prefix: int, group: int, *, positional: bool = False) -> Self:
        """One row of groups."""
        grid = (1, tokens)
        made: Any = cls.of(tokens, prefix=prefix, group=group, grid=grid, positional=positional)
        return made

    def moved_case(self, positional: bool, device: torch.device) -> ProofCase:
        """Backwards: whatever depends on positions must follow them."""
        p, n = self.prefix, self.bucket.tokens
        back = [*range(p), *range(p + n - 1, p - 1, -1)]
        places = torch.arange(n - 1, -1, -1, device=device)[None] if positional else None
        layout = self.reduced([replace(self.bucket, places=places)])
        return ProofCase(back, layout, back, "the random tokens come backwards")

    def among(self, x: Tensor, draw: Callable[[int, int], Tensor]) -> list[tuple[Tensor, slice]]:
        """The image in batches of 2, 4 and 8."""
        more = ((1, 1), (2, 3), (3, 7))
        return [(torch.cat([x, draw(seed, images)]), slice(None)) for seed, images in more]
