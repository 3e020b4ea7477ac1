"""InternVL from the pixels to the language model's tokens written out again, as plainly as it goes.

One tile at a time, groups `[n, p, c]` of p patches, every attention a dense map, and ToMe on these groups.
Of the model only its layers with weights are used; nothing of tokenzoo.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def tokens(base: Any, tile: Tensor, counts: Sequence[int]) -> Tensor:
    """The tokens `[m, c']` of a tile `[3, h, w]`, of which so many are left after each block."""
    tower, side = base.vision_tower, round(1 / base.config.downsample_ratio)
    cls, x = embedded(tower, tile, side)
    mass = torch.ones(len(x))
    for block, count in zip(tower.encoder.layer, counts, strict=True):
        cls, x, keys = attended(block, cls, x, mass)
        if count < len(x):
            x, mass = merged(x, mass, keys, len(x) - count)
        cls, x = (one + block.lambda_2 * block.mlp(block.layernorm_after(one)) for one in (cls, x))
    x = tower.layernorm(x)
    return base.multi_modal_projector(x.flatten(1)[None])[0]


def embedded(tower: Any, tile: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """CLS `[1, c]`, and the groups of side x side patches in raster order `[n, p, c]`."""
    at, patch = tower.embeddings, tower.embeddings.patch_size[0]
    weight, bias = at.patch_embeddings.projection.weight, at.patch_embeddings.projection.bias
    rows, columns = (size // patch for size in tile.shape[1:])
    positions = at.position_embeddings[0]
    groups: list[Tensor] = []
    for row in range(0, rows, side):
        for column in range(0, columns, side):
            own: list[Tensor] = []
            for i in range(row, row + side):
                for j in range(column, column + side):
                    piece = tile[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
                    own.append(
                        (weight * piece).sum((1, 2, 3)) + bias + positions[1 + i * columns + j]
                    )
            groups.append(torch.stack(own))
    return at.cls_token[0] + positions[:1], torch.stack(groups)


def attended(block: Any, cls: Tensor, x: Tensor, mass: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first half of a block; and the key of each group `[n, p * d]`, the mean over heads."""
    n, p, c = x.shape
    own, heads = block.attention, block.attention.num_heads
    every = torch.cat([cls, x.reshape(n * p, c)])
    normed = block.layernorm_before(every)
    query, key, value = (
        norm(layer(normed)).reshape(1 + n * p, heads, -1).transpose(0, 1)  # [h, 1 + n * p, d]
        for norm, layer in (
            (own.q_norm, own.q_proj),
            (own.k_norm, own.k_proj),
            (torch.nn.Identity(), own.v_proj),
        )
    )
    logits = query @ key.mT / query.shape[-1] ** 0.5
    logits = logits + torch.cat([torch.zeros(1), mass.log().repeat_interleave(p)])
    out = (logits.softmax(-1) @ value).transpose(0, 1).reshape(1 + n * p, c)
    every = every + block.lambda_1 * own.projection_layer(out)
    return every[:1], every[1:].reshape(n, p, c), key.mean(0)[1:].reshape(n, -1)


def merged(x: Tensor, mass: Tensor, keys: Tensor, removed: int) -> tuple[Tensor, Tensor]:
    """ToMe's merge: first the proposers that stay, then the receivers, each patch with its like.

    Its parity counts CLS: groups 1, 3, 5, ... propose.
    """
    unit = F.normalize(keys, dim=1)
    proposers, receivers = range(1, len(x), 2), range(0, len(x), 2)
    best = {i: max(receivers, key=lambda j: float(unit[i] @ unit[j])) for i in proposers}
    gone = sorted(proposers, key=lambda i: float(-(unit[i] @ unit[best[i]])))[:removed]
    members = [[i] for i in proposers if i not in gone]
    members += [[j, *(i for i in gone if best[i] == j)] for j in receivers]
    means = [(x[one] * mass[one, None, None]).sum(0) / mass[one].sum() for one in members]
    return torch.stack(means), torch.stack([mass[one].sum() for one in members])
