"""What a pair score is: a value with a few faster ways to the same numbers.

score[i, j] = source[i] * curve(<left[i], right[j]>) * target[j], and high means: merge i into j.

`dense()` is the definition and the reference of every test. Whether there is a way to the best partner
that needs only one matrix product is a property of the value (`folded`), looked at in one place: the
weight of a target multiplies its inner products, the constant of (1 + cos) / 2 is added to them, and so is,
under an exponential, the logarithm of the weight. Anything else takes the curve of every pair asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenzoo._core.precision import precise
from tokenzoo._core.sorting import ordered
from tokenzoo.errors import BadArgumentError
from tokenzoo.kernels.best_match import best_match, highest, in_blocks, row_blocks, worst_if_nan
from tokenzoo.token_map import take


class Curve(ABC):
    """An elementwise, increasing map of inner products."""

    @abstractmethod
    def __call__(self, inner: Tensor) -> Tensor:
        """Map inner products of any shape, elementwise."""


@dataclass(frozen=True)
class Linear(Curve):
    """scale * inner + shift, with scale > 0."""

    scale: float = 1.0
    shift: float = 0.0

    def __call__(self, inner: Tensor) -> Tensor:
        """Apply it."""
        if (self.scale, self.shift) == (1.0, 0.0):
            return inner
        return inner * self.scale + self.shift


@dataclass(frozen=True)
class Exp(Curve):
    """exp(beta * inner), with beta > 0."""

    beta: float = 1.0

    def __call__(self, inner: Tensor) -> Tensor:
        """Apply it."""
        return (inner * self.beta).exp()


@dataclass(frozen=True)
class Elementwise(Curve):
    """Any increasing elementwise function; it has no folded form once the targets have weights."""

    function: Callable[[Tensor], Tensor]

    def __call__(self, inner: Tensor) -> Tensor:
        """Apply it."""
        return self.function(inner)


LINEAR = Linear()


def _with_channel(features: Tensor, channel: Tensor) -> Tensor:
    return torch.cat([features, channel[..., None].to(features.dtype)], -1)  # [b, n, d + 1]


@dataclass(frozen=True)
class Affinity:
    """Scores of all pairs, kept as factors. Letters: b batch, n tokens, d width of the features.

    Attributes:
        left: `[b, n, d]` features of the sources.
        right: `[b, n, d]` features of the targets.
        source: `[b, n]` positive weights of the sources, or None for ones.
        target: `[b, n]` positive weights of the targets, or None for ones.
        curve: an increasing elementwise map of the inner products.
    """

    left: Tensor
    right: Tensor
    source: Tensor | None = None
    target: Tensor | None = None
    curve: Curve = None  # pyright: ignore[reportAssignmentType] - LINEAR, from __post_init__

    def __post_init__(self) -> None:
        # Not as the default itself: torch 2.11 cannot compile a default that is an object of ours.
        if self.curve is None:  # pyright: ignore[reportUnnecessaryComparison]
            object.__setattr__(self, "curve", LINEAR)

    def dense(self) -> Tensor:
        """The definition: every score, `[b, n, n]`."""
        scores = self.curve(self.left @ self.right.mT)
        if self.source is not None:
            scores = scores * self.source[..., :, None]
        if self.target is not None:
            scores = scores * self.target[..., None, :]
        return scores

    def at(self, rows: Tensor, columns: Tensor) -> Affinity:
        """Restrict to sources `rows [b, a]` and targets `columns [b, p]`: an Affinity of a x p pairs."""
        source = None if self.source is None else take(self.source, rows)
        target = None if self.target is None else take(self.target, columns)
        return Affinity(
            take(self.left, rows), take(self.right, columns), source, target, self.curve
        )

    def weighted(self, weight: Tensor, on: str = "both") -> Affinity:
        """Multiply by positive token weights `[b, n]` on "source", "target" or "both".

        Raises:
            BadArgumentError: `on` is none of these.
        """
        if on not in ("source", "target", "both"):
            raise BadArgumentError(f"on={on!r}; it is 'source', 'target' or 'both'")
        source, target = self.source, self.target
        if on != "target":
            source = weight if source is None else source * weight
        if on != "source":
            target = weight if target is None else target * weight
        return replace(self, source=source, target=target)

    def folded(self) -> tuple[Tensor | None, Tensor | None] | None:
        """What turns inner products into numbers that are largest where the score of a row is.

        Returns:
            `(scale, shift)`, each `[b, n]` or None: scale_j * <left_i, right_j> + shift_j ranks the targets
            as the score does, with one matrix product. None where the curve itself is needed.
        """
        if self.target is None:
            return None, None  # a source's weight and an increasing curve move no maximum
        if isinstance(self.curve, Linear):
            scale, shift = self.curve.scale * self.target, self.curve.shift * self.target
            return scale, None if self.curve.shift == 0.0 else shift
        if isinstance(self.curve, Exp):
            return None, self.target.log() / self.curve.beta
        return None

    def best(self) -> tuple[Tensor, Tensor]:
        """For each source its highest score `[b, n]` and the target that has it `[b, n]`.

        Ties go to the lower index. A pair with a NaN loses against every other pair: NaN features never
        raise, are merged last and attract nobody. Without any target every score is the lowest.
        """
        if self.right.shape[1] == 0:
            nobody = self.left[..., 0]
            worst = torch.finfo(nobody.dtype).min
            return torch.full_like(nobody, worst), torch.zeros_like(nobody, dtype=torch.int64)
        folded = self.folded()
        if folded is None:
            return self._in_blocks(lambda part: highest(part.dense()))
        scale, shift = folded
        found, index = best_match(self.left, self.right, scale=scale, shift=shift)
        value = precise(found)
        if self.target is None:
            value = self.curve(value)
        elif isinstance(self.curve, Exp):
            value = (value * self.curve.beta).exp()
        if self.source is not None:
            value = value * self.source
        return (value if value is found else worst_if_nan(value.to(found.dtype))), index

    def nearest(self, k: int) -> tuple[Tensor, Tensor]:
        """The k highest scores of each source, descending, and their targets: `[b, n, k]` each."""

        def first(part: Affinity) -> tuple[Tensor, Tensor]:
            scores = worst_if_nan(part.dense())
            index = ordered(scores, descending=True)[..., :k]
            return scores.gather(-1, index), index

        return self._in_blocks(first)

    def _in_blocks(
        self, find: Callable[[Affinity], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Ask a block of sources at a time: `dense()` of all of them can be too large."""

        def of_rows(rows: slice) -> tuple[Tensor, Tensor]:
            source = None if self.source is None else self.source[:, rows]
            return find(replace(self, left=self.left[:, rows], source=source))

        blocks = row_blocks(self.left, self.right.shape[1])
        return find(self) if len(blocks) == 1 else in_blocks(of_rows, blocks, self.left.shape[1], 1)

    def mean(self) -> Tensor:
        """Each source's mean score over the targets, `[b, n]`."""
        if isinstance(self.curve, Linear):
            # The mean of linear functions is the linear function of the mean: no n x n scores.
            target = torch.ones_like(self.right[..., 0]) if self.target is None else self.target
            centre = (self.right * target[..., None]).mean(-2)  # [b, d]
            inner = (self.left @ centre[..., None]).squeeze(-1)
            mean = self.curve.scale * inner + self.curve.shift * target.mean(-1, keepdim=True)
            return mean if self.source is None else mean * self.source
        return self.dense().mean(-1)

    def diagonal(self) -> Tensor:
        """Each token's score with itself, `[b, n]`."""
        scores = self.curve((self.left * self.right).sum(-1))
        if self.source is not None:
            scores = scores * self.source
        return scores if self.target is None else scores * self.target

    def row(self, index: Tensor) -> Tensor:
        """The scores of one source per image, `index [b]`, with all targets: `[b, n]`."""
        one = index[:, None]
        scores = self.curve((take(self.left, one) @ self.right.mT).squeeze(1))
        if self.source is not None:
            scores = scores * take(self.source, one)
        return scores if self.target is None else scores * self.target

    def __add__(self, other: Affinity) -> Affinity:
        """Sum of two linear scores: the channels are concatenated, nothing is materialised."""
        if not (isinstance(self.curve, Linear) and isinstance(other.curve, Linear)):
            raise BadArgumentError(
                "only linear pair scores add up: take .nonnegative() cosines or plain ones"
            )
        left, right = zip(self._spread(), other._spread(), strict=True)
        return Affinity(torch.cat(left, -1), torch.cat(right, -1))

    def __mul__(self, other: Affinity) -> Affinity:
        """Product of two exponential scores: the exponents add up, the channels are concatenated."""
        if not (isinstance(self.curve, Exp) and isinstance(other.curve, Exp)):
            raise BadArgumentError(
                "only exponential pair scores multiply; a token score enters by .discount(lam)"
            )
        left = torch.cat([self.left * self.curve.beta, other.left * other.curve.beta], -1)
        product = Affinity(left, torch.cat([self.right, other.right], -1), curve=Exp())
        for factor in (self, other):
            if factor.source is not None:
                product = product.weighted(factor.source, "source")
            if factor.target is not None:
                product = product.weighted(factor.target, "target")
        return product

    def _spread(self) -> tuple[Tensor, Tensor]:
        """A linear score as one plain inner product, weights included."""
        if not isinstance(self.curve, Linear):
            raise BadArgumentError("only a linear score is one inner product")
        ones = torch.ones_like(self.left[..., 0])
        left = _with_channel(self.left, ones)
        shift = torch.full_like(self.right[..., 0], self.curve.shift)
        right = _with_channel(self.right * self.curve.scale, shift)
        left = left if self.source is None else left * self.source[..., None]
        right = right if self.target is None else right * self.target[..., None]
        return left, right
