"""A tiny vision transformer with an honest adapter, and adapters that break one promise each.

with plugins.registered(mutants.adapters):
    check_adapter(tiny(Adapted), image=images())
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.mutants.tiny_vit import HEADS, SIDE, WIDTH, TinyViT
from tokenzoo.adapter import Adapter, BlockPath
from tokenzoo.hooks.state import get_state
from tokenzoo.hookspecs import hookimpl


@dataclass(frozen=True, eq=False)
class Adapted(Adapter):
    """Says the truth about a TinyViT."""

    model: TinyViT

    stages = frozenset({"block"})
    provides = frozenset(
        {"x", "mass", "keys", "queries", "received_attention", "cls_attention", "attention", "grid"}
    )
    prefix = 1
    width = WIDTH
    mlp_dim = 2 * WIDTH

    def blocks(self) -> tuple[BlockPath, ...]:
        count = len(self.model.blocks)
        return tuple(BlockPath(f"blocks.{i}", "attention", "norm2", "mlp") for i in range(count))

    def passthrough_modules(self) -> tuple[str, ...]:
        return ("norm",)

    def tokens(self) -> int | None:
        return SIDE * SIDE

    def grid(self, tokens: int) -> tuple[int, int] | None:
        return (SIDE, SIDE) if tokens == SIDE * SIDE else None

    def install(self, proportional: bool) -> Callable[[], None] | None:
        del proportional
        return self.model.pool.register_forward_hook(_pool_by_mass).remove


def _pool_by_mass(pool: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    """The pooled tokens, each patch counted as often as its mass."""
    del pool
    mean = _mean(args[0])
    return None if mean is None else torch.cat([output[:, :WIDTH], mean], -1)


def _mean(x: Tensor) -> Tensor | None:
    """The mean of the patch tokens by mass; None where a plain one is right."""
    state = get_state(x)
    if state is None or state.mass is None or state.restored:
        return None
    weight = state.mass[:, 1:, None].to(x.dtype)
    return (x[:, 1:] * weight).sum(1) / weight.sum(1)


class PlainMean(Adapted):
    """Leaves the mean as it is: a token that stands for many counts once."""

    def install(self, proportional: bool) -> Callable[[], None] | None:
        return None


class BatchPool(Adapted):
    """Scales the pooled tokens by the masses of the whole batch."""

    def install(self, proportional: bool) -> Callable[[], None] | None:

        def pool(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            mean = _mean(args[0])
            if mean is None:
                return None
            mixed = mean + 0.1 * (mean.mean(0, keepdim=True) - mean)
            return torch.cat([output[:, :WIDTH], mixed], -1)

        return self.model.pool.register_forward_hook(pool).remove


class MissesABlock(Adapted):
    """Forgets the last block."""

    def blocks(self) -> tuple[BlockPath, ...]:
        return super().blocks()[:-1]


class CountsCLS(Adapted):
    """Takes the CLS token for a patch: it can be merged away."""

    prefix = 0
    provides = Adapted.provides - {"cls_attention", "grid"}


class WrongSecond(Adapted):
    """Names a module before the attention as the beginning of the second branch."""

    def blocks(self) -> tuple[BlockPath, ...]:
        return tuple(replace(path, branch2_in="norm1") for path in super().blocks())


class NoFollowers(Adapted):
    """Forgets the final norm, after which the masses are unknown."""

    def passthrough_modules(self) -> tuple[str, ...]:
        return ()


class WrongGrid(Adapted):
    """Says that sixteen tokens are three rows of five."""

    def grid(self, tokens: int) -> tuple[int, int] | None:
        return (3, 5)


class WrongWidth(Adapted):
    """Says that a token has as many channels as a head: costs are counted wrongly."""

    width = WIDTH // HEADS


class Meddler(Adapted, ABC):
    """Does something more to the model as long as it is attached."""

    @abstractmethod
    def meddle(self) -> Callable[[], None]: ...

    def install(self, proportional: bool) -> Callable[[], None] | None:
        undos = super().install(proportional), self.meddle()

        def undo() -> None:
            for one in undos:
                if one is not None:
                    one()

        return undo


class Shifts(Meddler):
    """Adds a little to the output as long as it is there."""

    def meddle(self) -> Callable[[], None]:
        return self.model.head.register_forward_hook(
            lambda m, a, y: cast("Tensor", y) + 1e-2
        ).remove


class LeavesHooks(Adapted):
    """Does not undo what it installs."""

    def install(self, proportional: bool) -> Callable[[], None] | None:
        super().install(proportional)
        return None


class TouchesWeights(Meddler):
    """Scales a weight while it is attached, and puts it back."""

    def meddle(self) -> Callable[[], None]:
        head = self.model.head
        before = head.bias.detach().clone()
        head.bias.data.add_(1e-7)
        return lambda: setattr(head.bias, "data", before)


class CutsGradients(Meddler):
    """Detaches the embedded patches."""

    def meddle(self) -> Callable[[], None]:
        return self.model.embed.register_forward_hook(
            lambda m, a, y: cast("Tensor", y).detach()
        ).remove


class RunsTheOriginal(Meddler):
    """Lets every copy of the model run the original's head."""

    def meddle(self) -> Callable[[], None]:
        head = self.model.head  # in a closure, which no copy looks into

        def run(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return F.linear(args[0], head.weight, head.bias)

        return head.register_forward_hook(run).remove


def tiny(adapter: type[Adapted], model: type[TinyViT] = TinyViT) -> Callable[[], nn.Module]:
    """A function that makes a tiny model which this adapter follows."""
    return partial(model, adapter)


def images(batch: int = 2) -> Tensor:
    """Images of its size, `[b, 3, 4, 4]`."""
    return torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@hookimpl
def tokenzoo_adapter(model: Any) -> Adapter | None:
    """Know the tiny models, by the adapter that each wants."""
    return model.adapter(model) if isinstance(model, TinyViT) else None
