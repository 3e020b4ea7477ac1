"""The doors of a whole transformers model: its forward and its `generate`, as the caller calls them.

The caller's prompt has as many placeholders as the processor wrote. Here it is shortened to what will come
out of the tower, in `forward` by a hook, in `generate` around it; what `generate` returns begins with the
caller's own prompt again. A cache remembers the prompt that it was made of, so that a conversation, or a
decoding loop by hand, can go on in the caller's coordinates.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from tokenzoo.adapter import Attachment
from tokenzoo.errors import AttachError
from tokenzoo.hooks.sharding import refuse_outside
from tokenzoo.hooks.state import PerThread, own
from tokenzoo_adapters.hf.decoder.layers import Decoder
from tokenzoo_adapters.hf.decoder.state import Prompt, prompt_of
from tokenzoo_adapters.hf.decoder.verify import prove
from tokenzoo_adapters.hf.names import ENCODED, MASK, POSITIONS, cache_in, cache_of, takes
from tokenzoo_adapters.hf.vlm import generate_callbacks as hf_callbacks
from tokenzoo_adapters.hf.vlm.cached_prompt import (
    COUNTED,
    MEMORY,
    Memory,
    counted,
    in_cache,
    kept_positions,
    moved_positions,
)
from tokenzoo_adapters.hf.vlm.generate_callbacks import CallerPrompt
from tokenzoo_adapters.hf.vlm.placeholders import Shortened, Visual, shorten
from tokenzoo_adapters.timm.pool import put, remove

FILLS = {MASK: 0, "labels": -100, "token_type_ids": 0, "mm_token_type_ids": 0}
"""What stands in padding, for each argument that has one value per token of the prompt."""

Visuals = Mapping[int, list[Visual]]


class Here(PerThread):
    """What a call hands to the calls inside it, in one thread."""

    visuals: Visuals | None = own("visuals")
    memory: Memory | None = own("memory")
    index: Tensor | None = own("index")
    shape: tuple[int, int] | None = own("shape")


class Doors:
    """Forward and `generate` of one attached model.

    Args:
        adapter: of the model: it has `model`, `base` and `visuals`; and `place`, where tokens keep the
            positions that they have in the caller's prompt.
        attached: the recipe on it.
    """

    def __init__(self, adapter: Any, attached: Attachment) -> None:
        self.adapter = adapter
        self.places = hasattr(adapter, "place")
        self.attached = attached
        self.model: nn.Module = adapter.model
        self.decoder = Decoder(adapter.base.language_model, attached)
        self.here = Here()
        self.name = type(self.model).__name__
        self.takes = takes(type(self.model))

    def install(self) -> Callable[[], None]:
        """Open the doors; returns the function that closes them."""
        # These may raise, and nothing is open yet.
        self.decoder.check()
        prove(self.decoder)
        undo: list[Callable[[], Any]] = [self.decoder.install()]
        handles = [
            self.model.register_forward_pre_hook(self.enter, with_kwargs=True),
            self.model.register_forward_hook(self.leave, with_kwargs=True, always_call=True),
        ]
        undo += [handle.remove for handle in handles]
        if hasattr(self.model, "generate"):
            mine = {"generate": partial(_generate, self), **hf_callbacks.methods(self.model)}
            put(self.model, mine)
            undo.append(partial(remove, self.model, tuple(mine)))
        return partial(_all, undo)

    # ------------------------------------------------------------------------------- forward

    def enter(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Shorten the prompt of a call, or what a cache makes of its mask."""
        del model
        self.here.memory = None
        self.decoder.prompt(None)
        if not self.attached.active:
            return None
        given = self.takes.given(args, kwargs, self.name)
        if given.get(ENCODED):
            # Called by generate, which has shortened the prompt already.
            visuals = self.here.visuals
        else:
            visuals, full = self._visuals(given), given
            given = self._shortened(given, visuals, pad_left=given.get("labels") is None)
            if self.places and self.here.memory is not None:
                given = self._placed(given, full, visuals, cache_of(given))
        if self.here.shape is None:
            given = in_cache(given, moves=not self.places)
        if self.decoder.works:
            if not self.places:
                given = counted(given, begins=bool(visuals))
            self.decoder.prompt(self._prompt(given, visuals) if visuals else None)
        return (), given

    def leave(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Let the cache that a call made remember the prompt."""
        del model, args
        memory, self.here.memory = self.here.memory, None
        self.decoder.prompt(None)
        cache = cache_in(output, self.name) if memory is not None or self.decoder.works else None
        if memory is not None and cache is not None:
            setattr(cache, MEMORY, memory)
        if self.decoder.works and cache is not None and kwargs.get(POSITIONS) is not None:
            setattr(cache, COUNTED, True)

    def shorten(self, inputs: Mapping[str, Any], pad_left: bool = True) -> dict[str, Any]:
        """What a processor returned, with prompts that are short from the start."""
        given = dict(inputs)
        if not self.attached.active:
            return given
        short = self._shortened(given, self._visuals(given), pad_left=pad_left)
        self.here.memory = None
        return short

    # ------------------------------------------------------------------------------ generate

    @torch.no_grad()
    def generate(self, given: dict[str, Any]) -> Any:
        """`generate` with a prompt that is shortened for the model and whole for the caller."""
        original = cast("Any", type(self.model)).generate
        key = "inputs" if given.get("input_ids") is None else "input_ids"
        ids: Any = given.get(key)
        if self.attached.active:
            given = self.takes.given((), given, "generate")
        if not self.attached.active or given.get(ENCODED) or not _is_prompt(ids):
            if self.attached.active and _has_pixels(given) and not _is_prompt(ids):
                raise AttachError(
                    "generate with pixel values and no input_ids [b, n]: the prompt cannot be shortened. "
                    "Pass input_ids, as the processor returns them, not inputs_embeds"
                )
            return original(self.model, **given)
        self.decoder.check_generate(given)
        prompt: dict[str, Any] = {**given, "input_ids": given.pop(key), "inputs": None}
        cache = cache_of(prompt)
        memory = getattr(cache, MEMORY, None)
        visuals = self._visuals(prompt)
        if memory is None:
            # Where nothing is to go the cache remembers too: an image may come later, and follow this.
            short = self._shortened(prompt, visuals, pad_left=True, remember=self.places)
            if self.places and self.here.memory is not None:
                short = self._placed(short, prompt, visuals, None)
            now = self.here.memory
        else:
            short, now = self._continued(prompt, visuals, memory)
        self.here.memory = None
        removed = prompt["input_ids"].shape[1] - short["input_ids"].shape[1]
        self._lengths(short, removed)
        b, n = short["input_ids"].shape
        if short is not prompt:
            callers = CallerPrompt(prompt["input_ids"], n, prompt.get(MASK))
            short.update(hf_callbacks.restoring(self.model, short, callers))
        self.here.visuals, self.here.shape = visuals, (b, n)
        try:
            output = original(self.model, **short)
        finally:
            self.here.visuals = self.here.shape = None
        return self._restored(output, prompt["input_ids"], short["input_ids"], cache, now)

    def _continued(
        self, prompt: dict[str, Any], visuals: Visuals, memory: Memory
    ) -> tuple[dict[str, Any], Memory | None]:
        """A prompt that goes on where a cache ended: only what is new is shortened."""
        ids, mask = prompt["input_ids"], prompt.get(MASK)
        n = memory.full.shape[1]
        if not memory.begins(ids):
            if mask is not None and mask.shape[1] >= n + ids.shape[1]:
                # Only the new tokens were passed, with the mask of all.
                mask = torch.cat([memory.mask.to(mask), mask[:, n:]], 1)
                return {**prompt, MASK: mask}, memory
            raise AttachError(
                f"the cache was made of another prompt: input_ids {tuple(ids.shape)} do not begin with the "
                f"{n} tokens that it was made of. Pass the whole conversation, as generate returned it, or "
                "no cache"
            )
        full = {
            name: value[..., n:] if _per_token(name, value, ids) else value
            for name, value in prompt.items()
        }
        new, lost, after = full, memory.lost, memory.after
        if new["input_ids"].shape[1]:
            new = self._shortened(full, visuals, pad_left=True)
            lost = lost if self.here.memory is None else lost + self.here.memory.lost
        rows = torch.ones_like(new["input_ids"]) if mask is None else new[MASK]
        whole = {
            **new,
            "input_ids": torch.cat([memory.short, new["input_ids"]], 1),
            MASK: torch.cat([memory.mask.to(rows), rows], 1),
        }
        positions = memory.positions
        if positions is not None and after is not None and new["input_ids"].shape[1]:
            placed, own_positions, _, after = self.adapter.place(new, visuals, after)
            positions = torch.cat([positions, own_positions.to(positions)], -1)
            whole = {**placed, **{name: whole[name] for name in ("input_ids", MASK)}}
            whole |= {POSITIONS: positions, "mm_token_type_ids": None}
            self._count_on(after, whole[MASK].sum(1, keepdim=True))
        memory = Memory(ids, whole["input_ids"], whole[MASK], lost, positions, after)
        return whole, memory

    def _placed(
        self, given: dict[str, Any], full: Mapping[str, Any], visuals: Visuals, cache: Any
    ) -> dict[str, Any]:
        """A shortened call whose images are encoded, and whose tokens keep their positions.

        Args:
            given: the arguments of the call, shortened.
            full: as they were.
            visuals: its images and videos.
            cache: what came before, or None.
        """
        now, index = cast("Memory", self.here.memory), self.here.index
        old: Memory | None = getattr(cache, MEMORY, None)
        before: Any = 0 if cache is None else int(cache.get_seq_length())
        start = None
        if old is not None and old.after is not None:
            decoded = before - old.short.shape[1]
            start, before = old.after + decoded, old.mask.sum(1, keepdim=True) + decoded
        new, positions, kept, after = self.adapter.place(given, visuals, start)
        own_positions: Any = full.get(POSITIONS)
        if _per_token(POSITIONS, own_positions, full["input_ids"]):
            positions = own_positions
            if index is not None:
                positions = kept_positions(own_positions, index, given["input_ids"], kept)
        new[POSITIONS] = positions
        self.here.memory = replace(now, positions=positions, after=after)
        self._count_on(after, now.mask.sum(1, keepdim=True) + before)
        return new

    def _count_on(self, after: Tensor, there: Tensor) -> None:
        """Have the model count on from the position `after [b, 1]`, behind so many tokens `[b, 1]`."""
        self.adapter.base.rope_deltas = after - there.to(after)

    def _lengths(self, given: dict[str, Any], removed: int) -> None:
        """Lengths that count the prompt count the caller's."""
        own = given.get("generation_config")
        config = own or getattr(self.model, "generation_config", None)
        new = given.get("max_new_tokens") or getattr(config, "max_new_tokens", None)
        changed: dict[str, int] = {}
        for name in ("max_length", "min_length"):
            value = given.get(name)
            if value is None and not (name == "max_length" and new is not None):
                value = getattr(config, name, None)
            if value and removed:
                changed[name] = max(1, value - removed)
        if own is None:
            given.update(changed)
        elif changed:  # transformers wants lengths beside a configuration no more
            given["generation_config"] = own = copy.copy(own)
            for name, value in changed.items():
                setattr(own, name, value)
                given.pop(name, None)

    def _restored(
        self, output: Any, full: Tensor, short: Tensor, cache: Any, memory: Memory | None
    ) -> Any:
        """What generate returned, with the caller's prompt in front."""
        alone = isinstance(output, Tensor)
        sequences: Tensor = output if alone else output.sequences
        times = sequences.shape[0] // full.shape[0]
        begin = full.repeat_interleave(times, 0).to(sequences.device)
        whole = torch.cat([begin, sequences[:, short.shape[1] :]], 1)
        returned = None if alone else cache_in(output, "generate")
        cache = cache if returned is None else returned
        if cache is not None and memory is not None and times == 1:
            setattr(cache, MEMORY, memory)
        if alone:
            return whole
        output.sequences = whole
        return output

    # ------------------------------------------------------------------------------- prompts

    def _visuals(self, given: Mapping[str, Any]) -> Visuals:
        if not _has_pixels(given):
            return {}
        return self.adapter.visuals(given, self._entering)

    def _entering(self, tokens: int) -> int:
        """Patch tokens of an image that enter the language model, out of so many."""
        return self.attached.plan(tokens).visual if self.attached.active else tokens

    def _shortened(
        self, given: dict[str, Any], visuals: Visuals, *, pad_left: bool, remember: bool = False
    ) -> dict[str, Any]:
        """The arguments of a call with the planned placeholders; `here` has the memory for its cache.

        Without visual tokens to lose there is none, or only if it is to `remember`.
        """
        same = all(v.full == v.short for several in visuals.values() for v in several)
        if same and not (remember and visuals):
            return given
        ids, mask = given.get("input_ids"), given.get(MASK)
        if not isinstance(ids, Tensor):
            raise AttachError(
                "a call with pixel values and no input_ids: the prompt cannot be shortened. Pass "
                "input_ids, as the processor returns them, not inputs_embeds"
            )
        if mask is not None and (not isinstance(mask, Tensor) or mask.shape != ids.shape):
            raise AttachError(
                f"attention_mask is {_kind(mask)}; beside input_ids {tuple(ids.shape)} that are to be "
                "shortened it is a tensor of their shape, 0 at padding"
            )
        short = shorten(ids, visuals, attention_mask=mask, pad_left=pad_left)
        self.here.index = None if short is None else short.index
        if short is None and not self.places:
            return given
        if short is None:  # as it is, but what is left of its images has other positions
            short = Shortened(torch.arange(ids.shape[1]).expand_as(ids), ids.shape[1])
        new = dict(given)
        new["input_ids"] = short.take(ids, self._padding())
        for name, fill in FILLS.items():
            if _per_token(name, given.get(name), ids):
                new[name] = short.take(given[name], fill)
        real = (short.index >= 0).to(ids.dtype)
        if mask is None and bool((short.index < 0).any()):
            new[MASK] = real
        if not self.places and _per_token(POSITIONS, given.get(POSITIONS), ids):
            new[POSITIONS] = moved_positions(given[POSITIONS], short, mask, ids)
        now = new.get(MASK)
        now = real if now is None else now
        before = torch.ones_like(ids) if mask is None else (mask != 0).to(ids.dtype)
        lost = before.sum(1, keepdim=True) - (now != 0).to(ids.dtype).sum(1, keepdim=True)
        self.here.memory = Memory(ids, new["input_ids"], now, lost)
        return new

    def _padding(self) -> int:
        """A token to stand in padding, which nothing reads; never a placeholder."""
        config = self.adapter.base.config
        for source in (config, config.get_text_config()):
            token = getattr(source, "pad_token_id", None)
            if isinstance(token, int) and token >= 0:
                return token
        return 0

    def _prompt(self, given: Mapping[str, Any], visuals: Visuals) -> Prompt:
        ids, mask = given["input_ids"], given.get(MASK)
        if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
            raise AttachError(
                f"attention_mask is {_kind(mask)}, with a recipe that works in the language model: it is "
                "a tensor [b, n], 0 at padding"
            )
        b, n = self.here.shape or ids.shape
        cache = cache_of(given)
        past = 0 if cache is None or self.here.shape is None else int(cache.get_seq_length())
        return prompt_of(ids, mask, visuals, n - past, ids.shape[0] // b)


def _generate(doors: Doors, *args: Any, **kwargs: Any) -> Any:
    """The `generate` that is put on the model; a function, so that it is copied and pickled with it."""
    refuse_outside(doors.model, "generate")
    names = tuple(inspect.signature(cast("Any", type(doors.model)).generate).parameters)[1:]
    return doors.generate({**dict(zip(names, args, strict=False)), **kwargs})


def _all(undo: list[Callable[[], Any]]) -> None:
    while undo:
        undo[-1]()  # it can be done twice: an interrupt must not lose it
        undo.pop()


def _is_prompt(ids: object) -> bool:
    return isinstance(ids, Tensor) and ids.ndim == 2 and not ids.is_floating_point()


def _has_pixels(given: Mapping[str, Any]) -> bool:
    return any(given.get(name) is not None for name in ("pixel_values", "pixel_values_videos"))


def _per_token(name: str, value: object, ids: Tensor) -> bool:
    """Whether an argument has one value for each token of the prompt."""
    if name not in (*FILLS, "input_ids", POSITIONS) or not isinstance(value, Tensor):
        return False
    return value.shape[-1] == ids.shape[1]


def _kind(value: object) -> str:
    return f"{tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
