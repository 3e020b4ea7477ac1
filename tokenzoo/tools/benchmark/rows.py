"""The result of a run: ratios and floors, one row per candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tokenzoo.tools.benchmark.modes import Mode
from tokenzoo.tools.timing import Timing


@dataclass(frozen=True)
class Memory:
    """Bytes on the GPU during one call.

    Attributes:
        peak: the most that was allocated.
        working: that, less what was allocated before: weights, inputs and other candidates.
    """

    peak: int
    working: int


@dataclass(frozen=True)
class Row:
    """The result of one candidate; the first row is the bare model.

    Attributes:
        name: of the candidate.
        keep: its budget, or None.
        problem: the reason if there are no figures, otherwise "".
        tokens: patch tokens of each kind of image after the encoder, as planned; (): unknown.
        prompt: tokens that entered the language model.
        floor: of each part, the share of the bare model's operations that is left.
        time: of each part, relative to the bare model's; of the selection, to its encoder.
        share: of each part, relative to the whole call of the bare model.
        memory: None on a CPU, and of a graph.
    """

    name: str
    keep: int | float | None = None
    problem: str = ""
    tokens: tuple[int, ...] = ()
    prompt: int | None = None
    floor: Mapping[str, float] = field(default_factory=dict[str, float])
    time: Mapping[str, Timing] = field(default_factory=dict[str, Timing])
    share: Mapping[str, Timing] = field(default_factory=dict[str, Timing])
    memory: Memory | None = None

    def efficiency(self, part: str) -> float | None:
        """Return floor / time; 1 means that the time is at its floor. None if there is no floor."""
        return self.floor[part] / self.time[part].ratio if part in self.floor else None


@dataclass(frozen=True)
class Table:
    """All rows of one mode.

    Attributes:
        mode: how the models were run.
        rounds: number of rounds.
        rows: the bare model, the candidates in order, and the bare model again, whose ratio is the noise.
    """

    mode: Mode
    rounds: int
    rows: tuple[Row, ...]
