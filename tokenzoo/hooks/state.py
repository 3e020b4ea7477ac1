"""The state of one pass through a model. It rides on the tensor that goes from block to block.

A holder on the model or on a block would be wrong under gradient checkpointing (blocks run again after
the pass), in two threads, and in a pass within a pass. The tensor is where the pass is.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokenzoo.evidence import Evidence, Layer, layer_of
from tokenzoo.recipe import Step
from tokenzoo.token_map import TokenMap, take

# Evidence that only a tap on the attention can show.
FROM_ATTENTION = frozenset(
    {"keys", "queries", "values", "received_attention", "cls_attention", "attention"}
)

_TAG = "_tokenzoo_pass"


@dataclass(frozen=True)
class Pass:
    """Where a pass stands, between two blocks.

    Attributes:
        step: the step that the sites of this pass take; None: nothing is reduced at the blocks.
        counts: patch tokens after each block of the tower, as planned.
        entered: patch tokens before the first block.
        after: the step behind the last block (stage "features"), or None.
        features: patch tokens that are to leave the tower.
        projected: patch tokens that are to leave the projector behind it; None: nothing is reduced there.
        left: patch tokens that left the tower, and the projector.
        grid: (rows, columns) of the patch tokens before the first block, if they are a whole grid.
        fired: patch tokens after each block so far, as they were.
        mass: `[b, n]` with prefix, or None while every token stands for itself.
        held: `[b, n]` protected at an earlier site, or None.
        places: `[b, n]` int64, which of the first tokens each one stands for; only where the model's
            attention must know, and None as long as all are there.
        plan: from the first tokens to these, where it is wanted, otherwise None.
        restored: whether the tensor that carries this state has all first tokens again (see `few`).
        trial: whether this is the proof at attach time and not a pass.
        watches: whether the step needs something that only a tap on the attention shows.
        watches_after: the same about the steps behind the last block.
        keeps_evidence: whether what the last block showed is to travel on, to a step behind the projector.
        evidence: what the last block showed about the tokens that left it, where it travels on.
        layers: what other blocks showed about the tokens that are left, for the steps behind the last one.
    """

    step: Step | None
    counts: tuple[int, ...]
    entered: int = 0
    after: Step | None = None
    features: int = 0
    projected: int | None = None
    left: int = 0
    grid: tuple[int, int] | None = None
    fired: tuple[int, ...] = ()
    mass: Tensor | None = None
    held: Tensor | None = None
    places: Tensor | None = None
    plan: TokenMap | None = None
    restored: bool = False
    trial: bool = False
    watches: bool = False
    watches_after: bool = False
    keeps_evidence: bool = False
    evidence: Evidence | None = None
    layers: tuple[tuple[Layer, Evidence], ...] = ()

    @property
    def behind(self) -> bool:
        """Whether there is something to do behind the last block."""
        return self.after is not None or self.projected is not None

    def shown_by(self, names: tuple[Layer, ...], evidence: Evidence) -> Pass:
        """The same pass, which carries what a block of these names shows."""
        return replace(self, layers=(*self.layers, *((name, evidence) for name in names)))

    def behind_tower(self) -> Pass:
        """The same pass, without what nobody behind the tower asks for."""
        return self if self.projected is not None else replace(self, layers=())


class PerThread:
    """Attributes of which each thread has its own, made by `own`; a copy, and what is unpickled, has none.

    It has a thread-local and is none: what compiled code writes to a subclass of one, torch loses.
    """

    def __init__(self) -> None:
        self.here = threading.local()

    def __deepcopy__(self, memo: dict[int, Any]) -> PerThread:
        return type(self)()

    def __reduce__(self) -> tuple[type[PerThread], tuple[()]]:
        return type(self), ()


def own(name: str) -> Any:
    """An attribute of a `PerThread` by this name; None in a thread that has not set it."""

    def read(holder: PerThread) -> Any:
        return getattr(holder.here, name, None)

    def write(holder: PerThread, value: Any) -> None:
        setattr(holder.here, name, value)

    return property(read, write)


def watches(*steps: Step | None) -> bool:
    """Whether the parts of one of the steps need what only a tap shows; asked once, not in a pass."""
    return any(step is not None and bool(step.needs & FROM_ATTENTION) for step in steps)


def layers(*steps: Step | None) -> frozenset[Layer]:
    """Whose evidence the steps need, beside that of the block where they work."""
    needs = frozenset[str]().union(*(step.needs for step in steps if step is not None))
    return frozenset(layer for layer in map(layer_of, needs) if layer is not None)


def tag(x: Tensor, state: Pass) -> Tensor:
    """Let the tensor carry the state."""
    setattr(x, _TAG, state)
    return x


def few(x: Tensor, state: Pass) -> Tensor:
    """The tokens that are left `[b, m, c]`, out of those of a pass that may have been restored `[b, n, c]`.

    They are read from the tensor that hooks between the blocks see, so what a hook writes there counts. All
    n rows of one token are equal until a hook changes some of them; the token moves by the mean of these
    changes, and each row gets the same share of its gradient. Rows of dropped tokens count no more.
    """
    plan = state.plan
    if not state.restored or plan is None:
        return x
    kept = take(x, plan.sources)  # [b, m, c]
    # The mean of the rows, so written that rows that are equal give exactly what they are.
    change = plan.sum(x - take(kept, plan.targets))  # [b, m, c]
    rows = plan.sum(torch.ones_like(plan.dst, dtype=torch.float32)).clamp_min(1)  # [b, m]
    return kept + change / rows.to(x.dtype)[..., None]


def of(x: Tensor) -> Pass | None:
    """The state that a tensor carries, or None."""
    return getattr(x, _TAG, None)
