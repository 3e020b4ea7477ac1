"""torch.jit and torch.fx write down what one pass did, without the hooks that reduce: refused, with what to use.

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
    "To hand the model on as a program: torch.export.export(model, (images,)), or exporting.export for ONNX. "
    "To count operations: attached.plan().flops, or torch.utils.flop_counter.FlopCounterMode around a pass. "
    "For features of a block: a forward hook, or the model's own intermediate outputs, with "
    "attach(..., restore=True)"
)


def refuse_jit() -> None:
    """Raise if `torch.jit.trace`, or what is made of it (fvcore, OpenVINO, the older ONNX export), runs.

    Raises:
        AttachError: says what to use.
    """
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        raise AttachError(
            "torch.jit.trace cannot follow an attached recipe: it would write down the token counts of one "
            f"image size, and hold for no other. {_INSTEAD}"
        )


def refuse_symbols(x: Any) -> None:
    """Raise if a block is called with something that stands for tokens, as `torch.fx` does.

    Raises:
        AttachError: says what to use.
    """
    if not isinstance(x, Tensor):
        raise AttachError(
            f"a block of an attached model is called with a {type(x).__name__} instead of tokens. torch.fx "
            "(symbolic_trace, create_feature_extractor, FeatureGraphNet) follows no hooks, and its graph "
            f"would reduce nothing. {_INSTEAD}"
        )


def refuse_script() -> NoReturn:
    """What `torch.jit.script` calls as `__prepare_scriptable__` of an attached model.

    Raises:
        AttachError: always; says what to use.
    """
    raise AttachError(f"torch.jit.script cannot compile an attached recipe. {_INSTEAD}")


class Graphs:
    """Notices that a graph of `torch.fx`, made before attach, runs modules of a block without the block.

    Such a graph has the modules of torch.nn as they are, and in place of the others their operations: it
    would run the bare model, although the recipe is attached.

    Args:
        name: of the block.
        inside: whether the block is being run.
    """

    def __init__(self, name: str, inside: Callable[[], bool]) -> None:
        self.name = name
        self.inside = inside

    def install(self, block: nn.Module) -> list[RemovableHandle]:
        """Put a hook on one linear layer of the block, if it has one."""
        layers = [module for module in block.modules() if type(module) is nn.Linear]
        return [layer.register_forward_pre_hook(self.look) for layer in layers[-1:]]

    def look(self, layer: nn.Module, args: Any) -> None:
        """Raise if the layer is called by a graph; a call by hand is the caller's own affair.

        Raises:
            AttachError: says in which order it works.
        """
        del layer, args
        if torch.compiler.is_compiling() or self.inside():
            return
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename.startswith("<eval_with_key>"):  # the code of a GraphModule
                raise AttachError(
                    f"a graph of torch.fx runs the layers of {self.name} one by one; it was made before the "
                    f"recipe was attached, and reduces nothing. {_INSTEAD}"
                )
            frame = frame.f_back
