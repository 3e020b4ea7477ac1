"""transformers' LLaVA family: LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision, from the pixels to the answer.

A tower, a projector, a language model. The tower is reduced as any tower is, but only in the blocks whose
result is read (`vision_feature_layer`); what is behind it follows: any-resolution images are packed by a
rule for crops that are no grids (`hf_packing`), a video whose frames were reduced is not pooled again (as
in EvoPrune, arXiv 2603.03681), and prompts have as many placeholders as tokens come (`hf_doors`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from tokenzoo.adapter import Adapter, Attachment, BlockPath
from tokenzoo.errors import AttachError, UnsupportedModelError
from tokenzoo.evidence import Layer
from tokenzoo_adapters.hf.decoder.layers import check_decoder
from tokenzoo_adapters.hf.towers import HFTower, find_tower
from tokenzoo_adapters.hf.vlm import anyres as hf_packing
from tokenzoo_adapters.hf.vlm.placeholders import Visual
from tokenzoo_adapters.hf.vlm.prompt_hooks import Doors
from tokenzoo_adapters.timm.pool import put, remove

IN_PROMPT = frozenset(
    {
        *("x", "mass", "keys", "last_attention", "text_attention", "text_rotation"),
        *("x@text", "keys@text", "x@embedded", "text@embedded", "last_attention@next"),
    }
)
"""What the layers of a language model show about the visual tokens of a prompt."""


@dataclass(frozen=True, eq=False)
class HFLlava(Adapter):
    """A LLaVA model of transformers, with or without its language modelling head.

    Args:
        model: what was attached to.
        base: the model without the head, which has the tower, the projector and the language model.
        at: the name of `base` in `model`, with a dot behind it; "" where they are the same.
        tower: the vision tower, down to the last block that is read.
        reads: how many hidden states of the tower are read.
    """

    model: Any
    base: Any
    at: str
    tower: HFTower
    reads: int = 1

    watched = True

    @property
    def stages(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All behind the image; not in the tower where several hidden states of it are put side by side."""
        inside = {"block", "features"} if self.reads == 1 else set[str]()
        return frozenset({"projected", "llm"} | inside)

    @property
    def provides(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the tower shows."""
        return self.tower.provides

    def shows(self, stage: str) -> frozenset[str]:
        """In the prompt, what a decoder layer shows; elsewhere what the tower does."""
        if stage == "llm":
            return IN_PROMPT
        if stage == "projected":
            # Behind the tower its attention is carried along as keys, queries and means.
            return self.provides - {"attention"}
        return self.provides

    @property
    def prefix(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The tower's CLS and registers."""
        return self.tower.prefix

    @property
    def reaching(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """None of them, unless the strategy is "full"."""
        return 0 if self.base.config.vision_feature_select_strategy == "default" else self.prefix

    @property
    def width(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Channels of a token in the tower."""
        return self.tower.width

    @property
    def hidden(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Width of the tower's MLP."""
        return self.tower.hidden

    @property
    def positional(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the tower has rotary positions."""
        return self.tower.positional

    @property
    def projector(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The projector."""
        return f"{self.at}multi_modal_projector"

    @property
    def dynamic_size(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the tower takes several sizes without being asked to: nobody asks it here."""
        return self.tower.dynamic_size and not self.tower.names.asks

    def entering(self, tokens: int) -> int:
        """As the tower."""
        return self.tower.entering(tokens)

    def blocks(self) -> tuple[BlockPath, ...]:
        """The tower's blocks that are read."""
        return self.tower.blocks()

    def layer(self, name: Layer) -> int | None:
        """As the tower."""
        return self.tower.layer(name)

    def follow(
        self, extra: tuple[Any, ...], options: dict[str, Any], places: Tensor | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """As the tower."""
        return self.tower.follow(extra, options, places)

    def trial(self, index: int) -> tuple[int, dict[str, Any]]:
        """As the tower."""
        return self.tower.trial(index)

    def tokens(self) -> int | None:
        """Patch tokens of one image, frame or crop."""
        return self.tower.tokens()

    def grid(self, tokens: int) -> tuple[int, int] | None:
        """The grid of one image, frame or crop."""
        return self.tower.grid(tokens)

    def install(self, proportional: bool) -> Callable[[], None] | None:
        """As the tower."""
        return self.tower.install(proportional)

    def connect(self, attached: Attachment) -> Callable[[], None]:
        """Make packing, pooling, prompts and the language model follow."""
        doors = Doors(self, attached)
        mine: dict[str, Any] = {}
        if hasattr(self.base, "pack_image_features"):
            mine["pack_image_features"] = partial(_pack, self.base)
        if hasattr(self.base, "apply_pooling"):
            mine["apply_pooling"] = partial(_pool, self.base)
        undo = doors.install()
        put(self.base, mine)
        return partial(_both, undo, partial(remove, self.base, tuple(mine)))

    def shorten(self, attached: Attachment, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the processor returned, with the planned placeholders."""
        return Doors(self, attached).shorten(inputs)

    def visuals(
        self, given: Mapping[str, Any], plan: Callable[[int], int]
    ) -> dict[int, list[Visual]]:
        """The images and videos of a call, in the order in which the model fills them into the prompt.

        Args:
            given: the arguments of the call.
            plan: maps the patch tokens of an image, frame or crop to those that enter the language model.

        Returns:
            By the id of the placeholder.

        Raises:
            AttachError: the call asks for other features than those that were planned on.
        """
        config = self.base.config
        said = ("vision_feature_layer", "vision_feature_select_strategy", "vision_aspect_ratio")
        for name in said:
            value = given.get(name)
            if value is not None and value != getattr(config, name, value):
                raise AttachError(
                    f"{name}={value!r} in a call, and the recipe was planned on {getattr(config, name)!r}: "
                    f"set it in the model's config (model.config.{name}), then attach"
                )
        found: dict[int, list[Visual]] = {}
        images, videos = given.get("pixel_values"), given.get("pixel_values_videos")
        if images is not None and len(images):
            found[int(config.image_token_id)] = self._images(images, given, plan)
        if videos is not None and len(videos):
            found[int(config.video_token_id)] = self._videos(videos, plan)
        return found

    def _images(
        self, images: Any, given: Mapping[str, Any], plan: Callable[[int], int]
    ) -> list[Visual]:
        n = self._patches(images)
        m = plan(n)
        if not hasattr(self.base, "pack_image_features"):
            extra = self.reaching
            return [Visual(n + extra, m + extra, fixed=extra, patches=n)] * len(images)
        config, sizes = self.base.config, given.get("image_sizes")
        if sizes is None:
            raise AttachError(
                "pixel_values without image_sizes: the processor returns both, and the number of tokens "
                "depends on them: model.generate(**inputs)"
            )
        split: Sequence[bool] = [True] * len(sizes)
        numbers = given.get("batch_num_images")
        if numbers is not None:
            split = [int(count) == 1 for count in numbers for _ in range(int(count))]
        return [
            hf_packing.visual(config, (int(size[0]), int(size[1])), crops, n, m)
            for size, crops in zip(sizes, split, strict=True)
        ]

    def _videos(self, videos: Any, plan: Callable[[int], int]) -> list[Visual]:
        n = self._patches(videos)
        m, frames = plan(n), int(videos.shape[1])
        full = frames * self._pooled(n) + 1
        # What is left of a reduced frame goes on as it is, and one newline ends the video.
        short = full if m == n else frames * m + 1
        return [Visual(full, short, frames, 1, n)] * len(videos)

    def _pooled(self, tokens: int) -> int:
        """What the model itself pools a frame to; one that is derived from it may do so in its own way."""
        frame = torch.empty(1, tokens, 1, device="meta")
        return int(cast("Any", type(self.base)).apply_pooling(self.base, frame).shape[1])

    def _patches(self, pixels: Any) -> int:
        height, width = (int(size) for size in pixels.shape[-2:])
        patch = int(self.base.config.vision_config.patch_size)
        return (height // patch) * (width // patch)


def _pack(base: Any, image_features: Any, image_sizes: Any, *args: Any, **options: Any) -> Any:
    """The model's `pack_image_features`, by our rule where the crops are no grids any more."""
    original = cast("Any", type(base)).pack_image_features
    config = base.config
    side = config.vision_config.image_size // config.vision_config.patch_size
    if all(features.shape[1] == side * side for features in image_features):
        return original(base, image_features, image_sizes, *args, **options)
    newline = options.get("image_newline", base.image_newline)
    packed = [
        hf_packing.pack(
            features,
            hf_packing.layout(config, (int(size[0]), int(size[1])), len(features)),
            newline,
        )
        for features, size in zip(image_features, image_sizes, strict=True)
    ]
    lengths = image_sizes.new_tensor([len(tokens) for tokens in packed])
    return packed, lengths


def _pool(base: Any, image_features: Tensor) -> Tensor:
    """The model's `apply_pooling` of frames; what is left of a reduced frame goes on as it is."""
    vision = base.config.vision_config
    side = vision.image_size // vision.patch_size
    if image_features.shape[1] != side * side:
        return image_features
    return cast("Any", type(base)).apply_pooling(base, image_features)


def _both(first: Callable[[], None], second: Callable[[], None]) -> None:
    first()
    second()


FOLLOWED = {
    "llava": ("LlavaForConditionalGeneration", "LlavaModel"),
    "llava_next": ("LlavaNextForConditionalGeneration", "LlavaNextModel"),
    "llava_onevision": ("LlavaOnevisionForConditionalGeneration", "LlavaOnevisionModel"),
}
"""The models that are followed, by folder of transformers.models."""


def find_llava(model: Any) -> HFLlava | None:
    """The adapter of a LLaVA, LLaVA-NeXT or LLaVA-OneVision model, if it is one.

    Raises:
        UnsupportedModelError: its tower, or what it reads of it, cannot be followed.
    """
    for folder, names in FOLLOWED.items():
        module = sys.modules.get(f"transformers.models.{folder}.modeling_{folder}")
        if module is not None and isinstance(model, tuple(getattr(module, name) for name in names)):
            return _llava(model)
    return None


def _llava(model: Any) -> HFLlava:
    name = type(model).__name__
    base = model if hasattr(model, "vision_tower") else model.model
    at = "" if base is model else "model."
    config = base.config
    layers = config.vision_feature_layer
    read = [layers] if isinstance(layers, int) else list(layers)
    whole = find_tower(base.vision_tower, at=f"{at}vision_tower.")
    if whole is None:
        raise UnsupportedModelError(
            f"{name} has the vision tower {type(base.vision_tower).__name__}, which is not followed. What "
            "works on it: zoo.reduce(features), behind the tower"
        )
    blocks = len(whole.blocks())
    depth = max(layer if layer >= 0 else blocks + 1 + layer for layer in read)
    tower = find_tower(base.vision_tower, at=f"{at}vision_tower.", depth=depth)
    if tower is None or not 1 <= depth <= blocks:
        raise UnsupportedModelError(
            f"{name} reads the hidden states {layers!r} of a tower of {blocks} blocks: there is no block "
            "before them that could be reduced"
        )
    adapter = HFLlava(model, base, at, tower, len(read))
    strategy = config.vision_feature_select_strategy
    if strategy == "default" and tower.prefix != 1:
        raise UnsupportedModelError(
            f"{name} has vision_feature_select_strategy='default', which cuts one CLS token off, and its "
            f"tower has {tower.prefix} prefix tokens: set it to 'full'"
        )
    if adapter.reaching and hasattr(base, "pack_image_features"):
        raise UnsupportedModelError(
            f"{name} has vision_feature_select_strategy={strategy!r}, with which a CLS token would be "
            "packed as if it were a patch: set it to 'default'"
        )
    check_decoder(base.language_model, name)
    return adapter
