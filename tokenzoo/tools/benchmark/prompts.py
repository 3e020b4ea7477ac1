"""Prompts of random words, and random pixels or frames of a file, in the format of a model's processor."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import interpolate

WORDS = 32  # 12 before the images, the others after them


def shown(model: Any, frames: int, film: Tensor | None = None) -> dict[str, Any]:
    """Make a prompt for a LLaVA: an image, or a video if `frames` is not 0.

    Args:
        model: a LLaVA or a LLaVA-OneVision.
        frames: of the video.
        film: the frames, uint8 `[f, h, w, 3]`, which become squares as the model's processor makes them;
            None: random pixels.
    """
    config, vision = model.config, model.config.vision_config
    generator = torch.Generator().manual_seed(0)
    size, side = vision.image_size, vision.image_size // vision.patch_size
    shape = (1, frames, 3, size, size) if frames else (1, 3, size, size)
    pixels = torch.randn(shape, generator=generator)
    if film is not None:
        pixels = _resized(film, size, size)[None]
    pixels = pixels.to(model.device, model.dtype)
    count, token = side * side, config.image_token_id
    if frames:
        # The model itself says how many tokens it pools a frame to; a newline ends the video.
        frame = torch.empty(1, side * side, 1, device="meta")
        count, token = frames * model.model.apply_pooling(frame).shape[1] + 1, config.video_token_id
    words = torch.randint(5, 1000, (1, WORDS), generator=generator)
    ids = torch.cat([words[:, :12], torch.full((1, count), token), words[:, 12:]], 1)
    ids = ids.to(model.device)
    name = "pixel_values_videos" if frames else "pixel_values"
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), name: pixels}


def tiled(model: Any, tiles: int, group: int) -> dict[str, Any]:
    """Make a prompt with an image of so many tiles, `group` patches of which are one token."""
    config, vision = model.config, model.config.vision_config
    size, patch = (
        side if isinstance(side, int) else side[0]
        for side in (vision.image_size, vision.patch_size)
    )
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(tiles, 3, size, size, generator=generator)
    words = torch.randint(5, 1000, (1, WORDS), generator=generator)
    image = torch.full((1, tiles * (size // patch) ** 2 // group), config.image_token_id)
    ids = torch.cat([words[:, :12], image, words[:, 12:]], 1).to(model.device)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    kind = config.model_type
    if "token_type_ids" in inspect.signature(model.forward).parameters:
        # Of PaliGemma 0 in all of a prompt; of Gemma 3 they say where images are.
        types = ids == config.image_token_id if kind == "gemma3" else torch.zeros_like(ids)
        given["token_type_ids"] = types.long()
    if kind == "smolvlm":
        pixels = pixels[None]  # it has another axis, of prompts
    return {**given, "pixel_values": pixels.to(model.device, model.dtype)}


def packed(
    model: Any,
    frames: int,
    photograph: tuple[int, int],
    part: tuple[int, int],
    *,
    timed: bool = False,
    film: Tensor | None = None,
) -> dict[str, Any]:
    """Make a prompt for a Qwen: a photograph and a video.

    Args:
        model: a Qwen2-VL, Qwen2.5-VL or Qwen3-VL.
        frames: of the video; two make one slice in time.
        photograph: its rows and columns of patches.
        part: those of a slice.
        timed: a word, in place of the time, comes before each slice.
        film: the frames, uint8 `[f, h, w, 3]`, whose slices have about as many patches as `part`, in the
            proportions of a frame; None: random pixels.
    """
    generator = torch.Generator().manual_seed(0)
    meta = model.device.type == "meta"  # no tensor has values; the grids are needed all the same
    part = part if film is None else grid_of_film(part, film)
    grids = {"image": (1, *photograph), "video": ((frames + 1) // 2, *part)}
    given: dict[str, Any] = {}
    words = torch.randint(7, 1000, (1, WORDS), generator=generator)
    ids, types = [words[:, :12]], [torch.zeros(1, 12, dtype=torch.int64)]
    patch = int(model.config.vision_config.patch_size)
    suffixes = {"image": "", "video": "_videos"}
    for number, (kind, (t, h, w)) in enumerate(grids.items()):
        pixels = torch.randn(t * h * w, 3 * 2 * patch * patch, generator=generator)
        if film is not None and kind == "video":
            pixels = _patches(_resized(film, h * patch, w * patch), patch)
        given[f"pixel_values{suffixes[kind]}"] = pixels.to(model.device, model.dtype)
        given[f"{kind}_grid_thw"] = torch.tensor(
            [[t, h, w]], device="cpu" if meta else model.device
        )
        token = getattr(model.config, f"{kind}_token_id")
        more = words[:, 12 + 10 * number :][:, :10]
        slices = torch.full((1, t, h * w // 4), token)
        if timed and kind == "video":
            slices = torch.cat([torch.full((1, t, 1), 7), slices], 2)
        visual = slices.flatten(1)
        ids += [visual, more]
        types += [(visual == token) * (number + 1), torch.zeros_like(more)]
    given["input_ids"] = torch.cat(ids, 1).to(model.device)
    given["mm_token_type_ids"] = torch.cat(types, 1).to(model.device)
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    return given


def grid_of_film(part: tuple[int, int], film: Tensor) -> tuple[int, int]:
    """Return even rows and columns with about as many patches as `part`, in the proportions of a frame.

    Args:
        part: rows and columns.
        film: `[f, h, w, 3]`.
    """
    area, (height, width) = part[0] * part[1], film.shape[1:3]
    rows = 2 * max(1, round((area * height / width) ** 0.5 / 2))
    return rows, 2 * max(1, round(area / rows / 2))


def _resized(film: Tensor, height: int, width: int) -> Tensor:
    """Frames `[f, h, w, 3]` as the towers read them: `[f, 3, height, width]` in -1..1."""
    frames = film.movedim(-1, 1) / 127.5 - 1
    return interpolate(frames, (height, width), mode="bilinear", antialias=True)


def _patches(frames: Tensor, patch: int) -> Tensor:
    """Cut `[f, 3, h, w]` into patches of two frames, 2 x 2 after each other, as Qwen's processor."""
    if len(frames) % 2:
        frames = torch.cat([frames, frames[-1:]])
    pattern = "(t s) c (h i p) (w j q) -> (t h w i j) (c s p q)"
    return rearrange(frames, pattern, s=2, i=2, j=2, p=patch, q=patch)
