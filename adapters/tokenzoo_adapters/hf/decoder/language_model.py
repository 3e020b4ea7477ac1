"""A language model of transformers: its layers, and the arguments that each of them takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from tokenzoo_adapters.hf.names import Takes, place_in_cache, takes

ADDING: dict[str, str] = {
    "Qwen3VLTextModel": "_deepstack_process",
    "Qwen3VLMoeTextModel": "_deepstack_process",
}
"""Supported classes that add features to visual tokens after their first layers, and the method for it."""

MROPE = ("Qwen2VLTextModel", "Qwen2_5_VLTextModel", "Cosmos3EdgeTextModel", *ADDING)
"""Supported classes whose tokens have a time, a row and a column; layers are given the angles alone."""

SUPPORTED = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model", *MROPE)
"""Classes whose layers take masks and positions as keyword arguments, with one rotary embedding."""


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A language model, and what was read off it once.

    Attributes:
        module: the model: it has `layers`, `norm`, `rotary_emb`, `embed_tokens` and `config`.
        takes: the arguments of its forward.
        layer_takes: the arguments of each layer.
        cache_layers: for each layer, which layer of a cache it writes.
    """

    module: nn.Module
    takes: Takes
    layer_takes: tuple[Takes, ...]
    cache_layers: tuple[int, ...]

    @classmethod
    def of(cls, module: nn.Module) -> LanguageModel:
        """Read a language model that has decoder layers (see `check_decoder`)."""
        layers: list[nn.Module] = list(cast("Any", module).layers)
        kinds = {type(layer): takes(type(layer)) for layer in layers}
        return cls(
            module,
            takes(type(module)),
            tuple(kinds[type(layer)] for layer in layers),
            tuple(place_in_cache(layer, i) for i, layer in enumerate(layers)),
        )

    @property
    def kind(self) -> str:
        """The name of its class."""
        return type(self.module).__name__

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"the language model {self.kind}"

    @property
    def depth(self) -> int:
        """How many layers it has."""
        return len(self.layer_takes)

    @property
    def layers(self) -> list[Any]:
        """The decoder layers, in order."""
        return list(cast("Any", self.module).layers)

    @property
    def norm(self) -> nn.Module:
        """The norm after the last layer."""
        return cast("Any", self.module).norm

    @property
    def config(self) -> Any:
        """The configuration."""
        return cast("Any", self.module).config

    @property
    def attention(self) -> str:
        """The name of its attention implementation."""
        return str(self.config._attn_implementation)

    def angles(self, x: Tensor, positions: Tensor) -> Any:
        """Cosines and sines of `positions [b, n]`, in the dtype of `x`: `[b, n, d]` each."""
        return cast("Any", self.module).rotary_emb(x, positions)
