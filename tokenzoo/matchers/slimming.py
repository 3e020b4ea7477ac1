"""A small network decides how much of each token goes into each output (SiT's token slimming module)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from tokenzoo._core.kinds import Positive
from tokenzoo.learned import SoftMatcher, Start, Starts, over_tokens


@dataclass(frozen=True)
class Slimming(SoftMatcher):
    """Two layers make m logits of each token; their softmax over the tokens weighs the features.

    Args:
        seed: of the first values.
        hidden: width of the layer between, as a share of the channels.
    """

    hidden: Positive = 0.5

    def starts(self, width: int, keep: int) -> Starts:
        """Return the tensors of a norm and two layers, and the factor of the logits."""
        inner = max(1, round(width * self.hidden))
        return {
            "gain": Start((width,), 1.0),
            "shift": Start((width,)),
            "one": Start((inner, width), std=width**-0.5),
            "one_bias": Start((inner,)),
            # So large that outputs begin as sums of a few tokens each, and not all as the mean of all.
            "two": Start((keep, inner), std=8 * inner**-0.5),
            "two_bias": Start((keep,)),
            "scale": Start((1,), 1.0),
        }

    def assign(self, x: Tensor, known: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the weights of the tokens, and the features themselves."""
        w = weights
        inner = F.layer_norm(x, (x.shape[2],), w["gain"], w["shift"])
        inner = F.gelu(F.linear(inner, w["one"], w["one_bias"]))
        logits = F.linear(inner, w["two"], w["two_bias"]) * w["scale"]
        return over_tokens(logits, known), x
