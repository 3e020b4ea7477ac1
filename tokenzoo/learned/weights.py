"""The weights of a learned part: one set for each block, and the model for which they were made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from tokenzoo._core.pseudo_random import uniform


class Start(NamedTuple):
    """The first value of a tensor of weights: its shape, mean and standard deviation."""

    shape: tuple[int, ...]
    mean: float = 0.0
    std: float = 0.0


Starts = Mapping[str, Start]
"""The tensors of one block's weights, by name."""


@dataclass(frozen=True)
class Made:
    """The model for which weights were made.

    Attributes:
        model: name of its class.
        width: channels of a token.
        tokens: patch tokens of an image.
        counts: patch tokens after each block.
    """

    model: str
    width: int
    tokens: int
    counts: tuple[int, ...]

    @property
    def sites(self) -> dict[int, int]:
        """The blocks that reduce, and how many patch tokens each leaves."""
        before = (self.tokens, *self.counts)
        return {i: n for i, n in enumerate(self.counts) if n < before[i]}

    def __str__(self) -> str:
        return f"{self.model} with {len(self.counts)} blocks of width {self.width}"


class HasStarts(Protocol):
    """A part with weights; see `Learned`."""

    @property
    def seed(self) -> int:
        """The seed of the first values."""
        ...

    def starts(self, width: int, keep: int) -> Starts:
        """Return the tensors of one block."""
        ...


class Weights(nn.Module):
    """The weights of one part: a set of parameters for each block where it works.

    Attributes:
        made: the model for which they were made; None: they are not made yet.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: Made | None = None

    def make(self, part: HasStarts, made: Made) -> None:
        """Make the sets for a model, with their first values."""
        self.clear()
        for block, keep in made.sites.items():
            values = first_values(part.starts(made.width, keep), part.seed + 7_919 * block)
            group = nn.Module()
            for name, value in values.items():
                group.register_parameter(name, nn.Parameter(value))
            self.add_module(str(block), group)
        self.made = made

    def clear(self) -> None:
        """Forget all sets."""
        for name in [name for name, _ in self.named_children()]:
            delattr(self, name)
        self.made = None

    def of(self, block: int) -> dict[str, Tensor] | None:
        """Return the parameters of a block, by name; None: it has none."""
        group = getattr(self, str(block), None)
        return None if group is None else dict(group.named_parameters())

    def untouched(self, part: HasStarts) -> bool:
        """Whether all parameters have their first values: nothing was trained or loaded."""
        if self.made is None:
            return True
        fresh = Weights()
        fresh.make(part, self.made)
        pairs = zip(self.parameters(), fresh.parameters(), strict=True)
        return all(torch.equal(own.detach(), first.to(own)) for own, first in pairs)


def first_values(
    starts: Starts, seed: int, device: torch.device | None = None
) -> dict[str, Tensor]:
    """Return the first values of weights, float32: a function of the seed, their order and shapes.

    They are uniform, and use no generator: the same under torch.compile and inside transforms.
    """
    values: dict[str, Tensor] = {}
    for place, (name, (shape, mean, std)) in enumerate(starts.items()):
        number = 1_000_003 * seed + 15_485_863 * place
        drawn = uniform(math.prod(shape), number, device) - 0.5
        values[name] = (mean + std * math.sqrt(12) * drawn).reshape(shape)
    return values
