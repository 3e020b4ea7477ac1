"""The weights of learned parts in a safetensors file, next to the recipe's JSON: tensors, never code.

The JSON names the file and its SHA-256; the file's header names the model that the weights were made for.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from tokenzoo._core.quoting import quote
from tokenzoo.errors import BadArgumentError
from tokenzoo.learned import Made, modules, parts_that_learn
from tokenzoo.recipe import Recipe

LARGEST = 2**31
"""Maximal size of a file in bytes."""


def state_of(recipe: Recipe) -> dict[str, Tensor]:
    """Return the tensors of all modules of a recipe's parts, by name; {} if it has none."""
    return {
        name: value.detach().contiguous()
        for name, value in nn.ModuleList(modules(recipe.steps)).state_dict().items()
    }


def write(recipe: Recipe, path: Path) -> dict[str, str]:
    """Write the weights of a recipe to a file.

    Returns:
        What the recipe's JSON says of it: its name and its SHA-256.

    Raises:
        OSError: it cannot be written.
    """
    made = next((part.weights.made for part in parts_that_learn(recipe.steps)), None)
    about = {} if made is None else {"made_for": json.dumps(asdict(made))}
    data = save({name: value.cpu() for name, value in state_of(recipe).items()}, about)
    path.write_bytes(data)
    return {"file": path.name, "sha256": hashlib.sha256(data).hexdigest()}


def read(recipe: Recipe, said: object, folder: Path) -> None:
    """Give a recipe the weights of a file.

    Args:
        recipe: whose parts have no weights yet.
        said: what the recipe's JSON says of the file.
        folder: where the JSON is.

    Raises:
        BadArgumentError: the file is missing, damaged, or not for this recipe; nothing of it is used.
    """
    entry = cast("dict[str, Any]", said) if isinstance(said, dict) else {}
    name, wanted = entry.get("file"), entry.get("sha256")
    if not isinstance(name, str) or not isinstance(wanted, str) or Path(name).name != name:
        raise BadArgumentError(
            f"weights={quote(said)}; a saved recipe names a file next to it: "
            '{"file": "recipe.safetensors", "sha256": "..."}'
        )
    path = folder / name
    try:
        if path.stat().st_size > LARGEST:
            raise _damaged(path, f"it has more than {LARGEST} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise BadArgumentError(
            f"{quote(path, 200)} cannot be read: {error}. A saved recipe with learned parts is two files: "
            "keep them together"
        ) from error
    if hashlib.sha256(data).hexdigest() != wanted:
        raise _damaged(path, "its SHA-256 is not the one that the recipe names")
    try:
        tensors = load(data)
        made = _made(data)
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise _damaged(path, quote(error, 200)) from error
    _give(recipe, tensors, made, path)


def header(data: bytes) -> dict[str, str]:
    """Return the texts in the header of a safetensors file whose tensors were read."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]).get("__metadata__", {})


def _made(data: bytes) -> Made | None:
    """Return the model that the header of a file names."""
    about = header(data)
    if "made_for" not in about:
        return None
    found = json.loads(about["made_for"])
    found["counts"] = tuple(found["counts"])
    made = Made(**found)
    numbers = (made.width, made.tokens, *made.counts)
    if not isinstance(made.model, str) or not all(type(n) is int and n > 0 for n in numbers):  # pyright: ignore
        raise ValueError(f"made_for={about['made_for']}")
    return made


def _give(recipe: Recipe, tensors: dict[str, Tensor], made: Made | None, path: Path) -> None:
    learned = parts_that_learn(recipe.steps)
    for part in learned:
        if made is None:
            raise _damaged(path, "its header does not name the model that it was made for")
        part.weights.make(part, made)
    wanted = state_of(recipe)
    missing, extra = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    shapes = [n for n in wanted if n in tensors and tensors[n].shape != wanted[n].shape]
    if missing or extra or shapes:
        for part in learned:
            part.weights.clear()
        odd = [*(f"no {n}" for n in missing[:1]), *(f"{n}, which no part has" for n in extra[:1])]
        odd += [
            f"{n} of shape {list(tensors[n].shape)}, not {list(wanted[n].shape)}"
            for n in shapes[:1]
        ]
        raise _damaged(path, f"for this recipe it has {'; '.join(odd)}")
    module = nn.ModuleList(modules(recipe.steps))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.data = tensors[name].clone()
        for name, buffer in module.named_buffers():
            buffer.copy_(tensors[name])


def _damaged(path: Path, why: str) -> BadArgumentError:
    return BadArgumentError(
        f"{quote(path, 200)} is not the weights of this recipe: {why}. Save the recipe again with "
        "zoo.save(path), and keep its two files together"
    )
