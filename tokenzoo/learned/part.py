"""The base of parts with weights of their own, and functions of the modules that parts are or hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from tokenzoo._core.kinds import Index
from tokenzoo._core.precision import precise
from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import Evidence
from tokenzoo.learned.weights import Starts, Weights, first_values
from tokenzoo.parts import Part, walk
from tokenzoo.tokens import full_precision

AGAIN = (
    "build the recipe again and train it for this model, or use the model and keep it was made for"
)


@dataclass(frozen=True)
class Learned(Part, ABC):
    """The base of parts with weights of their own; works in blocks.

    A subclass declares its tensors in `starts` and gets them from `read`.

    Args:
        seed: of the first values.
    """

    seed: Index = 0
    weights: Weights = field(default_factory=Weights, init=False, repr=False, compare=False)

    needs = frozenset({"depth"})
    differentiable = True

    @abstractmethod
    def starts(self, width: int, keep: int) -> Starts:
        """Return the tensors for a block whose tokens have `width` channels, and which leaves `keep`."""

    def penalty(self, evidence: Evidence, keep: int) -> Tensor | None:
        """Return a loss of its own at one site, a scalar, or None; `tokenzoo train` adds it."""
        del evidence, keep
        return None

    def read(self, evidence: Evidence, keep: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the features `[b, n, c]` of a site and the weights for it, in one precision.

        It is at least float32 in training, and that of all scores otherwise.

        Raises:
            BadArgumentError: the part has weights, but none for this block, width or count.
        """
        x = full_precision(evidence.x) if evidence.training else precise(evidence.x)
        starts = self.starts(x.shape[2], keep)
        found = self._found(starts, evidence, keep)
        return x, {name: value.to(x.dtype) for name, value in found.items()}

    def _found(self, starts: Starts, evidence: Evidence, keep: int) -> dict[str, Tensor]:
        made = self.weights.made
        if made is None:
            return first_values(starts, self.seed, evidence.x.device)
        block = round(evidence.depth * len(made.counts))
        found = self.weights.of(block)
        if found is None:
            raise BadArgumentError(
                f"{self!r} has weights for {made}, at the blocks "
                f"{', '.join(map(str, made.sites))}, and none for block {block}: {AGAIN}"
            )
        for name, start in starts.items():
            if tuple(found[name].shape) != start.shape:
                raise BadArgumentError(
                    f"{self!r} has weights for {made}, whose block {block} leaves {made.sites[block]} "
                    f"tokens; for {keep} tokens of width {evidence.x.shape[2]} {name!r} would be "
                    f"{list(start.shape)}, and is {list(found[name].shape)}: {AGAIN}"
                )
        return found


def parts_that_learn(parts: object) -> list[Learned]:
    """Return the learned parts among parts, each once, in the order of their fields."""
    found: dict[int, Learned] = {}
    for part in walk(parts):
        if isinstance(part, Learned):
            found.setdefault(id(part), part)
    return list(found.values())


def modules(parts: object) -> list[nn.Module]:
    """Return the torch modules that are, or are held by, parts; each once, in the order of their fields."""
    found: dict[int, nn.Module] = {}
    for part in walk(parts):
        for value in (part, *_fields(part)):
            if isinstance(value, nn.Module):
                found.setdefault(id(value), value)
    return list(found.values())


def _fields(part: Part) -> Iterator[Any]:
    if is_dataclass(part):
        for one in fields(part):
            yield getattr(part, one.name)
