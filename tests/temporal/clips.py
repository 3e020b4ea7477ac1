"""Clips whose redundancy is known: shots of still places, a patch that moves, cuts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenzoo import Evidence

PLACES, CHANNELS = 12, 48


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def still(*shots: int, noise: float = 0.0, seed: int = 0) -> Tensor:
    """Shots of so many frames each, in which nothing moves: `[1, f * n, c]`."""
    scenes = draws(len(shots), PLACES, CHANNELS, seed=seed)
    frames = [scenes[i] for i, count in enumerate(shots) for _ in range(count)]
    clip = torch.stack(frames)
    return (clip + noise * draws(*clip.shape, seed=seed + 1)).flatten(0, 1)[None]


@dataclass(frozen=True)
class Moving:
    """One shot over which a patch moves by one place a frame.

    Attributes:
        x: `[1, f * n, c]`.
        patch: `[f]`, the place of the patch in each frame.
    """

    x: Tensor
    patch: Tensor

    @property
    def frames(self) -> int:
        return len(self.patch)

    @property
    def tokens(self) -> Tensor:
        """The tokens of the patch, one in each frame."""
        return torch.arange(self.frames) * PLACES + self.patch


def moving(frames: int, noise: float = 0.0, seed: int = 0) -> Moving:
    clip = still(frames, noise=noise, seed=seed).view(frames, PLACES, CHANNELS).clone()
    patch = torch.arange(frames) + 2
    clip[torch.arange(frames), patch] = 2 * draws(CHANNELS, seed=seed + 7)
    return Moving(clip.flatten(0, 1)[None], patch)


def site(x: Tensor, frames: int, **shown: Tensor) -> Evidence:
    """The evidence of a clip."""
    show = {name: lambda value=value: value for name, value in shown.items()}
    return Evidence(x, mass=torch.ones(x.shape[:2]), frames=frames, show=show)
