"""Pair scores in factored form, with faster ways to the same numbers.

    score[i, j] = source[i] * curve(<left[i], right[j]>) * target[j]        high: merge i into j

`dense()` is the definition and the reference of every test. `folded` decides whether the best partner can
be found with one matrix product: the weight of a target scales its inner products, the constant of (1 +
cos) / 2 is added to them, and so is the logarithm of the weight under an exponential. All else evaluates
the curve for every pair.
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
from tokenzoo.kernels.gram import gram
from tokenzoo.token_map import take


class Curve(ABC):
    """An increasing elementwise function of inner products."""

    @abstractmethod
    def __call__(self, inner: Tensor) -> Tensor:
        """Map inner products of any shape, elementwise."""


@dataclass(frozen=True)
class Linear(Curve):
    """scale * inner + shift, with scale > 0."""

    scale: float = 1.0
    shift: float = 0.0

    def __call__(self, inner: Tensor) -> Tensor:
        """See `Curve`."""
        if (self.scale, self.shift) == (1.0, 0.0):
            return inner
        return inner * self.scale + self.shift


@dataclass(frozen=True)
class Exp(Curve):
    """exp(beta * inner), with beta > 0."""

    beta: float = 1.0

    def __call__(self, inner: Tensor) -> Tensor:
        """See `Curve`."""
        return (inner * self.beta).exp()


class Elementwise(Curve):
    """Any increasing elementwise function; it has no folded form once the targets have weights."""

    # Not a dataclass: torch 2.11 cannot compile a frozen one that holds a function.
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def __call__(self, inner: Tensor) -> Tensor:
        """See `Curve`."""
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
        # Not a default of the field: torch 2.11 cannot compile a default of a class like this.
        if self.curve is None:  # pyright: ignore[reportUnnecessaryComparison]
            object.__setattr__(self, "curve", LINEAR)

    def dense(self) -> Tensor:
        """Compute all scores, `[b, n, n]`: the definition."""
        same = self.left is self.right
        scores = self.curve(gram(self.left) if same else self.left @ self.right.mT)
        if self.source is not None:
            scores = scores * self.source[..., :, None]
        if self.target is not None:
            scores = scores * self.target[..., None, :]
        return scores

    def at(self, rows: Tensor, columns: Tensor) -> Affinity:
        """Restrict to sources `rows [b, a]` and targets `columns [b, p]`: an Affinity of a x p pairs."""
        source = None if self.source is None else take(self.source, rows)
        target = None if self.target is None else take(self.target, columns)
        left = take(self.left, rows)
        same = self.left is self.right and rows is columns
        right = left if same else take(self.right, columns)
        return Affinity(left, right, source, target, self.curve)

    def weighted(self, weight: Tensor, on: str = "both") -> Affinity:
        """Multiply by positive token weights `[b, n]` on "source", "target" or "both".

        Raises:
            BadArgumentError: `on` has another value.
        """
        if on not in ("source", "target", "both"):
            raise BadArgumentError(f"on={on!r}; it must be 'source', 'target' or 'both'")
        source, target = self.source, self.target
        if on != "target":
            source = weight if source is None else source * weight
        if on != "source":
            target = weight if target is None else target * weight
        return replace(self, source=source, target=target)

    def folded(self) -> tuple[Tensor | None, Tensor | None] | None:
        """Return an affine form of the inner products that ranks the targets of each source as the score
        does.

        Returns:
            `(scale, shift)`, each `[b, n]` or None: scale_j * <left_i, right_j> + shift_j has the order of
            the scores. None if the curve itself is needed.
        """
        if self.target is None:
            return None, None  # neither a source's weight nor an increasing curve moves a maximum
        if isinstance(self.curve, Linear):
            scale, shift = self.curve.scale * self.target, self.curve.shift * self.target
            return scale, None if self.curve.shift == 0.0 else shift
        if isinstance(self.curve, Exp):
            return None, self.target.log() / self.curve.beta
        return None

    def best(self) -> tuple[Tensor, Tensor]:
        """Return the highest score of each source `[b, n]` and its target `[b, n]`.

        Ties go to the lower index. A pair with a NaN has the lowest score, so tokens with NaN features are
        merged last and receive no token. Without targets, every score is the lowest.
        """
        if self.right.shape[1] == 0:
            like = self.left[..., 0]
            worst = torch.finfo(like.dtype).min
            return torch.full_like(like, worst), torch.zeros_like(like, dtype=torch.int64)
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
        """Return the k highest scores of each source, descending, and their targets: `[b, n, k]` each."""

        def first(part: Affinity) -> tuple[Tensor, Tensor]:
            scores = worst_if_nan(part.dense())
            index = ordered(scores, descending=True)[..., :k]
            return scores.gather(-1, index), index

        return self._in_blocks(first)

    def _in_blocks(
        self, find: Callable[[Affinity], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Process sources in blocks: `dense()` of all of them can be too large."""

        def of_rows(rows: slice) -> tuple[Tensor, Tensor]:
            source = None if self.source is None else self.source[:, rows]
            return find(replace(self, left=self.left[:, rows], source=source))

        blocks = row_blocks(self.left, self.right.shape[1])
        return find(self) if len(blocks) == 1 else in_blocks(of_rows, blocks, self.left.shape[1], 1)

    def mean(self) -> Tensor:
        """Return the mean score of each source over the targets, `[b, n]`."""
        if isinstance(self.curve, Linear):
            # The mean of linear functions is the linear function of the mean: no n x n scores.
            target = torch.ones_like(self.right[..., 0]) if self.target is None else self.target
            centre = (self.right * target[..., None]).mean(-2)  # [b, d]
            inner = (self.left @ centre[..., None]).squeeze(-1)
            mean = self.curve.scale * inner + self.curve.shift * target.mean(-1, keepdim=True)
            return mean if self.source is None else mean * self.source
        return self.dense().mean(-1)

    def diagonal(self) -> Tensor:
        """Return the score of each token with itself, `[b, n]`."""
        scores = self.curve((self.left * self.right).sum(-1))
        if self.source is not None:
            scores = scores * self.source
        return scores if self.target is None else scores * self.target

    def row(self, index: Tensor) -> Tensor:
        """Return the scores of one source per image, `index [b]`, with all targets: `[b, n]`."""
        one = index[:, None]
        scores = self.curve((take(self.left, one) @ self.right.mT).squeeze(1))
        if self.source is not None:
            scores = scores * take(self.source, one)
        return scores if self.target is None else scores * self.target

    def __add__(self, other: Affinity) -> Affinity:
        """Add two linear scores by concatenating their channels."""
        if not (isinstance(self.curve, Linear) and isinstance(other.curve, Linear)):
            raise BadArgumentError(
                "only linear pair scores can be added: use .nonnegative() cosines or plain ones"
            )
        left, right = zip(self._spread(), other._spread(), strict=True)
        return Affinity(torch.cat(left, -1), torch.cat(right, -1))

    def __mul__(self, other: Affinity) -> Affinity:
        """Multiply two exponential scores by concatenating the channels of their exponents."""
        if not (isinstance(self.curve, Exp) and isinstance(other.curve, Exp)):
            raise BadArgumentError(
                "only exponential pair scores can be multiplied; combine a token score by .discount(lam)"
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
        """Return the factors of a linear score as one inner product, weights included."""
        if not isinstance(self.curve, Linear):
            raise BadArgumentError("only a linear score can be written as one inner product")
        ones = torch.ones_like(self.left[..., 0])
        left = _with_channel(self.left, ones)
        shift = torch.full_like(self.right[..., 0], self.curve.shift)
        right = _with_channel(self.right * self.curve.scale, shift)
        left = left if self.source is None else left * self.source[..., None]
        right = right if self.target is None else right * self.target[..., None]
        return left, right
