"""Export of a model with an attached recipe to ONNX, run and compared before the file is kept.

    exported = export(tokenzoo.build("evoprune", keep=64), vit, images, "vit.onnx")
    exported.error, exported.counts

The file has plain ONNX operators only, and runs without this library.
"""

from __future__ import annotations

import importlib
import math
import os
import tempfile
import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from tokenzoo._core.quoting import quote
from tokenzoo._core.validation import check_flag, check_kind, check_positive
from tokenzoo.errors import (
    BadArgumentError,
    ExportError,
    MissingDependencyError,
    UnsupportedModelError,
)
from tokenzoo.hooks.attach import find_adapter
from tokenzoo.zoo import Method

Given = Tensor | Mapping[str, Any]

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3
REDUCING = ("TopK", "ArgMax", "GatherElements", "ScatterElements", "ScatterND")  # a ViT has few


@dataclass(frozen=True)
class Exported:
    """An exported file, after the comparison with its model.

    Attributes:
        path: the file; beyond 2 GB the weights are in a second file next to it.
        size: bytes of all of it.
        opset: version of ONNX's operators.
        inputs: names of its inputs.
        dynamic: whether it takes any number of images.
        batches: numbers of images with which it was compared.
        tokens: patch tokens before the first block; None: the recipe does not change the tower.
        counts: patch tokens after each block.
        error: the largest difference from the model, relative to the largest output.
        operators: number of operators of each kind in `REDUCING`.
    """

    path: Path
    size: int
    opset: int
    inputs: tuple[str, ...]
    dynamic: bool
    batches: tuple[int, ...]
    tokens: int | None
    counts: tuple[int, ...]
    error: float
    operators: Mapping[str, int]


def export(
    zoo: Method,
    model: nn.Module,
    example: Given,
    path: str | os.PathLike[str],
    *,
    dynamic: bool = True,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Attach a recipe, write the model as an ONNX file, and detach.

    ONNX Runtime then runs the file on the CPU, on random inputs that it was not made from, and on other
    numbers of images. The file is moved to `path` only if its outputs agree with the model's.

    Args:
        zoo: the recipe.
        model: a vision transformer in eval mode, float32, that an adapter knows.
        example: the model's input: images `[b, 3, height, width]`, or a mapping of its arguments.
        path: the file to write, .onnx.
        dynamic: whether the file takes any number of images, or as many as the example has.
        tolerance: the largest difference allowed, relative to the largest output.

    Raises:
        ExportError: torch cannot convert it, or the file computes something else; no file is left.
        UnsupportedModelError: a multimodal model, of which the tower alone can be a file; a packed tower.
        MissingDependencyError: onnx, onnxscript or onnxruntime is not installed.
        BadArgumentError: a model in training mode or not in float32, or an example without images.
        AttachError: the recipe and the model do not go together (and what else `Method.attach` raises).
    """
    check_kind("zoo", zoo, Method)
    check_flag("dynamic", dynamic)
    check_positive("tolerance", tolerance)
    check_installed()
    _check_example(example)
    _check(model)
    # With one image, torch would export the batch size as a constant.
    images = max(2, _images(example)) if dynamic else _images(example)
    given = _of(example, images)
    batches = (1, images + 1) if dynamic else (images,)
    place = _place(path)
    with (
        zoo.attach(model) as attached,
        torch.no_grad(),
        tempfile.TemporaryDirectory(prefix=".tokenzoo-", dir=place.parent) as folder,
    ):
        file = Path(folder) / place.name
        graph = _convert(model, given, file, dynamic)
        session = _session(file)
        error = max(
            _gap(_run(session, inputs), _call(model, inputs))
            for inputs in (_of(given, batch, seed=batch) for batch in batches)
        )
        if not error <= tolerance:
            raise ExportError(
                f"in ONNX Runtime the outputs of {type(model).__name__} differ from the model's by "
                f"{error:.1e} of the largest one, more than {tolerance:g}. If that is little, two scores "
                "may be so close that rounding decides: use other weights or another keep, or raise "
                "tolerance. Otherwise a part calls an operator that ONNX converts wrongly: check its "
                "score()"
            )
        size = sum(part.stat().st_size for part in Path(folder).iterdir())
        for part in Path(folder).iterdir():
            part.replace(place.parent / part.name)
        passed = attached.passes[0]
    found = Counter(node.op_type for node in graph)
    return Exported(
        path=Path(path),
        size=size,
        opset=graph.opset_imports[""],
        inputs=tuple(one.name for one in session.get_inputs()),
        dynamic=dynamic,
        batches=batches,
        tokens=passed.tokens,
        counts=passed.counts,
        error=error,
        operators={name: found[name] for name in REDUCING if found[name]},
    )


def _place(path: str | os.PathLike[str]) -> Path:
    """Return the path of the file.

    Raises:
        BadArgumentError: the path is invalid, or its folder does not exist.
    """
    try:
        place = Path(path).absolute()
        there = place.parent.is_dir() and not place.is_dir()
    except (TypeError, ValueError, OSError) as error:
        raise BadArgumentError(f"path={quote(path)} ({error}); it names a file") from error
    if not there:
        raise BadArgumentError(
            f"path={quote(path)}; it must name a file in an existing folder: create {place.parent} first"
        )
    return place


def check_installed() -> None:
    """Raise unless the libraries are installed.

    Raises:
        MissingDependencyError: one of them is not installed.
    """
    for package in PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingDependencyError(
                f"{package} is not installed: pip install 'tokenzoo[onnx]'"
            ) from error


def _check_example(example: object) -> None:
    """Raise unless this is a valid input of a vision transformer."""
    values: list[Any] = tree_leaves(example)
    if not values or not all(isinstance(v, Tensor) and v.ndim and len(v) for v in values):
        raise BadArgumentError(
            f"example={quote(example)}; it must be a batch of images, or a mapping of the model's "
            "arguments, each of them a tensor with at least one image"
        )


def _check(model: nn.Module) -> None:
    """Raise if this model cannot become a file, whatever the recipe."""
    adapter, name = find_adapter(model), type(model).__name__
    if adapter.reads_prompts:
        raise UnsupportedModelError(
            f"{name} reads prompts and images, and its prompts are shortened on the host: export its "
            "vision tower alone"
        )
    if not adapter.layout_class.fixed:
        raise UnsupportedModelError(
            f"{name} reads images of any size as one sequence, whose lengths the host looks up: a file "
            "would hold those of the example. Towers with images of one size can be exported"
        )
    if model.training:
        raise BadArgumentError(f"{name} is in training mode: call eval() first")
    others = {p.dtype for p in model.parameters() if p.dtype != torch.float32}
    if others:
        raise BadArgumentError(
            f"{name} has parameters in {', '.join(map(str, others))}; the file is compared in float32: "
            "export model.float(), and convert the file if it is to be smaller"
        )


def _arguments(given: Given) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and named arguments."""
    return ((given,), {}) if isinstance(given, Tensor) else ((), dict(given))


def _images(given: Given) -> int:
    return len(tree_leaves(given)[0])


def _of(given: Given, images: int, seed: int | None = None) -> Given:
    """Repeat the input to so many images; with a seed, replace floating-point values by random ones."""

    def several(value: Tensor) -> Tensor:
        value = value[torch.arange(images, device=value.device) % len(value)]
        if seed is None or not value.is_floating_point():
            return value
        return torch.randn(value.shape, generator=torch.Generator().manual_seed(seed)).to(value)

    return tree_map(several, given)


def _convert(model: nn.Module, given: Given, file: Path, dynamic: bool) -> Any:
    """Write the file, and return its graph as an object of onnx_ir."""
    args, named = _arguments(given)
    axis = {0: torch.export.Dim("images")}
    shapes: Any = (axis,) if args else dict.fromkeys(named, axis)
    onnx: Any = torch.onnx
    try:
        program = onnx.export(
            model,
            args,
            kwargs=named,
            dynamo=True,
            dynamic_shapes=shapes if dynamic else None,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        cause = error.__cause__ or error
        raise ExportError(
            f"torch cannot convert {type(model).__name__} to ONNX: {type(cause).__name__}: "
            f"{textwrap.shorten(str(cause), 600)}"
        ) from error
    program.save(file)
    return program.model.graph


def _session(file: Path) -> Any:
    """Open the file in ONNX Runtime, with torch's number of threads."""
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _run(session: Any, given: Given) -> list[Tensor]:
    """Run the file, and return its outputs as tensors."""
    names = [one.name for one in session.get_inputs()]
    named = {names[0]: given} if isinstance(given, Tensor) else given
    try:
        found = session.run(None, {name: named[name].cpu().numpy() for name in names})
    except Exception as error:  # ONNX Runtime's error classes have no public names
        raise ExportError(
            f"ONNX Runtime cannot run the file on {_images(given)} images: "
            f"{textwrap.shorten(str(error), 400)} If the model takes one batch size only, pass "
            "dynamic=False"
        ) from error
    return [torch.tensor(output) for output in found]


def _call(model: nn.Module, given: Given) -> list[Tensor]:
    """Return the outputs of the model as a list."""
    args, named = _arguments(given)
    return [leaf.cpu() for leaf in tree_leaves(model(*args, **named)) if isinstance(leaf, Tensor)]


def _gap(found: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest difference relative to the output's largest value; infinite if shapes differ."""
    if [one.shape for one in found] != [one.shape for one in expected]:
        return math.inf
    gaps = [
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)
    ]
    return math.nan if any(map(math.isnan, gaps)) else max(gaps)
