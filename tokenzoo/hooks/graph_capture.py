"""torch.jit and torch.fx write down what one pass did, without our hooks: refused, with what to use.

`torch.jit.trace` (in FLOP counters and converters, too) would fix the counts of one image size, and
`torch.fx` hands our hooks symbols in the place of tokens. `torch.export` and `torch.compile` work.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tokenzoo.errors import AttachError

_INSTEAD = (
    "To hand the model on as a program: torch.export.export(model, (images,)), or "
    "tokenzoo.tools.onnx.export for ONNX. To count operations: attached.plan().flops, or "
    "torch.utils.flop_counter.FlopCounterMode around a pass. For features of a block: a forward hook, or "
    "the model's own intermediate outputs, with attach(..., restore=True)"
)


def refuse_jit() -> None:
    """Raise if `torch.jit.trace`, or what is made of it (fvcore, OpenVINO, the older ONNX export), runs.

    Raises:
        AttachError: says what to use.
    """
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        raise AttachError(
            "torch.jit.trace cannot trace an attached recipe: it would record the token counts of one "
            f"image size and be wrong for any other. {_INSTEAD}"
        )


def refuse_symbols(x: Any) -> None:
    """Raise if something that stands for a tensor comes in its place, as under `torch.fx`.

    Raises:
        AttachError: says what to use.
    """
    if not isinstance(x, Tensor):
        raise AttachError(
            f"an attached model is called with a {type(x).__name__} instead of a tensor. torch.fx "
            "(symbolic_trace, create_feature_extractor, FeatureGraphNet) does not trace hooks, and its "
            f"graph would reduce nothing. {_INSTEAD}"
        )


def refuse_graphs(name: str) -> None:
    """Raise if a graph of `torch.fx` is running, which was made before attach.

    Such a graph has the modules of torch.nn as they are, and in the place of all others their operations:
    it would run the bare model, although the recipe is attached.

    Args:
        name: of the block that one of the modules belongs to.

    Raises:
        AttachError: says what to use.
    """
    if torch.compiler.is_compiling():
        return
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        if frame.f_code.co_filename.startswith("<eval_with_key>"):  # the code of a GraphModule
            raise AttachError(
                f"a graph of torch.fx runs the modules of {name} one by one: it was made before the recipe "
                f"was attached, and would reduce nothing. {_INSTEAD}"
            )
        frame = frame.f_back


def refuse_programs(model: Any) -> None:
    """Raise if a model is the program that torch.fx, torch.export or torch.jit made of another one.

    Raises:
        AttachError: says what to attach to.
    """
    kinds = {kind.__name__ for kind in type(model).__mro__}
    for kind, made in {"GraphModule": "a graph", "ScriptModule": "TorchScript"}.items():
        if kind in kinds:
            raise AttachError(
                f"{type(model).__name__} is {made}: it has operations instead of blocks, to which "
                f"nothing can be attached. Attach to the model from which it was made. {_INSTEAD}"
            )


def refuse_script() -> NoReturn:
    """What `torch.jit.script` calls as `__prepare_scriptable__` of an attached model.

    Raises:
        AttachError: always; says what to use.
    """
    raise AttachError(f"torch.jit.script cannot compile an attached recipe. {_INSTEAD}")


class Graphs:
    """Sees that a graph of `torch.fx`, made before attach, runs modules of a block without the block.

    Args:
        name: of the block.
        running: whether the block itself is being run.
    """

    def __init__(self, name: str, running: Callable[[], bool]) -> None:
        self.name = name
        self.running = running

    def install(self, block: nn.Module) -> list[RemovableHandle]:
        """Put a hook on a linear layer of the block, if it has one: a graph has that as it is."""
        layers = [module for module in block.modules() if type(module) is nn.Linear]
        return [layer.register_forward_pre_hook(self.look) for layer in layers[-1:]]

    def look(self, layer: nn.Module, args: Any) -> None:
        """Raise if the layer is called by a graph; a call by hand is right without a recipe, too."""
        del layer, args
        if not self.running():
            refuse_graphs(self.name)
