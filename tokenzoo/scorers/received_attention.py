"""The attention that a token receives: the column means of the softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tokenzoo._core.kinds import Count
from tokenzoo.evidence import Evidence
from tokenzoo.parts import Scorer
from tokenzoo.tokens import full_precision


@dataclass(frozen=True)
class ReceivedAttention(Scorer):
    """Mean over heads and queries of the attention to each token (EvoPrune, section 3.4).

    The paper's formula sums over the keys, which gives 1 for every token; its text says "receives", so the
    mean is over the queries.

    Args:
        queries: "all", or "patches" to leave CLS and registers out of the mean.
        by_mass: weigh each query by the number of input tokens it stands for.
        stride: use every stride-th query only, as an estimate; docs/performance.md has its cost and
            accuracy.
        layer: another layer's attention; None: this one's.
    """

    queries: Literal["all", "patches"] = "all"
    by_mass: bool = False
    stride: Count = 1
    layer: int | str | None = None

    def __post_init__(self) -> None:
        name = "received_attention" if self._plain else "attention"
        self.require(name if self.layer is None else f"{name}@{self.layer}")

    def score(self, evidence: Evidence) -> Tensor:
        """Return scores `[b, n]`, positive; with all queries the sum over all tokens is at most 1."""
        there = evidence.at(self.layer)
        if self._plain:
            return full_precision(there.received_attention)
        mass = there.mass if self.by_mass else None
        return there.attention.received(self.queries, mass, self.stride)

    @property
    def _plain(self) -> bool:
        """Whether `evidence.received_attention` is this score."""
        return self.queries == "all" and not self.by_mass and self.stride == 1
