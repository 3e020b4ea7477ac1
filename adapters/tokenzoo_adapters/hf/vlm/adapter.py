"""A vision-language model of transformers, from the pixels to the answer: one adapter, by its spec.

The tower has an adapter of its own, batched or packed, and is reduced as any tower is. What comes after it
follows: the features of an image are put together (the spec's assembly), a prompt has as many placeholders
as tokens come (`prompt_hooks`, `generate_wrapper`), with M-RoPE each token keeps its coordinates (`mrope`),
and the language model can be reduced itself (`hf.decoder`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import isqrt
from typing import Any, Self

from torch import Tensor

from tokenzoo.adapter import Adapter, Attachment, BlockPath, TokenPlan
from tokenzoo.errors import AttachError
from tokenzoo.hooks import undo_all
from tokenzoo.layouts import BatchedLayout, TokenLayout
from tokenzoo_adapters.hf.decoder.evidence import IN_PROMPT
from tokenzoo_adapters.hf.names import ENCODED
from tokenzoo_adapters.hf.vlm import generate_wrapper, mrope, video_frames
from tokenzoo_adapters.hf.vlm.assembly import packed_tower
from tokenzoo_adapters.hf.vlm.delegation import answers_as
from tokenzoo_adapters.hf.vlm.interface import EncodedCall, Placed
from tokenzoo_adapters.hf.vlm.packed_tower import HFPackedTower
from tokenzoo_adapters.hf.vlm.placeholders import VisualSpan
from tokenzoo_adapters.hf.vlm.prompt_hooks import PromptHooks
from tokenzoo_adapters.hf.vlm.prompt_text import PromptCall, PromptText
from tokenzoo_adapters.hf.vlm.spec import SpanCall, Spans, VisionLanguageSpec
from tokenzoo_adapters.hf.vlm.video_frames import VideoPass


@answers_as("tower", but=("with_prefix", "shrink"))
@dataclass(frozen=True, eq=False)
class VisionLanguageAdapter(Adapter):
    """A vision-language model of transformers, with or without its language modelling head.

    Args:
        spec: of its family.
        model: what was attached to.
        base: the bare model, which has the tower, the projector and the language model.
        tower: the adapter of the tower, down to the last block that is read.
        projector: its path in `model`.
        projected_prefix: prefix tokens of the tower that the model does not cut off before the projector.
        stages: all after the image; not in the tower where several of its hidden states are read as one.
        dynamic_size: whether its tower takes several sizes without an argument of the call.
        group: patches of the tower that the projector makes one token of.
        prompt_text: of the call whose images are encoded.
        video_pass: of the videos that are encoded, where they are stacked.
        frames: how many images of a call, one after the other, are a video; 1: they are images.
    """

    spec: VisionLanguageSpec
    model: Any
    base: Any
    tower: Adapter
    projector: str
    projected_prefix: int
    stages: frozenset[str]
    dynamic_size: bool
    group: int = 1
    prompt_text: PromptText = field(default_factory=PromptText, repr=False)
    video_pass: VideoPass = field(default_factory=VideoPass, repr=False)
    frames: int = 1

    reads_prompts = True

    # It takes no mean of the tower's hidden states.
    all_tokens = ""

    def blocks(self) -> tuple[BlockPath, ...]:
        """The tower's blocks that are read."""
        return self.tower.blocks()

    def tokens(self) -> int | None:
        """Tokens of one image, tile or frame of the model's own size."""
        tokens = self.tower.tokens()
        return None if tokens is None else tokens // self._joins()

    def grid(self, tokens: int) -> tuple[int, int] | None:
        """The grid of one image, tile or frame, by that of its patches in this pass; or a square."""
        joins = self._joins()
        if joins == 1:
            return self.tower.grid(tokens)
        seen, g, side = self.tower.grid(tokens * joins), isqrt(joins), isqrt(tokens)
        if seen is not None and not seen[0] % g and not seen[1] % g:
            return seen[0] // g, seen[1] // g
        return (side, side) if side * side == tokens else None

    def layout(self, x: Tensor) -> TokenLayout:
        """As the tower's, of groups where the projector joins patches."""
        layout = self.tower.layout(x) if self._joins() == 1 else super().layout(x)
        if self.frames > 1 and isinstance(layout, BatchedLayout):
            return replace(layout, apart=True)
        return layout

    def _joins(self) -> int:
        """Tokens of the tower that the projector makes one of."""
        return self.group // self.tower.group

    def provides_at(self, stage: str) -> frozenset[str]:
        """In the prompt, what a decoder layer shows; elsewhere what the tower does."""
        if stage == "llm":
            return IN_PROMPT
        if stage == "projected":
            # After the tower its attention is carried along as keys, queries and means.
            frames = {"frames"} if self._sees_videos() else set[str]()
            return (self.provides - {"attention"}) | {"text"} | frames
        return self.provides

    def text(self, stage: str) -> tuple[Tensor, Tensor]:
        """Embeddings of the prompt of each image, crop or frame (`prompt_text.py`)."""
        del stage
        return self.prompt_text.of_images(self.model, self.base)

    def _sees_videos(self) -> bool:
        """Whether it is known which of the tower's images are the frames of a video."""
        if isinstance(self.tower, HFPackedTower):
            return any(modality.kind == "video" for modality in self.spec.modalities)
        return self.frames > 1 or any(modality.stacked for modality in self.spec.modalities)

    def with_frames(self, frames: int) -> Self:
        """The same adapter where images are the frames of videos, each image with the tokens of its size.

        Raises:
            BadArgumentError: images are cut into crops, the model takes videos itself, or prefix tokens
                reach its projector.
        """
        video_frames.check(self, frames)
        return replace(self, frames=frames)

    def note_videos(self, layout: TokenLayout) -> None:
        """Remember what is left of each frame, until the prompt has been shortened."""
        self.video_pass.left = layout if self.frames > 1 else None

    def videos(self, images: int) -> Sequence[int]:
        """Slices in time of packed videos, frames of stacked ones, and images that are frames.

        Raises:
            AttachError: the images are no whole number of videos.
        """
        if isinstance(self.tower, HFPackedTower):
            return self.tower.rows.videos()
        if images % self.frames:
            raise AttachError(
                f"{images} images of a call, and {self.frames} of them are a video "
                f"(frames={self.frames} of attach): pass whole videos, or detach for other images"
            )
        if self.frames > 1:
            return (self.frames,) * (images // self.frames)
        frames = self.video_pass.frames or 1
        return (frames,) * (images // frames)

    def pool_frames(self, x: Tensor) -> Tensor:
        """As the model pools them, where it does."""
        return x if self.video_pass.frames is None else video_frames.pool(self.base, x)

    def passthrough_modules(self) -> tuple[str, ...]:
        """The tower's final norm, where it is read after that."""
        return () if self.spec.reads else self.tower.passthrough_modules()

    def connect(self, attached: Attachment) -> Callable[[], None]:
        """Make features, prompts, positions and the language model follow."""
        spec, base = self.spec, self.base
        undo: list[Callable[[], Any]] = []
        try:
            follows = self.tower.connect(attached)
            undo += [] if follows is None else [follows]
            if any("text" in step.needs for step in attached.recipe.steps):
                undo.append(self.prompt_text.install(base.get_submodule(spec.projector)))
            undo.append(video_frames.install(spec, base, self.video_pass))
            hooks = PromptHooks(self, attached)
            undo.append(hooks.install())
            undo.append(generate_wrapper.install(hooks))
            undo += [assemble(spec, base, self.tower) for assemble in spec.assembly]
        except BaseException:
            undo_all(undo)
            raise
        if spec.positions == "mrope":
            # Where positions go on from is kept on the model, and a text decoded by hand reads it.
            undo.append(partial(setattr, base, "rope_deltas", base.rope_deltas))
        return partial(undo_all, undo)

    def shorten(self, attached: Attachment, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the processor returned, with the planned placeholders."""
        return PromptHooks(self, attached).shorten(inputs)

    def visuals(self, given: Mapping[str, Any], plan: TokenPlan) -> dict[int, list[VisualSpan]]:
        """The images and videos of a call, in the order in which the model fills them into the prompt.

        Args:
            given: the arguments of the call.
            plan: maps the tokens of an image, crop, frame or slice in time, and the frames of its video, to
                those of them that enter the language model. A token is a group where the projector joins
                patches.

        Returns:
            By the id of the placeholder.

        Raises:
            AttachError: the call asks for other features than those that were planned on, or has pixels
                without their sizes.
        """
        config = self.base.config
        for name in self.spec.settings:
            value = given.get(name)
            if value is not None and value != getattr(config, name, value):
                raise AttachError(
                    f"{name}={value!r} in a call, but the recipe was planned on {getattr(config, name)!r}: "
                    f"set it in the model's config (model.config.{name}), then attach"
                )
        found: dict[int, list[VisualSpan]] = {}
        for modality in self.spec.modalities:
            pixels = given.get(modality.pixels)
            if pixels is None or not len(pixels):
                continue
            sizes = given.get(modality.sizes)
            if modality.sizes and sizes is None:
                raise AttachError(
                    f"{modality.pixels} without {modality.sizes}: the processor returns both, and the "
                    "number of tokens depends on them: model.generate(**inputs)"
                )
            call = SpanCall(
                self.spec, self.base, self.tower, pixels, sizes, given, plan, self.frames
            )
            found.setdefault(int(getattr(config, modality.placeholder)), []).extend(
                modality.spans(call)
            )
        return found

    def place(
        self,
        given: Mapping[str, Any],
        spans: Spans,
        start: Tensor | None = None,
        said: PromptCall | None = None,
        encoded: EncodedCall | None = None,
        index: Tensor | None = None,
    ) -> Placed:
        """Encode the images of a call, and find the positions of what is left of them.

        Args:
            given: the arguments, with the short prompt `[b, m]`.
            spans: its images and videos.
            start: `[b, 1]`, where positions begin; None: at 0.
            said: whose text the images are chosen by; None: these arguments.
            encoded: the images, where that is done; None: they are encoded here.
            index: `[b, m]`, the column of the caller's prompt that each column is, -1 at padding; None: not
                known, or all of them.
        """
        done = self.encode(given, spans, said) if encoded is None else encoded
        pixels = {modality.pixels for modality in self.spec.modalities}
        new = {name: value for name, value in given.items() if name not in pixels}
        if done.outputs:
            new[ENCODED] = done.outputs
        if encoded is None or index is None:
            positions, after = mrope.positions(self.base, new, spans, done.kept, start)
        else:
            positions, after = mrope.of_columns(
                self.base, encoded.whole, index, given["input_ids"], done.kept, start
            )
        return Placed(new, positions, done.kept, after)

    def encode(
        self, given: Mapping[str, Any], spans: Spans, said: PromptCall | None = None
    ) -> EncodedCall:
        """Encode the images of a call.

        Args:
            given: the arguments.
            spans: its images and videos, with as many tokens as the prompt has placeholders of each.
            said: whose text the images are chosen by; None: these arguments.
        """
        if self.frames > 1:
            return video_frames.encode(self, given, spans)
        tower = packed_tower(self.tower)
        encoded: dict[str, Any] = {}
        kept: dict[int, list[Any]] = {}
        sizes = {token: iter([span.full for span in several]) for token, several in spans.items()}
        with self.prompt_text.call(said or PromptCall(given, spans)):
            for modality in self.spec.modalities:
                pixels = given.get(modality.pixels)
                if pixels is None:
                    continue
                encode = getattr(self.base, modality.features)
                encoded[modality.kind] = encode(pixels, given[modality.sizes], return_dict=True)
                token = int(getattr(self.base.config, modality.placeholder))
                kept.setdefault(token, []).extend(tower.rows.left(sizes[token]))
        return EncodedCall(encoded, kept, given)
