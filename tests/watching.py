"""What code does while it runs: where it makes the host wait, what it launches, how large its tensors are.

On a GPU a `.item()` or a boolean index stops the host until the device has caught up. On the CPU nobody
notices, so every operation is looked at, and with it those functions of tensors that read their memory
without any.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations whose result, or whose result's shape, the host has to know.
WAITING = {
    *("_local_scalar_dense", "nonzero", "nonzero_numpy", "masked_select", "equal", "is_nonzero"),
    *("_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive", "bincount"),
    *("argwhere", "_linalg_check_errors", "item", "allclose"),
}
# Operations that wait where an index is boolean: what comes out is as long as the data say.
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# Functions of tensors that read memory without an operation.
READING = {"tolist", "numpy", "__array__", "storage", "untyped_storage", "data_ptr"}
# Views and what makes no work: no kernel is launched.
FREE = {
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "expand", "permute", "transpose", "t"),
    *("unsqueeze", "squeeze", "slice", "select", "split", "split_with_sizes", "unsafe_split"),
    *("unbind", "detach", "alias", "as_strided", "chunk", "diagonal", "unfold", "view_as_real"),
    *("lift_fresh", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("narrow", "promote_types"),
}
OURS = ("tokenzoo", "tokenzoo_adapters")
# On a GPU what these compute is one launch, or two.
KERNELS = "tokenzoo.kernels."


def _name(func: Any) -> str:
    return func.overloadpacket.__name__


def _frames() -> Iterator[tuple[str, int]]:
    """Module and line of what is running, the innermost first, without this file."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module != __name__:
            yield module, frame.f_lineno
        frame = frame.f_back


def _caller() -> str:
    """Module and line of the innermost code that is neither torch's nor einops'."""
    theirs = ("torch", "einops", "contextlib")
    own = (f"{name}:{line}" for name, line in _frames() if name.partition(".")[0] not in theirs)
    return next(own, "?")


def waits(func: Any, args: Any, result: Any) -> bool:
    """Whether the host waits for this operation."""
    name = _name(func)
    if name in WAITING:
        return True
    if name in INDEXING:
        indices = [one for one in args[1] if one is not None]
        return any(one.dtype in (torch.bool, torch.uint8) for one in indices)
    if name == "repeat_interleave":  # without a size it looks at the counts
        return isinstance(args[0], Tensor) and args[0].ndim == 1 and len(args) == 1
    copies = name in ("_to_copy", "copy_", "copy")
    source = args[1] if name in ("copy_", "copy") else args[0] if copies else None
    return bool(copies and source.is_cuda and isinstance(result, Tensor) and not result.is_cuda)


class Functions(TorchFunctionMode):
    """Tells a `Watch` of functions that read a tensor's memory without an operation."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in READING:
            self.watch.note(func.__name__)
        return func(*args, **kwargs or {})


class Watch(TorchDispatchMode):
    """Looks at all operations.

    Args:
        strict: raise where the host waits, instead of noting it.

    Attributes:
        waited: "operation at module:line", each as often as the host waited there.
        launched: names of the operations that are work for a device, without views and without those
            inside our kernels.
        largest: elements of the largest tensor that an operation returned.
    """

    def __init__(self, strict: bool = False) -> None:
        super().__init__()
        self.strict = strict
        self.waited: Counter[str] = Counter()
        self.launched: Counter[str] = Counter()
        self.largest = 0
        self.functions = Functions(self)

    def __enter__(self) -> Watch:
        self.functions.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.functions.__exit__(*error)

    def note(self, what: str) -> None:
        """The host waits."""
        where = f"{what} at {_caller()}"
        if self.strict:
            raise AssertionError(f"the host waits: {where}")
        self.waited[where] += 1

    @property
    def ours(self) -> list[str]:
        """Where code of this project made the host wait."""
        return sorted(
            w for w in self.waited if re.split(r"[.:]", w.partition(" at ")[2])[0] in OURS
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        if waits(func, args, result):
            self.note(_name(func))
        if _name(func) not in FREE and not any(
            module.startswith(KERNELS) for module, _ in _frames()
        ):
            self.launched[_name(func)] += 1
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.largest = max([self.largest, *sizes])
        return result
