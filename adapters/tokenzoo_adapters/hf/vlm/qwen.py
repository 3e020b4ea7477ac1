"""transformers' Qwen2-VL and Qwen2.5-VL, from the pixels to the answer.

The tower is reduced as `hf_qwen_tower` says. Behind it a prompt has as many placeholders as groups are left
(`hf_doors`), and each of them the coordinates that it had in the whole prompt (`hf_mrope`), which are known
when the tower has run: so the images are encoded before the prompt is read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from torch import Tensor

from tokenzoo.adapter import Attachment
from tokenzoo.errors import AttachError
from tokenzoo_adapters.hf.decoder.layers import check_decoder
from tokenzoo_adapters.hf.names import ENCODED, POOLED
from tokenzoo_adapters.hf.vlm import mrope as hf_mrope
from tokenzoo_adapters.hf.vlm.llava import IN_PROMPT
from tokenzoo_adapters.hf.vlm.placeholders import Visual
from tokenzoo_adapters.hf.vlm.prompt_hooks import Doors, Visuals
from tokenzoo_adapters.hf.vlm.qwen_tower import HFQwenTower, find_qwen_tower
from tokenzoo_adapters.timm.pool import put, remove

PIXELS = {
    "image": ("pixel_values", "image_grid_thw"),
    "video": ("pixel_values_videos", "video_grid_thw"),
}
"""The arguments of each modality: its patches, and slices, rows and columns of them."""


@dataclass(frozen=True, eq=False)
class HFQwen(HFQwenTower):
    """A Qwen2-VL or Qwen2.5-VL model of transformers, with or without its language modelling head.

    Args:
        model: what was attached to.
        base: the model without the head, which has the tower and the language model.
    """

    model: Any = None
    base: Any = None

    stages = HFQwenTower.stages | {"llm"}

    def shows(self, stage: str) -> frozenset[str]:
        """In the prompt, what a decoder layer shows; elsewhere what the tower does."""
        return IN_PROMPT if stage == "llm" else super().shows(stage)

    def connect(self, attached: Attachment) -> Callable[[], None]:
        """Make features, prompts, positions and the language model follow."""
        undo = [super().connect(attached)]
        try:
            undo.append(Doors(self, attached).install())
        except BaseException:
            _all(undo)
            raise
        mine = {
            "get_image_features": partial(_image_features, self),
            "get_video_features": partial(_video_features, self),
        }
        put(self.base, mine)
        undo.append(partial(remove, self.base, tuple(mine)))
        # Where positions go on from is kept on the model, and a text decoded by hand reads it.
        undo.append(partial(setattr, self.base, "rope_deltas", self.base.rope_deltas))
        return partial(_all, undo)

    def shorten(self, attached: Attachment, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the processor returned, with the planned placeholders."""
        return Doors(self, attached).shorten(inputs)

    def visuals(
        self, given: Mapping[str, Any], plan: Callable[[int], int]
    ) -> dict[int, list[Visual]]:
        """The images and videos of a call, in the order in which the model fills them into the prompt.

        Args:
            given: the arguments of the call.
            plan: maps the groups of an image, or a slice in time, to those that enter the language model.

        Returns:
            By the id of the placeholder.

        Raises:
            AttachError: patches are given, and not how they lie.
        """
        found: dict[int, list[Visual]] = {}
        for kind, (pixels, grid) in PIXELS.items():
            if given.get(pixels) is None:
                continue
            grids = given.get(grid)
            if not isinstance(grids, Tensor):
                raise AttachError(
                    f"{pixels} without {grid}: the processor returns both, and the number of tokens "
                    "depends on it: model.generate(**inputs)"
                )
            rows: list[list[int]] = cast("Any", grids).tolist()
            sizes = [(t, h * w // self.patches) for t, h, w in rows]
            found[self._placeholder(kind)] = [
                Visual(t * n, t * plan(n), units=t, patches=n) for t, n in sizes
            ]
        return found

    def place(
        self, given: Mapping[str, Any], visuals: Visuals, start: Tensor | None = None
    ) -> tuple[dict[str, Any], Tensor, dict[int, list[Tensor]], Tensor]:
        """Encode the images of a call, and find the positions of what is left of them.

        Args:
            given: the arguments, with the short prompt `[b, m]`.
            visuals: its images and videos.
            start: `[b, 1]`, where positions begin; None: at 0.

        Returns:
            The arguments with encoded images instead of patches; the positions `[3, b, m]` that the tokens
            have in the whole prompt; by placeholder, which of its groups are left of each image; and the
            position of what comes next `[b, 1]`.
        """
        new = dict(given)
        encoded: dict[str, Any] = {}
        kept: dict[int, list[Tensor]] = {}
        for kind, (pixels, grid) in PIXELS.items():
            values = new.pop(pixels, None)
            if values is None:
                continue
            encode = getattr(self.base, f"get_{kind}_features")
            encoded[kind] = encode(values, new[grid], return_dict=True)
            kept[self._placeholder(kind)] = self.left()
        if encoded:
            new[ENCODED] = encoded
        positions, after = hf_mrope.positions(self.base, new, visuals, kept, start)
        return new, positions, kept, after

    def _placeholder(self, kind: str) -> int:
        return int(getattr(self.base.config, f"{kind}_token_id"))


def _image_features(
    adapter: HFQwen, pixel_values: Tensor, image_grid_thw: Tensor | None = None, **options: Any
) -> Any:
    """The model's `get_image_features`, with as many rows of each image as are left."""
    return _features(adapter, "get_image_features", pixel_values, image_grid_thw, options)


def _video_features(
    adapter: HFQwen,
    pixel_values_videos: Tensor,
    video_grid_thw: Tensor | None = None,
    **options: Any,
) -> Any:
    """The model's `get_video_features`, with as many rows of each video as are left."""
    return _features(adapter, "get_video_features", pixel_values_videos, video_grid_thw, options)


def _features(
    adapter: HFQwen, name: str, pixels: Tensor, grid: Tensor | None, options: dict[str, Any]
) -> Any:
    wanted = options.pop("return_dict", None)
    wanted = adapter.base.config.return_dict if wanted is None else wanted
    # The model splits the rows by the grid: it is given as many as that says, and what is too many is cut.
    adapter.here.fills = True
    try:
        output = getattr(cast("Any", type(adapter.base)), name)(
            adapter.base, pixels, grid, return_dict=True, **options
        )
    finally:
        adapter.here.fills = False
    images = zip(getattr(output, POOLED), adapter.left(), strict=True)
    setattr(output, POOLED, tuple(rows[: len(left)] for rows, left in images))
    return output if wanted else output.to_tuple()


FOLLOWED = {
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", "Qwen2VLModel"),
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLModel"),
}
"""The models that are followed, by folder of transformers.models."""


def find_qwen(model: Any) -> HFQwenTower | None:
    """The adapter of a Qwen2-VL or Qwen2.5-VL model, or of its tower alone, if it is one.

    Raises:
        UnsupportedModelError: it has another tower, or no language model of its own.
    """
    for folder, names in FOLLOWED.items():
        module = sys.modules.get(f"transformers.models.{folder}.modeling_{folder}")
        if module is not None and isinstance(model, tuple(getattr(module, name) for name in names)):
            base = model if hasattr(model, "visual") else model.model
            at = "visual." if base is model else "model.visual."
            check_decoder(base.language_model, type(model).__name__)
            return HFQwen(base.visual, at, model=model, base=base)
    return find_qwen_tower(model)


def _all(undo: list[Callable[[], None]]) -> None:
    while undo:
        undo[-1]()  # it can be done twice: an interrupt must not lose it
        undo.pop()
