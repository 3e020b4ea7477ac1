"""Blocks that are compiled one by one (regional compilation) are refused, with what to do instead.

torch compiles a block once for all blocks of a bare model. Those of an attached one differ in their hooks
and in the tokens that they are given: each would be compiled anew, up to torch's limit, and run uncompiled
or fail after that. Compiled whole, the model or its tower is one graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tokenzoo.adapter import BlockPath
from tokenzoo.errors import AttachError

ADVICE = (
    "{name} is compiled by itself while a recipe is attached: its blocks have different numbers of tokens, "
    "and each would be compiled anew, up to torch's limit. Compile the whole model, or its whole tower: "
    "torch.compile(model), model.compile()"
)


def compiled(module: nn.Module | None) -> bool:
    """Whether a module itself was compiled, by `module.compile()` or `torch.compile(module)`."""
    if getattr(module, "_compiled_call_impl", None) is not None:
        return True
    return type(module).__name__ == "OptimizedModule"


def watch(model: nn.Module, paths: Sequence[BlockPath]) -> list[Callable[[], None]]:
    """Look, in every pass that is not compiled as a whole, whether a block is compiled by itself.

    The two innermost modules around the blocks do it, for a caller may leave out one of them.

    Args:
        model: that the recipe is attached to.
        paths: of the blocks that are spliced.

    Returns:
        What takes the hooks away.
    """
    if not paths:
        return []
    parts = paths[0].name.split(".")[:-1]
    around = [".".join(parts[:i]) for i in range(len(parts), -1, -1)]
    lists = (nn.ModuleList, nn.ModuleDict)
    called = [name for name in around if not isinstance(model.get_submodule(name), lists)]
    undo: list[Callable[[], None]] = []
    names = [name for path in paths for name in (path.name, f"{path.name}.{path.attention}")]
    for name in called[:2]:
        start = len(name) + 1 if name else 0
        hook = _Look(tuple((full[start:], full) for full in names))
        undo.append(model.get_submodule(name).register_forward_pre_hook(hook).remove)
    return undo


@dataclass(frozen=True)
class _Look:
    """A pre-hook of a module around the blocks.

    Attributes:
        names: of the blocks and their attentions, from there and from the whole model.
    """

    names: tuple[tuple[str, str], ...]

    def __call__(self, module: nn.Module, args: Any) -> None:
        """Raise if one of them is compiled.

        Raises:
            AttachError: it is; names it.
        """
        del args
        if torch.compiler.is_dynamo_compiling():
            return
        for name, full in self.names:
            if compiled(_find(module, name)):
                raise AttachError(ADVICE.format(name=full))


def _find(module: nn.Module, name: str) -> nn.Module | None:
    """The submodule of that name; None if there is none, as in what `torch.compile` has wrapped."""
    found: Any = module
    for part in name.split("."):
        found = None if found is None else found._modules.get(part)
    return found
