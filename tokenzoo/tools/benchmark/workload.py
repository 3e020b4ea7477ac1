"""The workload of a run: a model with random weights, and its input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenzoo._core.validation import check_choice, check_count, check_flag
from tokenzoo.adapter import Adapter
from tokenzoo.attachment import EVERY
from tokenzoo.errors import BadArgumentError, UnsupportedModelError
from tokenzoo.hooks.attach import find_adapter

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model and its input; None: those of the named shape.

    Args:
        batch: images, or prompts with all that belongs to them.
        frames: of the video in a prompt.
        depth: blocks of the vision tower.
        layers: of the language model.
        tiny: a small model of the same kind, for tests.
    """

    batch: int = 1
    frames: int | None = None
    depth: int | None = None
    layers: int | None = None
    tiny: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "frames", "depth", "layers"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_flag("tiny", self.tiny)

    def shrunk(self) -> tuple[str, ...]:
        """Return the differences from the named model, in words."""
        said = {"blocks in the tower": self.depth, "layers in the language model": self.layers}
        small = ("a tiny model of this kind",) if self.tiny else ()
        return (*small, *(f"{value} {what}" for what, value in said.items() if value is not None))


@dataclass(frozen=True)
class Setting:
    """How a model is made to run.

    Args:
        device: "cpu", "cuda", "cuda:1"; "meta" makes a model that cannot run.
        dtype: a name in `DTYPES`.
        attention: transformers' name of an attention; timm's models have their own, "sdpa".
    """

    device: str = "cpu"
    dtype: str = "float32"
    attention: str = "sdpa"

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, *DTYPES)
        try:
            kind = torch.device(self.device).type
        except RuntimeError as error:
            raise BadArgumentError(
                f"device={self.device!r}; it must be cpu, cuda or cuda:N"
            ) from error
        if kind == "cuda" and not torch.cuda.is_available():
            raise BadArgumentError(
                f"device={self.device!r}; this torch sees no CUDA device: use device='cpu'"
            )

    @property
    def torch_dtype(self) -> torch.dtype:
        """Torch's dtype of that name."""
        return DTYPES[self.dtype]


@dataclass(frozen=True, eq=False)
class Workload:
    """A bare model, and the call that is timed.

    Args:
        name: of the shape.
        model: in eval mode, with nothing attached.
        given: images `[b, 3, h, w]`, or the arguments of a call.
        multimodal: whether it answers prompts.
        sizes: those passed to `load`.
        setting: the one passed to `load`.
        adapter: the model's; None: no adapter supports it.
        notes: other facts that the title of the figures states.
    """

    name: str
    model: Any
    given: Tensor | Mapping[str, Any]
    multimodal: bool
    sizes: Sizes
    setting: Setting
    adapter: Adapter | None
    notes: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        """The device of the call."""
        return torch.device(self.setting.device)

    @property
    def encoder(self) -> str:
        """The name of the vision tower in a multimodal model."""
        return self._part("tower")

    @property
    def language(self) -> str:
        """The name of the language model in it."""
        return self._part("language")

    def _part(self, part: str) -> str:
        """The name of a module in the model that the adapter's spec names."""
        adapter: Any = self.adapter
        wanted = getattr(adapter.base, getattr(adapter.spec, part))
        return next(name for name, module in self.model.named_modules() if module is wanted)

    @property
    def inside(self) -> bool:
        """Whether the projector is within the tower."""
        adapter = self.adapter
        if adapter is None or not self.multimodal:
            return False
        return adapter.projector.startswith(f"{self.encoder}.")

    @property
    def images(self) -> tuple[int, ...]:
        """Patch tokens of each image, frame or slice of the call; () if no adapter supports the model."""
        return tuple(tokens for tokens, _ in self.frames)

    @property
    def frames(self) -> tuple[tuple[int, int], ...]:
        """The same, each with the number of frames of its video; 1 for an image."""
        if self.adapter is None:
            return ()
        if self.multimodal:
            known: Any = self.adapter
            video = getattr(self.model.config, "video_token_id", None)
            return tuple(
                (one.patches, one.units if token == video else 1)
                for token, several in known.visuals(self.given, EVERY).items()
                for one in several
                for _ in range(one.units)
            )
        tokens = self.adapter.tokens()
        return () if tokens is None else ((tokens, 1),) * self.sizes.batch

    def run(self, model: nn.Module) -> Callable[[], object]:
        """Return the timed call, of this model or a copy of it."""
        answering: Any = model
        given: Any = self.given

        def call() -> object:
            with torch.inference_mode():
                if self.multimodal:
                    return answering.generate(**given, max_new_tokens=1, do_sample=False)
                if isinstance(given, Tensor):
                    return model(given)
                return model(**given)

        return call


def adapter_of(model: nn.Module) -> Adapter | None:
    """Return the model's adapter, or None."""
    try:
        return find_adapter(model)
    except UnsupportedModelError:
        return None
