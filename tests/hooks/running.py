"""How the tests of hooks make a model, and run it in a forward pass or a backward one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.adapters.models import VIT, Case, gap
from tests.conformance.specs import SPECS, fresh


def made(name: str, depth: int = 2) -> tuple[Any, Callable[[], Tensor]]:
    """A model of the conformance suite, and a call of it."""
    model, spec = fresh(name, depth), SPECS[name]
    given = spec.give(model)
    return model, lambda: spec.read(model(**given))


def pooled(output: Tensor) -> Tensor:
    """What a tower says about an image: the last row, where it returns all tokens too."""
    return output if output.ndim == 2 else output[:, -1]


def blocks_of(model: nn.Module, depth: int) -> Any:
    kinds = (nn.ModuleList, nn.Sequential)
    return next(m for m in model.modules() if isinstance(m, kinds) and len(m) == depth)


def tiny(case: Case = VIT, **options: Any) -> Any:
    """Two blocks and 16 patches: quick to compile."""
    return case.build(**{"depth": 2, "img_size": 64, **options})


def run(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def gradients(model: nn.Module, *batches: Tensor) -> dict[str, Tensor]:
    """Of several forwards and one backward."""
    model.zero_grad()
    outputs = [model(x) for x in batches]
    torch.stack([out.square().sum() for out in outputs]).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 0.0) -> bool:
    return one.keys() == other.keys() and all(gap(one[k], other[k]) <= tolerance for k in one)
