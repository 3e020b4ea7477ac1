"""Checkpoints of a training as safetensors: weights, the optimiser's state, and the curve so far."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer

from tokenzoo._core.quoting import quote
from tokenzoo.errors import BadArgumentError
from tokenzoo.stored_weights import header

Curve = list[dict[str, float]]
"""What was noted of the steps: losses, and at some steps scores."""


def write(
    path: Path, about: str, step: int, curve: Curve, modules: nn.Module, optimiser: Optimizer
) -> None:
    """Write a checkpoint; a file of that name is replaced at once, or not at all.

    Args:
        path: of the file.
        about: what is trained, on what and how: only the same can go on from here.
        step: steps that are done.
        curve: so far.
        modules: all that learns.
        optimiser: of its parameters.
    """
    tensors = {f"module.{name}": value for name, value in modules.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{key}": value for key, value in state.items()}
    said = {"about": about, "step": str(step), "curve": json.dumps(curve)}
    # Of a whole model that is trained, some tensors may be views of others.
    whole = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(save(whole, said))
    os.replace(partial, path)


def read(path: Path, about: str, modules: nn.Module, optimiser: Optimizer) -> tuple[int, Curve]:
    """Take up what `write` wrote: into the modules and the optimiser.

    Returns:
        The steps that are done, and the curve.

    Raises:
        BadArgumentError: the file is damaged, or of another training; nothing was changed.
    """
    try:
        data = path.read_bytes()
        tensors, said = load(data), header(data)
        step, curve, of = int(said["step"]), json.loads(said["curve"]), said["about"]
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise BadArgumentError(
            f"{quote(path, 200)} is not a checkpoint of `tokenzoo train`: {quote(error, 200)}. Delete it "
            "to start anew"
        ) from error
    own = {n.removeprefix("module."): t for n, t in tensors.items() if n.startswith("module.")}
    wanted = modules.state_dict()
    if of != about or {n: t.shape for n, t in own.items()} != {
        n: t.shape for n, t in wanted.items()
    }:
        raise BadArgumentError(
            f"{quote(path, 200)} is a checkpoint of another training: {quote(of, 500)}; this one is "
            f"{quote(about, 500)}. Delete it to start anew, or pass the same options"
        )
    modules.load_state_dict(own)
    optimiser.load_state_dict({**optimiser.state_dict(), "state": _states(tensors)})
    return step, curve


def as_json(about: dict[str, Any], curve: Curve) -> str:
    """Return what was measured as JSON, a step a line, numbers to five digits after the point."""
    steps = (json.dumps({name: round(value, 5) for name, value in one.items()}) for one in curve)
    text = json.dumps(about, indent=1).removesuffix("\n}")
    return text + ',\n "curve": [\n  ' + ",\n  ".join(steps) + "\n ]\n}\n"


def _states(tensors: dict[str, Tensor]) -> dict[int, dict[str, Any]]:
    """Return the optimiser's state of each parameter."""
    found: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".")
            found.setdefault(int(index), {})[key] = value
    return found
