"""A vision-language model as data: names, inputs, and the few rules in which such models differ.

All of them are a tower, a projector and a language model. A spec says what its class calls these, which
arguments bring images, how many placeholders an image has, and how the features of an image are put
together. `VisionLanguageAdapter` does the rest. A spec of a new family is one file of `models/`; see
docs/adding-a-model.md.

Functions in a spec are module-level functions: a spec is copied and pickled with the attached model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tokenzoo.adapter import Adapter, TokenPlan
from tokenzoo.hooks import Undo
from tokenzoo_adapters.hf.vlm.placeholders import VisualSpan
from tokenzoo_adapters.hf.vlm.streams import ExtraStream
from tokenzoo_adapters.hf.vlm.unfollowed_tower import ProjectedRows

Spans = Mapping[int, list[VisualSpan]]
"""The images and videos of a call, by the id of their placeholder, in the order of the prompts."""


@dataclass(frozen=True)
class Modality:
    """How images, or videos, come into a model.

    Attributes:
        pixels: the argument with the pixels or patches.
        placeholder: the entry of the config with the id of the token that stands for them in a prompt.
        spans: how many placeholders each image or video has (`spans.py`, `anyres.py`).
        features: the method of the bare model that encodes them.
        sizes: the argument with the size or grid of each, if the number of placeholders depends on it.
        stacked: of a model with a batched tower, whether the pixels are videos `[videos, frames, 3, h, w]`.
    """

    pixels: str
    placeholder: str
    spans: SpanRule
    features: str = "get_image_features"
    sizes: str = ""
    stacked: bool = False

    @property
    def kind(self) -> str:
        """The name of the modality in transformers: "image" or "video"."""
        return self.features.removeprefix("get_").removesuffix("_features")


def one(config: Any) -> int:
    """One patch a token: the projector joins none."""
    del config
    return 1


def nothing(base: Any, tower: Adapter) -> str | None:
    """No reason to refuse."""
    del base, tower


@dataclass(frozen=True)
class VisionLanguageSpec:
    """What is to be known about a family of vision-language models.

    Attributes:
        folder: of transformers.models.
        whole: the class with the language modelling head; it has the bare model as `model`.
        bare: the class without the head.
        modalities: images and videos, in the order in which the model fills them into the prompt.
        tower: attribute of the bare model: the vision tower.
        projector: path in the bare model: the module that maps a tower's tokens to the language model's.
        language: attribute of the bare model: the language model.
        group: of the config, how many patches the projector makes one token of: 1, 4, 9, ...
        reads: the entry of the config that says which hidden states of the tower are read, an index or a
            list; "": the last hidden state, after the tower's final norm.
        select: the entry of the config that is "default" if a CLS token is cut off before the projector and
            "full" if not; "": all that leaves the tower is projected.
        settings: entries of the config that an argument of a call can override. A call that does so is
            refused: tokens were planned with the entry.
        assembly: what replaces methods of the bare model, or hooks on to its modules, so that it accepts
            fewer tokens of an image (`assembly.py`, `anyres.py`).
        positions: "sequential", or "mrope": a token keeps the time, row and column that it has in the whole
            prompt. The model's `get_rope_index` counts them, when its images are encoded.
        first_position: of a prompt; positions of the model are counted from it.
        unfollowed: set where the tower is not followed: how the tokens are found in what the projector
            returns. Such a model is reduced at the stages "projected" and "llm" alone.
        streams: features of inner blocks of the tower that the language model adds to its first layers, one
            block after each layer. The tower must be one that carries them.
        gaps: whether padding may come between the tokens of a conversation. Not where a layer of the
            language model reads the columns before, whatever the mask says (short convolutions, linear
            attention).
        refuse: of the bare model and its tower, a sentence after the name of the model that says why it
            cannot be attached to and what to do; None: it can.
    """

    folder: str
    whole: str
    bare: str
    modalities: tuple[Modality, ...]
    tower: str = "vision_tower"
    projector: str = "multi_modal_projector"
    language: str = "language_model"
    group: Callable[[Any], int] = one
    reads: str = ""
    select: str = ""
    settings: tuple[str, ...] = ()
    assembly: tuple[Assembly, ...] = ()
    positions: Literal["sequential", "mrope"] = "sequential"
    first_position: int = 0
    gaps: bool = True
    unfollowed: ProjectedRows | None = None
    streams: tuple[ExtraStream, ...] = ()
    refuse: Callable[[Any, Adapter], str | None] = nothing

    def projected_prefix(self, config: Any, prefix: int) -> int:
        """Count the prefix tokens of the tower, of so many, that reach the projector."""
        cut = bool(self.select) and getattr(config, self.select) == "default"
        return 0 if cut else prefix

    def adds(self, config: Any) -> int:
        """Count the first layers of the language model after which it adds features of inner blocks."""
        vision = config.vision_config
        return sum(len(getattr(vision, stream.blocks)) for stream in self.streams)


@dataclass(frozen=True)
class SpanCall:
    """One modality of a call, for the rule that counts its placeholders.

    Attributes:
        spec: of the model.
        base: the bare model, with its `config`.
        tower: the adapter of the tower.
        pixels: the argument with the pixels or patches.
        sizes: the argument with sizes or grids; None: the modality has none.
        given: all arguments.
        plan: maps the tokens of one image, tile, frame or grid, and the frames of its video, to those of
            them that enter the language model. A token is a group where the projector joins patches.
        frames: how many images, one after the other, are a video; 1: they are images.
    """

    spec: VisionLanguageSpec
    base: Any
    tower: Adapter
    pixels: Any
    sizes: Any
    given: Mapping[str, Any]
    plan: TokenPlan
    frames: int = 1

    def tokens(self) -> int:
        """Tokens of one image, tile or frame, by the height and width of its pixels: `[..., h, w]`."""
        height, width = (int(size) for size in self.pixels.shape[-2:])
        down, across = pair(self.base.config.vision_config.patch_size)
        return (height // down) * (width // across) // self.spec.group(self.base.config)

    def projected_prefix(self) -> int:
        """Prefix tokens of the tower that get placeholders too."""
        return self.spec.projected_prefix(self.base.config, self.tower.prefix)


SpanRule = Callable[[SpanCall], list[VisualSpan]]
"""Counts the placeholders of the images or videos of a call; some are in `spans.py`."""

Assembly = Callable[[VisionLanguageSpec, Any, Adapter], Undo]
"""Of a spec, the bare model and its tower: installs what fewer tokens of an image need after the tower."""


def pair(size: Any) -> tuple[int, int]:
    """Height and width of a size that may be one number."""
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
