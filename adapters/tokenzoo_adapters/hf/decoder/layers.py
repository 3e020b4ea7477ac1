"""Fewer visual tokens from some layer of a language model on (stage "llm"), with a cache that stays right.

`Stage.LLM(k)` reduces what enters decoder layer k, by what layer k - 1 has shown. From there on the tokens
are fewer: the layers' masks and positions are gathered, their caches are shorter, and before the last norm
the tokens that were dropped come back, with the features that they had, so that logits, labels and whatever
reads them keep their places. When tokens are decoded later, the mask over the whole prompt is gathered for
those layers again: the cache remembers which columns they have.

Rows of a batch may lose different numbers of tokens. All are as long as the longest; the places that are
too many are filled with dropped tokens, which no other token can see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from tokenzoo.adapter import Attachment
from tokenzoo.errors import AttachError, UnsupportedModelError
from tokenzoo.evidence import EMBEDDED, NEXT, TEXT
from tokenzoo.hooks.reduction import Event
from tokenzoo.hooks.site import hook_first
from tokenzoo.hooks.state import PerThread, own
from tokenzoo.hooks.tap import WATCH, unwatch
from tokenzoo.hooks.undo import undo_all
from tokenzoo.parts import Assigner, walk
from tokenzoo.recipe import Recipe
from tokenzoo.reduce import reduce_site
from tokenzoo.token_map import take
from tokenzoo.tokens import Tokens
from tokenzoo_adapters.hf import attention as hf_attention
from tokenzoo_adapters.hf.decoder.evidence import Beside, shown, unpadded
from tokenzoo_adapters.hf.decoder.next_layer import Coming, Turns
from tokenzoo_adapters.hf.decoder.state import (
    Columns,
    Flow,
    Prompt,
    Row,
    Seen,
    find,
    join,
)
from tokenzoo_adapters.hf.gather import compact_positions, layer_mask, put_back
from tokenzoo_adapters.hf.names import (
    ANGLES,
    EMBEDS,
    FEATURES,
    MASK,
    POSITIONS,
    cache_of,
    cached_keys,
    drops_cache,
    entering,
    is_static,
    place_in_cache,
    takes,
)

MROPE = ("Qwen2VLTextModel", "Qwen2_5_VLTextModel")
"""Of those that are followed: tokens have a time, a row and a column, and the layers see their angles."""

FOLLOWED = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model", *MROPE)
"""Language models whose layers take masks and positions as keyword arguments, with one rotary embedding."""

FLOW = "_tokenzoo_flow"
COLUMNS = "_tokenzoo_columns"
FROM_ATTENTION = frozenset({"keys", "last_attention", "text_attention", f"keys@{TEXT}"})
FROM_EMBEDDINGS = frozenset({f"x@{EMBEDDED}", f"text@{EMBEDDED}"})


@dataclass
class Look:
    """A tap for `hf_attention`: it keeps the queries and keys of the layer before a reduction."""

    key_bias: ClassVar[None] = None

    seen: list[Seen] = field(default_factory=list["Seen"])

    def look(
        self,
        query: Tensor,
        key: Tensor,
        mask: Any,
        scale: float | None,
        value: Tensor | None = None,
    ) -> Any:
        """Remember one attention; its mask stays as it is."""
        del value
        self.seen.append((query, key, query.shape[-1] ** -0.5 if scale is None else scale))
        return mask


class Holder(PerThread):
    """The tap of one layer, in this thread."""

    tap: Look | None = own("tap")


class _Here(PerThread):
    prompt: Prompt | None = own("prompt")


class Decoder:
    """The language model of an attached model.

    Args:
        adapter: of the model: it has `model`, `base` and `at`.
        attached: the recipe on it.
    """

    def __init__(self, adapter: Any, attached: Attachment) -> None:
        self.attached = attached
        self.language: nn.Module = adapter.base.language_model
        recipe = cast("Recipe", attached.recipe)
        steps = [step for step in recipe.steps if step.stage.name == "llm"]
        self.steps = {-1 if s.stage.layer is None else s.stage.layer: s for s in steps}
        self.options: Any = getattr(attached, "options", None)
        self.here = _Here()
        self.holders: dict[int, Holder] = {}
        layers: list[nn.Module] = list(cast("Any", self.language).layers)
        self.depth = len(layers)
        self.name = f"the language model {type(self.language).__name__}"
        self.takes = takes(type(self.language))
        kinds = {type(layer): takes(type(layer)) for layer in layers}
        self.of_layer = tuple(kinds[type(layer)] for layer in layers)
        self.in_cache = tuple(place_in_cache(layer, i) for i, layer in enumerate(layers))

    @property
    def works(self) -> bool:
        """Whether the recipe has a step in the language model."""
        return bool(self.steps)

    def prompt(self, prompt: Prompt | None) -> None:
        """Say what the next pass of this thread reads."""
        self.here.prompt = prompt

    def check_generate(self, given: Mapping[str, Any]) -> None:
        """Raise if `generate` is to decode in a way that cannot follow shorter caches.

        Raises:
            AttachError: says which argument.
        """
        if not self.works:
            return
        config = given.get("generation_config")
        cache = given.get("cache_implementation") or getattr(config, "cache_implementation", None)
        if cache is not None and "dynamic" not in cache and cache != "offloaded":
            raise AttachError(
                STATIC.format(what=f"cache_implementation={cache!r}", where=self._where())
            )
        if is_static(cache_of(given, "generate")):
            raise AttachError(STATIC.format(what="a static cache", where=self._where()))
        for name in ("assistant_model", "prompt_lookup_num_tokens", "prefill_chunk_size"):
            if given.get(name) is not None or getattr(config, name, None) is not None:
                raise AttachError(
                    f"generate({name}=...) with a recipe that works in the language model "
                    f"({self._where()}): it cuts the cache of all layers at one length, and theirs "
                    "differ. Leave it out, or take a recipe that reduces before the language model"
                )

    def install(self) -> Callable[[], None]:
        """Put the hooks in place; returns what takes them away.

        Raises:
            AttachError: the attention of the layers cannot be seen.
        """
        if not self.works:
            return _nothing
        layers = list(cast("Any", self.language).layers)
        undo: list[Callable[[], object]] = []
        first = min(self.steps)
        if any(step.needs & FROM_ATTENTION for step in self.steps.values()):
            undo.append(hf_attention.install(self.language))
        for layer, step in self.steps.items():
            if step.needs & FROM_ATTENTION:
                attention, holder = layers[layer - 1].self_attn, Holder()
                self.holders[layer] = holder
                setattr(attention, WATCH, holder)
                undo.append(partial(unwatch, attention))
                undo.append(
                    layers[layer - 1]
                    .register_forward_pre_hook(partial(_open, holder), with_kwargs=True)
                    .remove
                )
        add = self.language.register_forward_pre_hook(self.start, with_kwargs=True)
        undo.append(add.remove)
        for i, layer in enumerate(layers):
            if i >= first:
                hook = layer.register_forward_pre_hook(partial(self.enter, i), with_kwargs=True)
                undo.append(hook.remove)
            carry = partial(_carry, self.holders.get(i + 1))
            undo.append(hook_first(layer, carry, with_kwargs=True).remove)
        norm = cast("Any", self.language).norm
        undo.append(norm.register_forward_pre_hook(_spread).remove)
        return partial(undo_all, undo)

    def _where(self) -> str:
        return ", ".join(f"layer {layer}" for layer in self.steps)

    def check(self) -> None:
        """Raise if the language model cannot be reduced as the recipe says, by what can be read off it.

        Raises:
            AttachError: there is no such layer, or the model's layers cannot be followed.
        """
        if not self.works:
            return
        name = type(self.language).__name__
        if name not in FOLLOWED:
            raise AttachError(
                f"the language model {name} is not followed at the stage 'llm'; {', '.join(FOLLOWED)} "
                "are. Take a recipe that reduces before the language model"
            )
        compact = [layer for layer, step in self.steps.items() if step.positions == "compact"]
        if name in MROPE and compact:
            raise AttachError(
                f"positions='compact' at layer {compact[0]} of the language model {name}: visual tokens "
                "have the time, row and column in their image, which are not numbered anew when others go. "
                "Make the step with positions='keep'"
            )
        config = cast("Any", self.language).config
        kinds = set(getattr(config, "layer_types", None) or ())
        if not kinds and getattr(config, "sliding_window", None):  # Mistral: one for all layers
            kinds = {"sliding_attention"}
        if kinds - {"full_attention"}:
            raise AttachError(
                f"the language model has layers with {', '.join(sorted(kinds))}: with a window, fewer "
                "tokens would mean another window. Take a recipe that reduces before the language model"
            )
        for layer, step in self.steps.items():
            if not 1 <= layer < self.depth:
                raise AttachError(
                    f"{step.stage!r}: a step in a language model of {self.depth} layers names one of the "
                    f"layers 1 to {self.depth - 1}, whose input is reduced by what the layer before has "
                    "shown: Stage.LLM(2)"
                )
            if any(isinstance(part, Assigner) and part.extra for part in walk(step.matcher)):
                raise AttachError(
                    "this recipe makes new tokens, which have no position in a prompt: take an assigner "
                    "that joins tokens to kept ones"
                )

    # --------------------------------------------------------------------------------- a pass

    def start(
        self, language: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Let the embedded prompt carry what is known about it."""
        del language
        prompt, self.here.prompt = self.here.prompt, None
        if not self.attached.active:
            return args, kwargs
        given = self.takes.given(args, kwargs, self.name)
        x = given.get(EMBEDS)
        if x is None:
            return args, kwargs
        if is_static(cache_of(given)):
            raise AttachError(STATIC.format(what="a static cache", where=self._where()))
        looks = any(step.needs & FROM_EMBEDDINGS for step in self.steps.values())
        flow = Flow(prompt, entered=x if looks and prompt is not None else None)
        return args[len(self.takes.names) :], {**given, EMBEDS: _tag(x.view_as(x), flow)}

    def enter(
        self, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before a layer: reduce, if it is its turn, and hand it what fits the tokens that are left."""
        x: Any = entering(args, kwargs)
        flow: Flow | None = getattr(x, FLOW, None)
        kwargs = self.of_layer[layer].given(args[1:], kwargs, f"layer {layer} of {self.name}", 1)
        args = args[:1] + args[len(self.of_layer[layer].names) or 1 :]
        cache = None if drops_cache(module) else cache_of(kwargs)
        known: dict[int, Columns] = getattr(cache, COLUMNS, {})
        if flow is None:
            if not known and not self.attached.active:
                return None
            if not known or x is None:
                raise AttachError(LOST.format(where=f"layer {layer}"))
            flow = Flow(None)
        entered = x.shape[1] if flow.whole is None else flow.whole.shape[1]
        # A step is at layer 1 or later: layer 0 has the new tokens in its cache already.
        past = 0 if cache is None else int(cache.get_seq_length(self.in_cache[0])) - entered
        if layer in self.steps and flow.prompt is not None:
            tick = self._option("tick") or _nothing
            tick()
            beside = self._beside(layer, module, x, flow, kwargs, known, past)
            x, flow = self._reduced(layer, x, flow, beside)
            tick()
        at = self._step_of(layer)
        if flow.index is not None or at in known:
            self._check_cache(cache, layer, past, known.get(at))
            kwargs = self._fitted(at, x, flow, kwargs, known, past)
            if cache is not None and layer == at and flow.index is not None:
                columns, valid = self._columns(layer, x, flow, known, past)
                lost = self._lost(at, x, flow, known)
                new = Columns(columns, valid, past + entered, lost)
                flow = replace(flow, written={**flow.written, at: new})
            if cache is not None and layer == self.depth - 1 and flow.written:
                setattr(cache, COLUMNS, {**known, **flow.written})
        if not args:
            return (), {**kwargs, FEATURES: _tag(x, flow)}
        return (_tag(x, flow), *args[1:]), kwargs

    def _step_of(self, layer: int) -> int:
        """The last layer up to this one at which there is a step, or -1."""
        return max((k for k in self.steps if k <= layer), default=-1)

    def _columns(
        self, layer: int, x: Tensor, flow: Flow, known: Mapping[int, Columns], past: int
    ) -> tuple[Tensor, Tensor | None]:
        """Which columns of the sequence the cache of a layer has, `[b, k]`, and which are no filling."""
        b, at = x.shape[0], self._step_of(layer)
        index, valid = flow.index, flow.valid
        if index is None:
            index = torch.arange(x.shape[1], device=x.device).expand(b, -1)
        if at in known:
            before, seen = known[at].until(past)
        else:
            before, seen = torch.arange(past, device=x.device).expand(b, -1), None
        index = index.to(x.device)
        before = before.to(x.device)
        return torch.cat([before, index + past], 1), join(seen, valid, before, index)

    def _lost(self, at: int, x: Tensor, flow: Flow, known: Mapping[int, Columns]) -> Tensor | None:
        """How many tokens of each prompt are missing from a step on, where positions are numbered anew."""
        if self.steps[at].positions == "keep":
            return None
        old = known[at].lost if at in known else None
        lost = (
            torch.zeros(x.shape[0], 1, dtype=torch.int64, device=x.device) if old is None else old
        )
        if flow.index is None or flow.whole is None:
            return lost
        there = flow.index.shape[1] if flow.valid is None else flow.valid.sum(1, keepdim=True)
        entered = cast("Prompt", flow.prompt).real(flow.whole).sum(1, keepdim=True)
        return lost + entered - there

    def _fitted(
        self,
        at: int,
        x: Tensor,
        flow: Flow,
        kwargs: dict[str, Any],
        known: Mapping[int, Columns],
        past: int,
    ) -> dict[str, Any]:
        """Masks and positions of the tokens that are left."""
        b = x.shape[0]
        index = flow.index
        if index is None:
            index = torch.arange(x.shape[1], device=x.device).expand(b, -1)
        index = index.to(x.device)
        columns, valid = self._columns(at, x, flow, known, past)
        implementation = str(cast("Any", self.language).config._attn_implementation)
        mask = layer_mask(kwargs.get(MASK), index, columns, valid, x, implementation)
        new = {**kwargs, MASK: mask}
        positions, angles = kwargs.get(POSITIONS), kwargs.get(ANGLES)
        compact = self.steps[at].positions == "compact"
        if angles is None or (compact and positions is None):
            raise AttachError(
                f"the layers of {self.name} are given no {ANGLES if angles is None else POSITIONS}, which "
                f"a step at layer {at} gathers: this transformers is not followed in the language model. "
                "Take 5.20 to 5.24, or a recipe that reduces before the language model"
            )
        if compact and positions is not None:
            before = known[at].lost if at in known else None
            whole = x if flow.whole is None else flow.whole
            real = None if flow.prompt is None else flow.prompt.real(whole)
            positions = compact_positions(positions.expand(b, -1), index, flow.valid, real)
            positions = positions if before is None else positions - before
            new[POSITIONS] = positions
            new[ANGLES] = cast("Any", self.language).rotary_emb(x, positions)
            return new
        if positions is not None:
            new[POSITIONS] = take(positions.expand(b, -1), index)
        new[ANGLES] = tuple(take(part.expand(b, -1, -1), index) for part in angles)
        return new

    def _check_cache(self, cache: Any, layer: int, past: int, old: Columns | None) -> None:
        """Raise if a cache does not hold what it held when it was written."""
        if cache is None:
            return
        expected = past if old is None else old.index.shape[1] + past - old.length
        held = int(cache.get_seq_length(self.in_cache[layer]))
        if held != expected:
            raise AttachError(
                f"the cache holds {held} tokens of layer {layer}, and {expected} were expected: it was "
                "cropped, or filled by another model, since. Begin with a new cache"
            )

    # ------------------------------------------------------------------------------ reduction

    def _reduced(self, layer: int, x: Tensor, flow: Flow, beside: Beside) -> tuple[Tensor, Flow]:
        """Reduce what enters a layer: prompts with equally many visual tokens at once."""
        prompt, step = cast("Prompt", flow.prompt), self.steps[layer]
        whole = x
        if flow.whole is not None and flow.index is not None:
            whole = put_back(flow.whole, flow.index, flow.valid, x)
        left = prompt.real(whole)
        if flow.index is not None:
            left = take(left, flow.index.to(x.device))
        if flow.valid is not None:
            left = left & flow.valid.to(x.device)
        kept = list(flow.kept)
        if not kept:
            kept = [
                torch.tensor(row.places, dtype=torch.int64, device=x.device) for row in prompt.rows
            ]
        groups: dict[tuple[int, ...], list[int]] = {}
        lengths: list[int] = []  # of what is left, without padding
        for r, row in enumerate(prompt.rows):
            count, words = len(kept[r]), row.last - row.places[-1] if row.places else 0
            words = 0 if row.ends else words
            keep = min(count, self._keep(layer, row) - row.ends)
            alike = 0 if flow.entered is None else len(row.places)
            groups.setdefault((count, keep, max(0, words), alike), []).append(r)
            lengths.append(row.tokens - len(row.places) + keep)
        states = x.clone()
        for (count, keep, words, _), rows in groups.items():
            if keep == count:
                continue
            some = torch.tensor(rows, device=x.device)[:, None]  # [g, 1]
            at = torch.stack([kept[r] for r in rows])  # [g, n], of the tokens that entered
            here = find(flow, rows, at)  # [g, n], of those that are left
            left[some, here] = False
            if keep == 0:  # the last token alone is what was planned
                kept = [at[0, :0] if r in rows else places for r, places in enumerate(kept)]
                continue
            evidence = shown(x, flow, rows, here, words, beside)
            tokens = Tokens(evidence.x, evidence.mass, 0)
            after, plan = reduce_site(step, tokens, evidence, keep, check=self._option("debug"))
            order = plan.keep.argsort(dim=-1, stable=True)  # a causal mask wants them in order
            chosen = take(plan.keep, order)
            new = take(here, chosen)
            # Numbered anew they may come as the matcher orders them, in the places of those that stay.
            states[some, new] = after.x if step.positions == "compact" else take(after.x, order)
            left[some, new] = True
            for r, places in zip(rows, take(at, chosen), strict=True):
                kept[r] = places
            told = self._option("on_reduce")
            if told:
                told(Event(layer, plan, tokens, after, "llm"))
        counts = zip(kept, prompt.rows, strict=True)
        self.attached.note_prompts(tuple(len(places) + row.ends for places, row in counts))
        m, ragged = max(lengths), len(set(lengths)) > 1
        # Those that are left come first, then some that are not: all in their order again.
        index = (~left).to(torch.uint8).argsort(dim=-1, stable=True)[:, :m].sort(-1).values
        valid = take(left, index) if ragged else None
        first = index if flow.index is None else take(flow.index, index)
        x = take(states, index)
        left_over = {"index": first, "valid": valid, "whole": whole, "kept": tuple(kept)}
        return x, replace(flow, seen=(), **left_over)

    def _look(self, layer: int, flow: Flow) -> Seen | None:
        """What was seen of the layer before."""
        if layer not in self.holders:
            return None
        if len(flow.seen) != 1:
            raise AttachError(
                f"{len(flow.seen)} attention calls were seen in layer {layer - 1} "
                "of the language model, and exactly one is needed: set_attn_implementation takes our "
                "watch away; call it before attach"
            )
        return flow.seen[0]

    def _option(self, name: str) -> Any:
        return getattr(self.options, name, None) or False

    def _keep(self, layer: int, row: Row) -> int:
        """Visual tokens of a prompt that enter this layer: the sum over its images and videos."""
        recipe = cast("Recipe", self.attached.recipe)
        return sum(visual.entering(recipe, layer) for visual in row.visuals)

    def _beside(
        self,
        layer: int,
        module: nn.Module,
        x: Tensor,
        flow: Flow,
        kwargs: dict[str, Any],
        known: Mapping[int, Columns],
        past: int,
    ) -> Beside:
        """What the layer before a step has shown, and the one behind it will be given."""
        step, before = self.steps[layer], self._step_of(layer - 1)
        columns = self._columns(layer - 1, x, flow, known, past)

        def turns(at: int) -> Turns:
            fitted = kwargs
            if flow.index is not None or at in known:
                fitted = self._fitted(at, x, flow, kwargs, known, past)
            cos, sin = fitted[ANGLES]
            return cos.expand(x.shape[0], -1, -1), sin.expand(x.shape[0], -1, -1)

        coming = None
        if f"last_attention@{NEXT}" in step.needs:
            own = self._columns(layer, x, flow, known, past)
            held = own[0].shape[1] - x.shape[1]
            keys = cached_keys(cache_of(kwargs), self.in_cache[layer], held)
            coming = Coming(module, turns(layer), keys, unpadded(flow.prompt, *own))
        return Beside(
            self._look(layer, flow),
            unpadded(flow.prompt, *columns),
            turns(before) if "text_rotation" in step.needs else None,
            coming,
        )


def check_decoder(language: Any, name: str) -> None:
    """Raise if a language model is none whose prompts can be shortened.

    Raises:
        UnsupportedModelError: it has no layers of its own.
    """
    if not hasattr(language, "layers"):
        raise UnsupportedModelError(
            f"{name} has the language model {type(language).__name__}, which has no decoder layers"
        )


def _open(holder: Holder, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Look at the attention of a layer that reads visual tokens."""
    del layer
    flow: Flow | None = getattr(entering(args, kwargs), FLOW, None)
    holder.tap = Look() if flow is not None and flow.prompt is not None else None


def _nothing() -> None:
    pass


def _tag(x: Tensor, flow: Flow) -> Tensor:
    setattr(x, FLOW, flow)
    return x


def _carry(
    holder: Holder | None,
    layer: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> Any:
    """Let the state travel through a layer, with what was seen of its attention.

    The layer behind it finds that on the tokens and not in the holder: where layers are checkpointed it is
    run again before this one is.
    """
    del layer
    look = None
    if holder is not None:
        look, holder.tap = holder.tap, None
    x = entering(args, kwargs)
    flow: Flow | None = getattr(x, FLOW, None)
    if flow is None or output is x:
        return None
    return _tag(output, replace(flow, seen=() if look is None else tuple(look.seen)))


def _spread(norm: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Before the last norm: all tokens in their places again."""
    del norm
    flow: Flow | None = getattr(args[0], FLOW, None)
    if flow is None or flow.index is None or flow.whole is None:
        return None
    return (put_back(flow.whole, flow.index, flow.valid, args[0]), *args[1:])


LOST = (
    "the tokens that reached {where} of the language model do not carry the state of their pass. Usual "
    "causes: a hook or wrapper of your own that returns a new tensor between the layers; gradient "
    "checkpointing with use_reentrant=True (use use_reentrant=False)"
)

STATIC = (
    "{what} with a recipe that works in the language model ({where}): it has one length for all layers, "
    "and theirs differ. Leave it out, or take a recipe that reduces before the language model"
)
