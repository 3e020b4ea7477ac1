"""A learned gate: the probability that a token is kept (DynamicViT)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenzoo.evidence import Evidence
from tokenzoo.learned import Gate, Start, Starts


@dataclass(frozen=True)
class KeepGate(Gate):
    """The logit of the probability to keep a token, by a small network that sees it and the mean of all.

    After a norm and a linear layer, one half of the channels is the token's own; of the other half it
    gets the mean over all tokens.

    Args:
        seed: of the first values.
    """

    def starts(self, width: int, keep: int) -> Starts:
        """Return the tensors of the norm, the linear layer and the three layers after it."""
        del keep
        half, quarter = max(1, width // 2), max(1, width // 4)
        sizes = {"embed": (width, width), "one": (half, width), "two": (quarter, half)}
        layers = {
            name: Start((after, before), std=before**-0.5)
            for name, (after, before) in {**sizes, "three": (2, quarter)}.items()
        }
        biases = {f"{name}_bias": Start((start.shape[0],)) for name, start in layers.items()}
        return {"gain": Start((width,), 1.0), "shift": Start((width,)), **layers, **biases}

    def logits(self, evidence: Evidence) -> Tensor:
        """Return the logits of "keep" and "drop", `[b, n, 2]`."""
        x, w = self.read(evidence, 1)
        c = x.shape[2]

        def layer(name: str, values: Tensor) -> Tensor:
            return F.linear(values, w[name], w[f"{name}_bias"])

        x = F.gelu(layer("embed", F.layer_norm(x, (c,), w["gain"], w["shift"])))
        own, other = x[..., : c // 2], x[..., c // 2 :]
        known = other.isfinite().all(-1, keepdim=True)  # NaN of one token must not reach the others
        mean = other.where(known, 0).sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp_min(1)
        x = torch.cat([own, mean.expand_as(other)], -1)  # [b, n, c]
        return layer("three", F.gelu(layer("two", F.gelu(layer("one", x)))))
