"""The arguments of `reduce` by name: their shapes, their checks, and the evidence made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, TypedDict, cast, get_type_hints

import torch
from torch import Tensor

from tokenzoo._core.kinds import INT_END
from tokenzoo._core.precision import precise
from tokenzoo._core.quoting import LONGEST, quote
from tokenzoo._core.tensors import FLOATS, check_dense
from tokenzoo._core.validation import check_number
from tokenzoo.attention import SeenAttention
from tokenzoo.errors import BadArgumentError, shortened
from tokenzoo.evidence import TEXT, Evidence, Layer
from tokenzoo.tokens import Tokens, shape_of


@dataclass(frozen=True)
class Shapes:
    """The shapes that an input can have, one letter per dimension; `N` counts prefix tokens too.

    Where there are two, the second has heads: a tensor of the first is one head.
    """

    allowed: tuple[str, ...]

    def __init__(self, *allowed: str) -> None:
        object.__setattr__(self, "allowed", allowed)


class EvidenceInputs(TypedDict, total=False):
    """The evidence that `Method.reduce` takes by name; None is the same as leaving it out.

    Letters: b images, N tokens (prefix tokens first), h heads, d head width, c channels, t text tokens.
    Tensors are floating-point, on the device of x.

    Attributes:
        keys: keys of the attention, `[b, N, d]` or `[b, h, N, d]`.
        queries: as `keys`; with both, received and CLS attention are computed where they are not given.
        values: as `keys`.
        received_attention: attention that each token receives, mean over heads and queries, `[b, N]`.
        cls_attention: attention that CLS pays to each token, `[b, N]` or `[b, h, N]`.
        last_attention: attention that the last token of a language model's prompt pays, `[b, N]` or
            `[b, h, N]`.
        text_attention: attention that the t text tokens after the last visual one pay, `[b, t, N]` or
            `[b, h, t, N]`.
        text_rotation: logits of the same pairs for queries and keys of ones, rotated to their positions,
            `[b, t, N]`.
        text: embeddings of a question, `[b, t, c]`.
        grid: (rows, columns) of the patch tokens.
        frames: number of frames that the patch tokens belong to; it divides their number.
        depth: position of the block in its tower, from 0 (first) to 1.
    """

    keys: Annotated[Tensor | None, Shapes("bNd", "bhNd")]
    queries: Annotated[Tensor | None, Shapes("bNd", "bhNd")]
    values: Annotated[Tensor | None, Shapes("bNd", "bhNd")]
    received_attention: Annotated[Tensor | None, Shapes("bN")]
    cls_attention: Annotated[Tensor | None, Shapes("bN", "bhN")]
    last_attention: Annotated[Tensor | None, Shapes("bN", "bhN")]
    text_attention: Annotated[Tensor | None, Shapes("btN", "bhtN")]
    text_rotation: Annotated[Tensor | None, Shapes("btN")]
    text: Annotated[Tensor | None, Shapes("btc")]
    grid: tuple[int, int] | None
    frames: int | None
    depth: float | None


_HINTS = get_type_hints(EvidenceInputs, include_extras=True)
_SHAPES: dict[str, tuple[str, ...]] = {
    name: rule.allowed
    for name, hint in _HINTS.items()
    for rule in getattr(hint, "__metadata__", ())
    if isinstance(rule, Shapes)
}


def gather_evidence(
    tokens: Tokens, at: Mapping[Layer, Mapping[str, Any]], inputs: Mapping[str, Any]
) -> Evidence:
    """Make the evidence of the patch tokens from tensors for the whole input.

    Args:
        tokens: the whole input, N tokens.
        at: maps other layers to their inputs.
        inputs: see `EvidenceInputs`.

    Raises:
        BadArgumentError: an unknown name, or a value that does not fit.
    """
    unknown = [name for name in inputs if name not in _HINTS]
    if unknown:
        # A mapping for another layer can have keys that are not strings.
        names = ", ".join(sorted(quote(name).strip("'") for name in unknown))
        raise BadArgumentError(
            f"unknown evidence {names}; reduce takes x, mass, prefix, protected, at, "
            f"{', '.join(sorted(_HINTS))}"
        )
    check_layers(at)
    p, n = tokens.prefix, tokens.x.shape[1]
    tensors = {
        name: _check_tensor(name, inputs[name], tokens.x)
        for name in _SHAPES
        if inputs.get(name) is not None
    }
    attention = None
    if "keys" in tensors and "queries" in tensors:
        query, key = tensors["queries"], tensors["keys"]
        if query.shape != key.shape:
            raise BadArgumentError(
                f"queries {tuple(query.shape)} and keys {tuple(key.shape)} have different shapes"
            )
        attention = SeenAttention(precise(query), precise(key), query.shape[-1] ** -0.5, p)
    patches = tokens.patches
    return Evidence(
        patches.x,
        mass=patches.mass,
        show={
            name: partial(_without_prefix, value, _SHAPES[name][-1].index("N"), p)
            for name, value in tensors.items()
            if name != "text"
        },
        attention=attention,
        prefix=p,
        grid=_check_grid(inputs.get("grid"), n - p),
        frames=_check_frames(inputs.get("frames"), n - p),
        depth=_check_depth(inputs.get("depth")),
        text=tensors.get("text"),
        layers={layer: _layer(tokens, layer, values) for layer, values in at.items()},
    )


def _check_tensor(name: str, value: Any, x: Tensor) -> Tensor:
    """Return an input in the shape with heads, if it has one."""
    b, n = x.shape[:2]
    shapes = _SHAPES[name]
    check_dense(name, value)
    if not any(_fits(value, shape, {"b": b, "N": n}) for shape in shapes):
        wanted = " or ".join("[" + ", ".join(shape) + "]" for shape in shapes)
        raise BadArgumentError(
            f"{name} has shape {shape_of(value)}; it must be a tensor {wanted} with b = {b} images and "
            f"N = {n} tokens, prefix tokens included, and at least one head and channel"
        )
    value = _check_real(name, value, x)
    return value[:, None] if value.ndim < len(shapes[-1]) else value


def check_layers(at: Any) -> None:
    """Raise unless `at` maps layers to mappings of inputs.

    Raises:
        BadArgumentError: `at`, a layer or the inputs of a layer have another type.
    """
    if not isinstance(at, Mapping):
        raise BadArgumentError(
            f"at={quote(at)}; it maps a layer to its evidence: {{-2: {{'cls_attention': ...}}}}"
        )
    for layer, inputs in cast("Mapping[Any, Any]", at).items():
        number = isinstance(layer, int) and not isinstance(layer, bool) and abs(layer) < INT_END
        if not number and not isinstance(layer, str):
            raise BadArgumentError(
                f"at has the layer {quote(layer)}; a layer is an int or a name: -2, 'text', 'clip'"
            )
        if not isinstance(inputs, Mapping):
            raise BadArgumentError(
                f"at[{quote(layer)}] is a {type(inputs).__name__}; it maps names to tensors: "
                "{'cls_attention': ...}, or 'x', 'keys', 'queries', 'received_attention'"
            )


def _layer(tokens: Tokens, layer: Layer, inputs: Mapping[str, Any]) -> Evidence:
    """Make the evidence of another layer; without an x of its own it has the x of this one."""
    values = dict(inputs)
    if layer == TEXT:
        return gather_evidence(_text(tokens, values.pop("x", None)), {}, values)
    x = values.pop("x", tokens.x)
    # Not `quote`, which torch 2.11 cannot compile.
    check_dense(f"at[{shortened(repr(layer), LONGEST)}]['x']", x)
    if not isinstance(x, Tensor) or x.shape[:2] != tokens.x.shape[:2]:
        raise BadArgumentError(
            f"at[{quote(layer)}]['x'] has shape {shape_of(x)}; it has the same images and "
            f"tokens as x: {tuple(tokens.x.shape[:2])}"
        )
    return gather_evidence(Tokens(x, tokens.mass, tokens.prefix), {}, values)


def _text(tokens: Tokens, x: Any) -> Tokens:
    """Make tokens of the text after the visual tokens: any number, without prefix tokens."""
    b, _, c = tokens.x.shape
    check_dense(f"at['{TEXT}']['x']", x)
    if not _fits(x, "btc", {"b": b, "c": c}):
        raise BadArgumentError(
            f"at['{TEXT}']['x'] has shape {shape_of(x)}; it has the hidden states of the t text tokens "
            f"after the last visual one, t >= 0: a tensor [b, t, c] with b = {b} images and c = {c} "
            "channels, as x has"
        )
    x = _check_real(f"at['{TEXT}']['x']", x, tokens.x)
    return Tokens(x, torch.ones(x.shape[:2], dtype=torch.float32, device=x.device))


def _check_real(name: str, value: Tensor, x: Tensor) -> Tensor:
    """Return a tensor that is floating-point and on the device of x."""
    if value.dtype not in FLOATS or value.device != x.device:
        raise BadArgumentError(
            f"{name} has dtype {value.dtype} on {value.device}; it must be floating-point, of 16 bits or "
            f"more, on the device of x, {x.device}"
        )
    return value


def _fits(value: Any, shape: str, sizes: Mapping[str, int]) -> bool:
    if not isinstance(value, Tensor) or value.ndim != len(shape):
        return False
    return all(
        sizes.get(letter, size) == size and (size > 0 or letter not in "hdc")
        for letter, size in zip(shape, value.shape, strict=True)
    )


def _without_prefix(value: Tensor, axis: int, prefix: int) -> Tensor:
    return value[(slice(None),) * axis + (slice(prefix, None),)]


def _check_grid(grid: Any, tokens: int) -> tuple[int, int] | None:
    if grid is None:
        return None
    sizes = tuple(cast("tuple[Any, ...]", grid)) if isinstance(grid, list | tuple) else ()
    if len(sizes) != 2 or any(not isinstance(size, int) or size < 1 for size in sizes):
        raise BadArgumentError(
            f"grid={quote(grid)}; it must be (rows, columns) of the patch tokens"
        )
    rows, columns = int(sizes[0]), int(sizes[1])
    if rows * columns != tokens:
        raise BadArgumentError(
            f"grid={quote(grid)} has {rows * columns} places for {tokens} patch tokens"
        )
    return rows, columns


def _check_frames(frames: Any, tokens: int) -> int | None:
    if frames is None:
        return None
    if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1 or tokens % frames:
        raise BadArgumentError(
            f"frames={quote(frames)}; it must be a number of frames that divides the {tokens} patch tokens"
        )
    return frames


def _check_depth(depth: Any) -> float | None:
    return None if depth is None else float(check_number("depth", depth, 0, 1))
