"""Recording the attention of the layer before a step: queries and keys, as the tap of `hf.attention`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from tokenzoo.errors import AttachError
from tokenzoo.hooks import TAP_ATTR, PerThread, Undo, thread_local, unwatch
from tokenzoo_adapters.hf import attention as hf_attention
from tokenzoo_adapters.hf.decoder.language_model import LanguageModel
from tokenzoo_adapters.hf.decoder.state import AttentionCall, DecoderState, get_state
from tokenzoo_adapters.hf.decoder.steps import FROM_ATTENTION, DecoderSteps
from tokenzoo_adapters.hf.names import entering


@dataclass
class AttentionRecorder:
    """A tap that keeps the queries and keys of each attention call."""

    key_bias: ClassVar[None] = None

    calls: list[AttentionCall] = field(default_factory=list["AttentionCall"])

    def look(
        self,
        query: Tensor,
        key: Tensor,
        mask: Any,
        scale: float | None,
        value: Tensor | None = None,
    ) -> Any:
        """Record one attention; returns its mask as it is."""
        del value
        self.calls.append((query, key, query.shape[-1] ** -0.5 if scale is None else scale))
        return mask


class LayerRecorder(PerThread):
    """The tap of one layer, in this thread; None: nothing is recorded."""

    tap: AttentionRecorder | None = thread_local("tap")

    def take(self) -> tuple[AttentionCall, ...]:
        """The recorded calls; ends the recording."""
        tap, self.tap = self.tap, None
        return () if tap is None else tuple(tap.calls)


def install_recorders(
    language: LanguageModel, steps: DecoderSteps, undo: list[Undo]
) -> dict[int, LayerRecorder]:
    """Record the attention before each step that needs it; returns the recorders, by the step's layer.

    Args:
        language: the language model.
        steps: of the recipe.
        undo: gets the functions that take it away again.

    Raises:
        AttachError: the attention of the layers cannot be recorded.
    """
    recorders: dict[int, LayerRecorder] = {}
    if not steps.need(FROM_ATTENTION):
        return recorders
    undo.append(hf_attention.install(language.module))
    layers = language.layers
    for layer, step in steps.by_layer.items():
        if step.needs & FROM_ATTENTION:
            before, recorder = layers[layer - 1], LayerRecorder()
            recorders[layer] = recorder
            setattr(before.self_attn, TAP_ATTR, recorder)
            undo.append(partial(unwatch, before.self_attn))
            start = partial(_start, recorder)
            undo.append(before.register_forward_pre_hook(start, with_kwargs=True).remove)
    return recorders


def _start(
    recorder: LayerRecorder, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """A pre-hook: record the attention of a layer that reads visual tokens."""
    del layer
    state = get_state(entering(args, kwargs))
    reads = state is not None and state.prompt is not None
    recorder.tap = AttentionRecorder() if reads else None


def recorded(state: DecoderState, layer: int) -> AttentionCall:
    """The one attention call of the layer before `layer`.

    Raises:
        AttachError: there was none, or several.
    """
    if len(state.recorded) != 1:
        raise AttachError(
            f"{len(state.recorded)} attention calls were recorded in layer {layer - 1} of the language "
            "model, and exactly one is needed: set_attn_implementation removes our function from the "
            "attention; call it before attach"
        )
    return state.recorded[0]
