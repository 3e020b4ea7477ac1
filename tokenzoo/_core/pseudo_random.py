"""Pseudo-random numbers without a generator: the same in eager mode, compiled, and inside transforms."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform(count: int, seed: int, device: torch.device | None = None) -> Tensor:
    """Return `[count]` float32 numbers in [0, 1), a function of the seed, an int >= 0, and the place."""
    bits = torch.arange(count, device=device) + seed % 2**31
    # Three rounds of multiply and xor-shift on 32 bits decorrelate neighbouring positions.
    for factor in (0x7FEB352D, 0x46AC68B5, 0x2C1B3C6D):
        bits = (bits ^ (bits >> 15)) * factor % 2**32
    bits = bits ^ (bits >> 16)
    return bits.float() / 2**32
