"""Properties of what a part declares: its needs, that it is frozen data, that its shapes are static."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tokenzoo.errors import MissingEvidenceError
from tokenzoo.evidence import Evidence, Layer
from tokenzoo.parts import Part, walk
from tokenzoo.reduce import reduce_site
from tokenzoo.testing.broken import BrokenError, demand
from tokenzoo.testing.example import Example, layers_in
from tokenzoo.testing.property import property_of
from tokenzoo.testing.subjects import MATCHERS, SCORERS, SITE, Subject, asked


@property_of(
    *(*SCORERS, *MATCHERS, "merger", "restorer", "schedule"),
    cases="nothing",
    read="tokenzoo.parts.Part",
)
def frozen_data(subject: Part) -> None:
    """A part is a frozen dataclass, hashable, and equal to its copy; or a torch module, when it learns.

    Recipes are compared, hashed and saved, and the same part serves several models and threads.
    """
    for part in walk(subject):
        if isinstance(part, nn.Module):
            continue
        name = type(part).__name__
        options: Any = getattr(part, "__dataclass_params__", None)
        demand(
            is_dataclass(part) and options.frozen,
            f"{name} to be a dataclass(frozen=True)",
            "a class whose instances can be changed",
        )
        try:
            hash(part)
        except TypeError as error:
            raise BrokenError(f"{name} to be hashable: tuples, not lists", str(error)) from error
        demand(deepcopy(part) == part, f"{name} to be equal to its copy", "another one")


@property_of(*SITE, read="tokenzoo.parts.Part.needs")
def needs_honest(subject: Subject, example: Example) -> None:
    """What is declared is enough: with the evidence named in `needs` and nothing else, it works."""
    recipe = asked(subject, example)
    step = recipe.steps[0]
    keep = recipe.wanted(example.patches)
    evidence = _only(step.needs, example)
    try:
        reduce_site(step, example.tokens, evidence, keep)
    except (MissingEvidenceError, _UndeclaredError) as error:
        named = ", ".join(sorted({"x", "mass", *step.needs}))
        raise BrokenError(f"only {named} to be read, as its needs say", str(error)) from error


class _UndeclaredError(Exception):
    """Evidence was read that the part did not declare."""


def _only(needs: frozenset[str], example: Example) -> Evidence:
    """The evidence named in `needs`; anything else raises when it is read."""
    full = example.evidence(needs)

    def shown(there: Evidence, declared: set[str], layers: Mapping[Layer, Evidence]) -> Evidence:
        def show(name: str) -> Callable[[], Tensor]:
            def read() -> Tensor:
                if name not in declared:
                    raise _UndeclaredError(f"{name} was read, and needs does not name it")
                value: Tensor = getattr(there, name)
                return value

            return read

        names = ("keys", "queries", "received_attention", "cls_attention", "last_attention")
        names = (*names, "values", "text_attention", "text_rotation")
        return Evidence(
            there.x,
            mass=there.mass,
            show={name: show(name) for name in names},
            attention=there.attention if "attention" in declared else None,
            prefix=there.prefix,
            grid=there.grid if "grid" in declared else None,
            frames=there.frames if "frames" in declared else None,
            depth=there.depth if "depth" in declared else None,
            text=there.text if "text" in declared else None,
            text_mask=there.text_mask,
            layers=layers,
        )

    def declared_at(layer: str) -> set[str]:
        named = (need.partition("@") for need in needs)
        return {name for name, _, where in named if where == layer}

    layers = {
        layer: shown(full.at(layer), declared_at(str(layer)), {}) for layer in layers_in(needs)
    }
    return shown(full, declared_at(""), layers)


@property_of(*SITE, read="tokenzoo.parts.Part")
def static_shapes(subject: Subject, example: Example) -> None:
    """Nothing waits for a value: no `.item()`, `nonzero()`, boolean index, or shape that depends on data.

    Such a part stops the device at every site, and can neither be compiled nor exported.
    """
    recipe = asked(subject, example)
    keep, tokens = recipe.wanted(example.patches), example.tokens
    evidence = example.evidence(recipe.needs)
    try:
        with _watched():
            reduce_site(recipe.steps[0], tokens, evidence, keep)
    except _WaitsError as error:
        raise BrokenError("sizes that follow from shapes alone", str(error)) from error


class _WaitsError(Exception):
    """A value had to be known in Python."""


@contextmanager
def _watched() -> Generator[None]:
    """Raise where a value leaves the tensors."""
    with _Python(), _Operations():
        yield


_VALUES: frozenset[Any] = frozenset(
    getattr(Tensor, name) for name in ("tolist", "numpy", "item", "__array__")
)


class _Python(TorchFunctionMode):
    """Watches the methods that read memory without an operation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Raise if the function reads values."""
        if func in _VALUES:
            raise _WaitsError(f"Tensor.{func.__name__}() was called")
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    """Watches operations that torch itself marks: their result, or its shape, depends on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Raise if the function reads values."""
        if func is torch.ops.aten.index.Tensor or func is torch.ops.aten.index_put_.default:
            indices = (index for index in args[1] if index is not None)
            waits = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
        else:
            waits = bool(
                {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
            )
        if waits:
            raise _WaitsError(f"{func} was called, which waits for values")
        return func(*args, **(kwargs or {}))
