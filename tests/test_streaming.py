"""Frames arrive one by one: the memory stays small, and merges what is most alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import tokenzoo
from tests.refusals import refused


def scenes(*lengths: int, noise: float = 0.1) -> Tensor:
    """Frames `[f, n, c]` of scenes of so many frames, each like none of the others."""
    g = torch.Generator().manual_seed(0)
    each = [torch.randn(6, 16, generator=g).expand(length, -1, -1) for length in lengths]
    frames = torch.cat(each)
    return frames + noise * torch.randn(frames.shape, generator=g)


def filled(most: int, frames: Tensor):
    memory = tokenzoo.stream(frames=most)
    for frame in frames:
        memory.add(frame)
    return memory


def test_one_frame_too_many_is_merged_as_the_recipe_does() -> None:
    frames = scenes(2, 3, 2)
    found = filled(6, frames).tokens
    wanted = tokenzoo.build("moviechat", keep=6 * 6).reduce(frames.flatten(0, 1)[None], frames=7)
    assert torch.allclose(found, wanted.x[0], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_long_video_of_three_scenes_is_three_frames(dtype: torch.dtype) -> None:
    """Whose tokens are the means of their frames, however many these are."""
    frames = scenes(5, 40, 1).to(dtype)
    memory = filled(3, frames)
    assert memory.sizes == (5, 40, 1)
    wanted = torch.cat([part.float().mean(0) for part in frames.split([5, 40, 1])])
    assert memory.tokens.dtype == dtype
    assert torch.allclose(
        memory.tokens.float(), wanted, atol=1e-5 if dtype == torch.float32 else 0.05
    )


def test_fewer_frames_than_there_is_room_for_stay_as_they_are() -> None:
    frames = scenes(3)
    given = frames.clone().requires_grad_()
    memory = filled(3, given)
    assert torch.equal(memory.tokens, frames.flatten(0, 1))
    assert not memory.tokens.requires_grad


def test_a_frame_that_is_not_finite_stays_alone() -> None:
    frames = scenes(6)
    frames[2, 1] = torch.nan
    assert filled(3, frames).sizes == (2, 1, 3)


def test_frames_that_do_not_fit() -> None:
    memory = filled(2, scenes(1))
    refused(lambda: tokenzoo.stream(frames=0), "frames=0")
    refused(lambda: tokenzoo.stream().tokens, "add one first")
    refused(lambda: memory.add(torch.zeros(5, 16)), "(5, 16)", "(6, 16)")
    refused(lambda: memory.add(torch.zeros(6, 16).half()), "torch.float16")
    refused(lambda: memory.add(torch.zeros(1, 6, 16)), "[n, c]")
