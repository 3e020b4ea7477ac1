"""Fewer visual tokens from some layer of a language model on (stage "llm"), with a consistent cache.

`Stage.LLM(k)` reduces what enters decoder layer k, by the evidence of layer k - 1. From there on there are
fewer tokens: masks and positions are gathered, and the caches of these layers are shorter. Before the last
norm the dropped tokens come back with the features that they had, so that logits and labels keep their
places. When tokens are decoded later, the mask over the whole prompt is gathered for these layers again:
the cache remembers which columns they hold.

This file installs the hooks. `call` fits masks, positions and cache; `reduction` reduces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from tokenzoo.attachment import ActiveRecipe
from tokenzoo.errors import AttachError
from tokenzoo.hooks import Options, PerThread, Undo, hook_first, thread_local, undo_all
from tokenzoo.recipe import Recipe
from tokenzoo_adapters.hf.decoder import checks
from tokenzoo_adapters.hf.decoder.adding import follow_added
from tokenzoo_adapters.hf.decoder.call import LayerCall, cache_in_call
from tokenzoo_adapters.hf.decoder.checks import check_decoder as check_decoder
from tokenzoo_adapters.hf.decoder.evidence import layer_context
from tokenzoo_adapters.hf.decoder.language_model import LanguageModel
from tokenzoo_adapters.hf.decoder.recording import LayerRecorder, install_recorders
from tokenzoo_adapters.hf.decoder.reduction import reduced
from tokenzoo_adapters.hf.decoder.state import DecoderState, Prompt, get_state, set_state
from tokenzoo_adapters.hf.decoder.steps import FROM_EMBEDDINGS, DecoderSteps
from tokenzoo_adapters.hf.gather import put_back
from tokenzoo_adapters.hf.names import EMBEDS, FEATURES, cache_of, entering

_Inputs = tuple[tuple[Any, ...], dict[str, Any]]

LOST = (
    "the tokens that reached layer {layer} of the language model do not carry the state of their pass. "
    "Usual causes: a hook or wrapper of your own that returns a new tensor between the layers; gradient "
    "checkpointing with use_reentrant=True (use use_reentrant=False)"
)


class _CallState(PerThread):
    """The prompt of the next pass, in this thread."""

    prompt: Prompt | None = thread_local("prompt")


class Decoder:
    """The language model of an attached model, and the steps of the recipe in it.

    Args:
        language: the language model, one that `check_decoder` accepts.
        attached: the recipe on the whole model.
        adds: the number of its first layers after which it adds features of inner blocks of the tower.
    """

    def __init__(self, language: nn.Module, attached: ActiveRecipe, adds: int = 0) -> None:
        self.attached = attached
        self.adds = adds
        self.language = LanguageModel.of(language)
        self.steps = DecoderSteps.of(cast("Recipe", attached.recipe))
        self.call = _CallState()

    @property
    def works(self) -> bool:
        """Whether the recipe has a step in the language model."""
        return bool(self.steps.by_layer)

    def prompt(self, prompt: Prompt | None) -> None:
        """Set the visual tokens of this thread's next pass; None: it has none."""
        self.call.prompt = prompt

    def check(self) -> None:
        """Raise if the recipe does not fit the language model (see `checks.check_steps`)."""
        if self.works:
            checks.check_steps(self.language, self.steps, self.adds)

    def check_generate(self, given: Mapping[str, Any]) -> None:
        """Raise if `generate` cannot be called with these arguments (see `checks.check_generate`)."""
        if self.works:
            checks.check_generate(given, self.steps)

    def install(self) -> Callable[[], None]:
        """Install the hooks; returns an uninstaller.

        Raises:
            AttachError: the attention of the layers cannot be recorded.
        """
        undo: list[Undo] = []
        if not self.works:
            return partial(undo_all, undo)
        language, first = self.language, min(self.steps.by_layer)
        recorders = install_recorders(language, self.steps, undo)
        undo += follow_added(language)
        start = language.module.register_forward_pre_hook(self.start, with_kwargs=True)
        undo.append(start.remove)
        for i, layer in enumerate(language.layers):
            if i >= first:
                hook = layer.register_forward_pre_hook(partial(self.enter, i), with_kwargs=True)
                undo.append(hook.remove)
            leave = partial(_leave, recorders.get(i + 1))
            undo.append(hook_first(layer, leave, with_kwargs=True).remove)
        undo.append(language.norm.register_forward_pre_hook(_restore).remove)
        return partial(undo_all, undo)

    def start(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Inputs:
        """A pre-hook of the language model: put the state on the embedded prompt."""
        del module
        prompt, self.call.prompt = self.call.prompt, None
        if not self.attached.active:
            return args, kwargs
        takes = self.language.takes
        given = takes.given(args, kwargs, self.language.name)
        x: Tensor | None = given.get(EMBEDS)
        if x is None:
            return args, kwargs
        checks.check_cache(cache_of(given), self.steps)
        needed = prompt is not None and self.steps.need(FROM_EMBEDDINGS)
        state = DecoderState(prompt, embedded=x if needed else None)
        return args[len(takes.names) :], {**given, EMBEDS: set_state(x.view_as(x), state)}

    def enter(
        self, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _Inputs | None:
        """A pre-hook of a layer: reduce, if it has a step, and fit its arguments to what is left."""
        takes, x = self.language.layer_takes[layer], entering(args, kwargs)
        state = get_state(x)
        inputs = takes.given(args[1:], kwargs, f"layer {layer} of {self.language.name}", 1)
        args = args[:1] + args[len(takes.names) or 1 :]
        cache, remembered = cache_in_call(module, inputs)
        if state is None:
            if not remembered and not self.attached.active:
                return None
            if not remembered or x is None:
                raise AttachError(LOST.format(layer=layer))
            state = DecoderState(None)
        entered = x.shape[1] if state.full is None else state.full.shape[1]
        # A step is at layer 1 or later: layer 0 has the new tokens in its cache already.
        held = 0 if cache is None else int(cache.get_seq_length(self.language.cache_layers[0]))
        past = 0 if cache is None else held - entered
        call = LayerCall(
            self.language, self.steps, layer, x, state, inputs, cache, remembered, past
        )
        if layer in self.steps.by_layer and state.prompt is not None:
            call = self._reduced(call, module)
        call = call.prepared()
        x = set_state(call.x, call.state)
        if not args:
            return (), {**call.inputs, FEATURES: x}
        return (x, *args[1:]), call.inputs

    def _reduced(self, call: LayerCall, module: nn.Module) -> LayerCall:
        options = cast("Options", self.attached.options)
        options.tick()
        context = layer_context(call, module)
        call = reduced(call, context, cast("Recipe", self.attached.recipe), options)
        rows = cast("Prompt", call.state.prompt).rows
        kept = zip(call.state.kept, rows, strict=True)
        self.attached.note_prompts(tuple(len(places) + row.ends for places, row in kept))
        options.tick()
        return call


def _leave(
    recorder: LayerRecorder | None,
    layer: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> Any:
    """A hook of a layer: put the state on its output, with its recorded attention.

    The next layer finds the attention on the tokens and not in the recorder: where layers are checkpointed,
    the next layer runs again before this one does.
    """
    del layer
    calls = () if recorder is None else recorder.take()
    x = entering(args, kwargs)
    state = get_state(x)
    if state is None or output is x:
        return None
    return set_state(output, replace(state, recorded=calls))


def _restore(norm: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """A pre-hook of the last norm: put all tokens back into their places."""
    del norm
    state = get_state(args[0])
    if state is None or state.index is None or state.full is None:
        return None
    return (put_back(state.full, state.index, state.valid, args[0]), *args[1:])
