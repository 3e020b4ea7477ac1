"""What a caller gives to `reduce`, checked and made into evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from tokenzoo._core.kinds import INT_END
from tokenzoo._core.precision import precise
from tokenzoo._core.quoting import quote
from tokenzoo._core.tensors import FLOATS, check_dense
from tokenzoo._core.validation import check_number
from tokenzoo.attention import SeenAttention
from tokenzoo.errors import BadArgumentError
from tokenzoo.evidence import TEXT, Evidence, Layer
from tokenzoo.tokens import Tokens, shape_of

# What `reduce` takes beside x, and the shapes allowed; `N` counts the prefix tokens too.
_SHAPES = {
    "keys": ("bNd", "bhNd"),
    "queries": ("bNd", "bhNd"),
    "values": ("bNd", "bhNd"),
    "received_attention": ("bN",),
    "cls_attention": ("bN", "bhN"),
    "last_attention": ("bN", "bhN"),
    "text_attention": ("btN", "bhtN"),
    "text_rotation": ("btN",),
    "text": ("btc",),
}


def gather_evidence(
    tokens: Tokens, at: Mapping[Layer, Mapping[str, Any]], shown: Mapping[str, Any]
) -> Evidence:
    """Make the evidence of patch tokens out of tensors about the whole input.

    Raises:
        BadArgumentError: an unknown name, or a shape that does not fit.
    """
    known = {*_SHAPES, "grid", "frames", "depth"}
    unknown = [name for name in shown if name not in known]
    if unknown:
        # Another layer's can have any names.
        names = ", ".join(sorted(quote(name).strip("'") for name in unknown))
        raise BadArgumentError(
            f"unknown evidence {names}; reduce takes x, mass, prefix, protected, at, "
            f"{', '.join(sorted(known))}"
        )
    check_layers(at)
    p, n = tokens.prefix, tokens.x.shape[1]
    b = tokens.x.shape[0]
    given: dict[str, Tensor] = {}
    for name, shapes in _SHAPES.items():
        value = shown.get(name)
        if value is None:
            continue
        check_dense(name, value)
        sizes = {"b": b, "N": n}
        if not any(_fits(value, shape, sizes) for shape in shapes):
            wanted = " or ".join("[" + ", ".join(shape) + "]" for shape in shapes)
            raise BadArgumentError(
                f"{name} has shape {shape_of(value)}; it is a tensor {wanted} with "
                f"b = {b} images and N = {n} tokens, prefix tokens included, and at least one head and "
                "channel"
            )
        given[name] = _check_real(name, value, tokens.x)
    for name in ("keys", "queries", "values"):
        if name in given and given[name].ndim == 3:
            given[name] = given[name][:, None]  # one head
    for name in ("cls_attention", "last_attention"):
        if name in given and given[name].ndim == 2:
            given[name] = given[name][:, None]
    if "text_attention" in given and given["text_attention"].ndim == 3:
        given["text_attention"] = given["text_attention"][:, None]
    attention = None
    if "keys" in given and "queries" in given:
        query, key = given["queries"], given["keys"]
        if query.shape != key.shape:
            raise BadArgumentError(
                f"queries {tuple(query.shape)} and keys {tuple(key.shape)} have different shapes"
            )
        attention = SeenAttention(precise(query), precise(key), query.shape[-1] ** -0.5, p)
    show = {
        name: (lambda value=value, name=name: _without_prefix(value, p, name == "text_attention"))
        for name, value in given.items()
        if name != "text"
    }
    patches = tokens.patches
    return Evidence(
        patches.x,
        mass=patches.mass,
        show=show,
        attention=attention,
        prefix=p,
        grid=_check_grid(shown.get("grid"), n - p),
        frames=_check_frames(shown.get("frames"), n - p),
        depth=_check_depth(shown.get("depth")),
        text=given.get("text"),
        layers={layer: _layer(tokens, layer, values) for layer, values in at.items()},
    )


def check_layers(at: Any) -> None:
    """Raise unless `at` maps layers to what each of them shows.

    Raises:
        BadArgumentError: it does not.
    """
    if not isinstance(at, Mapping):
        raise BadArgumentError(
            f"at={quote(at)}; it maps a layer to what it shows: {{-2: {{'cls_attention': ...}}}}"
        )
    for layer, shown in cast("Mapping[Any, Any]", at).items():
        number = isinstance(layer, int) and not isinstance(layer, bool) and abs(layer) < INT_END
        if not number and not isinstance(layer, str):
            raise BadArgumentError(
                f"at has the layer {quote(layer)}; a layer is an int or a name: -2, 'text', 'clip'"
            )
        if not isinstance(shown, Mapping):
            raise BadArgumentError(
                f"at[{quote(layer)}] is a {type(shown).__name__}; it maps names to tensors: "
                "{'cls_attention': ...}, or 'x', 'keys', 'queries', 'received_attention'"
            )


def _layer(tokens: Tokens, layer: Layer, shown: Mapping[str, Any]) -> Evidence:
    """The evidence of another layer: its own x, or, where only attention is given, this one's."""
    values = dict(shown)
    if layer == TEXT:
        return gather_evidence(_text(tokens, values.pop("x", None)), {}, values)
    x = values.pop("x", tokens.x)
    check_dense(f"at[{quote(layer)}]['x']", x)
    if not isinstance(x, Tensor) or x.shape[:2] != tokens.x.shape[:2]:
        raise BadArgumentError(
            f"at[{quote(layer)}]['x'] has shape {shape_of(x)}; it has the same images and "
            f"tokens as x: {tuple(tokens.x.shape[:2])}"
        )
    return gather_evidence(Tokens(x, tokens.mass, tokens.prefix), {}, values)


def _text(tokens: Tokens, x: Any) -> Tokens:
    """The text tokens behind the visual ones: as many as there are, and none of them is a prefix token."""
    b, _, c = tokens.x.shape
    check_dense(f"at['{TEXT}']['x']", x)
    if not _fits(x, "btc", {"b": b, "c": c}):
        raise BadArgumentError(
            f"at['{TEXT}']['x'] has shape {shape_of(x)}; it holds the hidden states of the t text tokens "
            f"after the last visual one, t >= 0: a tensor [b, t, c] with b = {b} images and c = {c} "
            "channels, as x has"
        )
    x = _check_real(f"at['{TEXT}']['x']", x, tokens.x)
    return Tokens(x, torch.ones(x.shape[:2], dtype=torch.float32, device=x.device))


def _check_real(name: str, value: Tensor, x: Tensor) -> Tensor:
    """Return what goes together with x: floating-point, on its device."""
    if value.dtype not in FLOATS or value.device != x.device:
        raise BadArgumentError(
            f"{name} has dtype {value.dtype} on {value.device}; it is floating-point, of 16 bits or more, "
            f"on the device of x, {x.device}"
        )
    return value


def _fits(value: Any, shape: str, sizes: Mapping[str, int]) -> bool:
    if not isinstance(value, Tensor) or value.ndim != len(shape):
        return False
    return all(
        sizes.get(letter, size) == size and (size > 0 or letter not in "hdc")
        for letter, size in zip(shape, value.shape, strict=True)
    )


def _without_prefix(value: Tensor, prefix: int, last: bool) -> Tensor:
    """Cut the prefix off `[b, N]`, `[b, h, N]`, `[b, h, N, d]`, or the last dimension."""
    if last:
        return value[..., prefix:]
    return value[:, prefix:] if value.ndim == 2 else value[:, :, prefix:]


def _check_grid(grid: Any, tokens: int) -> tuple[int, int] | None:
    if grid is None:
        return None
    sizes = tuple(cast("tuple[Any, ...]", grid)) if isinstance(grid, list | tuple) else ()
    if len(sizes) != 2 or any(not isinstance(size, int) or size < 1 for size in sizes):
        raise BadArgumentError(f"grid={quote(grid)}; it is (rows, columns) of the patch tokens")
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
            f"frames={quote(frames)}; it is a number of frames that divides the {tokens} patch tokens"
        )
    return frames


def _check_depth(depth: Any) -> float | None:
    return None if depth is None else float(check_number("depth", depth, 0, 1))
