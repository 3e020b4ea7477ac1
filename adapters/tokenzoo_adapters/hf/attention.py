"""transformers' attention, seen through its own door: a function registered under a name of ours.

An attention module of transformers looks its function up by the name in its configuration ("sdpa",
"eager", "flash_attention_2", ...). Here that name becomes one of ours, whose function asks the module for
a tap: without one it is the function of that name, with one it shows queries and keys, and adds log mass.
Ours begins with the name that the user knows and says that tokenzoo is attached: transformers quotes it.

Two names are registered for each, for transformers makes its masks by the same name: a language model whose
name has no mask function gets no padding mask, and says nothing. Ours contains "flash" exactly if the other
does, which transformers looks for. It is not saved with a model (transformers saves none).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor, nn

from tokenzoo.errors import AttachError
from tokenzoo.hooks.key_bias import fits, widened
from tokenzoo.hooks.tap import WATCH, Tap
from tokenzoo_adapters.hf.names import MASK

OURS = " (tokenzoo is attached: "
FOLLOWED = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")

Result = tuple[Tensor, Tensor | None]

_homes: dict[type, Any] = {}


def name_of(base: str) -> str:
    """Our name for the implementation `base`.

    transformers quotes it where `config.output_attentions = True` is set, which it takes with the name
    "eager" alone: then it says what to do.
    """
    advice = "pass output_attentions=True in the call" if base == "eager" else "detach, then set it"
    return f"{base}{OURS}{advice})"


class Door:
    """One configuration whose name is ours; all layers of a model share it, and two models may.

    Args:
        config: a configuration of transformers.
        base: the name that it had.
    """

    def __init__(self, config: Any, base: str) -> None:
        self.config = config
        self.base = base
        self.users: set[object] = set()

    def open(self, user: object) -> None:
        """Register our name and set it."""
        self.users.add(user)
        _register(self.base)
        # As transformers itself sets it: the setter without "internal" goes into sub-configurations.
        self.config._attn_implementation_internal = name_of(self.base)
        _doors[id(self.config)] = self

    def close(self, user: object) -> None:
        """Set the name that it had, after the last user, unless somebody has set another; twice is once."""
        self.users.discard(user if user in self.users else None)
        if not self.users and self.config._attn_implementation == name_of(self.base):
            self.config._attn_implementation_internal = self.base

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy has one user, its own model; unpickled in another process it is registered there."""
        self.__dict__.update(state, users={None})
        _register(self.base)


# While a model of a configuration is attached (the door holds the configuration: an id is never another's).
_doors: WeakValueDictionary[int, Door] = WeakValueDictionary()


def install(model: nn.Module) -> Callable[[], None]:
    """Watch the attention of a model of transformers, where its modules have a tap; returns the undoing.

    Raises:
        AttachError: its implementation cannot be seen; says which can.
    """
    doors = [_door(config) for config in _configs(model)]
    for module in model.modules():
        _home(type(module))  # now, and not while a pass is compiled
    user = object()
    for door in doors:
        door.open(user)
    return partial(_close, doors, user)


def check(model: nn.Module) -> None:
    """Raise if the attention of a model cannot be seen; see `install`."""
    for config in _configs(model):
        _door(config)


def _configs(model: nn.Module) -> list[Any]:
    """The configurations of a model and its modules, each once."""
    found = [getattr(module, "config", None) for module in model.modules()]
    return list({id(one): one for one in found if hasattr(one, "_attn_implementation")}.values())


def _close(doors: list[Door], user: object) -> None:
    for door in doors:
        door.close(user)


def _door(config: Any) -> Door:
    """The door of a configuration.

    Raises:
        AttachError: its implementation cannot be seen.
    """
    name = str(config._attn_implementation)
    base = name.partition(OURS)[0]
    if base not in FOLLOWED:
        raise AttachError(
            f"the attention of {type(config).__name__} is {name!r}; seen are {', '.join(FOLLOWED)}: call "
            'model.set_attn_implementation("sdpa"), then attach'
        )
    door = _doors.get(id(config))
    return door if door is not None and door.base == base and name != base else Door(config, base)


def _register(base: str) -> None:
    """Make our name for `base` known to transformers, for the attention and for its masks."""
    models = sys.modules.get("transformers.modeling_utils")
    masks = sys.modules.get("transformers.masking_utils")
    if models is None or masks is None:
        raise AttachError("this is for a model of transformers, and transformers is not loaded")
    models.AttentionInterface.register(name_of(base), partial(_attend, base))
    function = masks.ALL_MASK_ATTENTION_FUNCTIONS[base]
    masks.AttentionMaskInterface.register(name_of(base), partial(_mask, function))


def _mask(function: Callable[..., Tensor | None], **given: Any) -> Tensor | None:
    """The mask that `function` makes; none where nothing is masked, in an export too."""
    skips = given.get("allow_is_bidirectional_skip", False)
    masked = [given.get(name) is not None for name in (MASK, "local_size")]
    return None if skips and not any(masked) else function(**given)


def _home(kind: type) -> Any:
    """The file in which the `forward` of a class is written: the functions that it means are there."""
    if kind not in _homes:
        owner = next((one for one in kind.__mro__ if "forward" in vars(one)), kind)
        _homes[kind] = sys.modules.get(owner.__module__)
    return _homes[kind]


def _function(kind: type, base: str) -> Callable[..., Result]:
    """The attention function that a class of attention modules would use under the name `base`.

    Raises:
        AttachError: it is "eager", and the file of the class has no such function.
    """
    home = _home(kind)
    if base != "eager":
        known = getattr(home, "ALL_ATTENTION_FUNCTIONS", None)  # a file may have its own
        return (known or sys.modules["transformers.modeling_utils"].ALL_ATTENTION_FUNCTIONS)[base]
    function = getattr(home, "eager_attention_forward", None)
    if function is None:
        raise AttachError(
            f"{kind.__module__}.{kind.__qualname__} has no eager_attention_forward beside it, as others "
            'in transformers have; call model.set_attn_implementation("sdpa"), then attach'
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
    """The attention `base` of `[b, h, n, d]`, seen by the tap of its module, if there is one."""
    function = _function(type(module), base)
    holder = getattr(module, WATCH, None)
    tap: Tap | None = None if holder is None else holder.tap
    if "flash" in base:
        stand_in = _But(
            module, config=_But(getattr(module, "config", None), _attn_implementation=base)
        )
        function = partial(function, stand_in)
        return _flash(function, tap, query, key, value, attention_mask, scaling, **options)
    if tap is not None:
        causal = options.get("is_causal")
        causal = getattr(module, "is_causal", False) if causal is None else causal
        if tap.key_bias is not None and attention_mask is None and causal and query.shape[2] > 1:
            raise AttachError(
                "log mass in a causal attention without a mask: proportional_attention is for vision towers"
            )
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
    """An attention that takes no mask but one of padding `[b, n]`: log mass is one more channel."""
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


class _But:
    """An object as it is, but for some attributes: flash attention reads its own name off its module."""

    def __init__(self, real: Any, **others: Any) -> None:
        self.__dict__.update(others, _real=real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
