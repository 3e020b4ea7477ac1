"""Models whose parameters torch spreads over processes: FSDP2 (`fully_shard`) and FSDP1.

Attach first, then shard. `fully_shard` puts hooks around a module that hand it copies of its inputs (in
training, or where a policy casts them), on which the state of a pass would be lost. So they are wrapped
when the first pass begins: what a tensor carried, its copy carries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from tokenzoo.errors import AttachError

# Where the hooks of fully_shard, and of replicate, which is made of the same, are defined.
_THEIRS = ("torch.distributed.fsdp", "torch.distributed._composable")


def refuse_sharded(model: Any) -> None:
    """Raise if the parameters of a model are spread over processes already.

    Raises:
        AttachError: names the module, and the order that works.
    """
    named: list[tuple[str, nn.Module]] = []
    if isinstance(model, nn.Module):
        named = list(cast("Any", model).named_modules())
    for name, module in named:
        kinds = {kind.__name__ for kind in type(module).__mro__}
        if "FSDPModule" in kinds:
            how = "by fully_shard (FSDP2)"
        elif "FullyShardedDataParallel" in kinds:
            how = "by FullyShardedDataParallel (FSDP1)"
        elif getattr(module, "_is_fsdp_managed_module", False):
            how = "by FSDP, as a part of a larger model"
        else:
            continue
        raise AttachError(
            f"{name or type(module).__name__} is sharded {how}, and its blocks cannot run one by one, as "
            "attach runs them to check the hooks: attach first, then shard"
        )


def refuse_outside(model: nn.Module, name: str) -> None:
    """Raise if a method is called that works on sharded parameters, which `forward` alone gathers.

    Args:
        model: that a recipe is attached to.
        name: of its method, in whose place the recipe has put a `functools.partial`.

    Raises:
        AttachError: says how to register the method.
    """
    sharded = any(kind.__name__ == "FSDPModule" for kind in type(model).__mro__)
    if sharded and isinstance(vars(model).get(name), partial):
        raise AttachError(
            f"{type(model).__name__} is sharded, and {name} reads images before forward has gathered the "
            f"parameters: call torch.distributed.fsdp.register_fsdp_forward_method(model, {name!r}) once, "
            "after fully_shard"
        )


@dataclass(frozen=True)
class Carrying:
    """A hook of others, after which each tensor that replaces another one carries the same state.

    Attributes:
        hook: `hook(module, args, kwargs)`, which returns new args and kwargs; or
            `hook(module, args, output)`, which returns a new output.
    """

    hook: Callable[..., Any]

    def __call__(self, module: nn.Module, args: Any, last: Any) -> Any:
        """Call the hook, and let what it returns carry what it was given."""
        result: Any = self.hook(module, args, last)
        # Before forward the last argument are its keyword arguments, afterwards its output.
        before_forward = [type(last), type(result)] == [dict, tuple]
        given: Any = (args, last) if before_forward else last
        for before, after in zip(_tensors(given), _tensors(result), strict=False):
            if after is not before:
                _carry(before, after)
        return result


def _carry(before: Tensor, after: Tensor) -> None:
    for name, value in vars(before).items():
        if name.startswith("_tokenzoo"):
            setattr(after, name, value)


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors in tuples, lists and mappings, in their order."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for value in cast("Iterable[Any]", values):
            yield from _tensors(value)
    elif isinstance(values, dict):
        for value in cast("dict[str, Any]", values).values():
            yield from _tensors(value)


def carry(model: nn.Module) -> list[Callable[[], None]]:
    """Wrap the hooks of `fully_shard` in a model; returns what unwraps them."""
    undo: list[Callable[[], None]] = []
    for module in model.modules():
        hooks = cast("Any", module)
        for found in (hooks._forward_pre_hooks, hooks._forward_hooks):
            for key, hook in list(found.items()):
                if (getattr(hook, "__module__", None) or "").startswith(_THEIRS):
                    found[key] = Carrying(hook)
                    undo.append(partial(_restore, found, key, hook))
    return undo


def _restore(found: dict[int, Any], key: int, hook: Any) -> None:
    if isinstance(found.get(key), Carrying):
        found[key] = hook
