"""Keep the tokens with the most energy: a plugin of tokenzoo, the whole of it."""

from dataclasses import dataclass

from torch import Tensor

from tokenzoo import Evidence, Recipe, Scorer, Stage, Step, hookimpl
from tokenzoo.matchers import Drop, SelectAssign, TopK
from tokenzoo.mergers import Identity
from tokenzoo.parts import check_positive
from tokenzoo.schedules import Skip


@dataclass(frozen=True)
class Energy(Scorer):
    """The mean power of a token's features; a HIGH score means keep."""

    power: float = 2.0

    def __post_init__(self) -> None:
        check_positive("power", self.power)

    def score(self, evidence: Evidence) -> Tensor:
        """Score `[b, n]`, >= 0."""
        return evidence.x.float().abs().pow(self.power).mean(-1)


def energetic(*, keep: int | float = 0.25, power: float = 2.0) -> Recipe:
    """Drop the tokens with the least energy, a few in every second block."""
    match = SelectAssign(TopK(Energy(power)), Drop())
    return Recipe(Step(Stage.BLOCK, Skip(), match, Identity()), keep=keep)


@hookimpl
def tokenzoo_scorers() -> dict[str, type]:
    """The names of our scorers."""
    return {"energy": Energy}


@hookimpl
def tokenzoo_recipes() -> dict[str, object]:
    """The names of our recipes."""
    return {"energetic": energetic}
