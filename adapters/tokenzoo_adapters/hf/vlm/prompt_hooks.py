"""Hooks on the forward of a whole transformers model, for prompts as the caller writes them.

The caller's prompt has as many placeholders as the processor wrote. It is shortened to what will come out
of the tower: in `forward` by a hook, in `generate` by a wrapper (`generate_wrapper`). A cache remembers the
prompt that it was made of, so that a conversation, or a decoding loop by hand, can go on in the caller's
coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from tokenzoo.adapter import Attachment
from tokenzoo.attachment import EVERY
from tokenzoo.errors import AttachError
from tokenzoo.hooks import PerThread, thread_local, undo_all
from tokenzoo_adapters.hf.decoder.layers import Decoder
from tokenzoo_adapters.hf.decoder.state import Prompt, prompt_of
from tokenzoo_adapters.hf.decoder.verify import prove
from tokenzoo_adapters.hf.names import ENCODED, MASK, POSITIONS, cache_in, cache_of, takes
from tokenzoo_adapters.hf.vlm.cached_prompt import (
    CACHED,
    COUNTED,
    CachedPrompt,
    counted,
    in_cache,
)
from tokenzoo_adapters.hf.vlm.interface import PromptAdapter
from tokenzoo_adapters.hf.vlm.prompt_text import PromptCall
from tokenzoo_adapters.hf.vlm.shortening import kind_of, place_call, shorten_call
from tokenzoo_adapters.hf.vlm.spec import Spans


class CallState(PerThread):
    """What a call hands to the calls inside it, in one thread.

    Attributes:
        spans: the images and videos of the call of `generate` that runs.
        shape: of its short prompt.
        assists: whether a call of `generate` runs that drafts for another model, from its encoded images.
        cached: what the cache of the forward that runs has to remember.
    """

    spans: Spans | None = thread_local("spans")
    shape: tuple[int, int] | None = thread_local("shape")
    assists: bool | None = thread_local("assists")
    cached: CachedPrompt | None = thread_local("cached")


class PromptHooks:
    """Forward and `generate` of one attached model.

    Args:
        adapter: of the model.
        attached: the recipe on it.
    """

    def __init__(self, adapter: PromptAdapter, attached: Attachment) -> None:
        self.adapter = adapter
        self.attached = attached
        self.mrope = adapter.spec.positions == "mrope"
        self.model: nn.Module = adapter.model
        spec, base = adapter.spec, adapter.base
        self.decoder = Decoder(getattr(base, spec.language), attached, spec.adds(base.config))
        self.state = CallState()
        self.name = type(self.model).__name__
        self.takes = takes(type(self.model))

    def install(self) -> Callable[[], None]:
        """Install the hooks; return an uninstaller."""
        # These may raise, and nothing is installed yet.
        self.decoder.check()
        prove(self.decoder)
        undo: list[Callable[[], Any]] = [self.decoder.install()]
        handles = [
            self.model.register_forward_pre_hook(self.enter, with_kwargs=True),
            self.model.register_forward_hook(self.leave, with_kwargs=True, always_call=True),
        ]
        undo += [handle.remove for handle in handles]
        return partial(undo_all, undo)

    def enter(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Shorten the prompt of a call, or make its mask and positions those of the cache."""
        del model
        self.state.cached = None
        self.decoder.prompt(None)
        self.adapter.prompt_text.end()
        if not self.attached.active:
            return None
        given = self.takes.given(args, kwargs, self.name)
        first = self.adapter.spec.first_position
        if given.get(ENCODED):
            # Called by generate, which has shortened the prompt already.
            if self.state.shape is None and not self.state.assists:
                self.refuse_encoded()
            spans = self.state.spans
        else:
            spans = self.spans(given)
            short = shorten_call(self.adapter, given, spans, pad_left=given.get("labels") is None)
            if self.mrope:
                short = place_call(self.adapter, short, given, cache_of(given))
            given, self.state.cached, spans = short.given, short.cached, short.spans
            if spans:
                self.adapter.prompt_text.begin(PromptCall(given, spans))
        if self.state.shape is None:
            given = in_cache(given, moves=not self.mrope, first=first)
        if self.decoder.works:
            if not self.mrope:
                given = counted(given, begins=bool(spans), first=first)
            self.decoder.prompt(self._prompt(given, spans) if spans else None)
        return (), given

    def leave(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Let the cache that a call made remember the prompt."""
        del model, args
        self.adapter.prompt_text.end()
        cached, self.state.cached = self.state.cached, None
        self.decoder.prompt(None)
        cache = cache_in(output, self.name) if cached is not None or self.decoder.works else None
        if cached is not None and cache is not None:
            columns = kwargs.get(POSITIONS) is None
            setattr(cache, CACHED, replace(cached, columns=columns))
        if self.decoder.works and cache is not None and kwargs.get(POSITIONS) is not None:
            setattr(cache, COUNTED, True)

    def shorten(self, inputs: Mapping[str, Any], pad_left: bool = True) -> dict[str, Any]:
        """What a processor returned, with prompts that are short from the start."""
        given = dict(inputs)
        if not self.attached.active:
            return given
        return shorten_call(self.adapter, given, self.spans(given), pad_left=pad_left).given

    def refuse_encoded(self) -> None:
        """Refuse encoded images of the caller if the recipe works in the language model.

        Raises:
            AttachError: it does, and would do nothing: nobody says which tokens are those of an image.
        """
        if self.decoder.works:
            raise AttachError(
                f"{ENCODED} are images that were encoded before the call; a recipe that works in the "
                "language model does not know their tokens. Pass the pixel values instead, or detach first"
            )

    def has_pixels(self, given: Mapping[str, Any]) -> bool:
        """Whether a call has images or videos."""
        return any(given.get(one.pixels) is not None for one in self.adapter.spec.modalities)

    def spans(self, given: Mapping[str, Any]) -> Spans:
        """The images and videos of a call, as planned."""
        plan = self.attached.token_plan if self.attached.active else EVERY
        return self.adapter.visuals(given, plan) if self.has_pixels(given) else {}

    def _prompt(self, given: Mapping[str, Any], spans: Spans) -> Prompt:
        ids, mask = given["input_ids"], given.get(MASK)
        if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
            raise AttachError(
                f"attention_mask is {kind_of(mask)}; with a recipe that works in the language model it "
                "must be a tensor [b, n], 0 at padding"
            )
        b, n = self.state.shape or ids.shape
        cache = cache_of(given)
        past = 0 if cache is None or self.state.shape is None else int(cache.get_seq_length())
        return prompt_of(ids, mask, spans, n - past, ids.shape[0] // b)
