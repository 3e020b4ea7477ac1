"""Tokens and text embeddings in one space: their inner products."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenzoo.errors import BadArgumentError


def products(x: Tensor, text: Tensor) -> Tensor:
    """Return the inner products of tokens `[b, n, c]` and text embeddings `[b, t, c]`: `[b, n, t]`."""
    dtype = torch.promote_types(x.dtype, text.dtype)
    return x.to(dtype) @ text.to(dtype).mT


def check_one_space(x: Tensor, text: Tensor) -> None:
    """Raise unless tokens `[b, n, c]` and text embeddings `[b, t, c]` have equally many channels.

    Raises:
        BadArgumentError: the numbers of channels differ.
    """
    if text.shape[-1] != x.shape[-1]:
        raise BadArgumentError(
            f"text has {text.shape[-1]} channels and the tokens {x.shape[-1]}; both must be "
            "in one space: pass features of a shared space as another layer's, at={'clip': "
            "{'x': ...}}, and that layer's name as an option of the recipe"
        )
