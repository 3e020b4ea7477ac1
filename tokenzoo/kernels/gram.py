"""All inner products of tokens with each other: on the CPU each pair once."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenzoo.kernels.choice import plain

BLOCK = 512
"""Rows that are multiplied together; fewer tokens than two blocks have are multiplied at once."""


def gram(features: Tensor) -> Tensor:
    """Return the inner products of `features [b, n, d]` with themselves, `[b, n, n]`, symmetric.

    Each half of the products of two blocks of tokens is a copy of the other.
    """
    n = features.shape[1]
    cpu = features.device.type == "cpu" and not torch.compiler.is_compiling()
    if not cpu or n < 2 * BLOCK or plain(features):
        return features @ features.mT
    products = features.new_empty(len(features), n, n)
    for start in range(0, n, BLOCK):
        stop = start + BLOCK
        products[:, start:stop, start:] = features[:, start:stop] @ features[:, start:].mT
        products[:, stop:, start:stop] = products[:, start:stop, stop:].mT
    return products
