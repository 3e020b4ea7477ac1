"""What `generate` calls with ids: it sees the caller's prompt, although the model reads a shorter one.

Logits processors, stopping criteria, `prefix_allowed_tokens_fn` and the streamer are written for the prompt
that was passed. So are the processors that transformers makes of a generation configuration: penalties that
look at the prompt, lengths that count it. transformers collects all of them in two lists, in two methods of
the model. Here these methods build the lists for the caller's prompt, and the lists restore it before they
run. What the lists contain is left as it is: transformers compares its classes.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from tokenzoo.errors import AttachError
from tokenzoo_adapters.hf.names import MASK

METHODS = ("_get_logits_processor", "_get_stopping_criteria")
"""The methods in which transformers collects what `generate` calls with ids."""


@dataclass(frozen=True)
class CallerPrompt:
    """The prompts of one call of `generate`, as the caller passed them.

    Attributes:
        ids: `[b, n]`.
        length: m, the columns of the prompts that the model reads instead.
        mask: `[b, n]`, the caller's, 0 at padding; None: the caller passed none.
    """

    ids: Tensor
    length: int
    mask: Tensor | None

    @property
    def removed(self) -> int:
        """How many columns the caller's prompts have more: n - m."""
        return self.ids.shape[1] - self.length

    def restored(self, ids: Tensor) -> Tensor:
        """Put the caller's prompts in front of what was generated: `[r, m + k] -> [r, n + k]`.

        Args:
            ids: r is b times the beams or answers of each prompt, which are next to each other.
        """
        times = ids.shape[0] // self.ids.shape[0]
        prompt = self.ids.repeat_interleave(times, 0).to(ids.device)
        return torch.cat([prompt, ids[:, self.length :]], 1)

    def row(self, index: int, ids: Tensor) -> Tensor:
        """The same for one row of prompt `index`: `[m + k] -> [n + k]`."""
        return torch.cat([self.ids[index].to(ids.device), ids[self.length :]])

    def padding(self, model: Any, config: Any) -> Tensor | None:
        """The mask that transformers would have made of the caller's: `[r, n]`, or None without padding."""
        mask = self.mask
        if mask is None:
            mask = model._prepare_attention_mask_for_generation(self.ids, config, {})
        if bool((mask == 1).all()):
            return None
        times = max(config.num_beams or 1, config.num_return_sequences or 1)
        return mask.repeat_interleave(times, 0)

    def lengths(self, config: Any) -> Any:
        """A generation configuration whose lengths count the caller's prompts."""
        config = copy.copy(config)
        for name in ("max_length", "min_length"):
            if getattr(config, name, None):
                setattr(config, name, getattr(config, name) + self.removed)
        return config


class Callbacks(list[Any]):
    """The caller's logits processors or stopping criteria, and the prompt that they are to see."""

    def __init__(self, items: Sequence[Any] | None, prompt: CallerPrompt) -> None:
        super().__init__(items or ())
        self.prompt = prompt


class Processors(list[Any]):
    """Logits processors that are called with the ids that the model reads, and see the caller's prompt.

    Args:
        built: by transformers, for the caller's prompt.
        draft: for who takes them out one by one: an assistant that drafts. They see the caller's prompt
            where they are the caller's own.
        prompt: the caller's.
    """

    def __init__(self, built: Any, draft: Sequence[Any], prompt: CallerPrompt) -> None:
        super().__init__(draft)
        self.built = built
        self.prompt = prompt

    def __call__(self, input_ids: Tensor, scores: Tensor, **options: Any) -> Tensor:
        """The scores `[r, words]` of what comes after `input_ids [r, m + k]`."""
        return self.built(self.prompt.restored(input_ids), scores, **options)


class Criteria(list[Any]):
    """Stopping criteria that are called with the ids that the model reads, and see the caller's prompt.

    Args:
        built: by transformers, for the caller's prompt.
        prompt: the caller's.
    """

    def __init__(self, built: Any, prompt: CallerPrompt) -> None:
        super().__init__(built)
        self.built = built
        self.prompt = prompt

    @property
    def max_length(self) -> int | None:
        """Columns, of the ids that the model reads, at which generation ends."""
        length: int | None = self.built.max_length
        return None if length is None else length - self.prompt.removed

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        """Which rows of `input_ids [r, m + k]` are done: `[r]`."""
        return self.built(self.prompt.restored(input_ids), scores, **options)


class Streamer:
    """A streamer that sees the caller's prompt.

    Args:
        streamer: the caller's.
        prompt: the caller's.
    """

    def __init__(self, streamer: Any, prompt: CallerPrompt) -> None:
        self.streamer = streamer
        self.prompt: CallerPrompt | None = prompt

    def put(self, value: Tensor) -> None:
        """Hand tokens on; the first are the prompt."""
        prompt, self.prompt = self.prompt, None
        self.streamer.put(value if prompt is None else prompt.restored(value))

    def end(self) -> None:
        """Hand the end on."""
        self.streamer.end()


def methods(model: nn.Module) -> dict[str, Any]:
    """What is to be put on a model, by name; functions, so that they are copied and pickled with it."""
    made = {METHODS[0]: partial(_processors, model), METHODS[1]: partial(_criteria, model)}
    return {name: made[name] for name in METHODS if hasattr(type(model), name)}


def restoring(model: nn.Module, given: Mapping[str, Any], prompt: CallerPrompt) -> dict[str, Any]:
    """The arguments of `generate` that see the caller's prompt.

    Args:
        model: has the `methods`.
        given: the arguments of the call.
        prompt: the caller's.

    Raises:
        AttachError: this version of transformers has no such methods.
    """
    missing = [name for name in METHODS if name not in vars(model)]
    if missing:
        raise AttachError(
            f"{type(model).__name__} has no {' and no '.join(missing)}, where transformers 5.20 to 5.24 "
            "collects the functions that generate calls with ids; they would get a shortened prompt. "
            "Install one of these versions, or detach first"
        )
    new: dict[str, Any] = {
        name: Callbacks(given.get(name), prompt)
        for name in ("logits_processor", "stopping_criteria")
    }
    streamer = given.get("streamer")
    return new if streamer is None else {**new, "streamer": Streamer(streamer, prompt)}


def _processors(model: Any, *args: Any, **kwargs: Any) -> Any:
    """The model's `_get_logits_processor`, for the caller's prompt."""
    original = cast("Any", type(model))._get_logits_processor
    given = _named(original, args, kwargs)
    callbacks = given.get("logits_processor")
    if not isinstance(callbacks, Callbacks):
        return original(model, **given)
    prompt, config = callbacks.prompt, given["generation_config"]
    allowed = given.get("prefix_allowed_tokens_fn")
    draft = original(
        model,
        **{
            **given,
            "logits_processor": [partial(_restored, one, prompt) for one in callbacks],
            "prefix_allowed_tokens_fn": allowed and partial(_allowed, allowed, prompt),
        },
    )
    mask = prompt.padding(model, config)
    whole: dict[str, Any] = {
        "logits_processor": list(callbacks),
        "generation_config": prompt.lengths(config),
        "input_ids_seq_length": prompt.ids.shape[1],
        "encoder_input_ids": prompt.ids,
        "model_kwargs": {**(given.get("model_kwargs") or {}), MASK: mask},
    }
    return Processors(original(model, **{**given, **whole}), draft, prompt)


def _criteria(model: Any, *args: Any, **kwargs: Any) -> Any:
    """The model's `_get_stopping_criteria`, for the caller's prompt."""
    original = cast("Any", type(model))._get_stopping_criteria
    given = _named(original, args, kwargs)
    callbacks = given.get("stopping_criteria")
    if not isinstance(callbacks, Callbacks):
        return original(model, **given)
    whole = {
        "stopping_criteria": list(callbacks),
        "generation_config": callbacks.prompt.lengths(given["generation_config"]),
    }
    return Criteria(original(model, **{**given, **whole}), callbacks.prompt)


def _named(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a method by name, without the first, its model."""
    names = tuple(inspect.signature(function).parameters)[1:]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _restored(processor: Any, prompt: CallerPrompt, input_ids: Tensor, scores: Tensor) -> Tensor:
    """The caller's processor, on ids `[r, m + k]`."""
    return processor(prompt.restored(input_ids), scores)


def _allowed(allowed: Any, prompt: CallerPrompt, index: int, ids: Tensor) -> Any:
    """The caller's `prefix_allowed_tokens_fn`, on ids `[m + k]` of prompt `index`."""
    return allowed(index, prompt.row(index, ids))
