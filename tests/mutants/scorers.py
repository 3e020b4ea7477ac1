"""Scorers that break one promise each."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokenzoo.affinity import Affinity, Elementwise
from tokenzoo.evidence import Evidence
from tokenzoo.parts import PairScorer, Scorer
from tokenzoo.tokens import norm, unit


@dataclass(frozen=True)
class BatchMean(Scorer):
    """Measures tokens by their distance to the mean of the whole batch."""

    def score(self, evidence: Evidence) -> Tensor:
        return norm(evidence.x - evidence.x.mean((0, 1)))


@dataclass(frozen=True)
class Dice(Scorer):
    """Throws dice."""

    def score(self, evidence: Evidence) -> Tensor:
        return torch.rand(evidence.x.shape[:2], device=evidence.x.device)


@dataclass(frozen=True)
class OwnDice(Scorer):
    """Throws dice of its own, which are loaded, but go on from call to call."""

    generator: torch.Generator = field(
        default_factory=lambda: torch.Generator().manual_seed(0), compare=False, repr=False
    )

    def score(self, evidence: Evidence) -> Tensor:
        return torch.rand(evidence.x.shape[:2], generator=self.generator)


@dataclass(frozen=True)
class Remembers(Scorer):
    """Keeps the first scores of every shape, and gives them for ever after."""

    seen: dict[torch.Size, Tensor] = field(
        default_factory=dict[torch.Size, Tensor], compare=False, repr=False
    )

    def score(self, evidence: Evidence) -> Tensor:
        return self.seen.setdefault(evidence.x.shape, norm(evidence.x))


@dataclass(frozen=True)
class RaisesOnNaN(Scorer):
    """Insists on finite features."""

    def score(self, evidence: Evidence) -> Tensor:
        if not bool(evidence.x.isfinite().all()):
            raise ValueError("the features are not finite")
        return norm(evidence.x)


@dataclass(frozen=True)
class NeedsTwo(Scorer):
    """Compares each image with its second token."""

    def score(self, evidence: Evidence) -> Tensor:
        return norm(evidence.x - evidence.x[:, [1]])


@dataclass(frozen=True)
class LikesNaN(Scorer):
    """Gives the highest score to what is not finite."""

    def score(self, evidence: Evidence) -> Tensor:
        return norm(evidence.x).nan_to_num(nan=1e9, posinf=1e9)


@dataclass(frozen=True)
class Undeclared(Scorer):
    """Reads the CLS attention, and does not say so."""

    def score(self, evidence: Evidence) -> Tensor:
        return evidence.cls_attention.mean(1)


@dataclass(frozen=True)
class OtherLayer(Scorer):
    """Declares its own layer's CLS attention, and reads another layer's."""

    def __post_init__(self) -> None:
        self.require("cls_attention", "x@-2")

    def score(self, evidence: Evidence) -> Tensor:
        return evidence.at(-2).cls_attention.mean(1)


@dataclass(frozen=True)
class HalfPrecision(Scorer):
    """Scores in the dtype of the features: in half precision many tokens tie."""

    def score(self, evidence: Evidence) -> Tensor:
        return evidence.x.square().sum(-1).sqrt()


@dataclass(frozen=True)
class ZeroByZero(Scorer):
    """Divides by the spread of an image, which is 0 where all tokens are equal."""

    def score(self, evidence: Evidence) -> Tensor:
        length = norm(evidence.x)
        low, high = length.amin(-1, keepdim=True), length.amax(-1, keepdim=True)
        return (length - low) / (high - low)


@dataclass(frozen=True)
class InPlace(Scorer):
    """Centres the features where they lie: the model goes on with others."""

    def score(self, evidence: Evidence) -> Tensor:
        return norm(evidence.x.sub_(0.5))


@dataclass(frozen=True)
class Waits(Scorer):
    """Takes a maximum out of the tensors and back in."""

    def score(self, evidence: Evidence) -> Tensor:
        length = norm(evidence.x)
        return length / max(1.0, float(length.nan_to_num().max()))


@dataclass
class Thawed(Scorer):
    """Is data that anybody can change."""

    power: float = 2.0

    def score(self, evidence: Evidence) -> Tensor:
        return norm(evidence.x).pow(self.power)


@dataclass(frozen=True)
class ListOption(Scorer):
    """Has a list for an option, which has no hash."""

    weights: list[float] = field(default_factory=lambda: [1.0])

    def score(self, evidence: Evidence) -> Tensor:
        return norm(evidence.x) * self.weights[0]


@dataclass(frozen=True)
class LooksUpLate(Scorer):
    """Finds out what its option means when it runs: a wrong word is a KeyError then."""

    length: str = "euclidean"

    def score(self, evidence: Evidence) -> Tensor:
        power = {"euclidean": 2.0, "taxicab": 1.0}[self.length]
        return torch.linalg.vector_norm(evidence.x.double(), power, dim=-1)  # pyright: ignore


@dataclass(frozen=True)
class Halves(Scorer):
    """Halves its option when it is made: a copy made from its repr has half of it."""

    weight: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", self.weight / 2)

    def score(self, evidence: Evidence) -> Tensor:
        return norm(evidence.x) * self.weight


@dataclass(frozen=True)
class Unwritable(Scorer):
    """Has an option that is neither name nor number, so that no file can hold it."""

    bands: frozenset[int] = frozenset({1, 2})

    def score(self, evidence: Evidence) -> Tensor:
        return norm(evidence.x) * len(self.bands)


@dataclass(frozen=True)
class Negative(PairScorer):
    """Weighs tokens by their first channel, which may be negative."""

    def score(self, evidence: Evidence) -> Affinity:
        x = unit(evidence.x)
        return Affinity(x, x).weighted(evidence.x[..., 0].float() + 0.1)


@dataclass(frozen=True)
class Falling(PairScorer):
    """Uses a curve that falls: the best partner of the fast way is the worst."""

    def score(self, evidence: Evidence) -> Affinity:
        x = unit(evidence.x)
        return Affinity(x, x, curve=Elementwise(torch.neg))
