"""`TokenLayout`: how the tokens of the images of a pass lie in a tensor.

A token is what the language model reads: one patch, or a group of p patches (2 x 2 in Qwen2-VL). Reductions
work on tokens `[b, prefix + n, p * c]`, one such tensor for the images of each size: what merges two tokens
merges patch i of one with patch i of the other. A layout says where these tokens are in the tensor that
travels through the blocks, before and after each reduction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from tokenzoo.attention import DeferredAttention, SeenAttention
from tokenzoo.evidence import Evidence, Layer
from tokenzoo.token_map import TokenMap

Grid = tuple[int, int]
Windows = tuple[Tensor, int]
"""Boundaries `[s + 1]` of windows, in patches, and the most patches of one."""


@dataclass(frozen=True)
class SizeBucket:
    """The images of one size in a pass, and how far their reduction has come.

    b images have N tokens each before the first block, and n at present.

    Attributes:
        first: tokens of each image before the first block (N).
        tokens: tokens of each image that are left (n).
        images: which images of the pass these are (of a video, each slice in time); (): all of a batch.
        grid: (rows, columns) of the N tokens, if they are a whole grid.
        counts: tokens after each block, as planned.
        features: tokens that are to leave the tower.
        projected: tokens that are to leave the projector; None: nothing is reduced there.
        mass: `[b, prefix + n]`, or None while every token stands for itself.
        held: `[b, prefix + n]` bool, protected at an earlier site, or None.
        places: `[b, n]` int64, which of the N tokens, in raster order, each token stands for; None: all are
            there in raster order, or nothing asks for it (see `TokenLayout.positional`).
        plan: from the first tokens to the present ones, prefix included, where it is recorded.
        evidence: what the last block showed about its output, for a step after the projector.
        layers: evidence of other blocks about the tokens that are left, for the steps after the last block.
        apart: whether tokens must stay in the order of the frames, each of which has places of its own.
        inside: where all tokens came back after the blocks: the plan of those that were left inside of
            them, where it is recorded.
        frames: number of frames of a video, each with equally many of the N tokens; None: these are images,
            or frames one by one.
    """

    first: int
    tokens: int
    images: tuple[int, ...] = ()
    grid: Grid | None = None
    counts: tuple[int, ...] = ()
    features: int = 0
    projected: int | None = None
    mass: Tensor | None = None
    held: Tensor | None = None
    places: Tensor | None = None
    plan: TokenMap | None = None
    evidence: Evidence | None = None
    layers: tuple[tuple[Layer, Evidence], ...] = ()
    frames: int | None = None
    apart: bool = False
    inside: TokenMap | None = None


@dataclass(frozen=True)
class ProofCase:
    """One run of a block on random tokens, and what has to come out (see `TokenLayout.proof_cases`).

    Attributes:
        rows: which of the random tokens the block is run on, prefix included.
        layout: of these.
        expected: which rows of the block's output for all tokens must come out.
        what: the case in words, for messages.
        keep: tokens to keep in the block; None: no reduction.
    """

    rows: list[int]
    layout: TokenLayout
    expected: list[int]
    what: str
    keep: int | None = None


@dataclass(frozen=True)
class TokenLayout(ABC):
    """How the tokens of the images of a pass lie in a tensor.

    Attributes:
        buckets: the images by size.
        group: patches that make one token (p).
        prefix: prefix tokens before the patches of each image (CLS, registers), which are never grouped.
    """

    buckets: tuple[SizeBucket, ...]
    group: int = 1
    prefix: int = 0

    ordered: ClassVar[bool] = False
    """Whether the tokens that are left must stay in the order in which they were."""

    pads: ClassVar[bool] = True
    """Whether images may keep different numbers of tokens, the rest of a row being padding."""

    fixed: ClassVar[bool] = True
    """Whether the sizes of the images can be read off the shape of the tensor, as an export needs it."""

    owned: ClassVar[bool] = False
    """Whether the tower makes the tensor that enters the first block itself, so that it may carry state."""

    segmented: ClassVar[bool] = False
    """Whether one attention may come in several calls, one for each segment, without masks."""

    @property
    def positional(self) -> bool:
        """Whether each token must know its place in the image."""
        return True

    @property
    def places(self) -> Tensor | None:
        """Which of the first rows of the tensor are left, as the adapter's blocks need it; None: all.

        Batched `[b, prefix + n * p]`, of the patches in raster order; packed `[t]`, tokens of the sequence.
        """
        return None

    @abstractmethod
    def split(self, x: Tensor) -> list[Tensor]:
        """The tokens of each bucket `[b, prefix + n, p * c]`, in raster order at first."""

    @abstractmethod
    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of `split`."""

    @abstractmethod
    def reduced(self, buckets: Iterable[SizeBucket]) -> Self:
        """The layout after a reduction.

        Args:
            buckets: as they are now; those that lost nothing are the same objects as before.
        """

    @abstractmethod
    def begun(self) -> Self:
        """The layout before the first block, of the same images."""

    def with_buckets(self, buckets: Iterable[SizeBucket]) -> Self:
        """The same layout with buckets whose tokens are the same, and lie where they were."""
        return replace(self, buckets=tuple(buckets))

    @staticmethod
    @abstractmethod
    def length(x: Tensor) -> int:
        """Rows of a tensor, of each image of a batch or of the whole sequence."""

    @abstractmethod
    def rows(self) -> int:
        """What `length` is of a tensor with this layout."""

    def counted(self, x: Tensor) -> tuple[int, ...]:
        """Tokens of an image of each bucket in a tensor, without prefix."""
        del x
        return tuple(bucket.tokens for bucket in self.buckets)

    @abstractmethod
    def spread(self, branch: Tensor, length: int) -> Tensor:
        """A view of as many rows as the block had before a reduction, made of fewer.

        A block adds it to its own residual; the sum is ignored.

        Args:
            branch: output of the second branch.
            length: rows before the reduction.
        """

    @property
    def learns(self) -> bool:
        """Whether a mass carries a gradient: then a gate learns by it (`StraightThrough`)."""
        return any(one.mass is not None and one.mass.requires_grad for one in self.buckets)

    @abstractmethod
    def log_mass(self, device: torch.device) -> Tensor | None:
        """Log mass of each row, to be added to the logits of its key; None while all masses are 1.

        `[b, prefix + n * p]`, or `[1, r]` of a packed sequence.
        """

    @abstractmethod
    def check_calls(self, calls: Sequence[SeenAttention], where: str) -> str:
        """What is wrong with the attention calls that were seen in a block; "": nothing."""

    @abstractmethod
    def attention(
        self, calls: Sequence[SeenAttention], windows: Windows | None, device: torch.device
    ) -> list[SeenAttention | DeferredAttention]:
        """What the attention of a block shows about the tokens of each bucket.

        Args:
            calls: what was seen of it.
            windows: in which the block attends; None: each image attends to all of itself.
            device: of the tokens.
        """

    @abstractmethod
    def projected(self, reaching: int) -> TokenLayout:
        """The layout of what the projector makes: one row a token.

        Args:
            reaching: prefix tokens that reach it.
        """

    @abstractmethod
    def by_video(self, videos: Sequence[int]) -> TokenLayout:
        """The same tokens with the frames of a video as one image, for a step over frames.

        Args:
            videos: frames of each video, in order; an image is a video of one frame.

        Raises:
            AttachError: the videos of this pass cannot be told apart.
        """

    @staticmethod
    @abstractmethod
    def before_projector(
        x: Tensor, output: Tensor, prefix: int, reaching: int, group: int
    ) -> Tensor:
        """A tensor shaped as what entered the first block, where no block was spliced.

        Args:
            x: what the projector was given.
            output: what it made.
            prefix: prefix tokens of the tower.
            group: patches of a token.
            reaching: prefix tokens that reach the projector.
        """

    @classmethod
    @abstractmethod
    def of_trial(cls, tokens: int, prefix: int, group: int, *, positional: bool = False) -> Self:
        """The layout of the random tokens of one image, before a block of the proof runs."""

    @classmethod
    def proof_cases(
        cls, tokens: int, prefix: int, group: int, *, positional: bool, device: torch.device
    ) -> list[ProofCase]:
        """What a spliced block is run on in the proof: all tokens are kept, half are, and a third case.

        Args:
            tokens: n random tokens, without prefix.
            prefix: prefix tokens.
            group: patches of a token.
            positional: whether positions act inside the attention.
            device: of the random tokens.
        """
        n, every = tokens, list(range(prefix + tokens))
        half = [*range(prefix), *range(prefix + 1, prefix + n, 2)]
        whole = cls.of_trial(n, prefix, group, positional=positional)
        return [
            ProofCase(every, whole, every, "all random tokens are kept", n),
            ProofCase(every, whole, half, f"{n // 2} of {n} random tokens are kept", n // 2),
            whole.moved_case(positional, device),
        ]

    @abstractmethod
    def moved_case(self, positional: bool, device: torch.device) -> ProofCase:
        """The case of the proof in which tokens of this layout are in other places than at first."""

    @abstractmethod
    def among(self, x: Tensor, draw: Callable[[int, int], Tensor]) -> list[tuple[Tensor, slice]]:
        """Random tokens among others that must not change them, to measure a block's noise.

        Args:
            x: `[1, prefix + n, p * c]`.
            draw: makes that many images of other random tokens, from a seed.

        Returns:
            Several tensors like `x` with more images or other tokens, and which rows of the first image are
            those of `x`.
        """


def masses(bucket: SizeBucket, x: Tensor) -> Tensor:
    """The mass of every token of `x [b, prefix + n, ...]`, on its device: `[b, prefix + n]`."""
    if bucket.mass is None:
        return torch.ones(x.shape[:2], dtype=torch.float32, device=x.device)
    return bucket.mass.to(x.device)
