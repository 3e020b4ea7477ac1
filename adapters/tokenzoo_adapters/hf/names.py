"""The names of arguments and fields in each supported version of transformers: they are in this file alone.

The versions differ in the cache:

- 5.20 to 5.23: `past_key_values`, as an argument of layers, language models, whole models and `generate`,
  and as a field of what they return.
- 5.24: `cache`. The old name is accepted too, until 5.40; from then on it would be ignored.

Masks, positions and features have the same names in all of them. A caller may use either name of the cache;
it is passed on under the name that the callee takes. A cache under a third name, as an argument or a field,
is an error: ignored, it would make answers silently wrong.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from tokenzoo.errors import AttachError

CACHES = ("cache", "past_key_values")
"""Names of the cache, the newest first."""

EMBEDS = "inputs_embeds"
"""Input of a language model, `[b, n, c]`."""

FEATURES = "hidden_states"
"""Input of a layer or a tower; transformers passes it to its own layers by position."""

MASK = "attention_mask"
POSITIONS = "position_ids"
TYPES = "token_type_ids"

ANGLES = "position_embeddings"
"""Cosines and sines of the positions, an argument of layers."""

ENCODED = "mm_encoder_outputs"
"""Encoded images and videos."""

USES = "use_cache"

LAST, POOLED = "last_hidden_state", "pooler_output"
"""Fields of the output of a tower or a language model."""


def loaded_class(folder: str, name: str) -> type | None:
    """A class of `transformers.models.FOLDER.modeling_FOLDER`; None if that file is not loaded."""
    module = sys.modules.get(f"transformers.models.{folder}.modeling_{folder}")
    return getattr(module, name, None)


@dataclass(frozen=True)
class Takes:
    """The arguments that a forward of transformers takes.

    Attributes:
        names: arguments that may be passed by position, in order.
        own: its name of the cache; None: it has no argument of a known name.
        wraps: whether it passes its arguments on, and names at most its input.
    """

    names: tuple[str, ...]
    own: str | None
    wraps: bool = False

    def given(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], what: str, first: int = 0
    ) -> dict[str, Any]:
        """The arguments of a call by name, the cache under the name that is taken.

        Args:
            args: passed by position.
            kwargs: passed by name.
            what: the name of the callee, for messages.
            first: how many of `names` come before `args`.

        Raises:
            AttachError: there are two caches, or a cache under an unknown name, or the cache is not one.
        """
        named = dict(zip(self.names[first:], args, strict=False))
        if len(args) > len(named) and any(is_cache(value) for value in args[len(named) :]):
            raise AttachError(_unknown(f"argument {first + len(named) + 1}", what, self.own))
        named.update(kwargs)
        cache = cache_of(named, what)
        own = self.own
        if cache is None:
            return named
        if own is None and not self.wraps:
            known = " nor ".join(CACHES)
            raise AttachError(
                f"{what} has no argument {known}, but was called with a cache. {_other_version()}"
            )
        under = own or next(name for name in CACHES if named.get(name) is not None)
        rest = {name: value for name, value in named.items() if name not in CACHES}
        return {**rest, under: cache}


def takes(kind: type) -> Takes:
    """Read the signature of a class's `forward`, or of the function that it wraps."""
    parameters = list(inspect.signature(cast("Any", kind).forward).parameters.values())[1:]
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = tuple(one.name for one in parameters if one.kind in kinds)
    known = {one.name for one in parameters}
    own = next((name for name in CACHES if name in known), None)
    rest = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)
    return Takes(names, own, wraps=rest and len(names) < 2)


def is_cache(value: object) -> bool:
    """Whether a value is a cache of transformers, or has its methods."""
    if value is None or isinstance(value, Tensor | bool | int | float | str):
        return False
    if hasattr(value, "get_seq_length") and hasattr(value, "update"):
        return True
    return any(kind.__name__ == "Cache" for kind in type(value).__mro__)


def cache_of(given: Mapping[str, Any], what: str = "this call") -> Any:
    """The cache among the arguments of a call, by name, or None.

    Args:
        given: the arguments.
        what: the name of the callee, for messages.

    Raises:
        AttachError: there are two, or one under an unknown name, or the value is not a cache.
    """
    found: Any = None
    for name in CACHES:
        value = given.get(name)
        if value is None or value is found:
            continue
        if found is not None:
            raise AttachError(
                f"{what} was called with two caches, {' and '.join(CACHES)}, which are the same argument: "
                "pass one"
            )
        if not is_cache(value):
            raise AttachError(
                f"{name} is a {type(value).__name__}; it must be a cache of transformers: DynamicCache()"
            )
        found = value
    for name, value in given.items():
        if name not in CACHES and _carries(value):
            raise AttachError(_unknown(name, what, None))
    return found


def cache_in(output: Any, what: str = "the model") -> Any:
    """The cache in the output of a model, which may be a tuple; None if there is none.

    Raises:
        AttachError: it is in a field of an unknown name.
    """
    if isinstance(output, tuple):
        return next((value for value in cast("tuple[Any, ...]", output) if is_cache(value)), None)
    fields = cast("Mapping[str, Any]", output if isinstance(output, Mapping) else {})
    for name, value in fields.items():
        if is_cache(value):
            if name not in CACHES:
                raise AttachError(
                    f"{what} returned a {type(value).__name__} in its field {name!r}; known names of a "
                    f"cache are {' and '.join(CACHES)}. {_other_version()}"
                )
            return value
    return None


def last_of(output: Any) -> Tensor:
    """The features `[b, n, c]` in the output of a language model."""
    return cast("Any", output)[0] if isinstance(output, tuple) else getattr(output, LAST)


def runs_on(module: Any) -> torch.device:
    """The device on which a module with a weight runs; accelerate may keep the weight elsewhere."""
    if not module.weight.is_meta:
        return module.weight.device
    hook = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):
        device = getattr(one, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return torch.device("cpu")


def entering(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The features `[b, n, c]` in the arguments of a layer, or None."""
    return args[0] if args else kwargs.get(FEATURES)


def drops_cache(layer: Any) -> bool:
    """Whether a decoder layer ignores its cache, as it does where it is checkpointed."""
    return bool(
        getattr(layer, "gradient_checkpointing", False)
        and layer.training
        and torch.is_grad_enabled()
    )


def place_in_cache(layer: Any, otherwise: int) -> int:
    """Index of the layer of a cache that a decoder layer writes."""
    return int(getattr(getattr(layer, "self_attn", None), "layer_idx", otherwise))


def cached_keys(cache: Any, layer: int, columns: int) -> Tensor | None:
    """The keys `[b, h, k, d]` of the `columns` tokens that a layer's cache holds; None if that is 0.

    Raises:
        AttachError: the cache has no such keys.
    """
    if columns == 0:
        return None
    layers = getattr(cache, "layers", None)
    keys = getattr(layers[layer], "keys", None) if layers is not None else None
    if not isinstance(keys, Tensor) or keys.ndim != 4 or keys.shape[2] != columns:
        raise AttachError(
            f"the cache {type(cache).__name__} has no keys of layer {layer}, whose own projections this "
            "recipe uses (it needs last_attention@next): use a DynamicCache, or a recipe that needs "
            "last_attention"
        )
    return keys


def is_static(cache: object) -> bool:
    """Whether a cache has one fixed length for all layers."""
    return bool(getattr(cache, "is_compileable", False))


def _carries(value: object) -> bool:
    """Whether a value is a cache or contains one."""
    if isinstance(value, Mapping):
        return any(is_cache(one) for one in cast("Mapping[Any, Any]", value).values())
    if isinstance(value, tuple | list):
        return any(is_cache(one) for one in cast("Sequence[Any]", value))
    return is_cache(value)


def _unknown(name: str, what: str, own: str | None) -> str:
    known = f"{own}=" if own else " or ".join(f"{one}=" for one in CACHES)
    return (
        f"{what} was called with a cache as {name}; the known names are {' and '.join(CACHES)}, and this "
        f"one would be ignored. Pass it as {known}. {_other_version()}"
    )


def _other_version() -> str:
    version = getattr(sys.modules.get("transformers"), "__version__", "which is not loaded")
    return (
        f"If transformers itself uses this name (this is transformers {version}; 5.20 to 5.24 are "
        "supported), install one of these, or a newer tokenzoo"
    )
