"""The evidence that a site provides to the parts, computed lazily.

Parts never see prefix tokens (CLS, registers): all evidence is about patch tokens; only the softmax of an
attention includes the others. A value is computed on first access, and once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenzoo._core.precision import exact
from tokenzoo._core.tensors import gather_tokens
from tokenzoo.attention import DeferredAttention, SeenAttention
from tokenzoo.errors import MissingEvidenceError
from tokenzoo.evidence_names import EMBEDDED as EMBEDDED
from tokenzoo.evidence_names import ENTERED as ENTERED
from tokenzoo.evidence_names import NAMES as NAMES
from tokenzoo.evidence_names import NEXT as NEXT
from tokenzoo.evidence_names import PREVIOUS as PREVIOUS
from tokenzoo.evidence_names import TEXT as TEXT
from tokenzoo.evidence_names import Layer as Layer
from tokenzoo.evidence_names import layer_of as layer_of
from tokenzoo.evidence_names import needed as needed
from tokenzoo.token_map import TokenMap, take

_AXES = {"received_attention": 1, "text_attention": 3}
"""The dimension of the tokens in a value; 2 where it is not listed."""

_OTHERS = (TEXT, EMBEDDED)
"""Layers whose tokens are not the n tokens of the site."""


class Evidence:
    """The evidence of one site about its n patch tokens.

    Args:
        x: features `[b, n, c]`.
        mass: `[b, n]`, how many input tokens each stands for.
        show: functions that compute `keys`, `queries` and `values [b, h, n, d]`, `received_attention [b,
            n]`, `cls_attention [b, h, n]`, `last_attention [b, h, n]`, `text_attention [b, h, t, n]`,
            `text_rotation [b, t, n]`; without those that the site does not provide.
        attention: queries and keys with their softmax, or None.
        prefix: number of prefix tokens before these (ToMe's split by parity counts them).
        grid: (rows, columns) if the n tokens are a whole grid in raster order, otherwise None.
        frames: number of frames of equally many tokens each, or None.
        depth: position of the block, i / L for block i of L; None: not at a block.
        text: `[b, t, c]` embeddings of the question, or None.
        text_mask: `[b, t]` bool, False where `text` is padding; None: there is no padding.
        held: `[b, n]` bool, protected at an earlier site, or None.
        layers: the evidence of other layers, by index or name; under `TEXT` and `EMBEDDED`, that of other
            tokens.
        training: whether the block is in training mode; parts that learn may then act otherwise.
    """

    def __init__(
        self,
        x: Tensor,
        *,
        mass: Tensor,
        show: Mapping[str, Callable[[], Tensor]] | None = None,
        attention: SeenAttention | DeferredAttention | None = None,
        prefix: int = 0,
        grid: tuple[int, int] | None = None,
        frames: int | None = None,
        depth: float | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        held: Tensor | None = None,
        layers: Mapping[Layer, Evidence] | None = None,
        training: bool = False,
    ) -> None:
        self.x = x
        self.training = training
        self.mass = mass
        self.prefix = prefix
        self.held = held
        self.text_mask = text_mask
        self._grid = grid
        self._frames = frames
        self._depth = depth
        self._text = text
        self._attention = attention
        self._layers = dict(layers or {})
        self._values: dict[str, Tensor] = {}
        self._show = dict(show or {})
        if attention is not None:
            self._show = attention.shows() | self._show

    @property
    def provides(self) -> frozenset[str]:
        """The names in `needs` that this evidence meets."""
        own = {"x", "mass", *self._show}
        optional = {
            "attention": self._attention,
            "grid": self._grid,
            "frames": self._frames,
            "depth": self._depth,
            "text": self._text,
        }
        own |= {name for name, value in optional.items() if value is not None}
        others = {f"{name}@{k}" for k, layer in self._layers.items() for name in layer.provides}
        return frozenset(own | others)

    def _value(self, name: str) -> Tensor:
        if name not in self._values:
            if name not in self._show:
                raise self._missing(name)
            self._values[name] = self._show[name]()
        return self._values[name]

    def _missing(self, name: str) -> MissingEvidenceError:
        return MissingEvidenceError(
            f"this site provides no {name}; it provides {', '.join(sorted(self.provides))}. A part that "
            f"reads it declares needs = frozenset({{{name!r}}}), so that attach can check it"
        )

    @property
    def keys(self) -> Tensor:
        """Keys of the attention, `[b, h, n, d]`."""
        return self._value("keys")

    @property
    def queries(self) -> Tensor:
        """Queries of the attention, `[b, h, n, d]`."""
        return self._value("queries")

    @property
    def values(self) -> Tensor:
        """Values of the attention, `[b, h, n, d]`."""
        return self._value("values")

    @property
    def received_attention(self) -> Tensor:
        """Attention that each token receives, mean over heads and all queries, `[b, n]`."""
        return self._value("received_attention")

    @property
    def cls_attention(self) -> Tensor:
        """Attention of the CLS token to each token, `[b, h, n]`."""
        return self._value("cls_attention")

    @property
    def last_attention(self) -> Tensor:
        """Attention of the prompt's last token to each token, `[b, h, n]`, in a language model."""
        return self._value("last_attention")

    @property
    def text_attention(self) -> Tensor:
        """Attention of the t text tokens after the last visual one to each token, `[b, h, t, n]`."""
        return self._value("text_attention")

    @property
    def text_rotation(self) -> Tensor:
        """Logits of the rotary positions alone, `[b, t, n]`: of queries and keys of ones."""
        return self._value("text_rotation")

    @property
    def attention(self) -> SeenAttention:
        """Queries and keys with their softmax, for means other than `received_attention`."""
        if self._attention is None:
            raise self._missing("attention")
        known = self._attention
        return known.made() if isinstance(known, DeferredAttention) else known

    @property
    def text(self) -> Tensor:
        """Embeddings of the question, `[b, t, c]`."""
        if self._text is None:
            raise self._missing("text")
        return self._text

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the tokens, in raster order."""
        if self._grid is None:
            raise self._missing("grid")
        return self._grid

    @property
    def frames(self) -> int:
        """Number of frames; the tokens of a frame are consecutive."""
        if self._frames is None:
            raise self._missing("frames")
        return self._frames

    @property
    def depth(self) -> float:
        """Position of the block in its tower, i / L for block i of L."""
        if self._depth is None:
            raise self._missing("depth")
        return self._depth

    def rows(self, queries: Tensor) -> Tensor:
        """Return the attention of the tokens `queries [b, q]` to all tokens: `[b, h, q, n]`."""
        return self.attention.rows(queries)

    def features(self, on: str) -> Tensor:
        """Return one vector per token, `[b, n, d]`.

        `on` is "x", "keys" or "queries" (mean over heads), or "all_keys" (concatenated).
        """
        if on == "x":
            return self.x
        if on == "all_keys":
            return self.keys.transpose(1, 2).flatten(2)
        heads = self._value(on)
        return heads.mean(1, dtype=torch.float64 if exact(heads) else None)

    def at(self, layer: Layer | None) -> Evidence:
        """Return the evidence of another layer; None: this one."""
        if layer is None:
            return self
        if layer not in self._layers:
            raise self._missing(f"evidence of layer {layer!r}")
        return self._layers[layer]

    def take(self, index: Tensor) -> Evidence:
        """Return the evidence of the tokens `index [b, m]`, which has no grid, frames or softmax."""

        def gather(value: Tensor, axis: int) -> Tensor:
            return take(value, index) if axis == 1 else gather_tokens(value, index, axis)

        return self.moved(gather, text=self._text, text_mask=self.text_mask)

    def moved(self, move: Callable[[Tensor, int], Tensor], **more: Any) -> Evidence:
        """Return the evidence of other tokens, made of what is known of these; it has no softmax.

        Args:
            move: makes of a value with n tokens in the dimension that it is given one with m tokens.
            **more: further arguments of `Evidence`; of these only prefix, depth and training are kept.
        """

        def shown(name: str) -> Callable[[], Tensor]:
            return lambda: move(self._value(name), _AXES.get(name, 2))

        return Evidence(
            move(self.x, 1),
            mass=move(self.mass, 1),
            show={name: shown(name) for name in self._show},
            prefix=self.prefix,
            depth=self._depth,
            training=self.training,
            held=None if self.held is None else move(self.held, 1),
            layers={
                name: layer if name in _OTHERS else layer.moved(move, text=layer._text)
                for name, layer in self._layers.items()
            },
            **more,
        )

    def renewed(
        self, x: Tensor, mass: Tensor, layers: Mapping[Layer, Evidence] | None = None
    ) -> Evidence:
        """Return this evidence with new features and masses.

        Args:
            x: `[b, n, c]`.
            mass: `[b, n]`.
            layers: the evidence of other layers; None: unchanged.
        """
        return Evidence(
            x,
            mass=mass,
            show={name: partial(self._value, name) for name in self._show},
            attention=self._attention,
            prefix=self.prefix,
            grid=self._grid,
            frames=self._frames,
            depth=self._depth,
            text=self._text,
            text_mask=self.text_mask,
            held=self.held,
            layers=self._layers if layers is None else layers,
            training=self.training,
        )

    def with_text(self, text: Tensor, text_mask: Tensor) -> Evidence:
        """Return this evidence with the text `[b, t, c]`; `text_mask [b, t]` is False at padding."""
        other = copy.copy(self)
        other._text, other.text_mask = text, text_mask
        return other

    def through(self, plan: TokenMap) -> Evidence:
        """Gather this evidence for the outputs of a token map, from their representatives."""
        return self.take(plan.sources)
