"""One call of a decoder layer: masks, positions and cache columns of the tokens that are left.

Transformers hands every layer the mask and positions of all tokens. After a step they are gathered here for
those that are left, and for the columns that the layer's cache holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from tokenzoo.errors import AttachError
from tokenzoo.token_map import take
from tokenzoo_adapters.hf.decoder.language_model import LanguageModel
from tokenzoo_adapters.hf.decoder.state import Columns, DecoderState, Prompt, join
from tokenzoo_adapters.hf.decoder.steps import DecoderSteps
from tokenzoo_adapters.hf.gather import compact_positions, layer_mask
from tokenzoo_adapters.hf.names import ANGLES, MASK, POSITIONS, cache_of, drops_cache

_COLUMNS = "_tokenzoo_columns"


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One call of a decoder layer.

    Attributes:
        language: the language model.
        steps: of the recipe.
        layer: index of the layer.
        x: `[b, m, c]`, what enters it.
        state: of the pass.
        inputs: its keyword arguments, made for all tokens.
        kv_cache: the cache that it writes, or None.
        remembered: columns of earlier calls that the cache remembers, by the layer of the step.
        past: columns of the sequence before this call.
    """

    language: LanguageModel
    steps: DecoderSteps
    layer: int
    x: Tensor
    state: DecoderState
    inputs: dict[str, Any]
    kv_cache: Any
    remembered: Mapping[int, Columns]
    past: int

    @property
    def entered(self) -> Tensor:
        """The tokens with which the pass began `[b, n, c]`, or, before the first step, those of now."""
        return self.x if self.state.full is None else self.state.full

    @property
    def index(self) -> Tensor:
        """Which of the tokens that entered are left, `[b, m]`."""
        if self.state.index is None:
            return torch.arange(self.x.shape[1], device=self.x.device).expand(self.x.shape[0], -1)
        return self.state.index.to(self.x.device)

    def columns(self, layer: int) -> tuple[Tensor, Tensor | None]:
        """The columns that a layer's cache holds, `[b, k]`, and which of them are not filler."""
        at, device = self.steps.at(layer), self.x.device
        if at in self.remembered:
            before, valid = self.remembered[at].until(self.past)
        else:
            columns = torch.arange(self.past, device=device)
            before, valid = columns.expand(self.x.shape[0], -1), None
        before, index = before.to(device), self.index
        return torch.cat([before, index + self.past], 1), join(
            valid, self.state.valid, before, index
        )

    def is_shorter(self, at: int) -> bool:
        """Whether a step at layer `at` has dropped tokens, in this call or an earlier one."""
        return self.state.index is not None or at in self.remembered

    def fitted(self, at: int) -> dict[str, Any]:
        """The keyword arguments for the tokens that a step at layer `at` leaves.

        Raises:
            AttachError: the layers are given no positions, or a mask of an unknown kind.
        """
        b, index, inputs = self.x.shape[0], self.index, self.inputs
        columns, valid = self.columns(at)
        mask = layer_mask(inputs.get(MASK), index, columns, valid, self.x, self.language.attention)
        new = {**inputs, MASK: mask}
        positions, angles = inputs.get(POSITIONS), inputs.get(ANGLES)
        compact = self.steps.by_layer[at].positions == "compact"
        if angles is None or (compact and positions is None):
            raise AttachError(
                f"the layers of {self.language.name} get no "
                f"{ANGLES if angles is None else POSITIONS}, which a step at layer {at} needs: this "
                "version of transformers is not supported in the language model. Install 5.20 to 5.24, or "
                "use a recipe that reduces before the language model"
            )
        if compact and positions is not None:
            positions = self._compact(at, positions.expand(b, -1), index)
            return {**new, POSITIONS: positions, ANGLES: self.language.angles(self.x, positions)}
        if positions is not None:
            new[POSITIONS] = take(positions.expand(b, -1), index)
        new[ANGLES] = tuple(take(part.expand(b, -1, -1), index) for part in angles)
        return new

    def _compact(self, at: int, positions: Tensor, index: Tensor) -> Tensor:
        """Positions `[b, m]` without the gaps of dropped tokens, from those of all tokens."""
        prompt, lost = self.state.prompt, None
        if at in self.remembered:
            lost = self.remembered[at].lost
        real = None if prompt is None else prompt.real(self.entered)
        positions = compact_positions(positions, index, self.state.valid, real)
        return positions if lost is None else positions - lost

    def lost(self, at: int) -> Tensor | None:
        """Position offset of later tokens `[b, 1]`; None: positions are kept."""
        if self.steps.by_layer[at].positions == "keep":
            return None
        lost = self.remembered[at].lost if at in self.remembered else None
        if lost is None:
            lost = torch.zeros(self.x.shape[0], 1, dtype=torch.int64, device=self.x.device)
        index, valid = self.state.index, self.state.valid
        if index is None or self.state.full is None:
            return lost
        there = index.shape[1] if valid is None else valid.sum(1, keepdim=True)
        entered = cast("Prompt", self.state.prompt).real(self.state.full).sum(1, keepdim=True)
        return lost + entered - there

    def check_length(self, at: int) -> None:
        """Raise if the cache does not hold what it held after the last call.

        Raises:
            AttachError: it was cropped or filled since; names both lengths.
        """
        if self.kv_cache is None:
            return
        old, expected = self.remembered.get(at), self.past
        if old is not None:
            expected = old.index.shape[1] + self.past - old.length
        held = int(self.kv_cache.get_seq_length(self.language.cache_layers[self.layer]))
        if held != expected:
            raise AttachError(
                f"the cache holds {held} tokens of layer {self.layer}, but {expected} were expected: it "
                "was cropped or filled by another model. Start with a new cache"
            )

    def prepared(self) -> LayerCall:
        """The call with arguments that fit the tokens; after the last layer the cache remembers them."""
        at, state, inputs = self.steps.at(self.layer), self.state, self.inputs
        if not self.is_shorter(at):
            return self
        self.check_length(at)
        inputs = self.fitted(at)
        if self.kv_cache is not None:
            if self.layer == at and state.index is not None:
                columns, valid = self.columns(self.layer)
                length = self.past + self.entered.shape[1]
                new = Columns(columns, valid, length, self.lost(at))
                state = replace(state, written={**state.written, at: new})
            if self.layer == self.language.depth - 1 and state.written:
                setattr(self.kv_cache, _COLUMNS, {**self.remembered, **state.written})
        return replace(self, state=state, inputs=inputs)


def cache_in_call(module: nn.Module, inputs: Mapping[str, Any]) -> tuple[Any, dict[int, Columns]]:
    """The cache that a layer writes, or None, and the columns that it remembers.

    Args:
        module: the layer.
        inputs: its keyword arguments.
    """
    cache = None if drops_cache(module) else cache_of(inputs)
    return cache, getattr(cache, _COLUMNS, {})
