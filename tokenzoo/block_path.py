"""How an adapter describes its model: where one block can be spliced, and attributes that are computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from tokenzoo._core.old_members import OldName, renamed_arguments

Value = TypeVar("Value")


@renamed_arguments({"first": "branch1_in", "second": "branch2_in", "last": "branch2_out"})
@dataclass(frozen=True)
class BlockPath:
    """Where one block of a tower can be spliced: names of its submodules, as attributes of the block.

    Attributes:
        name: the block's own name in the model, for messages ("blocks.3").
        attention: the attention module; exactly one fused attention call is made inside.
        branch2_in: the first module of the second residual branch (its norm): it gets the fewer tokens.
        branch2_out: the last module of that branch, whose output is added to the residual.
        branch1_in: the first module of the first residual branch, where gradient checkpointing runs the
            block's forward again without calling the block (transformers >= 5.21); otherwise it may be left
            out.
        branch2_scale: the parameter of the block, if any, by which it multiplies the second branch after
            its last module (InternVL's `lambda_2`).
    """

    name: str
    attention: str
    branch2_in: str
    branch2_out: str
    branch1_in: str = ""
    branch2_scale: str = ""

    first = OldName("branch1_in")
    second = OldName("branch2_in")
    last = OldName("branch2_out")


def computed(read: Callable[[Any], Value]) -> Value:
    """A property that overrides an attribute of `Adapter`.

    For type checkers it is the attribute itself: they refuse a property in the place of an attribute,
    although an adapter is only read.
    """
    return cast("Any", property(read))
