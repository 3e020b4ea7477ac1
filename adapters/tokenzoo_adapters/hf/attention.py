"""Recording and biasing the attention of transformers, by a function registered with AttentionInterface.

An attention module of transformers looks its function up by the name in its configuration ("sdpa",
"eager", "flash_attention_2", ...). We replace that name by one of ours. Our function looks for a tap on the
module: without a tap it calls the function of the original name; with one it records queries and keys, and
adds log mass. Our name begins with the original one and says that tokenzoo is attached, for transformers
quotes it in messages.

The name is registered for masks too: a language model whose name has no mask function silently gets no
padding mask. It contains "flash" exactly if the original does, which transformers tests. It is not saved
with a model (transformers saves no such name).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor, nn

from tokenzoo.errors import AttachError
from tokenzoo.hooks import TAP_ATTR, Tap, fits, widened
from tokenzoo_adapters.hf.names import MASK

OURS = " (tokenzoo is attached: "
FOLLOWED = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")

Result = tuple[Tensor, Tensor | None]

_homes: dict[type, Any] = {}


def name_of(base: str) -> str:
    """Our name for the implementation `base`, with advice.

    transformers quotes the name in the error about `config.output_attentions = True`, which it allows for
    the name "eager" alone.
    """
    advice = "pass output_attentions=True in the call" if base == "eager" else "detach, then set it"
    return f"{base}{OURS}{advice})"


class AttentionRegistration:
    """One configuration with our name in it. All layers of a model share it, and two models may.

    Args:
        config: a configuration of transformers.
        base: the name that it had.
    """

    def __init__(self, config: Any, base: str) -> None:
        self.config = config
        self.base = base
        self.users: set[object] = set()

    def add(self, user: object) -> None:
        """Register our name and set it in the configuration, for one more user."""
        self.users.add(user)
        _register(self.base)
        # As transformers itself sets it: the setter without "internal" goes into sub-configurations.
        self.config._attn_implementation_internal = name_of(self.base)
        _registrations[id(self.config)] = self

    def remove(self, user: object) -> None:
        """Restore the original name after the last user, unless another was set. Idempotent."""
        self.users.discard(user if user in self.users else None)
        if not self.users and self.config._attn_implementation == name_of(self.base):
            self.config._attn_implementation_internal = self.base

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Give a copy one user, its own model, and register the name in this process."""
        self.__dict__.update(state, users={None})
        _register(self.base)


# By the id of the configuration. A registration holds its configuration, so the id is not reused.
_registrations: WeakValueDictionary[int, AttentionRegistration] = WeakValueDictionary()


def install(model: nn.Module) -> Callable[[], None]:
    """Call the taps of a model's attention modules; returns an uninstaller.

    Raises:
        AttachError: its attention implementation is not supported; names those that are.
    """
    registrations = [_registration(config) for config in _configs(model)]
    for module in model.modules():
        _home(type(module))  # cached now, not while a pass is compiled
    user = object()
    for registration in registrations:
        registration.add(user)
    return partial(_remove, registrations, user)


def check(model: nn.Module) -> None:
    """Raise if the attention implementation of a model is not supported (see `install`)."""
    for config in _configs(model):
        _registration(config)


def _configs(model: nn.Module) -> list[Any]:
    """The distinct configurations of a model and its modules."""
    found = [getattr(module, "config", None) for module in model.modules()]
    return list({id(one): one for one in found if hasattr(one, "_attn_implementation")}.values())


def _remove(registrations: list[AttentionRegistration], user: object) -> None:
    for registration in registrations:
        registration.remove(user)


def _registration(config: Any) -> AttentionRegistration:
    """The registration of a configuration, a new one if it has none.

    Raises:
        AttachError: its implementation is not supported.
    """
    name = str(config._attn_implementation)
    base = name.partition(OURS)[0]
    if base not in FOLLOWED:
        raise AttachError(
            f"the attention of {type(config).__name__} is {name!r}; supported are {', '.join(FOLLOWED)}: "
            'call model.set_attn_implementation("sdpa"), then attach'
        )
    found = _registrations.get(id(config))
    registered = found is not None and found.base == base and name != base
    return found if found is not None and registered else AttentionRegistration(config, base)


def _register(base: str) -> None:
    """Register our name for `base` with transformers, for the attention and for its masks."""
    models = sys.modules.get("transformers.modeling_utils")
    masks = sys.modules.get("transformers.masking_utils")
    if models is None or masks is None:
        raise AttachError("this needs a model of transformers, and transformers is not loaded")
    models.AttentionInterface.register(name_of(base), partial(_attend, base))
    function = masks.ALL_MASK_ATTENTION_FUNCTIONS[base]
    masks.AttentionMaskInterface.register(name_of(base), partial(_mask, function))


def _mask(function: Callable[..., Tensor | None], **given: Any) -> Tensor | None:
    """The mask that `function` makes; None where nothing is masked, in an export too."""
    skips = given.get("allow_is_bidirectional_skip", False)
    masked = [given.get(name) is not None for name in (MASK, "local_size")]
    return None if skips and not any(masked) else function(**given)


def _home(kind: type) -> Any:
    """The module in which the `forward` of a class is defined, and with it the functions that it calls."""
    if kind not in _homes:
        owner = next((one for one in kind.__mro__ if "forward" in vars(one)), kind)
        _homes[kind] = sys.modules.get(owner.__module__)
    return _homes[kind]


def _function(kind: type, base: str) -> Callable[..., Result]:
    """The attention function that a class of attention modules would use under the name `base`.

    Raises:
        AttachError: it is "eager", and the module of the class has no such function.
    """
    home = _home(kind)
    if base != "eager":
        known = getattr(home, "ALL_ATTENTION_FUNCTIONS", None)  # a file may have its own
        return (known or sys.modules["transformers.modeling_utils"].ALL_ATTENTION_FUNCTIONS)[base]
    function = getattr(home, "eager_attention_forward", None)
    if function is None:
        raise AttachError(
            f"{kind.__module__}.{kind.__qualname__} has no eager_attention_forward in its module, unlike "
            'others in transformers: call model.set_attn_implementation("sdpa"), then attach'
        )
    return function


def _attend(
    base: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    **options: Any,
) -> Result:
    """The attention `base` of `[b, h, n, d]`, with the tap of its module, if there is one."""
    function = _function(type(module), base)
    holder = getattr(module, TAP_ATTR, None)
    tap: Tap | None = None if holder is None else holder.tap
    if "flash" in base:
        stand_in = _AttrOverride(
            module, config=_AttrOverride(getattr(module, "config", None), _attn_implementation=base)
        )
        function = partial(function, stand_in)
        return _flash(function, tap, query, key, value, attention_mask, scaling, **options)
    if tap is not None:
        causal = options.get("is_causal")
        causal = getattr(module, "is_causal", False) if causal is None else causal
        if tap.key_bias is not None and attention_mask is None and causal and query.shape[2] > 1:
            raise AttachError(
                "proportional_attention=True in a causal attention without a mask: it is for vision towers "
                "only"
            )
        if base == "sdpa" and attention_mask is None and not (causal or options.get("dropout")):
            out = tap.attend(query, key, value, scaling)
            if out is not None:
                return out.transpose(1, 2), None
        if tap.key_bias is not None and attention_mask is None and fits(query):
            function = partial(function, module)
            return _flash(function, tap, query, key, value, None, scaling, **options)
        attention_mask = tap.look(query, key, attention_mask, scaling, value)
    return function(module, query, key, value, attention_mask, scaling=scaling, **options)


def _flash(
    function: Callable[..., Result],
    tap: Tap | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None,
    **options: Any,
) -> Result:
    """An attention that takes only a padding mask `[b, n]`: log mass is one more channel of the keys."""
    if tap is not None:
        padding = None if attention_mask is None else attention_mask[:, None, None].bool()
        tap.look(query, key, padding, scaling, value)
        if tap.key_bias is not None:
            factor = float(query.shape[-1] ** -0.5 if scaling is None else scaling)
            bias = tap.seen[-1].key_bias  # of a packed sequence, that of this segment
            wide = widened(query, key, value, tap.key_bias if bias is None else bias, factor)
            out, weights = function(*wide, attention_mask, scaling=factor, **options)
            return out[..., : value.shape[-1]], weights
    return function(query, key, value, attention_mask, scaling=scaling, **options)


class _AttrOverride:
    """An object with some attributes replaced: flash attention reads its own name off its module."""

    def __init__(self, real: Any, **others: Any) -> None:
        self.__dict__.update(others, _real=real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
